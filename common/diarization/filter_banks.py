"""Kaldi's log mel filter banks, the input of speaker networks, in numpy.

As Kaldi computes them with the options that 3D-Speaker trains with: 80 bands, frames of 25 ms
every 10 ms within the samples, no dither (`feat/feature-window.cc`, `feat/mel-computations.cc`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from common.domain.values import SAMPLE_RATE

Floats = NDArray[np.float32]

BANDS = 80
FRAME = 400
STEP = 160
"""Samples in a frame, and between the starts of two."""
_FFT = 512
_LOWEST_HZ = 20
_EMPHASIS = 0.97
_TELEPHONE_HZ = (300, 3_400)
_ABOVE_HZ = (4_300, 7_500)
_NARROW = 10**-4.5
"""Of the power in a telephone's band. Of the speech of ten readers, also in noise, nearly all has
more than 0.001 of it above that band."""
_FLOOR = float(np.finfo(np.float32).eps)


def frame_count(samples: int) -> int:
    """How many frames there are in so many samples; none in less than 25 ms."""
    return max(0, 1 + (samples - FRAME) // STEP)


def filter_banks(samples: Floats, chosen: NDArray[np.intp]) -> Floats:
    """The log energies of the ``chosen`` frames (by number, in any order), shape (chosen, 80).

    ``samples`` are 16 kHz mono in [-1, 1).

    Raises:
        IndexError: there is no such frame.
    """
    if not len(chosen):
        return np.zeros((0, BANDS), np.float32)
    frames = sliding_window_view(samples, FRAME)[::STEP][chosen]
    centred = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    spectra = np.fft.rfft((centred - np.float32(_EMPHASIS) * before) * _window(), _FFT)
    power = (spectra.real**2 + spectra.imag**2).astype(np.float32)
    return np.asarray(np.log(np.maximum(power @ _mel_filters(), _FLOOR)), np.float32)


def is_narrow(samples: Floats, frames: NDArray[np.intp]) -> bool:
    """Whether speech in these frames (of `filter_banks`, at least one) went over a telephone.

    Hiss above a telephone's band is always there, and speech comes and goes: only what is well
    above the quieter frames counts.
    """
    chosen = sliding_window_view(samples, FRAME)[::STEP][frames]
    power = np.abs(np.fft.rfft(chosen * _window(), _FFT)) ** 2
    hz = np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT
    inside, above = (
        power[:, (hz >= low) & (hz < high)].mean(axis=1) for low, high in (_TELEPHONE_HZ, _ABOVE_HZ)
    )
    return bool(above.mean() - 1.5 * np.quantile(above, 0.2) < _NARROW * inside.mean())


@cache
def _window() -> Floats:
    """The window that Kaldi calls povey."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / (FRAME - 1))
    return (hann**0.85).astype(np.float32)


@cache
def _mel_filters() -> Floats:
    """Triangles of equal width on the mel scale, shape (257, 80)."""
    lowest, highest = _mel(np.array([_LOWEST_HZ, SAMPLE_RATE / 2])).tolist()
    edges = np.linspace(lowest, highest, BANDS + 2)
    bins = _mel(np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0, np.minimum(rising, falling)), np.float32)


def _mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127 * np.log1p(hz / 700)
