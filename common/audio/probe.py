"""Determines what a file contains from its content; cheap, and without trusting headers."""

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
from av.stream import Stream

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
"""The formats that are opened: FFmpeg's names of containers and streams used for recordings.

Play lists and the like are excluded: they name other files, and FFmpeg would read those for whoever
uploads one. So are devices, pictures, subtitles, games' formats, and formats without a signature,
which would match anything."""

TRIAL_PACKETS = 200
"""Audio packets tried before a file counts as undecodable: 4 s and more."""

TRIAL_BYTES = 64 << 20
"""How far into a file its first audio may be."""

AMR = {"amrnb": (8, 8_000), "amrwb": (9, 16_000)}
"""Codecs with packets for silence: the first such frame type, and the sample rate."""

LOWEST_RATE, HIGHEST_RATE = 4_000, 768_000
"""Supported sample rates, in Hz."""

SHOWN = 200
"""Maximum length of a track's title."""

MOST_CHANNELS = 64
"""The limit of FFmpeg's resampler."""

BUFFER_BYTES = 64 << 10
"""Size of FFmpeg's reads."""

HOUR_MS = 3_600_000
LOWEST_BIT_RATE = 200
"""Bits a second below which a stated duration cannot be true; silence in FLAC has 400."""
LOWEST_BIT_RATES = {"mp2": 8_000, "mp3": 8_000}


@dataclass(frozen=True, slots=True)
class Probe:
    """The properties of a recording.

    ``duration_ms`` is the header's, None where it is missing or cannot be true; only decoding
    shows the real one. ``container`` and ``codec`` are FFmpeg's names.
    """

    container: str
    codec: str
    duration_ms: int | None
    tracks: tuple[Track, ...]


def probe(path: Path) -> Probe:
    """Inspect the file at ``path``, and decode its first audio.

    Raises:
        NotAudio: the file is empty, is not a recording, has no audio, or none that decodes.
    """
    size = path.stat().st_size
    if size == 0:
        raise NotAudio(reason="the file is empty")
    with path.open("rb") as file:
        found = file_parts(file)
        with open_container(found[0].of(file)) as container:
            stream = audio_stream(container)
            _check_decodes(container, stream)
            return Probe(
                container=container.format.name,
                codec=stream.codec_context.codec.canonical_name,
                duration_ms=_plausible_ms(container, stream, size) if len(found) == 1 else None,
                tracks=tuple(_tracks(container, stream)),
            )


def check_length(duration_ms: int | None, max_hours: float) -> None:
    """Check a recording's length, where it is known.

    Raises:
        TooLarge: it is longer than ``max_hours``.
    """
    if duration_ms is not None and duration_ms > max_hours * HOUR_MS:
        value = f"{duration_ms / HOUR_MS:.1f} hours"
        raise TooLarge(field="file", limit=f"{max_hours:g} hours of audio", value=value)


@contextmanager
def open_container(file: BinaryIO) -> Iterator[InputContainer]:
    """Open ``file``, from its start, as a recording, by content.

    Errors of reading it are raised again at the end of the block at the latest: FFmpeg mistakes
    some for the end of the file.

    Raises:
        NotAudio: it is not a recording.
    """
    file.seek(0)
    watched = _Watched(file)
    # FFmpeg itself opens nothing: it only reads ``file``.
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
    """A file for PyAV that keeps failing after its first error."""

    name = "recording"  # or PyAV would pass on the path, and FFmpeg use its ending

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
        """Raise the error of an earlier read again."""
        if self._failure is not None:
            raise self._failure


def audio_stream(container: InputContainer, track: int | None = None) -> AudioStream:
    """The audio track at an index, or the one that FFmpeg would play; decodes on one thread.

    Raises:
        NotAudio: it is missing, or has no decoder.
    """
    streams = container.streams.audio
    if track is not None and track < len(streams):
        stream: Stream | None = streams[track]
    else:
        stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        has_video = bool(container.streams.video)
        raise NotAudio(reason="the video has no audio" if has_video else "it has no audio")
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


def _check_decodes(container: InputContainer, stream: AudioStream) -> None:
    """Decode the first audio, within the limits of the trial.

    Raises:
        NotAudio: none decodes, or its sample rate or its channels are not supported.
    """
    packets = read = 0
    try:
        for packet in container.demux(stream):
            frames = decode_packet(packet)
            if frames:
                _check_form(frames[0])
                return
            packets += 1
            read += packet.size
            if packets >= TRIAL_PACKETS or read > TRIAL_BYTES:
                break
    except av.FFmpegError as error:
        raise NotAudio(reason=f"reading it failed ({error.strerror})") from error
    raise NotAudio(reason="nothing in it can be decoded")


def _check_form(frame: av.AudioFrame) -> None:
    """Raise `NotAudio` where the sample rate or the channels of ``frame`` are not supported."""
    if not has_usable_rate(frame):
        limit = f"its sample rate must be from {LOWEST_RATE} to {HIGHEST_RATE} Hz"
        raise NotAudio(reason=f"{limit}; got {frame.sample_rate}")
    if frame.layout.nb_channels > MOST_CHANNELS:
        limit = f"it may have at most {MOST_CHANNELS} channels"
        raise NotAudio(reason=f"{limit}; got {frame.layout.nb_channels}")


def decode_packet(packet: av.Packet[Any]) -> list[av.AudioFrame] | None:
    """The audio in a packet; None where it is damaged."""
    try:
        frames: Iterable[object] = packet.decode()
    except av.FFmpegError:
        return _unsent(packet)
    return [frame for frame in frames if isinstance(frame, av.AudioFrame) and frame.samples]


def _unsent(packet: av.Packet[Any]) -> list[av.AudioFrame] | None:
    """Silence for a silence packet of AMR (3GPP TS 26.101, TS 26.201); None for other packets.

    FFmpeg has no comfort noise and reports such packets as damaged.
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
    """Whether the frame's sample rate is supported."""
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
