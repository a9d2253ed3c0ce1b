"""The sound of any recording as a stream of samples on the recording's own clock."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

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
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS
from common.errors import DecodeFailed, NotAudio

BLOCK_MS = 60_000

TRUNCATED = "truncated"
"""The recording ends before its header says, or in the middle of a packet."""

DAMAGED = "damaged"
"""Some packets could not be decoded; the rest is at its place on the clock."""

GAPS = "gaps"
"""Time stamps leave holes, filled with silence: packets were lost, or the recording was paused."""

HEADER_SIZE_WRONG = "header_size_wrong"
"""The header covers a part of the audio only; all of it was decoded."""

CHANNELS_INVERTED = "channels_inverted"
"""A channel that cancels another out was inverted before they were mixed."""

CHANNELS_LEFT_OUT = "channels_left_out"
"""A channel of loud noise was left out of the mix while another holds more."""

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

CLOCKLESS = frozenset(
    "aac ac3 amr amrnb amrwb dts dtshd eac3 gsm loas mlp mp3 truehd".split()  # noqa: SIM905
)
"""Formats without time stamps: FFmpeg counts frames, as long as the first was."""

PCM_FORMATS = frozenset({"au", "caf", "nistsphere", "voc", "w64"})
"""Formats that are cut into packets anywhere, so that the last is rarely a full one."""

MP3_FRAME = 2_881
"""The longest, in bytes."""

LOWEST_RATE, HIGHEST_RATE = 8_000, 384_000
"""Telephone to studio; what is beyond is made to fit where a recording keeps its own rate."""


class AudioDecoder:
    """One pass over the sound of a recording: of a file, or of one that is open and can seek.

    Iterating yields int16 pieces of a few seconds or less, interleaved: shape (frames *
    channels,). Their ``rate`` (Hz) and ``channels`` are those the recording starts with; with
    ``mono`` they are 16 kHz and one (`common.audio.mix`). ``track`` is the index of the audio
    track, None the one that FFmpeg would play. Memory is constant. Silence stands where the time
    stamps leave a gap, so a frame's index is its time. Packets that do not decode are skipped and
    counted.

    Raises:
        NotAudio: when iteration starts, the file is no recording or holds no sound.
        DecodeFailed: FFmpeg cannot bring what it decodes into that form.
        Whatever reading the file raises.
    """

    def __init__(
        self, source: Path | BinaryIO, track: int | None = None, *, mono: bool = False
    ) -> None:
        self._source = source
        self._track = track
        self._converter: _Converter = _Mono() if mono else _AsRecorded()
        self._warnings: dict[str, None] = {}
        self._decoded_ms = 0.0
        self._broken_off = False
        self.damaged_packets = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong with the recording, complete after the last piece."""
        return tuple(self._warnings)

    @property
    def rate(self) -> int:
        """Frames a second; known from the first piece on."""
        return self._converter.rate

    @property
    def channels(self) -> int:
        """Samples a frame; known from the first piece on."""
        return self._converter.channels

    def __iter__(self) -> Iterator[NDArray[np.int16]]:
        with _opened(self._source) as file:
            found = file_parts(file)
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
            for frame in self._frames(container, stream, clock, part):
                gap_ms = clock.advance(frame)
                if gap_ms:
                    if converter.is_fed:
                        self._warn(GAPS)
                    yield from converter.drain()
                    converter.expect(frame)
                    yield from converter.silence(gap_ms)
                yield from converter.convert(frame)
            yield from converter.drain()
            self._decoded_ms = clock.heard_ms
            if clock.jumped:
                self._warn(CLOCK_JUMPED)
            if part.size_is == UNDERSTATED:
                self._warn(HEADER_SIZE_WRONG)
            if is_last and self._ends_early(file, part, container, stream, clock.reached_ms):
                self._warn(TRUNCATED)
            elif self._broken_off and not is_last:
                self._warn(DAMAGED)

    def _frames(
        self, container: InputContainer, stream: AudioStream, clock: _MediaClock, part: FilePart
    ) -> Iterator[av.AudioFrame]:
        """The frames that decode; the end of what can be read is the end."""
        broken = False
        tags = _Tags()
        is_pcm = part.size_is is not None or container.format.name in PCM_FORMATS
        # Where the header only says how long the whole film is, the pictures tell whether it ends.
        watched = container.streams if stream.duration is None else [stream]
        try:
            for packet in container.demux(*watched):
                if packet.stream.index != stream.index:
                    clock.see(packet)
                    continue
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
                # Of PCM the last packet is just a shorter one; headers tell if it ends too early.
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
        """Whether the file ends before the recording does, as far as its format can tell."""
        if part.size_is is not None:
            return part.size_is == CUT or self._broken_off
        if container.format.name == "mp3" and (claimed := xing_size(file)) is not None:
            # What is behind the last frame may be anything.
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
    """Tags of MP3 files that were joined; they come as packets, and do not decode."""

    def __init__(self) -> None:
        self._until = 0

    def hold(self, packet: av.Packet[Stream]) -> bool:
        """Whether ``packet``, which follows on those asked for before, begins in a tag."""
        if packet.pos is None:
            return False
        start = max(packet.pos, self._until)
        if end := tag_end(bytes(packet)[start - packet.pos :]):
            self._until = start + end
        return packet.pos < self._until


class MonoDecoder:
    """One pass over the sound of a recording, as engines want it: 16 kHz, mono.

    Iterating yields int16 blocks of shape (samples,), each ``block_ms`` long but the last; for all
    else see `AudioDecoder`.

    Raises:
        NotAudio: when iteration starts, the file is no recording or holds no sound.
        DecodeFailed: as for `AudioDecoder`; and at the end, when nothing could be decoded.
    """

    def __init__(
        self, source: Path | BinaryIO, block_ms: int = BLOCK_MS, track: int | None = None
    ) -> None:
        self._sound = AudioDecoder(source, track, mono=True)
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


class _MediaClock:
    """Compares time stamps with what was heard; time 0 is where the recording starts.

    A stream of audio may start later than the film it belongs to. ``before_ms`` is what was decoded
    of earlier parts. Formats without time stamps go by what is decoded alone.
    """

    def __init__(self, container: InputContainer, before_ms: float) -> None:
        start = container.start_time
        self._runs = container.format.name not in CLOCKLESS
        self._zero_ms = None if start is None else start * 1000 / av.time_base - before_ms
        self._before_ms = before_ms
        self.heard_ms = before_ms
        self.seen_ms = 0.0
        self.jumped = False

    @property
    def reached_ms(self) -> float:
        """How far this part goes, audio or pictures."""
        return max(self.heard_ms - self._before_ms, self.seen_ms)

    def see(self, packet: av.Packet[Stream]) -> None:
        """Count a packet of pictures as seen."""
        if packet.pts is not None and packet.time_base is not None:
            until = (packet.pts + (packet.duration or 0)) * packet.time_base
            start_ms = (self._zero_ms or 0) + self._before_ms
            self.seen_ms = max(self.seen_ms, float(until * 1000) - start_ms)

    def advance(self, frame: av.AudioFrame) -> int:
        """Count ``frame`` as heard; give the milliseconds of silence that belong before it."""
        gap_ms = 0
        if self._runs and frame.time is not None:
            at_ms = frame.time * 1000
            if self._zero_ms is None:
                self._zero_ms = at_ms - self.heard_ms
            lag_ms = at_ms - self._zero_ms - self.heard_ms
            if not -LEAP_BACK_MS <= lag_ms <= LONGEST_GAP_MS:
                self.jumped = True
                self._zero_ms = at_ms - self.heard_ms
            elif lag_ms > GAP_MS:
                gap_ms = round(lag_ms)
        self.heard_ms += gap_ms + frame.samples * 1000 / frame.sample_rate
        return gap_ms


class _Converter(ABC):
    """To one format; starts anew when the sound changes its own on the way."""

    rate = 0
    channels = 0

    def __init__(self) -> None:
        self._format: tuple[object, ...] | None = None
        self._resampler: av.AudioResampler | None = None

    @property
    def is_fed(self) -> bool:
        """Whether there was any sound since the start."""
        return self._format is not None

    @property
    def warnings(self) -> Iterable[str]:
        """What had to be done to the audio."""
        return ()

    @abstractmethod
    def expect(self, frame: av.AudioFrame) -> None:
        """Take over the format of ``frame``, unless there is one already."""

    @abstractmethod
    def _new_resampler(self, frame: av.AudioFrame) -> av.AudioResampler:
        """For what is like ``frame``."""

    @abstractmethod
    def _samples(self, frame: av.AudioFrame) -> NDArray[np.int16]:
        """What the resampler gives, as it is yielded."""

    def convert(self, frame: av.AudioFrame) -> Iterator[NDArray[np.int16]]:
        self.expect(frame)
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if found != self._format:
            yield from self.drain()
            self._format = found
        if self._resampler is None:
            self._resampler = self._new_resampler(frame)
        frame.pts = None  # the clock is kept outside, and the filter would warn of every leap
        try:
            converted = self._resampler.resample(frame)
        except av.FFmpegError as error:
            reason = f"nothing can be made of {frame.layout.nb_channels} channels"
            raise DecodeFailed(reason=f"{reason} ({error.strerror})") from error
        yield from map(self._samples, converted)

    def drain(self) -> Iterator[NDArray[np.int16]]:
        """Give what is held back, and be ready for sound that does not follow on."""
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            yield from map(self._samples, resampler.resample(None))

    def silence(self, duration_ms: int) -> Iterator[NDArray[np.int16]]:
        second = np.zeros(self.rate * self.channels, np.int16)
        left = duration_ms * self.rate // 1000
        while left > 0:
            taken = min(left, self.rate)
            yield second[: taken * self.channels]
            left -= taken


class _AsRecorded(_Converter):
    """To the rate and the channels that the recording starts with."""

    def expect(self, frame: av.AudioFrame) -> None:
        if not self.rate:
            self.rate = min(max(frame.sample_rate, LOWEST_RATE), HIGHEST_RATE)
            self.channels = frame.layout.nb_channels
            self._layout = frame.layout

    def _new_resampler(self, frame: av.AudioFrame) -> av.AudioResampler:  # noqa: ARG002
        # 1 s a frame that comes out, because each costs as much as decoding 10 ms.
        return av.AudioResampler("s16", self._layout, self.rate, self.rate)

    def _samples(self, frame: av.AudioFrame) -> NDArray[np.int16]:
        return _interleaved(frame)


class _Mono(_Converter):
    """To 16 kHz and one channel. FFmpeg resamples all there are; the mix is our own."""

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


def _opened(source: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def _claimed_ms(container: InputContainer, stream: AudioStream) -> float:
    """How long the sound should be by a header; 0 where FFmpeg guesses it from the bit rate."""
    if container.format.name in CLOCKLESS | {"mpeg", "mpegts"}:
        return 0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base * 1000)
    return (container.duration or 0) * 1000 / av.time_base


def _is_cut_riff(file: BinaryIO) -> bool:
    """Whether an AVI file is shorter than it says."""
    file.seek(0)
    head = file.read(8)
    claimed = int.from_bytes(head[4:], "little") + len(head)
    missing = claimed - file.seek(0, os.SEEK_END)
    return head[:4] == b"RIFF" and missing > RIFF_PADDING and not is_placeholder(claimed)
