"""The peaks of a recording, by which its waveform is drawn, in the formats of BBC's audiowaveform.

Source: github.com/bbc/audiowaveform, doc/DataFormat.md: version 1 of the binary format, of one
channel in 8 bits, and its JSON. peaks.js and wavesurfer.js read both.
"""

from __future__ import annotations

import json
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.domain.values import SAMPLE_RATE

PER_SECOND: Final = 50
"""How many pairs of a minimum and a maximum a second are stored."""
_SAMPLES: Final = SAMPLE_RATE // PER_SECOND
_HEADER: Final = struct.Struct("<iIiiI")
"""The version, flags, the sampling rate, samples of a pair, and the number of pairs."""
_VERSION: Final = 1
_BITS_8: Final = 1
_PIECE: Final = 100_000
_SHARE: Final = 256
"""What is left of 16 bits."""


class PeakFinder:
    """Takes the blocks of a recording at 16 kHz, and keeps 100 bytes of each second."""

    def __init__(self) -> None:
        self._pairs = bytearray()
        self._rest = np.zeros(0, np.int16)

    def feed(self, block: NDArray[np.int16]) -> None:
        """Take the next samples, of shape (samples,) or (samples, channels), which are mixed."""
        if block.ndim == 2:
            block = block.mean(axis=1).astype(np.int16)
        samples = np.concatenate((self._rest, block))
        whole = len(samples) // _SAMPLES * _SAMPLES
        self._add(samples[:whole].reshape(-1, _SAMPLES))
        self._rest = samples[whole:]

    def finish(self) -> bytes:
        """End the recording; returns its peaks in the binary format."""
        if len(self._rest):
            self._add(self._rest.reshape(1, -1))
        return _header(_SAMPLES, len(self._pairs) // 2) + bytes(self._pairs)

    def _add(self, pieces: NDArray[np.int16]) -> None:
        pairs = np.stack((pieces.min(axis=1), pieces.max(axis=1)), axis=1)
        self._pairs += np.trunc(pairs / _SHARE).astype(np.int8).tobytes()


def resampled(peaks: bytes, per_second: int) -> bytes:
    """Stored peaks with fewer pairs, about ``per_second`` (1 to `PER_SECOND`).

    A pair is of a whole number of samples, which the header has, so that no error adds up.
    """
    samples = SAMPLE_RATE // per_second
    if samples == _SAMPLES:
        return peaks
    pairs = np.frombuffer(peaks, np.int8, offset=_HEADER.size).reshape(-1, 2)
    count = -(-len(pairs) * _SAMPLES // samples)
    starts = np.arange(count, dtype=np.int64) * samples // _SAMPLES
    lowest = np.minimum.reduceat(pairs[:, 0], starts) if count else pairs[:, 0]
    highest = np.maximum.reduceat(pairs[:, 1], starts) if count else pairs[:, 1]
    return _header(samples, count) + np.stack((lowest, highest), axis=1).tobytes()


def to_json(peaks: bytes) -> bytes:
    """Peaks in the JSON format: ``data`` has each minimum and maximum, in [-128, 127]."""
    _, _, rate, samples, count = _HEADER.unpack_from(peaks)
    values = np.frombuffer(peaks, np.int8, offset=_HEADER.size).tolist()
    # In pieces: other threads wait while one is written.
    pieces = (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))
    data = ",".join(json.dumps(piece, separators=(",", ":"))[1:-1] for piece in pieces)
    head = {
        "version": 2,  # the first of JSON that names the channels
        "channels": 1,
        "sample_rate": rate,
        "samples_per_pixel": samples,
        "bits": 8,
        "length": count,
    }
    return f'{json.dumps(head)[:-1]}, "data": [{data}]}}'.encode()


def _header(samples: int, count: int) -> bytes:
    return _HEADER.pack(_VERSION, _BITS_8, SAMPLE_RATE, samples, count)
