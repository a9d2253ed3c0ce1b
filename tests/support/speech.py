"""Speech with a known text, made on the spot: no recording has to be shipped.

The voice is eSpeak NG's, from the wheel `espeakng-loader`. It is a robot's, yet Whisper base
understands its English nearly word for word (its Vietnamese less well).
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.domain.values import SAMPLE_RATE

Samples = NDArray[np.float32]
Pcm = NDArray[np.int16]


@functools.cache
def speak(text: str, language: str = "en", *, words_per_minute: int = 140) -> Samples:
    """``text`` read aloud: mono at 16 kHz in [-1, 1], shape (samples,), read-only.

    The same in every run. About 0.1 s per call; a repeated call is free.

    Args:
        text: Any length; sentences are separated by a short pause.
        language: A voice of eSpeak NG: ``en``, ``vi``, ``fr``, ...
        words_per_minute: In [80, 450].

    Raises:
        subprocess.CalledProcessError: eSpeak NG has no such voice.
    """
    program = Path(__file__).with_name("espeak.py")
    output = subprocess.run(
        [sys.executable, str(program), language, str(words_per_minute)],
        input=text.encode(),
        capture_output=True,
        check=True,
    ).stdout
    rate = int.from_bytes(output[:4], "little")
    samples = _resampled(np.frombuffer(output, dtype="<i2", offset=4), rate)
    samples.flags.writeable = False
    return samples


def speak_pcm(text: str, language: str = "en") -> Pcm:
    """The same in 16 bits."""
    return np.frombuffer(pcm16(speak(text, language)), "<i2").astype(np.int16)


def silence(seconds: float) -> Samples:
    """Digital silence at 16 kHz."""
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def noise(seconds: float, *, level: float = 0.01) -> Samples:
    """White noise of ``level`` RMS at 16 kHz: an empty room. The same every time."""
    wave = np.random.default_rng(7).standard_normal(round(seconds * SAMPLE_RATE))
    return np.clip(wave * level, -1, 1).astype(np.float32)


def pcm16(samples: Samples) -> bytes:
    """The bytes that workers read: little-endian 16-bit."""
    return (np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()


def _resampled(pcm: Pcm, rate: int) -> Samples:
    """Linear interpolation: eSpeak's 22.05 kHz voice holds little above 8 kHz that could alias."""
    positions = np.arange(int(len(pcm) * SAMPLE_RATE / rate)) * (rate / SAMPLE_RATE)
    samples: Samples = np.interp(positions, np.arange(len(pcm)), pcm / 32_768).astype(np.float32)
    return samples
