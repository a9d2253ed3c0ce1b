"""The sound of any recording as a stream of samples on the recording's own clock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from numpy.typing import NDArray

from common.audio.probe import best_sound, open_container
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS
from common.errors import DecodeFailed

BLOCK_MS = 60_000

TRUNCATED = "truncated"
"""The recording ends before its header says, or in the middle of a packet."""

DAMAGED = "damaged"
"""Some packets could not be decoded; the rest is at its place on the clock."""

GAPS = "gaps"
"""Time stamps leave holes, filled with silence: packets were lost, or the recording was paused."""

CLOCK_JUMPED = "clock_jumped"
"""Time stamps leap back, or ahead by more than an hour: counted on from where the sound was."""

GAP_MS = 200
"""A lag behind the time stamps that is filled with silence.

Containers round time stamps to as much as 64 ms a packet (FLV, ASF), which must not be heard;
above, the words would visibly be late in subtitles (Netflix allows 250 ms).
"""

LONGEST_GAP_MS = 3_600_000
"""A longer one is a broken time stamp: a small file must not become hours of silence."""

LEAP_BACK_MS = 1_000
"""Time stamps that far behind what was heard start anew, as in recordings strung together."""

SHORTFALL_MS = 1_000
SHORTFALL_SHARE = 0.001
"""Less than both is no truncation: headers count padding, and round."""

GUESSED = frozenset({"aac", "ac3", "amr", "dts", "eac3", "mpeg", "mpegts"})
"""Formats without a header that says how long they are."""

RIFF_PADDING = 8
"""Bytes that some writers count but do not write: their own header, the last chunk's padding."""

RIFF_UNKNOWN = 0x7FFF_0000
"""Sizes from here on are placeholders (SoX 0x7FFFF..., FFmpeg 0xFFFFFFFF)."""

LOWEST_RATE, HIGHEST_RATE = 8_000, 384_000
MOST_CHANNELS = 8
"""Telephone to studio; what claims to be beyond is made to fit."""

OGG_PAGE = 65_307
"""The largest page (RFC 3533, section 6), in bytes."""


class Sound:
    """One pass over the sound of a recording: of a file, or of one that is open and can seek.

    Iterating yields int16 pieces of about a second or less, interleaved: shape (frames *
    channels,). ``rate`` (Hz) and ``layout`` (FFmpeg's name) are what to make of it, by default
    what it starts with. Memory is constant. Silence stands where the time stamps leave a gap, so
    a frame's index is its time. Packets that do not decode are skipped and counted.

    Raises:
        NotAudio: when iteration starts, the file is no recording or holds no sound.
        DecodeFailed: FFmpeg cannot bring what it decodes into that form.
        Whatever reading the file raises.
    """

    def __init__(
        self, source: Path | BinaryIO, rate: int | None = None, layout: str | None = None
    ) -> None:
        self._source = source
        self._resampler = _Resampler(rate, layout)
        self._warnings: dict[str, None] = {}
        self.damaged_packets = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong with the recording, complete after the last piece."""
        return tuple(self._warnings)

    @property
    def rate(self) -> int:
        """Frames a second; known from the first piece on."""
        return self._resampler.rate

    @property
    def channels(self) -> int:
        """Samples a frame; known from the first piece on."""
        return self._resampler.channels

    def __iter__(self) -> Iterator[NDArray[np.int16]]:
        with _opened(self._source) as file, open_container(file) as container:
            stream = best_sound(container)
            clock = _Clock(container)
            resampler = self._resampler
            for frame in self._frames(container, stream, clock):
                gap_ms = clock.advance(frame)
                if gap_ms:
                    if resampler.is_fed:
                        self._warn(GAPS)
                    yield from resampler.drain()
                    resampler.expect(frame)
                    yield from resampler.silence(gap_ms)
                yield from resampler.resample(frame)
            yield from resampler.drain()
            if clock.jumped:
                self._warn(CLOCK_JUMPED)
            if _ends_early(file, container, stream, clock.reached_ms):
                self._warn(TRUNCATED)

    def _frames(
        self, container: InputContainer, stream: AudioStream, clock: _Clock
    ) -> Iterator[av.AudioFrame]:
        """The frames that decode; the end of what can be read is the end."""
        broken = False
        # Where the header only says how long the whole film is, the pictures tell whether it ends.
        watched = container.streams if stream.duration is None else [stream]
        try:
            for packet in container.demux(*watched):
                if packet.stream.index != stream.index:
                    clock.see(packet)
                    continue
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self.damaged_packets += 1
                    broken = True
                    continue
                for frame in frames:
                    if isinstance(frame, av.AudioFrame) and frame.samples and frame.sample_rate:
                        yield frame
                if broken and frames and packet.size:
                    self._warn(DAMAGED)
                    broken = False
                broken |= packet.is_corrupt
        except av.FFmpegError:
            broken = True
        if broken:
            self._warn(TRUNCATED)

    def _warn(self, code: str) -> None:
        self._warnings[code] = None


class Decoding:
    """One pass over the sound of a recording, as engines want it: 16 kHz, mono.

    Iterating yields int16 blocks of shape (samples,), each ``block_ms`` long but the last; for all
    else see `Sound`.

    Raises:
        NotAudio: when iteration starts, the file is no recording or holds no sound.
        DecodeFailed: as for `Sound`; and at the end, when nothing could be decoded.
    """

    def __init__(self, source: Path | BinaryIO, block_ms: int = BLOCK_MS) -> None:
        self._sound = Sound(source, SAMPLE_RATE, "mono")
        self._block_samples = block_ms * SAMPLES_PER_MS
        self.samples = 0
        """How many samples were yielded."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong with the recording, complete after the last block."""
        return self._sound.warnings

    @property
    def damaged_packets(self) -> int:
        return self._sound.damaged_packets

    @property
    def duration_ms(self) -> int:
        """The time decoded so far; a broken millisecond counts as a whole one."""
        return -(-self.samples // SAMPLES_PER_MS)

    def __iter__(self) -> Iterator[NDArray[np.int16]]:
        block = np.empty(self._block_samples, np.int16)
        filled = 0
        for piece in self._sound:
            start = 0
            while start < len(piece):
                taken = min(len(piece) - start, len(block) - filled)
                block[filled : filled + taken] = piece[start : start + taken]
                start += taken
                filled += taken
                if filled == len(block):
                    self.samples += filled
                    yield block
                    block, filled = np.empty_like(block), 0
        self.samples += filled
        if filled:
            yield block[:filled]
        if not self.samples:
            raise DecodeFailed(reason="no packet of it can be decoded")


class _Clock:
    """Compares time stamps with what was heard; time 0 is where the recording starts.

    A stream of sound may start later than the film it belongs to.
    """

    def __init__(self, container: InputContainer) -> None:
        start = container.start_time
        self._zero_ms = None if start is None else start * 1000 / av.time_base
        self.heard_ms = 0.0
        self.seen_ms = 0.0
        self.jumped = False

    @property
    def reached_ms(self) -> float:
        """How far the recording goes, sound or pictures."""
        return max(self.heard_ms, self.seen_ms)

    def see(self, packet: av.Packet[Stream]) -> None:
        """Count a packet of pictures as seen."""
        if packet.pts is not None and packet.time_base is not None:
            until = (packet.pts + (packet.duration or 0)) * packet.time_base
            self.seen_ms = max(self.seen_ms, float(until * 1000) - (self._zero_ms or 0))

    def advance(self, frame: av.AudioFrame) -> int:
        """Count ``frame`` as heard; give the milliseconds of silence that belong before it."""
        gap_ms = 0
        if frame.time is not None:
            at_ms = frame.time * 1000
            if self._zero_ms is None:
                self._zero_ms = at_ms
            lag_ms = at_ms - self._zero_ms - self.heard_ms
            if not -LEAP_BACK_MS <= lag_ms <= LONGEST_GAP_MS:
                self.jumped = True
                self._zero_ms = at_ms - self.heard_ms
            elif lag_ms > GAP_MS:
                gap_ms = round(lag_ms)
        self.heard_ms += gap_ms + frame.samples * 1000 / frame.sample_rate
        return gap_ms


class _Resampler:
    """To one format; starts anew when the sound changes its own on the way."""

    def __init__(self, rate: int | None, layout: str | None) -> None:
        self._rate = rate
        self._layout = None if layout is None else av.AudioLayout(layout)
        self._format: tuple[object, ...] | None = None
        self._resampler: av.AudioResampler | None = None

    @property
    def is_fed(self) -> bool:
        """Whether there was any sound since the start."""
        return self._format is not None

    @property
    def rate(self) -> int:
        return self._rate or 0

    @property
    def channels(self) -> int:
        return self._layout.nb_channels if self._layout is not None else 0

    def expect(self, frame: av.AudioFrame) -> None:
        """Take over the format of ``frame``, unless there is one already."""
        if self._rate is None:
            self._rate = min(max(frame.sample_rate, LOWEST_RATE), HIGHEST_RATE)
        if self._layout is None:
            known = frame.layout.nb_channels <= MOST_CHANNELS
            self._layout = av.AudioLayout(frame.layout.name if known else "stereo")

    def resample(self, frame: av.AudioFrame) -> Iterator[NDArray[np.int16]]:
        self.expect(frame)
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if found != self._format:
            yield from self.drain()
            self._format = found
        if self._resampler is None:
            # 1 s a frame that comes out, because each costs as much as decoding 10 ms.
            self._resampler = av.AudioResampler("s16", self._layout, self._rate, self._rate)
        frame.pts = None  # the clock is kept outside, and the filter would warn of every leap
        try:
            converted = self._resampler.resample(frame)
        except av.FFmpegError as error:
            reason = f"nothing can be made of {frame.layout.nb_channels} channels"
            raise DecodeFailed(reason=f"{reason} ({error.strerror})") from error
        yield from map(_samples, converted)

    def drain(self) -> Iterator[NDArray[np.int16]]:
        """Give what is held back, and be ready for sound that does not follow on."""
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            yield from map(_samples, resampler.resample(None))

    def silence(self, duration_ms: int) -> Iterator[NDArray[np.int16]]:
        second = np.zeros(self.rate * self.channels, np.int16)
        left = duration_ms * self.rate // 1000
        while left > 0:
            taken = min(left, self.rate)
            yield second[: taken * self.channels]
            left -= taken


def _samples(frame: av.AudioFrame) -> NDArray[np.int16]:
    samples: NDArray[np.int16] = frame.to_ndarray()[0]
    return samples


def _opened(source: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def _ends_early(
    file: BinaryIO, container: InputContainer, stream: AudioStream, reached_ms: float
) -> bool:
    """Whether the file ends before the recording does, as far as its format can tell."""
    if container.format.name == "ogg":
        return not _has_last_ogg_page(file)
    if container.format.name in {"wav", "avi"}:
        return _is_cut_riff(file)
    claimed_ms = _claimed_ms(file, container, stream)
    return claimed_ms - reached_ms > max(SHORTFALL_MS, SHORTFALL_SHARE * claimed_ms)


def _claimed_ms(file: BinaryIO, container: InputContainer, stream: AudioStream) -> float:
    """How long the sound should be by a header; 0 where FFmpeg guesses it from the bit rate."""
    name = container.format.name
    if name in GUESSED or (name == "mp3" and not _counts_its_frames(file)):
        return 0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base * 1000)
    return (container.duration or 0) * 1000 / av.time_base


def _counts_its_frames(file: BinaryIO) -> bool:
    """Whether an MP3 has the header of Xing, LAME or Fraunhofer behind its tags."""
    file.seek(0)
    tag = file.read(10)
    if tag[:3] == b"ID3":
        size = sum(byte << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=False))
        file.seek(size + 10)
    head = file.read(2_048)
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


def _is_cut_riff(file: BinaryIO) -> bool:
    """Whether a RIFF file is shorter than it says; one that was written to a pipe cannot know."""
    file.seek(0)
    head = file.read(8)
    claimed = int.from_bytes(head[4:], "little") + len(head)
    missing = claimed - file.seek(0, os.SEEK_END)
    return head[:4] == b"RIFF" and missing > RIFF_PADDING and claimed < RIFF_UNKNOWN


def _has_last_ogg_page(file: BinaryIO) -> bool:
    """Whether the last page (RFC 3533, section 6) is whole and marked as the last of its stream."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * OGG_PAGE))
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    count = tail[start + 26]
    lengths = tail[start + 27 : start + 27 + count]
    whole = len(tail) >= start + 27 + count + sum(lengths)
    return whole and len(lengths) == count and bool(tail[start + 5] & 4)
