"""Cuts decoded blocks into chunks with their PCM, while the rest is still being decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.audio.silence import SilenceFinder, SilenceOptions
from common.audio.vad import VadFinder
from common.domain.cutting import (
    ChunkGrouper,
    CutOptions,
    FixedCutter,
    Speech,
    WindowCutter,
    reaching,
)
from common.domain.request import Strategy
from common.domain.values import BYTES_PER_MS, SAMPLES_PER_MS, Chunk, Window

if TYPE_CHECKING:
    from common.audio.silero import SileroNetwork


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How to cut a recording: the strategy, and the options of each part."""

    strategy: Strategy = "vad"
    cut: CutOptions = field(default_factory=CutOptions)
    silence: SilenceOptions = field(default_factory=SilenceOptions)


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk and the PCM of its ``audio``: 16 kHz, mono, 16 bit, little-endian."""

    chunk: Chunk
    pcm: bytes


SpeechFinder = SilenceFinder | VadFinder
"""Reports speech in order, in pieces that fit a window."""


class Planner:
    """Cuts one recording, fed block by block, into chunks.

    The chunks depend on the samples and the options alone, not on the blocks. Only PCM that is not
    returned yet is kept: a few windows.

    After `finish`, ``duration_ms`` is the recording's length, rounded up, and ``speech_ms`` the
    speech in all windows. A recording without speech gives no chunks.

    Args:
        options: how to cut.
        network: the voice activity network; only the strategy ``vad`` needs it.

    Raises:
        ValueError: the strategy ``vad`` without a network.
    """

    def __init__(self, options: PlanOptions, network: SileroNetwork | None = None) -> None:
        self._cutting = _cutting(options, network)
        self._grouper = ChunkGrouper()
        self._pcm = bytearray()
        self._pcm_from_ms = 0
        self._samples = 0
        self._ready: list[Chunk] = []
        self._last: list[PlannedChunk] = []
        """The latest chunk waits for the next: the last one includes the silence at the end."""
        self.speech_ms = 0

    @property
    def duration_ms(self) -> int:
        return -(-self._samples // SAMPLES_PER_MS)

    def feed(self, block: NDArray[np.int16]) -> list[PlannedChunk]:
        """Take the next samples (shape (samples,), any number); returns the finished chunks."""
        self._keep(block)
        self._group(self._cutting.feed(block))
        self._ready += self._grouper.advance(self._cutting.needed_from_ms)
        return self._hand_out()

    def finish(self) -> list[PlannedChunk]:
        """End the recording; returns the remaining chunks."""
        missing = np.zeros(-self._samples % SAMPLES_PER_MS, np.int16)
        self._keep(missing)
        self._group(self._cutting.feed(missing))
        self._group(self._cutting.finish(self.duration_ms))
        self._ready += self._grouper.finish()
        planned = self._hand_out()
        return planned + [
            replace(last, chunk=reaching(last.chunk, self.duration_ms)) for last in self._last
        ]

    def _keep(self, block: NDArray[np.int16]) -> None:
        self._pcm += block.astype("<i2", copy=False).tobytes()
        self._samples += len(block)

    def _group(self, windows: Sequence[Window]) -> None:
        for window in windows:
            self.speech_ms += window.speech_ms
            self._ready += self._grouper.feed(window)

    def _hand_out(self) -> list[PlannedChunk]:
        """Return the chunks whose PCM is complete, and drop the PCM that is not needed any more."""
        known_ms = self._samples // SAMPLES_PER_MS
        count = sum(chunk.audio.end_ms <= known_ms for chunk in self._ready)
        planned = [PlannedChunk(chunk, self._read(chunk)) for chunk in self._ready[:count]]
        planned = self._last + planned
        self._last = planned[-1:]
        del self._ready[:count]
        starts = [chunk.audio.start_ms for chunk in self._ready]
        begun = self._grouper.needed_from_ms
        starts += [self._cutting.needed_from_ms, *([] if begun is None else [begun])]
        needed = min(known_ms, *starts)
        del self._pcm[: (needed - self._pcm_from_ms) * BYTES_PER_MS]
        self._pcm_from_ms = needed
        return planned[:-1]

    def _read(self, chunk: Chunk) -> bytes:
        start, end = (
            (ms - self._pcm_from_ms) * BYTES_PER_MS
            for ms in (chunk.audio.start_ms, chunk.audio.end_ms)
        )
        return bytes(self._pcm[start:end])


class _BySpeech:
    """Windows around the speech that a finder reports."""

    def __init__(self, finder: SpeechFinder, options: CutOptions) -> None:
        self._finder = finder
        self._cutter = WindowCutter(options)
        self._reach = max(options.pad_ms, options.overlap_ms // 2)

    @property
    def needed_from_ms(self) -> int:
        """No later window has audio before this."""
        begun = self._cutter.needed_from_ms
        return max(0, self._finder.settled_ms - self._reach) if begun is None else begun

    def feed(self, block: NDArray[np.int16]) -> list[Window]:
        windows = self._cut(self._finder.feed(block))
        return windows + self._cutter.advance(self._finder.settled_ms)

    def finish(self, duration_ms: int) -> list[Window]:
        return self._cut(self._finder.finish()) + self._cutter.finish(duration_ms)

    def _cut(self, found: list[Speech]) -> list[Window]:
        return [window for speech in found for window in self._cutter.feed(speech)]


class _ByLength:
    """Windows of one length."""

    def __init__(self, options: CutOptions) -> None:
        self._cutter = FixedCutter(options)
        self._samples = 0

    @property
    def needed_from_ms(self) -> int:
        """No later window has audio before this."""
        return self._cutter.needed_from_ms

    def feed(self, block: NDArray[np.int16]) -> list[Window]:
        self._samples += len(block)
        return self._cutter.advance(self._samples // SAMPLES_PER_MS)

    def finish(self, duration_ms: int) -> list[Window]:
        return self._cutter.finish(duration_ms)


def _cutting(options: PlanOptions, network: SileroNetwork | None) -> _BySpeech | _ByLength:
    if options.strategy == "fixed":
        return _ByLength(options.cut)
    if options.strategy == "silence":
        return _BySpeech(SilenceFinder(options.silence, options.cut), options.cut)
    if network is None:
        raise ValueError("the strategy vad needs a network")
    return _BySpeech(VadFinder(network, options.cut), options.cut)
