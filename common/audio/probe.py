"""What a file holds, told from its content; cheap, and no header is believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from common.audio.parts import file_parts
from common.domain.tracks import Track
from common.errors import NotAudio, TooLarge

FORMATS = (
    "aac,ac3,act,adts,aea,aiff,amr,amrnb,amrwb,ape,asf,au,avi,avr,bonk,caf,dhav,dsf,dss,dts,"
    "dtshd,dv,eac3,flac,flv,g723_1,gsm,gxf,hcom,iamf,iff,ilbc,ircam,kux,loas,lxf,matroska,mlp,mmf,"
    "mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nsp,nsv,nut,ogg,oma,osq,pva,pvf,qcp,qoa,rka,rm,"
    "s337m,sds,shn,siff,smjpeg,sox,spdif,tak,truehd,tta,ty,vivo,voc,vqf,w64,wav,wavarc,wsd,wtv,"
    "wv,wve,xwma"
)
"""What is opened: FFmpeg's names of the containers and streams that people record in.

Play lists and the like stay out: they name other files, and FFmpeg would read those for whoever
uploads one. So do devices, pictures, subtitles, games' formats, and those without a mark of their
own, for which anything would be taken."""

TRIAL_PACKETS = 200
"""Packets of sound tried before a file counts as undecodable: 4 s and more."""

TRIAL_BYTES = 64 << 20
"""How far into a file its first sound may lie."""

AMR = {"amrnb": (8, 8_000), "amrwb": (9, 16_000)}
"""Codecs with packets for silence: their first such frame type, and sample rate."""

LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000
"""Sample rates that are taken, in Hz."""

SHOWN = 200
"""Letters of a track's title that are kept."""

MOST_CHANNELS = 64
"""What FFmpeg's resampler takes."""

BUFFER_BYTES = 64 << 10
"""What FFmpeg reads at once."""

HOUR_MS = 3_600_000
LOWEST_BIT_RATE = 200
"""Bits a second below which a claimed duration cannot be true; silence in FLAC takes 400."""
LOWEST_BIT_RATES = {"mp2": 8_000, "mp3": 8_000}


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
    tracks: tuple[Track, ...]


def probe(path: Path) -> Probe:
    """Look into the file at ``path``, and decode the first sound in it.

    Raises:
        NotAudio: the file is empty, is no recording, has no sound, or none that decodes.
    """
    size = path.stat().st_size
    if size == 0:
        raise NotAudio(reason="the file is empty")
    with path.open("rb") as file:
        found = file_parts(file)
        with open_container(found[0].of(file)) as container:
            stream = audio_stream(container)
            first = _first_frame(container, stream)
            return Probe(
                container=container.format.name,
                codec=stream.codec_context.codec.canonical_name,
                duration_ms=_plausible_ms(container, stream, size) if len(found) == 1 else None,
                channels=first.layout.nb_channels,
                sample_rate=first.sample_rate,
                has_video=any(not _is_picture(video) for video in container.streams.video),
                tracks=tuple(_tracks(container, stream)),
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


def audio_stream(container: InputContainer, track: int | None = None) -> AudioStream:
    """The audio track of that index, or the one that FFmpeg would play; decodes on one thread.

    Raises:
        NotAudio: there is none, or no decoder for it.
    """
    streams = container.streams.audio
    if track is not None and track < len(streams):
        stream: Stream | None = streams[track]
    else:
        stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        has_video = bool(container.streams.video)
        raise NotAudio(reason="the video has no sound" if has_video else "it has no sound")
    stream.codec_context.thread_count = 1
    return stream


def _tracks(container: InputContainer, default: AudioStream) -> Iterator[Track]:
    for index, stream in enumerate(container.streams.audio):
        language = stream.metadata.get("language")
        context = stream.codec_context
        yield Track(
            index=index,
            language=None if language in (None, "und") else language[:SHOWN],
            title=stream.metadata.get("title", "")[:SHOWN] or None,
            codec=context.codec.canonical_name if context is not None else "unknown",
            channels=context.layout.nb_channels if context is not None else 0,
            default=stream.index == default.index,
        )


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
                _check_form(frames[0])
                return frames[0]
            packets += 1
            read += packet.size
            if packets >= TRIAL_PACKETS or read > TRIAL_BYTES:
                break
    except av.FFmpegError as error:
        raise NotAudio(reason=f"reading it failed ({error.strerror})") from error
    raise NotAudio(reason="nothing in it can be decoded")


def _check_form(frame: av.AudioFrame) -> None:
    """Raise `NotAudio` where nobody records in the form of ``frame``."""
    if not has_usable_rate(frame):
        limit = f"sample rates are from {LOWEST_RATE} to {HIGHEST_RATE} Hz"
        raise NotAudio(reason=f"{limit}; got {frame.sample_rate}")
    if frame.layout.nb_channels > MOST_CHANNELS:
        limit = f"at most {MOST_CHANNELS} channels can be mixed"
        raise NotAudio(reason=f"{limit}; got {frame.layout.nb_channels}")


def decode_packet(packet: av.Packet[Any]) -> list[av.AudioFrame] | None:
    """The sound in a packet; None where it is damaged."""
    try:
        frames: Iterable[object] = packet.decode()
    except av.FFmpegError:
        return _unsent(packet)
    return [frame for frame in frames if isinstance(frame, av.AudioFrame) and frame.samples]


def _unsent(packet: av.Packet[Any]) -> list[av.AudioFrame] | None:
    """Silence for a packet of AMR (3GPP TS 26.101, TS 26.201) that says that nobody speaks.

    FFmpeg has no comfort noise and takes such packets for damage.
    """
    codec = packet.stream.codec_context.name
    first_silent, rate = AMR.get(codec, (0, 0))
    if not rate or not packet.size or (bytes(packet)[0] >> 3 & 15) < first_silent:
        return None
    silence = np.zeros((1, rate // 50), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
    frame.sample_rate = rate
    frame.pts, frame.time_base = packet.pts, packet.time_base
    return [frame]


def has_usable_rate(frame: av.AudioFrame) -> bool:
    """Whether its sample rate is one that sound is recorded at."""
    return LOWEST_RATE <= frame.sample_rate <= HIGHEST_RATE


def _plausible_ms(container: InputContainer, stream: AudioStream, size: int) -> int | None:
    if not container.duration or container.duration < 0:
        return None
    duration_ms = container.duration * 1000 // av.time_base
    codec = stream.codec_context.codec.canonical_name
    lowest = LOWEST_BIT_RATES.get(codec, LOWEST_BIT_RATE)
    if codec.startswith("pcm_"):
        lowest = 8 * stream.codec_context.sample_rate * stream.codec_context.layout.nb_channels
    return None if size * 8 * 1000 < lowest * duration_ms else duration_ms


def _is_picture(video: VideoStream) -> bool:
    """Whether it is a cover and no film."""
    return bool(video.disposition & Disposition.attached_pic)
