"""Diarization of a chunk by two networks: pyannote's segmentation, and embeddings of voices.

The segmentation classifies a window of some seconds at a time, for each 17 ms: nobody, one of three
voices, or two of them. The voices are those of a window only, and sometimes two people count as
one. So each voice is cut into stretches of two seconds, and the clustering of the whole recording
decides by their embeddings. An embedding costs as much as six seconds of segmentation: what is
between two stretches that are alike gets none.
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
from common.diarization.filter_banks import FRAME, STEP, filter_banks, frame_count, is_narrow
from common.domain.speakers import Spoken, Stretch
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Span
from common.errors import EngineFailed, WeightsUnusable
from common.weights.manifest import DIARIZATION

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

LONGEST, SHORTEST = 20 * SAMPLE_RATE, 10 * SAMPLE_RATE
"""Samples that the segmentation takes. It was trained with 10 s. With windows of 20 s the error
rate is about the same, and fewer embeddings are needed; with 30 s it is twice as high. Less audio
is filled up with zeros."""
OVERLAP = 1 * SAMPLE_RATE
"""Samples that two windows share, about. The first one counts in the first half of these, the other
in the second: the network is less sure at the edges."""
VOICES = 3
_CLASSES = np.array(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], bool
)
"""The voices that speak in each of the segmentation's classes."""
_SHIFT = 270
_OFFSET = 360
"""Samples between two frames of the segmentation, and before what the first one stands for: its
receptive field has 991 samples."""

PAUSE_S = 0.5
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
_SURE = 100
"""In frames of 10 ms, of one voice alone. With less, an embedding says too little to compare."""
ALIKE = 0.3
"""The least cosine of two stretches of a voice in a window that vouch for those in between. Over
three quarters of the pairs that are compared are so much alike."""
ALIKE_NARROW = 2.0
"""Over a telephone, whose band makes voices alike, none vouch for others: no cosine is so large."""


@dataclass(frozen=True, slots=True)
class SegmentedWindow:
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


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch without its embedding, which is to be made of these frames of the features."""

    spoken: tuple[Spoken, ...]
    frames: NDArray[np.intp]
    alone: bool

    @property
    def sure(self) -> bool:
        return self.alone and len(self.frames) >= _SURE

    def stretch(
        self, window: int, voice: int, embedding: Floats | None, samples: Samples
    ) -> Stretch:
        if embedding is None:
            return Stretch(window, voice, self.spoken, alone=self.alone)
        return Stretch(
            window,
            voice,
            self.spoken,
            embedding.astype("<f2").tobytes(),
            len(self.frames) * STEP // SAMPLES_PER_MS,
            self.alone,
            is_narrow(samples, self.frames),
        )


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
        stretches: list[Stretch] = []
        for number, window in enumerate(self.segment(samples)):
            for voice in range(VOICES):
                pieces = list(_pieces(window, voice, frame_count(len(samples))))
                embeddings = self._embeddings(pieces, samples)
                stretches += [
                    piece.stretch(number, voice, embeddings.get(at), samples)
                    for at, piece in enumerate(pieces)
                ]
        return sorted(stretches, key=lambda it: (it.span, it.voice))

    def segment(self, samples: Samples) -> Iterator[SegmentedWindow]:
        """The windows of a chunk's audio: who speaks when in each, without embeddings."""
        length, starts = _layout(len(samples))
        for at, start in enumerate(starts):
            part = samples[start : start + length]
            padded = np.pad(part, (0, length - len(part)))
            (classes,) = _run(self._segmentation, padded[None, None])
            active = _CLASSES[classes[0].argmax(axis=1)]
            first = 0 if at == 0 else (starts[at - 1] + length + start) // 2
            last = len(samples)
            if at + 1 < len(starts):
                last = (start + length + starts[at + 1]) // 2
            yield SegmentedWindow(start, active, first, last)

    def _embeddings(self, pieces: Sequence[_Piece], samples: Samples) -> dict[int, Floats]:
        """The embeddings of a voice in a window, by the number of the piece.

        Of the pieces that are sure the first and the last; where these are not alike, the one in
        the middle as well, and so on for both halves. Pieces before and after have their own.
        """
        sure = [at for at, piece in enumerate(pieces) if piece.sure]
        first, last = (sure[0], sure[-1]) if sure else (len(pieces), 0)
        found = {
            at: self._embed(piece, samples)
            for at, piece in enumerate(pieces)
            if not first < at < last and len(piece.frames) >= _MIN_EMBEDDED
        }
        narrow = bool(sure) and is_narrow(samples, pieces[first].frames)
        least = ALIKE_NARROW if narrow else ALIKE
        unseen = [sure]
        while unseen:
            part = unseen.pop()
            if len(part) > 2 and found[part[0]] @ found[part[-1]] < least:
                middle = len(part) // 2
                found[part[middle]] = self._embed(pieces[part[middle]], samples)
                unseen += [part[: middle + 1], part[middle:]]
        return found

    def _embed(self, piece: _Piece, samples: Samples) -> Floats:
        features = filter_banks(samples, piece.frames)
        (found,) = _run(self._embedding, (features - features.mean(axis=0))[None])
        unit: Floats = found[0] / np.linalg.norm(found[0])
        return unit


def _layout(length: int) -> tuple[int, list[int]]:
    """The length of the windows of so many samples, and where they start: evenly spread."""
    count = max(1, -(-(length - OVERLAP) // (LONGEST - OVERLAP)))
    window = max(SHORTEST, -(-(length + (count - 1) * OVERLAP) // count))
    left = max(0, length - window)
    return window, [left * at // max(1, count - 1) for at in range(count)]


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


def _pieces(window: SegmentedWindow, voice: int, count: int) -> Iterator[_Piece]:
    """The pieces of a voice that count in a window of audio with ``count`` frames of features."""
    for frames in _cut(window.active[:, voice], window.owned):
        active = window.active[frames]
        others = active.sum(axis=1) > 1
        spoken = [
            Spoken(span, overlapped=overlapped)
            for overlapped in (False, True)
            for run in _runs(active[:, voice] & (others == overlapped))
            if (span := _span(window, frames.start, run)).duration_ms
        ]
        if not spoken:
            continue
        used = _feature_frames(window, frames.start, active[:, voice] & ~others, count)
        alone = len(used) >= _MIN_ALONE
        if not alone:
            used = _feature_frames(window, frames.start, active[:, voice], count)
        excess = max(0, len(used) - round(EMBEDDED_S * SAMPLE_RATE / STEP))
        used = used[excess // 2 : len(used) - (excess + 1) // 2]
        yield _Piece(tuple(sorted(spoken, key=lambda it: it.span)), used, alone)


def _span(window: SegmentedWindow, first: int, run: slice) -> Span:
    """The time of a run of frames, counted from the frame ``first``."""
    start, stop = (
        min(max(window.sample_of(first + frame), window.first), window.last) // SAMPLES_PER_MS
        for frame in (run.start, run.stop)
    )
    return Span(start, stop)


def _feature_frames(
    window: SegmentedWindow, first: int, flags: Flags, count: int
) -> NDArray[np.intp]:
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
