from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.diarization.filter_banks import filter_banks, frame_count, is_narrow
from common.diarization.onnx import (
    ALIKE,
    LONGEST,
    OVERLAP,
    SHORTEST,
    OnnxDiarizer,
    _layout,
)
from common.domain.speakers import Stretch
from common.domain.values import SAMPLE_RATE, Span
from common.errors import WeightsUnusable
from tests.support.speech import noise, speak
from tests.support.voices import tone_diarizer, voice, write_networks

NEAR_MS = 60
"""A frame of the segmentation stands for 17 ms, and looks at 62 ms."""


@pytest.fixture(scope="module")
def diarizer(tmp_path_factory: pytest.TempPathFactory) -> OnnxDiarizer:
    return tone_diarizer(tmp_path_factory.mktemp("networks"))


def silence(seconds: float) -> np.ndarray:
    return voice(seconds, 0)


def spans_of(stretches: list[Stretch], number: int) -> list[Span]:
    """Where a voice speaks, in order."""
    return sorted(it.span for one in stretches if one.voice == number for it in one.spoken)


def long(spans: list[Span]) -> list[Span]:
    """Without those at an edge, where it grows louder or softer past the level of a voice."""
    return [span for span in spans if span.duration_ms > NEAR_MS]


def alike(one: Stretch, other: Stretch) -> float:
    assert one.embedding
    assert other.embedding
    return float(
        np.frombuffer(one.embedding, "<f2").astype(float)
        @ np.frombuffer(other.embedding, "<f2").astype(float)
    )


def test_filter_banks_are_those_of_kaldi() -> None:
    at = np.arange(8_000) / SAMPLE_RATE
    sweep = 0.3 * np.sin(2 * np.pi * (200 * at + 1_500 * at * at))
    samples = sweep + 0.05 * np.sin(2 * np.pi * 3_111 * at) + 0.01
    found = filter_banks(samples.astype(np.float32), np.arange(frame_count(len(samples))))
    # computed by kaldi-native-fbank 1.22: 80 bands, no dither, otherwise its defaults
    expected = [
        [-9.2425, -1.4287, -12.7779, -15.9424, -15.9424, -9.7012, -14.7671, -15.9424],
        [-13.0453, -12.5847, -5.2280, -9.3472, -15.4314, -9.7291, -14.7020, -15.9424],
        [-12.0197, -15.5592, -15.4683, -9.4750, -3.1541, -9.5245, -14.7155, -15.9424],
    ]
    assert found.shape == (48, 80)
    np.testing.assert_allclose(found[[0, 20, 47]][:, ::10], expected, atol=2e-3)
    assert [frame_count(length) for length in (0, 399, 400, 560)] == [0, 0, 1, 2]
    assert filter_banks(samples[:399].astype(np.float32), np.arange(0)).shape == (0, 80)
    np.testing.assert_array_equal(
        filter_banks(samples.astype(np.float32), np.array([20, 3])), found[[20, 3]]
    )


@pytest.mark.parametrize("hiss", [0.0, 0.003])
@pytest.mark.parametrize("gain", [0.1, 1.0])
def test_speech_over_a_telephone_is_known_by_its_band_whatever_the_noise(
    hiss: float, gain: float
) -> None:
    said = speak("She sells sea shells, and six thick thistle sticks.")
    spectrum = np.fft.rfft(said)
    hz = np.fft.rfftfreq(len(said), 1 / SAMPLE_RATE)
    spectrum[(hz < 300) | (hz > 3_400)] = 0
    called = np.fft.irfft(spectrum, len(said)).astype(np.float32)
    noisy = noise(len(said) / SAMPLE_RATE + 1, level=hiss)[: len(said)] if hiss else 0.0
    for samples, narrow in ((said, False), (called, True)):
        changed = (gain * (samples + noisy)).astype(np.float32)
        assert is_narrow(changed, np.arange(frame_count(len(changed)))) == narrow


def test_each_voice_is_found_where_it_speaks(diarizer: OnnxDiarizer) -> None:
    samples = np.concatenate(
        [silence(1), voice(3, 1), silence(1), voice(1.5, 2, hz=1_500), silence(2)]
    )
    stretches = diarizer.diarize(samples)
    for number, said in ((0, Span(1_000, 4_000)), (1, Span(5_000, 6_500))):
        spans = long(spans_of(stretches, number))
        assert abs(spans[0].start_ms - said.start_ms) <= NEAR_MS
        assert abs(spans[-1].end_ms - said.end_ms) <= NEAR_MS
        spoken_ms = sum(span.duration_ms for span in spans)
        assert abs(spoken_ms - said.duration_ms) <= 2 * NEAR_MS
    assert all(stretch.alone for stretch in stretches if stretch.embedded_ms > 500)
    assert stretches == sorted(stretches, key=lambda it: it.span)


def test_stretches_of_one_voice_are_alike_and_of_two_are_not(diarizer: OnnxDiarizer) -> None:
    samples = np.concatenate([voice(4, 1), silence(1), voice(4, 1, hz=2_500)])
    first, *_, last = (it for it in diarizer.diarize(samples) if it.embedded_ms > 1_000)
    again = next(it for it in diarizer.diarize(samples)[1:] if it.embedded_ms > 1_000)
    assert alike(first, again) > 0.95
    assert alike(first, last) < 0.8, "although the segmentation takes them for one voice"


def test_long_speech_is_cut_into_stretches_of_about_two_seconds(diarizer: OnnxDiarizer) -> None:
    lengths = [it.span.duration_ms for it in diarizer.diarize(voice(30, 2))]
    assert all(1_000 < length <= 2_500 for length in lengths)


def test_two_voices_at_once_are_both_there_and_marked(diarizer: OnnxDiarizer) -> None:
    samples = np.concatenate([voice(2, 1), voice(1, 4), voice(2, 2), silence(1)])
    stretches = diarizer.diarize(samples)
    both = [
        [it.span for one in stretches if one.voice == number for it in one.spoken if it.overlapped]
        for number in (0, 1)
    ]
    assert both[0] == both[1]
    assert abs(sum(span.duration_ms for span in both[0]) - 1_000) <= 2 * NEAR_MS


@settings(max_examples=25)
@given(seconds=st.floats(0, 40), start=st.floats(0, 5))
def test_windows_leave_no_gap_and_take_nothing_twice(
    diarizer: OnnxDiarizer, seconds: float, start: float
) -> None:
    samples = np.concatenate([silence(start), voice(seconds, 3)])
    end_ms = len(samples) * 1000 // SAMPLE_RATE
    spans = spans_of(diarizer.diarize(samples), 2)
    assert all(one.end_ms <= other.start_ms for one, other in pairwise(spans))
    if seconds > 0.2:
        assert sum(span.duration_ms for span in spans) >= 1000 * seconds - 2 * NEAR_MS
        assert spans[-1].end_ms <= end_ms


@pytest.mark.parametrize("count", [0, 1, 159, 160, 399, 400, 3_000])
def test_audio_of_any_length_is_taken(diarizer: OnnxDiarizer, count: int) -> None:
    for stretch in diarizer.diarize(voice(1, 1)[:count]):
        assert stretch.span.end_ms <= count // 16


def test_speech_that_is_too_short_has_no_embedding(diarizer: OnnxDiarizer) -> None:
    samples = np.concatenate([silence(1), voice(0.15, 1), silence(1), voice(0.5, 1), silence(1)])
    short, longer = diarizer.diarize(samples)
    assert (short.embedding, short.embedded_ms) == (None, 0)
    assert longer.embedding is not None


def test_a_chunks_stretches_depend_on_its_audio_alone(diarizer: OnnxDiarizer) -> None:
    samples = np.concatenate([voice(7, 1), silence(1), voice(5, 2, hz=900)])
    first = diarizer.diarize(samples)
    diarizer.diarize(voice(13, 3))
    assert diarizer.diarize(samples) == first


def test_voices_of_one_window_are_numbered_apart(diarizer: OnnxDiarizer) -> None:
    windows: dict[int, set[int]] = defaultdict(set)
    for stretch in diarizer.diarize(np.concatenate([voice(20, 1), voice(20, 3)])):
        windows[stretch.window].add(stretch.voice)
    assert windows[0] == {0}
    assert windows[max(windows)] == {2}


def embedded(stretches: list[Stretch]) -> list[int]:
    """Which of the stretches have an embedding."""
    return [at for at, it in enumerate(stretches) if it.embedding]


def test_what_is_between_two_alike_stretches_of_a_voice_is_not_embedded(
    diarizer: OnnxDiarizer,
) -> None:
    stretches = diarizer.diarize(voice(16, 1))
    assert len(stretches) >= 7
    assert embedded(stretches) == [0, len(stretches) - 1]
    assert all(it.embedded_ms == 0 for it in stretches[1:-1])


def test_over_a_telephone_which_makes_voices_alike_all_is_embedded(diarizer: OnnxDiarizer) -> None:
    stretches = diarizer.diarize(voice(16, 1, called=True))
    assert embedded(stretches) == list(range(len(stretches)))
    assert all(it.narrow for it in stretches)


def test_between_unlike_ones_stretches_are_embedded_up_to_where_the_voice_changes(
    diarizer: OnnxDiarizer,
) -> None:
    samples = np.concatenate([voice(12, 1), voice(4, 1, hz=5_000)])
    stretches = diarizer.diarize(samples)
    assert alike(stretches[0], stretches[-1]) < ALIKE
    assert embedded(stretches) == [0, 4, 5, 6, 7]
    assert alike(stretches[0], stretches[4]) > ALIKE > alike(stretches[5], stretches[6])


def test_a_short_word_before_or_after_has_an_embedding_of_its_own(diarizer: OnnxDiarizer) -> None:
    word = voice(0.5, 1)
    pause = silence(0.8)
    stretches = diarizer.diarize(
        np.concatenate([silence(1), word, pause, voice(8, 1), pause, word, silence(1)])
    )
    found = embedded(stretches)
    assert {0, 1, len(stretches) - 2, len(stretches) - 1} == set(found)


@pytest.mark.parametrize("seconds", [0, 0.1, 10, 20, 20.1, 39, 39.1, 300])
def test_windows_are_no_longer_than_needed_and_share_a_second(seconds: float) -> None:
    samples = round(seconds * SAMPLE_RATE)
    length, starts = _layout(samples)
    assert SHORTEST <= length <= LONGEST
    assert starts[0] == 0
    assert starts[-1] + length >= samples
    shared = [one + length - other for one, other in pairwise(starts)]
    assert all(abs(each - OVERLAP) <= 2 for each in shared)


@pytest.mark.parametrize("content", [b"", b"not a network"])
def test_broken_weights_are_named(tmp_path: Path, content: bytes) -> None:
    segmentation, embedding = write_networks(tmp_path)
    (embedding / "model.onnx").write_bytes(content)
    with pytest.raises(WeightsUnusable, match="embedding for diarization cannot be used"):
        OnnxDiarizer(segmentation, embedding)
    (embedding / "model.onnx").unlink()
    with pytest.raises(WeightsUnusable):
        OnnxDiarizer(segmentation, embedding)
