"""`detect_nonsilent` against pydub's own, which is the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydub import AudioSegment
from pydub.silence import detect_nonsilent as pydub_detect_nonsilent

from common.audio.silence import SilenceFinder, SilenceOptions, detect_nonsilent
from common.domain.cutting import CutOptions
from common.domain.values import SAMPLE_RATE, Span
from tests.support.audio_files import noise, silence, tone

LEVELS = (0, 1, 3, 33, 104, 327, 328, 1_036, 8_000, 32_767)
"""Amplitudes around the thresholds that are drawn below, and the extremes."""


@st.composite
def recordings(draw: st.DrawFn) -> NDArray[np.int16]:
    """Stretches of noise of several levels, of any length in samples, up to three seconds."""
    random = np.random.default_rng(draw(st.integers(0, 1_000)))
    stretches = draw(
        st.lists(st.tuples(st.integers(1, 8_000), st.sampled_from(LEVELS)), max_size=6)
    )
    parts = [
        random.integers(-level - 1, level, length, endpoint=True) for length, level in stretches
    ]
    return np.concatenate([np.zeros(0), *parts]).clip(-32_768, 32_767).astype(np.int16)


options = st.builds(
    SilenceOptions,
    threshold_dbfs=st.sampled_from([-90.0, -60.0, -40.0, -30.5, -16.0, 0.0]),
    min_silence_ms=st.integers(1, 700),
)


def by_pydub(samples: NDArray[np.int16], looked_for: SilenceOptions) -> list[tuple[int, int]]:
    recording = AudioSegment(samples.tobytes(), frame_rate=SAMPLE_RATE, sample_width=2, channels=1)
    found = pydub_detect_nonsilent(
        recording,
        min_silence_len=looked_for.min_silence_ms,
        silence_thresh=looked_for.threshold_dbfs,
    )
    return [(start, end) for start, end in found]


@settings(max_examples=300, deadline=None)
@given(recordings(), options)
def test_it_finds_what_pydub_finds(samples: NDArray[np.int16], looked_for: SilenceOptions) -> None:
    assert detect_nonsilent(samples, looked_for) == by_pydub(samples, looked_for)


@pytest.mark.parametrize("threshold_dbfs", [-50.0, -40.0, -26.0])
def test_it_finds_what_pydub_finds_in_room_noise(threshold_dbfs: float) -> None:
    fading = (tone(2, 220) * np.linspace(1, 0, 2 * SAMPLE_RATE)).astype(np.int16)
    parts = [silence(0.3), fading, silence(1), tone(0.7, 440, 0.02), silence(0.4), tone(1, 300)]
    samples = (np.concatenate(parts) + noise(5.4, 0.008)).clip(-32_768, 32_767).astype(np.int16)
    looked_for = SilenceOptions(threshold_dbfs, 250)
    assert detect_nonsilent(samples, looked_for) == by_pydub(samples, looked_for)


@settings(max_examples=100, deadline=None)
@given(recordings(), options, st.lists(st.integers(1, 9_000), min_size=1))
def test_in_a_stream_it_finds_the_same(
    samples: NDArray[np.int16], looked_for: SilenceOptions, steps: list[int]
) -> None:
    whole_ms = np.pad(samples, (0, -len(samples) % 16))
    finder = SilenceFinder(looked_for, CutOptions())
    found, start = [], 0
    for step in steps * (len(samples) // sum(steps) + 1):
        found += finder.feed(samples[start : start + step])
        start += step
    found += finder.finish()
    loud = detect_nonsilent(whole_ms, looked_for)
    expected = [Span(start, end) for start, end in loud if end > start]
    assert [speech.span for speech in found] == expected


def test_audio_without_silence_is_cut_where_it_is_quietest() -> None:
    samples = tone(70)
    quiet = slice(20 * SAMPLE_RATE, 20 * SAMPLE_RATE + SAMPLE_RATE // 4)
    samples[quiet] //= 4
    finder = SilenceFinder(SilenceOptions(), CutOptions())
    found = [*finder.feed(samples), *finder.finish()]
    assert found[0].span.start_ms == 0
    assert 20_000 < found[0].span.end_ms < 20_250
    assert [speech.opened for speech in found] == [True] + [False] * (len(found) - 1)
    assert [speech.closed for speech in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].span.end_ms == 70_000


@pytest.mark.parametrize("wrong", [{"threshold_dbfs": 1.0}, {"min_silence_ms": 0}])
def test_options_out_of_range_are_rejected_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=list(wrong)[0]):  # noqa: RUF015
        SilenceOptions(**wrong)  # type: ignore[arg-type]
