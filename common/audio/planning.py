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
    """A chunk and the PCM of its ``audio``: 16 kHz, mono, 16 bit, little-endian.

    ``counted_ms`` is its share of the recording's length: the time up to the end of its core that
    no chunk before it counts. Of a mono recording that is its core.
    """

    chunk: Chunk
    pcm: bytes
    counted_ms: int


SpeechFinder = SilenceFinder | VadFinder
"""Reports speech in order, in pieces that fit a window."""


class Planner:
    """Cuts one recording, fed block by block, into chunks.

    The chunks depend on the samples and the options alone, not on the blocks. Their order is that
    in which their audio starts. Only PCM that is not returned yet is kept: a few windows.

    After `finish`, ``duration_ms`` is the recording's length, rounded up, and ``speech_ms`` the
    speech in all windows. A recording without speech gives no chunks.

    Args:
        options: how to cut.
        network: the voice activity network; only the strategy ``vad`` needs it.
        channels: those to cut separately; none: the blocks are mono.

    Raises:
        ValueError: the strategy ``vad`` without a network.
    """

    def __init__(
        self,
        options: PlanOptions,
        network: SileroNetwork | None = None,
        channels: Sequence[int] = (),
    ) -> None:
        self._channels = [_Channel(options, network, channel) for channel in (channels or (None,))]
        self._ready: list[tuple[Chunk, bytes]] = []
        self._last: list[tuple[Chunk, bytes]] = []
        """The latest chunk waits for the next: the last one includes the silence at the end."""
        self._chunks = 0
        self._counted_ms = 0
        """The time that the returned chunks count."""

    @property
    def duration_ms(self) -> int:
        return self._channels[0].duration_ms

    @property
    def speech_ms(self) -> int:
        return sum(channel.speech_ms for channel in self._channels)

    def feed(self, block: NDArray[np.int16]) -> list[PlannedChunk]:
        """Take the next samples; returns the finished chunks.

        Their shape is (samples,), of any number; with channels (samples, all channels).
        """
        for channel in self._channels:
            self._ready += channel.feed(block)
        # Another channel may still find a chunk that comes first.
        from_ms = min(channel.needed_from_ms for channel in self._channels)
        in_order = self._in_order()
        count = sum(chunk.audio.start_ms < from_ms for chunk, _ in in_order)
        planned, self._ready = self._last + in_order[:count], in_order[count:]
        self._last = planned[-1:]
        return list(map(self._numbered, planned[:-1]))

    def finish(self) -> list[PlannedChunk]:
        """End the recording; returns the remaining chunks."""
        for channel in self._channels:
            self._ready += channel.finish()
        planned = self._last + self._in_order()
        if planned:
            chunk, pcm = planned[-1]
            planned[-1] = reaching(chunk, self.duration_ms), pcm
        return list(map(self._numbered, planned))

    def _in_order(self) -> list[tuple[Chunk, bytes]]:
        return sorted(self._ready, key=lambda each: (each[0].audio.start_ms, each[0].channel or 0))

    def _numbered(self, cut: tuple[Chunk, bytes]) -> PlannedChunk:
        chunk, pcm = cut
        counted_ms = max(self._counted_ms, chunk.core.end_ms)
        planned = PlannedChunk(
            replace(chunk, index=self._chunks), pcm, counted_ms - self._counted_ms
        )
        self._chunks, self._counted_ms = self._chunks + 1, counted_ms
        return planned


class _Channel:
    """Cuts one channel, or the mix, into chunks that are numbered by themselves."""

    def __init__(
        self, options: PlanOptions, network: SileroNetwork | None, channel: int | None
    ) -> None:
        self._channel = channel
        self._cutting = _cutting(options, network)
        self._grouper = ChunkGrouper()
        self._pcm = bytearray()
        self._samples = 0
        self._ready: list[Chunk] = []
        self.needed_from_ms = 0
        """No later chunk has audio before this; PCM is kept from here on."""
        self.speech_ms = 0

    @property
    def duration_ms(self) -> int:
        return -(-self._samples // SAMPLES_PER_MS)

    def feed(self, block: NDArray[np.int16]) -> list[tuple[Chunk, bytes]]:
        """Take the next samples, of all channels; returns the finished chunks with their PCM."""
        self._take(block if self._channel is None else block[:, self._channel])
        self._ready += self._grouper.advance(self._cutting.needed_from_ms)
        return self._hand_out()

    def finish(self) -> list[tuple[Chunk, bytes]]:
        """End the recording; returns the remaining chunks."""
        self._take(np.zeros(-self._samples % SAMPLES_PER_MS, np.int16))
        self._group(self._cutting.finish(self.duration_ms))
        self._ready += self._grouper.finish()
        return self._hand_out()

    def _take(self, samples: NDArray[np.int16]) -> None:
        self._pcm += samples.astype("<i2", copy=False).tobytes()
        self._samples += len(samples)
        self._group(self._cutting.feed(samples))

    def _group(self, windows: Sequence[Window]) -> None:
        for window in windows:
            self.speech_ms += window.speech_ms
            self._ready += self._grouper.feed(window)

    def _hand_out(self) -> list[tuple[Chunk, bytes]]:
        """Return the chunks whose PCM is complete, and drop the PCM that is not needed any more."""
        known_ms = self._samples // SAMPLES_PER_MS
        count = sum(chunk.audio.end_ms <= known_ms for chunk in self._ready)
        cut = [
            (replace(chunk, channel=self._channel), self._read(chunk))
            for chunk in self._ready[:count]
        ]
        del self._ready[:count]
        starts = [chunk.audio.start_ms for chunk in self._ready]
        begun = self._grouper.needed_from_ms
        starts += [self._cutting.needed_from_ms, *([] if begun is None else [begun])]
        needed = min(known_ms, *starts)
        del self._pcm[: (needed - self.needed_from_ms) * BYTES_PER_MS]
        self.needed_from_ms = needed
        return cut

    def _read(self, chunk: Chunk) -> bytes:
        start, end = (
            (ms - self.needed_from_ms) * BYTES_PER_MS
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
