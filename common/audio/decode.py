"""Decodes any recording to a stream of samples on the recording's own clock."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from numpy.typing import NDArray

from common.audio.mix import BLOCK, Mixer
from common.audio.parts import (
    CUT,
    RIFF_PADDING,
    UNDERSTATED,
    FilePart,
    file_parts,
    has_last_ogg_page,
    is_placeholder,
    tag_end,
    xing_size,
)
from common.audio.probe import audio_stream, decode_packet, has_usable_rate, open_container
from common.audio.skipping import skip
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS
from common.errors import DecodeFailed, NotAudio

BLOCK_MS = 60_000

TRUNCATED = "truncated"
"""The recording ends earlier than its header says, or inside a packet."""

DAMAGED = "damaged"
"""Some packets could not be decoded; the times of the others are unaffected."""

GAPS = "gaps"
"""Time stamps have gaps, filled with silence: packets were lost, or the recording was paused."""

HEADER_SIZE_WRONG = "header_size_wrong"
"""The header covers only a part of the audio; all of it was decoded."""

CHANNELS_INVERTED = "channels_inverted"
"""A channel that cancels another one out was inverted before mixing."""

CHANNELS_LEFT_OUT = "channels_left_out"
"""A channel of loud noise was left out of the mix where another has speech."""

CLOCK_JUMPED = "clock_jumped"
"""Time stamps jump back, or ahead by more than an hour; times continue from before the jump."""

GAP_MS = 200
"""A lag behind the time stamps that is filled with silence.

Containers round time stamps to as much as 64 ms a packet (FLV, ASF), which must not become audible;
with a longer lag, subtitles would be visibly late (Netflix allows 250 ms).
"""

LONGEST_GAP_MS = 3_600_000
"""A longer gap is a broken time stamp: a small file must not become hours of silence."""

LEAP_BACK_MS = 1_000
"""Time stamps this far back start anew, as in concatenated recordings."""

SHORTFALL_MS = 1_000
SHORTFALL_SHARE = 0.001
"""Less than either is no truncation: headers count padding, and round."""

CLOCKLESS = frozenset(
    "aac ac3 amr amrnb amrwb dts dtshd eac3 gsm loas mlp mp3 truehd".split()  # noqa: SIM905
)
"""Formats without time stamps: FFmpeg counts frames, at the length of the first."""

PCM_FORMATS = frozenset({"au", "caf", "nistsphere", "voc", "w64"})
"""Formats that are cut into packets anywhere, so that the last is rarely full."""

WARM_UP_MS = 13_000
"""What is decoded before the audio that is wanted: as much as `common.audio.mix` considers."""

MP3_FRAME = 2_881
"""The longest frame, in bytes."""

LOWEST_RATE, HIGHEST_RATE = 8_000, 384_000
"""Telephone to studio; other rates are resampled where a recording keeps its own rate."""


class AudioDecoder:
    """One pass over the audio of a recording: a file, or an open seekable one.

    Iterating yields int16 pieces of a few seconds or less, interleaved: shape (frames *
    channels,). Their ``rate`` (Hz) and ``channels`` are those the recording starts with, unless a
    ``rate`` is given; with ``mono`` they are 16 kHz and one (`common.audio.mix`). ``track`` is the
    index of the audio track, None the one that FFmpeg would play. Memory is constant. Gaps in the
    time stamps are filled with silence, so a frame's index is its time. Packets that do not decode
    are skipped and counted.

    With ``start_ms``, only the audio from there on is wanted: where that moves no time
    (`common.audio.skipping`), what comes before is not decoded but silence, except for the last
    `WARM_UP_MS`. A frame's index still is its time. The samples differ a little from those of a
    complete decoding, and so does the mix of several channels, whose weights depend on the past.
    In mono PCM or FLAC at 16 kHz they are the same. Use it only for recordings whose complete
    decoding did not have the warning `DAMAGED`; ``warnings`` are incomplete.

    Raises:
        NotAudio: when iteration starts, the file is not a recording or has no audio.
        DecodeFailed: FFmpeg cannot convert what it decodes.
        Errors of reading the file.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        track: int | None = None,
        *,
        mono: bool = False,
        rate: int | None = None,
        start_ms: int = 0,
    ) -> None:
        self._source = source
        self._skipped_ms = start_ms - WARM_UP_MS
        self._track = track
        self._converter: _Converter = _Mono() if mono else _AsRecorded(rate)
        self._warnings: dict[str, None] = {}
        self._decoded_ms = 0.0
        self._broken_off = False
        self.damaged_packets = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Faults of the recording, complete after the last piece."""
        return tuple(self._warnings)

    @property
    def rate(self) -> int:
        """Frames a second; known after the first piece."""
        return self._converter.rate

    @property
    def channels(self) -> int:
        """Samples a frame; known after the first piece."""
        return self._converter.channels

    def __iter__(self) -> Iterator[NDArray[np.int16]]:
        with _opened(self._source) as file:
            found = file_parts(file)
            if len(found) > 1:
                self._skipped_ms = 0  # only its decoding shows how long a part is
            for part in found:
                try:
                    yield from self._part(part.of(file), part, is_last=part is found[-1])
                except NotAudio:
                    if part.start == 0 or not self._converter.is_fed:
                        raise
                    self._warn(DAMAGED)
        for warning in self._converter.warnings:
            self._warn(warning)

    def _part(
        self, file: BinaryIO, part: FilePart, *, is_last: bool
    ) -> Iterator[NDArray[np.int16]]:
        with open_container(file) as container:
            stream = audio_stream(container, self._track)
            clock = _MediaClock(container, self._decoded_ms)
            converter = self._converter
            packets = _audio_packets(container, stream, clock)
            if self._skipped_ms > 0:
                first = skip(packets, stream, clock, self._skipped_ms)
                if first is None:
                    self._skipped_ms = 0
                    yield from self._part(file, part, is_last=is_last)
                    return
                converter.expect(first)
                yield from converter.silence(clock.decoded_ms)
            is_pcm = part.size_is is not None or container.format.name in PCM_FORMATS
            for frame in self._frames(packets, is_pcm=is_pcm):
                gap_ms = clock.advance(frame.time, frame.samples, frame.sample_rate)
                if gap_ms:
                    if converter.is_fed:
                        self._warn(GAPS)
                    yield from converter.drain()
                    converter.expect(frame)
                    yield from converter.silence(gap_ms)
                yield from converter.convert(frame)
            yield from converter.drain()
            self._decoded_ms = clock.decoded_ms
            if clock.jumped:
                self._warn(CLOCK_JUMPED)
            if part.size_is == UNDERSTATED:
                self._warn(HEADER_SIZE_WRONG)
            if is_last and self._ends_early(file, part, container, stream, clock.reached_ms):
                self._warn(TRUNCATED)
            elif self._broken_off and not is_last:
                self._warn(DAMAGED)

    def _frames(
        self, packets: Iterator[av.Packet[Stream]], *, is_pcm: bool
    ) -> Iterator[av.AudioFrame]:
        """The frames that decode, up to the end or the first read error."""
        broken = False
        tags = _Tags()
        try:
            for packet in packets:
                frames = decode_packet(packet)
                if frames is None or not all(map(has_usable_rate, frames)):
                    if not tags.hold(packet):
                        self.damaged_packets += 1
                        broken = True
                    continue
                yield from frames
                if broken and frames and packet.size:
                    self._warn(DAMAGED)
                    broken = False
                # The last packet of PCM is just shorter; headers show if it ends too early.
                broken |= packet.is_corrupt and not is_pcm
        except av.FFmpegError:
            broken = True
        self._broken_off = broken

    def _ends_early(
        self,
        file: BinaryIO,
        part: FilePart,
        container: InputContainer,
        stream: AudioStream,
        reached_ms: float,
    ) -> bool:
        """Whether the file ends before the recording does, as far as its format shows it."""
        if part.size_is is not None:
            return part.size_is == CUT or self._broken_off
        if container.format.name == "mp3" and (claimed := xing_size(file)) is not None:
            # Anything may follow the last frame.
            return claimed - file.seek(0, os.SEEK_END) > MP3_FRAME
        if self._broken_off:
            return True
        if container.format.name == "ogg":
            return not has_last_ogg_page(file)
        if container.format.name == "avi":
            return _is_cut_riff(file)
        claimed_ms = _claimed_ms(container, stream)
        return claimed_ms - reached_ms > max(SHORTFALL_MS, SHORTFALL_SHARE * claimed_ms)

    def _warn(self, code: str) -> None:
        self._warnings[code] = None


class _Tags:
    """Tags of concatenated MP3 files; they come as packets that do not decode."""

    def __init__(self) -> None:
        self._until = 0

    def hold(self, packet: av.Packet[Stream]) -> bool:
        """Whether ``packet``, which follows the packets of earlier calls, begins in a tag."""
        if packet.pos is None:
            return False
        start = max(packet.pos, self._until)
        if end := tag_end(bytes(packet)[start - packet.pos :]):
            self._until = start + end
        return packet.pos < self._until


class BlockDecoder(AudioDecoder):
    """One pass over the audio of a recording at the engines' rate, 16 kHz.

    Iterating yields int16 blocks, each ``block_ms`` long except the last; for the rest see
    `AudioDecoder`.

    Raises:
        NotAudio: when iteration starts, the file is not a recording or has no audio.
        DecodeFailed: as for `AudioDecoder`; and at the end, when nothing could be decoded.
    """

    _mono: ClassVar[bool]
    """Whether blocks are of the mix of all channels."""

    def __init__(
        self,
        source: Path | BinaryIO,
        block_ms: int = BLOCK_MS,
        track: int | None = None,
        *,
        start_ms: int = 0,
    ) -> None:
        super().__init__(source, track, mono=self._mono, rate=SAMPLE_RATE, start_ms=start_ms)
        self._block_samples = block_ms * SAMPLES_PER_MS
        self.samples = 0
        """The number of samples of each channel yielded."""

    @property
    def duration_ms(self) -> int:
        """The time decoded so far, rounded up."""
        return -(-self.samples // SAMPLES_PER_MS)

    def __iter__(self) -> Iterator[NDArray[np.int16]]:
        block: NDArray[np.int16] | None = None
        filled = 0
        for interleaved in super().__iter__():
            piece = interleaved if self._mono else interleaved.reshape(-1, self.channels)
            if block is None:
                block = np.empty((self._block_samples, *piece.shape[1:]), np.int16)
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
        if block is not None and filled:
            yield block[:filled]
        if not self.samples:
            raise DecodeFailed(reason="none of its packets can be decoded")


class MonoDecoder(BlockDecoder):
    """Decodes a recording to mono: blocks of shape (samples,)."""

    _mono = True


class ChannelDecoder(BlockDecoder):
    """Decodes the channels of a recording separately: blocks of shape (samples, channels)."""

    _mono = False


class _MediaClock:
    """Compares time stamps with the audio decoded so far; time 0 is the recording's start.

    An audio stream may start later than its film. ``before_ms`` is the length of earlier parts.
    Formats without time stamps rely on the decoded length alone.
    """

    def __init__(self, container: InputContainer, before_ms: float) -> None:
        start = container.start_time
        self._runs = container.format.name not in CLOCKLESS
        self._zero_ms = None if start is None else start * 1000 / av.time_base - before_ms
        self._before_ms = before_ms
        self.decoded_ms = before_ms
        self.seen_ms = 0.0
        self.jumped = False

    @property
    def reached_ms(self) -> float:
        """The end of this part so far, of audio or pictures."""
        return max(self.decoded_ms - self._before_ms, self.seen_ms)

    def see(self, packet: av.Packet[Stream]) -> None:
        """Count a packet of pictures."""
        if packet.pts is not None and packet.time_base is not None:
            until = (packet.pts + (packet.duration or 0)) * packet.time_base
            start_ms = (self._zero_ms or 0) + self._before_ms
            self.seen_ms = max(self.seen_ms, float(until * 1000) - start_ms)

    def lag_ms(self, time_s: float | None) -> float:
        """How far a time stamp is ahead of the audio counted; 0 where there is none."""
        if not self._runs or time_s is None or self._zero_ms is None:
            return 0.0
        return time_s * 1000 - self._zero_ms - self.decoded_ms

    def advance(self, time_s: float | None, samples: int, rate: int) -> int:
        """Count audio that begins at a time stamp; returns the milliseconds of silence before it.

        ``samples`` at a ``rate`` in Hz are its length.
        """
        gap_ms = 0
        if self._runs and time_s is not None:
            at_ms = time_s * 1000
            if self._zero_ms is None:
                self._zero_ms = at_ms - self.decoded_ms
            lag_ms = self.lag_ms(time_s)
            if not -LEAP_BACK_MS <= lag_ms <= LONGEST_GAP_MS:
                self.jumped = True
                self._zero_ms = at_ms - self.decoded_ms
            elif lag_ms > GAP_MS:
                gap_ms = round(lag_ms)
        self.decoded_ms += gap_ms + samples * 1000 / rate
        return gap_ms


class _Converter(ABC):
    """Converts to one format; starts anew where the audio changes its own."""

    rate = 0
    channels = 0

    def __init__(self) -> None:
        self._format: tuple[object, ...] | None = None
        self._resampler: av.AudioResampler | None = None

    @property
    def is_fed(self) -> bool:
        """Whether there was any audio since the start."""
        return self._format is not None

    @property
    def warnings(self) -> Iterable[str]:
        """What had to be done to the audio."""
        return ()

    @abstractmethod
    def expect(self, frame: av.AudioFrame) -> None:
        """Adopt the format of ``frame``, unless there is one already."""

    @abstractmethod
    def _new_resampler(self, frame: av.AudioFrame) -> av.AudioResampler:
        """A resampler for frames like ``frame``."""

    @abstractmethod
    def _samples(self, frame: av.AudioFrame) -> NDArray[np.int16]:
        """The resampler's output, as it is yielded."""

    def convert(self, frame: av.AudioFrame) -> Iterator[NDArray[np.int16]]:
        self.expect(frame)
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if found != self._format:
            yield from self.drain()
            self._format = found
        if self._resampler is None:
            self._resampler = self._new_resampler(frame)
        frame.pts = None  # the clock is kept elsewhere, and the filter would warn of every jump
        try:
            converted = self._resampler.resample(frame)
        except av.FFmpegError as error:
            reason = f"its {frame.layout.nb_channels} channels cannot be converted"
            raise DecodeFailed(reason=f"{reason} ({error.strerror})") from error
        yield from map(self._samples, converted)

    def drain(self) -> Iterator[NDArray[np.int16]]:
        """Yield what is buffered, and prepare for audio that does not continue it."""
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            yield from map(self._samples, resampler.resample(None))

    def silence(self, duration_ms: float) -> Iterator[NDArray[np.int16]]:
        second = np.zeros(self.rate * self.channels, np.int16)
        left = round(duration_ms * self.rate / 1000)
        while left > 0:
            taken = min(left, self.rate)
            yield second[: taken * self.channels]
            left -= taken


class _AsRecorded(_Converter):
    """Converts to a rate, None: the recording's first one, and to the channels it starts with."""

    def __init__(self, rate: int | None) -> None:
        super().__init__()
        self._asked = rate

    def expect(self, frame: av.AudioFrame) -> None:
        if not self.rate:
            self.rate = self._asked or min(max(frame.sample_rate, LOWEST_RATE), HIGHEST_RATE)
            self.channels = frame.layout.nb_channels
            self._layout = frame.layout

    def _new_resampler(self, frame: av.AudioFrame) -> av.AudioResampler:  # noqa: ARG002
        # Output frames of 1 s, because each costs as much as decoding 10 ms.
        return av.AudioResampler("s16", self._layout, self.rate, self.rate)

    def _samples(self, frame: av.AudioFrame) -> NDArray[np.int16]:
        return _interleaved(frame)


class _Mono(_Converter):
    """Converts to 16 kHz and one channel. FFmpeg resamples; `Mixer` mixes the channels."""

    rate = SAMPLE_RATE
    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self._mixer: Mixer | None = None
        self._warnings: dict[str, None] = {}

    @property
    def warnings(self) -> Iterable[str]:
        return self._warnings

    def expect(self, frame: av.AudioFrame) -> None:
        pass

    def _new_resampler(self, frame: av.AudioFrame) -> av.AudioResampler:
        count = frame.layout.nb_channels
        if count == 1:
            self._mixer = None
            return av.AudioResampler("s16", "mono", SAMPLE_RATE, SAMPLE_RATE)
        if self._mixer is None or self._mixer.channels != count:
            self._mixer = Mixer(count)
        return av.AudioResampler("flt", frame.layout, SAMPLE_RATE, BLOCK)

    def _samples(self, frame: av.AudioFrame) -> NDArray[np.int16]:
        samples = _interleaved(frame)
        if self._mixer is None:
            return samples
        return self._mixer.feed(samples.reshape(-1, self._mixer.channels))

    def drain(self) -> Iterator[NDArray[np.int16]]:
        yield from super().drain()
        if self._mixer is not None:
            yield self._mixer.finish()
            if self._mixer.inverted:
                self._warnings[CHANNELS_INVERTED] = None
            if self._mixer.left_out:
                self._warnings[CHANNELS_LEFT_OUT] = None


def _interleaved(frame: av.AudioFrame) -> NDArray[Any]:
    samples: NDArray[Any] = frame.to_ndarray()[0]
    return samples


def _audio_packets(
    container: InputContainer, stream: AudioStream, clock: _MediaClock
) -> Iterator[av.Packet[Stream]]:
    """The packets of the audio; those of pictures are counted on the clock."""
    # Where the header only has the length of the whole film, its pictures show whether it ends.
    watched = container.streams if stream.duration is None else [stream]
    for packet in container.demux(*watched):
        if packet.stream.index == stream.index:
            yield packet
        else:
            clock.see(packet)


def _opened(source: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def _claimed_ms(container: InputContainer, stream: AudioStream) -> float:
    """The length that a header states; 0 where FFmpeg guesses it from the bit rate."""
    if container.format.name in CLOCKLESS | {"mpeg", "mpegts"}:
        return 0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base * 1000)
    return (container.duration or 0) * 1000 / av.time_base


def _is_cut_riff(file: BinaryIO) -> bool:
    """Whether an AVI file is shorter than its header says."""
    file.seek(0)
    head = file.read(8)
    claimed = int.from_bytes(head[4:], "little") + len(head)
    missing = claimed - file.seek(0, os.SEEK_END)
    return head[:4] == b"RIFF" and missing > RIFF_PADDING and not is_placeholder(claimed)
