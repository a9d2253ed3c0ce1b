"""Recordings with several audio tracks."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.stream import Disposition
from numpy.typing import NDArray

RATE = 16_000


def write_tracks(
    path: Path,
    *tracks: tuple[str, NDArray[np.floating]],
    container: str = "matroska",
    default: int = 0,
) -> Path:
    """Write audio (mono at 16 kHz in [-1, 1]), each with its language (ISO 639-2), as AAC."""
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
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            resampler = av.AudioResampler("fltp", "mono", RATE, 1_024)
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                output.mux(stream.encode(piece))
            output.mux(stream.encode(None))
    return path
