"""Test recordings in every container, made with PyAV: whole, broken, and not recordings at all."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from common.audio.wav import wav_header

RATE = 16_000


class AudioKind(NamedTuple):
    """How a file of some ending is made: FFmpeg's container, codecs, and the sample rate."""

    container: str
    codec: str
    rate: int = 48_000
    video: str | None = None
    layout: str = "mono"
    bit_rate: int | None = None
    options: tuple[tuple[str, str], ...] = ()


KINDS = {
    "mp3": AudioKind("mp3", "libmp3lame", 44_100),
    "wav": AudioKind("wav", "pcm_s16le", 16_000),
    "m4a": AudioKind("ipod", "aac"),
    "mp4": AudioKind("mp4", "aac"),
    "aac": AudioKind("adts", "aac"),
    "ogg": AudioKind("ogg", "vorbis", 44_100, layout="stereo"),
    "opus": AudioKind("ogg", "libopus"),
    "flac": AudioKind("flac", "flac", 22_050),
    "wma": AudioKind("asf", "wmav2", 44_100, bit_rate=64_000),
    "webm": AudioKind("webm", "libopus"),
    "mkv": AudioKind("matroska", "flac"),
    "avi": AudioKind("avi", "libmp3lame", 44_100),
    "mov": AudioKind("mov", "pcm_s16le"),
}
"""Every format that uploads may have, audio alone."""

FILMS = {
    "mp4": AudioKind("mp4", "aac", video="mpeg4"),
    "webm": AudioKind("webm", "libopus", video="libvpx"),
    "mkv": AudioKind("matroska", "libopus", video="mpeg4"),
    "avi": AudioKind("avi", "libmp3lame", 44_100, video="mpeg4"),
    "mov": AudioKind("mov", "aac", video="mpeg4"),
}
"""The same with a film in it."""


def tone(seconds: float, hertz: float = 440.0, level: float = 0.3) -> NDArray[np.int16]:
    """A sine at 16 kHz mono; ``level`` is its amplitude in [0, 1]."""
    time = np.arange(round(seconds * RATE)) / RATE
    return np.round(np.sin(2 * np.pi * hertz * time) * level * 32_767).astype(np.int16)


def silence(seconds: float) -> NDArray[np.int16]:
    return np.zeros(round(seconds * RATE), np.int16)


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> NDArray[np.int16]:
    """White noise; ``level`` is its largest amplitude in [0, 1]."""
    values = np.random.default_rng(seed).uniform(-level, level, round(seconds * RATE))
    return np.round(values * 32_767).astype(np.int16)


def write(
    path: Path,
    samples: NDArray[np.int16],
    kind: AudioKind,
    *,
    audio_at: float = 0.0,
    film_seconds: float | None = None,
) -> Path:
    """Encode ``samples`` (16 kHz mono) into ``path``.

    ``audio_at`` (seconds) is where the audio starts on the film's clock; the film lasts
    ``film_seconds``, by default as long as the audio.
    """
    with av.open(str(path), "w", format=kind.container, options=dict(kind.options)) as container:
        film = None
        if kind.video:
            film = container.add_stream(kind.video, rate=10)
        audio = container.add_stream(
            kind.codec, rate=kind.rate, layout=kind.layout, options={"strict": "experimental"}
        )
        assert isinstance(audio, AudioStream)
        if kind.bit_rate:
            audio.codec_context.bit_rate = kind.bit_rate
        if film is not None:
            assert isinstance(film, VideoStream)
            length = len(samples) / RATE + audio_at if film_seconds is None else film_seconds
            _film(container, film, length)
        if len(samples):
            _audio(container, audio, samples, kind, audio_at)
    return path


def write_tracks(
    path: Path,
    *tracks: tuple[str, NDArray[np.floating]],
    container: str = "matroska",
    default: int = 0,
) -> Path:
    """Write audio (mono at 16 kHz in [-1, 1]), each with its language (ISO 639-2), as AAC."""
    kind = AudioKind(container, "aac", RATE)
    with av.open(str(path), "w", format=container) as output:
        streams = []
        for index, (language, _) in enumerate(tracks):
            stream = output.add_stream("aac", rate=RATE, layout="mono")
            assert isinstance(stream, AudioStream)
            stream.metadata["language"] = language
            stream.disposition = Disposition.default if index == default else Disposition(0)
            streams.append(stream)
        for stream, (_, samples) in zip(streams, tracks, strict=True):
            pcm = np.round(np.clip(samples, -1, 1) * 32_767).astype(np.int16)
            _audio(output, stream, pcm, kind, 0.0)
    return path


def write_film_without_audio(path: Path, seconds: float) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        film = container.add_stream("mpeg4", rate=10)
        assert isinstance(film, VideoStream)
        _film(container, film, seconds)
    return path


def make_wav(pcm: bytes) -> bytes:
    """A recording in a WAV file: 16 kHz mono, 16 bits a sample."""
    return wav_header(RATE, 1, len(pcm) // 2) + pcm


def write_channels(path: Path, *channels: NDArray[np.floating]) -> Path:
    """Write a WAV file of these channels, 16 kHz in [-1, 1]; shorter ones end in silence."""
    frames = max(map(len, channels))
    samples = np.stack([np.pad(it, (0, frames - len(it))) for it in channels], axis=1)
    pcm = np.round(np.clip(samples, -1, 1) * 32_767).astype("<i2")
    path.write_bytes(wav_header(RATE, len(channels), frames) + pcm.tobytes())
    return path


def truncate(path: Path, share: float) -> Path:
    """Cut a file off after ``share`` of its bytes."""
    whole = path.read_bytes()
    path.write_bytes(whole[: round(len(whole) * share)])
    return path


def damage(path: Path, start: float, end: float) -> Path:
    """Overwrite the bytes between two shares of a file with noise."""
    content = bytearray(path.read_bytes())
    first, last = round(len(content) * start), round(len(content) * end)
    content[first:last] = np.random.default_rng(1).bytes(last - first)
    path.write_bytes(content)
    return path


def takes_little_memory(work: Callable[[], bool]) -> bool:
    """Whether ``work`` returns True in a process that grows by less than 64 MiB meanwhile."""
    child = os.fork()
    if child == 0:  # its peak memory is its own
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done = work()
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os._exit(0 if done and grown_kib < 64 << 10 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _film(container: OutputContainer, film: VideoStream, seconds: float) -> None:
    film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
    picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    for index in range(round(seconds * 10)):
        picture.pts = index
        container.mux(film.encode(picture))
    container.mux(film.encode(None))


def _audio(
    container: OutputContainer,
    audio: AudioStream,
    samples: NDArray[np.int16],
    kind: AudioKind,
    audio_at: float,
) -> None:
    context = audio.codec_context
    if not context.is_open:
        context.open()
    resampler = av.AudioResampler(
        context.format, kind.layout, kind.rate, context.frame_size or 1_024
    )
    source = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    source.sample_rate = RATE
    position = round(audio_at * kind.rate)
    for frame in (*resampler.resample(source), *resampler.resample(None)):
        frame.pts = position
        position += frame.samples
        container.mux(audio.encode(frame))
    container.mux(audio.encode(None))
