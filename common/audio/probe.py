"""What a file holds, told from its content; cheap, and no header is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from common.errors import NotAudio, TooLarge

FORMATS = (
    "aac,ac3,adts,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,"
    "mpegts,ogg,rm,tta,voc,w64,wav,wv"
)
"""The containers that are opened. Play lists and the like stay out: they name other files, and
FFmpeg would read those for whoever uploads one."""

TRIAL_PACKETS = 200
"""Packets of sound tried before a file counts as undecodable: 4 s and more."""

TRIAL_BYTES = 64 << 20
"""How far into a file its first sound may lie."""

BUFFER_BYTES = 64 << 10
"""What FFmpeg reads at once."""

HOUR_MS = 3_600_000
LOWEST_BIT_RATE = 200
"""Bits a second below which a claimed duration cannot be true; silence in FLAC takes 400."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a recording says about itself.

    ``duration_ms`` is the header's claim, None where there is none or it cannot be true; only
    decoding tells. ``container`` and ``codec`` are FFmpeg's names.
    """

    container: str
    codec: str
    duration_ms: int | None
    channels: int
    sample_rate: int
    has_video: bool


def probe(path: Path) -> Probe:
    """Look into the file at ``path``, and decode the first sound in it.

    Raises:
        NotAudio: the file is empty, is no recording, has no sound, or none that decodes.
    """
    size = path.stat().st_size
    if size == 0:
        raise NotAudio(reason="the file is empty")
    with path.open("rb") as file, open_container(file) as container:
        stream = best_sound(container)
        first = _first_frame(container, stream)
        return Probe(
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            duration_ms=_plausible_ms(container, size),
            channels=first.layout.nb_channels,
            sample_rate=first.sample_rate,
            has_video=any(not _is_picture(video) for video in container.streams.video),
        )


def check_length(duration_ms: int | None, max_hours: float) -> None:
    """Pass where a recording is short enough, or does not tell how long it is.

    Raises:
        TooLarge: it is longer.
    """
    if duration_ms is not None and duration_ms > max_hours * HOUR_MS:
        value = f"{duration_ms / HOUR_MS:.1f} hours"
        raise TooLarge(field="file", limit=f"{max_hours:g} hours of sound", value=value)


@contextmanager
def open_container(file: BinaryIO) -> Iterator[InputContainer]:
    """Open ``file``, from its start, as a recording, by content.

    Whatever reading it raises is raised again at the end of the block at the latest: FFmpeg takes
    some failures for the end of the file.

    Raises:
        NotAudio: it is none.
    """
    file.seek(0)
    watched = _Watched(file)
    # FFmpeg itself opens nothing: all it gets is what is read from ``file``.
    allowed = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        try:
            container = av.open(
                watched,
                "r",
                options=allowed,
                metadata_errors="replace",
                buffer_size=BUFFER_BYTES,
            )
        except av.FFmpegError as error:
            raise NotAudio(
                reason="not a recording in a known format, or its index is missing"
            ) from error
        with container:
            yield container
    finally:
        watched.check()


class _Watched:
    """A file as PyAV reads it, which stays failed once it has."""

    name = "recording"  # or PyAV would hand on the path, and FFmpeg look at its ending

    def __init__(self, file: BinaryIO) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read
        self._failure: Exception | None = None

    def read(self, count: int) -> bytes:
        self.check()
        try:
            return self._read(count)
        except Exception as error:
            self._failure = error
            raise

    def check(self) -> None:
        """Raise what reading has raised."""
        if self._failure is not None:
            raise self._failure


def best_sound(container: InputContainer) -> AudioStream:
    """The stream of sound that FFmpeg would play, decoding on one thread.

    Raises:
        NotAudio: there is none, or no decoder for it.
    """
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        has_video = bool(container.streams.video)
        raise NotAudio(reason="the video has no sound" if has_video else "it has no sound")
    stream.codec_context.thread_count = 1
    return stream


def _first_frame(container: InputContainer, stream: AudioStream) -> av.AudioFrame:
    """The first sound that decodes, within the limits of a trial.

    Raises:
        NotAudio: nothing did.
    """
    packets = read = 0
    try:
        for packet in container.demux(stream):
            frames = decode_packet(packet)
            if frames:
                return frames[0]
            packets += 1
            read += packet.size
            if packets >= TRIAL_PACKETS or read > TRIAL_BYTES:
                break
    except av.FFmpegError as error:
        raise NotAudio(reason=f"reading it failed ({error.strerror})") from error
    raise NotAudio(reason="nothing in it can be decoded")


def decode_packet(packet: av.Packet[AudioStream]) -> list[av.AudioFrame]:
    """The sound in a packet; none where it is damaged."""
    try:
        return [frame for frame in packet.decode() if frame.samples and frame.sample_rate]
    except av.FFmpegError:
        return []


def _plausible_ms(container: InputContainer, size: int) -> int | None:
    if not container.duration or container.duration < 0:
        return None
    duration_ms = container.duration * 1000 // av.time_base
    too_thin = size * 8 * 1000 < LOWEST_BIT_RATE * duration_ms
    return None if too_thin else duration_ms


def _is_picture(video: VideoStream) -> bool:
    """Whether it is a cover and no film."""
    return bool(video.disposition & Disposition.attached_pic)
