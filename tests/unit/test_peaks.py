"""Peaks are the least and greatest sample of each piece, however the recording is fed."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.audio.peaks import PER_SECOND, PeakFinder, resampled, to_json
from common.domain.values import SAMPLE_RATE

HEADER = 20
STORED = SAMPLE_RATE // PER_SECOND

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(0, 20_000)


def noise(seed: int, length: int, *channels: int) -> NDArray[np.int16]:
    samples = np.random.default_rng(seed).integers(-32768, 32768, (length, *channels))
    return samples.astype(np.int16)


def found(*blocks: NDArray[np.int16]) -> bytes:
    finder = PeakFinder()
    for block in blocks:
        finder.feed(block)
    return finder.finish()


def pairs_of(peaks: bytes) -> list[tuple[int, int]]:
    values = struct.unpack_from(f"{len(peaks) - HEADER}b", peaks, HEADER)
    return list(zip(values[::2], values[1::2], strict=True))


def of_8_bits(sample: int) -> int:
    return int(sample / 256)


@given(seeds, lengths)
def test_each_pair_is_of_its_samples(seed: int, length: int) -> None:
    samples = noise(seed, length)
    pieces = [samples[at : at + STORED] for at in range(0, length, STORED)]
    peaks = found(samples)
    assert pairs_of(peaks) == [(of_8_bits(piece.min()), of_8_bits(piece.max())) for piece in pieces]
    assert struct.unpack_from("<iIiiI", peaks) == (1, 1, SAMPLE_RATE, STORED, len(pieces))


@given(seeds, lengths, st.lists(lengths, max_size=5))
def test_they_do_not_depend_on_the_blocks(seed: int, length: int, cuts: list[int]) -> None:
    samples = noise(seed, length)
    assert found(*np.split(samples, sorted(cuts))) == found(samples)


@given(seeds, lengths, st.integers(1, PER_SECOND))
def test_fewer_pairs_are_of_the_same_recording(seed: int, length: int, per_second: int) -> None:
    peaks = found(noise(seed, length))
    fewer = resampled(peaks, per_second)
    stored, pairs = pairs_of(peaks), pairs_of(fewer)
    _, _, rate, samples, count = struct.unpack_from("<iIiiI", fewer)
    assert (rate, samples, count) == (SAMPLE_RATE, SAMPLE_RATE // per_second, len(pairs))
    assert (len(stored) - 1) * STORED < len(pairs) * samples or not stored
    starts = [number * samples // STORED for number in range(count)] + [len(stored)]
    for number, (lowest, highest) in enumerate(pairs):
        piece = stored[starts[number] : starts[number + 1]]
        assert lowest == min(low for low, _ in piece)
        assert highest == max(high for _, high in piece)


@given(seeds, lengths)
def test_json_has_the_same(seed: int, length: int) -> None:
    peaks = found(noise(seed, length))
    document = json.loads(to_json(peaks))
    data = document.pop("data")
    assert list(zip(data[::2], data[1::2], strict=True)) == pairs_of(peaks)
    assert document == {
        "version": 2,
        "channels": 1,
        "sample_rate": SAMPLE_RATE,
        "samples_per_pixel": STORED,
        "bits": 8,
        "length": len(pairs_of(peaks)),
    }


def test_long_json_is_whole() -> None:
    peaks = found(noise(1, 80_000 * STORED))
    assert json.loads(to_json(peaks))["data"] == [each for pair in pairs_of(peaks) for each in pair]


def test_channels_are_mixed() -> None:
    both = noise(7, 5_000, 2)
    assert found(both) == found((both.astype(np.int32).sum(axis=1) / 2).astype(np.int16))


@pytest.mark.parametrize("per_second", [1, PER_SECOND])
def test_a_recording_without_samples_has_none(per_second: int) -> None:
    assert len(resampled(found(), per_second)) == HEADER
