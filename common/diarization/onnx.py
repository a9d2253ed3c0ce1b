"""Diarization of a chunk by two networks: pyannote's segmentation, and embeddings of voices.

The segmentation classifies ten seconds at a time, for each 17 ms: nobody, one of three voices, or
two of them. The voices are those of a window only, and sometimes two people that follow closely
count as one. So each stretch of two seconds gets an embedding of its own, and the clustering of the
whole recording decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common.diarization.diarizer import Samples
from common.diarization.filter_banks import FRAME, STEP, filter_banks
from common.domain.speakers import Spoken, Stretch
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Span
from common.errors import EngineFailed, WeightsUnusable
from common.weights.manifest import DIARIZATION

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

WINDOW = 10 * SAMPLE_RATE
"""Samples that the segmentation takes: the length that it was trained with."""
MAX_SHIFT = 8 * SAMPLE_RATE
"""Samples between the starts of two windows, at most. What they share is cut in the middle, since
the network is less sure at its edges."""
VOICES = 3
_CLASSES = np.array(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], bool
)
"""The voices that speak in each of the segmentation's classes."""
_SHIFT = 270
_OFFSET = 360
"""Samples between two frames of the segmentation, and before what the first one stands for: its
receptive field has 991 samples."""

PAUSE_S = 0.25
"""A voice that pauses no longer goes on with the same stretch."""
STRETCH_S = 2.0
"""The length into which longer stretches are cut: a change of speakers that the segmentation missed
is in one of them."""
EMBEDDED_S = 1.5
"""The middle part of a stretch of which the embedding is made: with 2.5 s the error rate is the
same."""
_MIN_ALONE = 30
_MIN_EMBEDDED = 20
"""In frames of 10 ms. With less, the whole stretch is embedded, or nothing."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The voices of one window: ``active`` has the shape (frames, `VOICES`).

    ``start`` is its first sample. The samples from ``first`` to ``last`` count: in the others, the
    window before or after does.
    """

    start: int
    active: Flags
    first: int
    last: int

    @property
    def owned(self) -> slice:
        """The frames that stand for samples that count."""
        first = max(0, (self.first - self.start - _OFFSET) // _SHIFT)
        return slice(first, -(-(self.last - self.start - _OFFSET) // _SHIFT))

    def sample_of(self, frame: int) -> int:
        """Where what the frame stands for begins."""
        return self.start + _OFFSET + frame * _SHIFT


class OnnxDiarizer:
    """The two networks on one thread.

    Args:
        segmentation, embedding: the folders of their weights, each with `model.onnx`.

    Raises:
        WeightsUnusable: a network does not load.
    """

    def __init__(self, segmentation: Path, embedding: Path) -> None:
        self._segmentation = _open(segmentation / "model.onnx")
        self._embedding = _open(embedding / "model.onnx")

    def diarize(self, samples: Samples) -> list[Stretch]:
        features = filter_banks(samples)
        stretches = [
            self._stretch(number, window, voice, frames, features)
            for number, window in enumerate(self._windows(samples))
            for voice in range(VOICES)
            for frames in _cut(window.active[:, voice], window.owned)
        ]
        return sorted(
            (stretch for stretch in stretches if stretch is not None),
            key=lambda it: (it.span, it.voice),
        )

    def _windows(self, samples: Samples) -> Iterator[_Window]:
        starts = _starts(len(samples))
        for at, start in enumerate(starts):
            part = samples[start : start + WINDOW]
            padded = np.pad(part, (0, WINDOW - len(part)))
            (classes,) = _run(self._segmentation, padded[None, None])
            active = _CLASSES[classes[0].argmax(axis=1)]
            first = 0 if at == 0 else (starts[at - 1] + WINDOW + start) // 2
            last = len(samples)
            if at + 1 < len(starts):
                last = (start + WINDOW + starts[at + 1]) // 2
            yield _Window(start, active, first, last)

    def _stretch(
        self, number: int, window: _Window, voice: int, frames: slice, features: Floats
    ) -> Stretch | None:
        """The stretch in these frames of a window; None: it is in none that count."""
        active = window.active[frames]
        others = active.sum(axis=1) > 1
        spoken = [
            Spoken(span, overlapped=overlapped)
            for overlapped in (False, True)
            for run in _runs(active[:, voice] & (others == overlapped))
            if (span := _span(window, frames.start, run)).duration_ms
        ]
        if not spoken:
            return None
        alone = _feature_frames(window, frames.start, active[:, voice] & ~others, len(features))
        is_alone = len(alone) >= _MIN_ALONE
        used = (
            alone
            if is_alone
            else _feature_frames(window, frames.start, active[:, voice], len(features))
        )
        excess = len(used) - round(EMBEDDED_S * SAMPLE_RATE / STEP)
        if excess > 0:
            used = used[excess // 2 : len(used) - (excess + 1) // 2]
        embedding = self._embed(features[used]) if len(used) >= _MIN_EMBEDDED else None
        return Stretch(
            window=number,
            voice=voice,
            spoken=tuple(sorted(spoken, key=lambda it: it.span)),
            embedding=embedding,
            embedded_ms=len(used) * STEP // SAMPLES_PER_MS if embedding else 0,
            alone=is_alone,
        )

    def _embed(self, features: Floats) -> bytes:
        (found,) = _run(self._embedding, (features - features.mean(axis=0))[None])
        unit: Floats = found[0] / np.linalg.norm(found[0])
        return unit.astype("<f2").tobytes()


def _starts(length: int) -> list[int]:
    """Where the windows of so many samples start: evenly spread, the last one ends with them."""
    left = max(0, length - WINDOW)
    count = -(-left // MAX_SHIFT)
    return [left * at // count for at in range(count + 1)] if count else [0]


def _runs(flags: Flags) -> list[slice]:
    """Where flags are set without interruption."""
    changes = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return [slice(*pair) for pair in zip(changes[::2], changes[1::2], strict=True)]


def _cut(voice: Flags, owned: slice) -> Iterator[slice]:
    """The stretches of a voice, in frames of its window."""
    joined: list[slice] = []
    for run in _runs(voice[owned]):
        start, stop = run.start + owned.start, run.stop + owned.start
        if joined and (start - joined[-1].stop) * _SHIFT <= PAUSE_S * SAMPLE_RATE:
            start = joined.pop().start
        joined.append(slice(start, stop))
    for whole in joined:
        length = whole.stop - whole.start
        count = max(1, round(length * _SHIFT / SAMPLE_RATE / STRETCH_S + 0.25))
        edges = [whole.start + length * at // count for at in range(count + 1)]
        for start, stop in pairwise(edges):
            if voice[start:stop].any():
                yield slice(start, stop)


def _span(window: _Window, first: int, run: slice) -> Span:
    """The time of a run of frames, counted from the frame ``first``."""
    start, stop = (
        min(max(window.sample_of(first + frame), window.first), window.last) // SAMPLES_PER_MS
        for frame in (run.start, run.stop)
    )
    return Span(start, stop)


def _feature_frames(window: _Window, first: int, flags: Flags, count: int) -> NDArray[np.intp]:
    """The frames of the features (of ``count``) whose middle is in the flagged frames."""
    found = []
    for run in _runs(flags):
        start, stop = (
            -(-(window.sample_of(first + frame) - FRAME // 2) // STEP)
            for frame in (run.start, run.stop)
        )
        found.append(np.arange(max(0, start), max(0, min(stop, count))))
    return np.concatenate(found) if found else np.arange(0)


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # or a plan would be kept for every length of input
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes have no common one
        model = path.parent.name.removeprefix(f"{DIARIZATION}-")
        raise WeightsUnusable(model=model, engine=DIARIZATION, reason=error) from error


def _run(session: onnxruntime.InferenceSession, x: Floats) -> Sequence[Any]:
    try:
        outputs: Sequence[Any] = session.run(None, {session.get_inputs()[0].name: x})
    except Exception as error:  # its own classes have no common one
        raise EngineFailed(reason=error) from error
    return outputs
