"""Which language a recording is in (common.domain.detection)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.detection import (
    LANGUAGE_UNCERTAIN,
    MIXED_LANGUAGES,
    MOST_ASKED,
    Detection,
    mismatched,
    spread,
)
from common.domain.values import Detected, Segment, Span

VIETNAMESE = {"vi": 0.95, "th": 0.03, "en": 0.02}
ENGLISH = {"en": 0.98, "cy": 0.02}
MUSIC = {"en": 0.6, "nn": 0.3, "ja": 0.1}


def detection(*asked: tuple[int, dict[str, float]]) -> Detection:
    found = Detection()
    for speech_ms, languages in asked:
        found.add(speech_ms, languages)
    return found


def language(found: Detection) -> str:
    return next(iter(found.probabilities))


def test_music_that_is_taken_for_speech_does_not_decide() -> None:
    found = detection((30_000, MUSIC), (10_000, MUSIC), (2_400, VIETNAMESE))
    assert found.probabilities == VIETNAMESE
    assert found.warnings == []


def test_windows_count_by_their_speech() -> None:
    found = detection((1_000, ENGLISH), (20_000, VIETNAMESE))
    assert language(found) == "vi"
    assert found.probabilities["vi"] == pytest.approx(0.95 * 20 / 21, abs=0.001)


def test_two_languages_give_a_warning() -> None:
    assert detection((20_000, ENGLISH), (20_000, VIETNAMESE)).warnings == [MIXED_LANGUAGES]
    assert detection((20_000, VIETNAMESE), (1_000, ENGLISH)).warnings == []


def test_a_detection_without_a_confident_window_gives_a_warning() -> None:
    found = detection((900, MUSIC))
    assert language(found) == "en"
    assert found.warnings == [LANGUAGE_UNCERTAIN]


def test_without_windows_no_language_is_found() -> None:
    assert Detection().probabilities == {}
    assert Detection().warnings == []


def test_it_is_settled_when_enough_windows_are_sure_and_agree() -> None:
    assert not detection((9_000, ENGLISH), (9_000, ENGLISH)).is_settled
    assert not detection((9_000, ENGLISH), (9_000, ENGLISH), (9_000, MUSIC)).is_settled
    assert not detection(*[(9_000, ENGLISH)] * 3, (9_000, VIETNAMESE)).is_settled
    assert detection(*[(9_000, ENGLISH)] * 3, (9_000, MUSIC)).is_settled


@given(st.lists(st.integers(0, 30_000), max_size=60))
def test_the_windows_asked_are_spread_over_all(speech_ms: list[int]) -> None:
    asked = spread(speech_ms)
    assert len(asked) == len(set(asked)) == min(len(speech_ms), MOST_ASKED)
    if len(speech_ms) >= MOST_ASKED:
        first, *_, last = sorted(asked[:3])
        assert first < len(speech_ms) / MOST_ASKED + 1
        assert last >= len(speech_ms) * (MOST_ASKED - 1) // MOST_ASKED


def test_of_neighbours_the_one_with_most_speech_is_asked() -> None:
    assert set(spread([0, 5, 0] * MOST_ASKED)) == set(range(1, 3 * MOST_ASKED, 3))


def test_the_languages_of_failed_text_are_weighted_by_duration() -> None:
    segments = [
        Segment(Span(0, 1_000), "a", detected=Detected("fr", 0.9)),
        Segment(Span(1_000, 4_000), "b", detected=Detected("en", 0.8)),
        Segment(Span(4_000, 5_000), "c", detected=Detected("en", 1.0)),
        Segment(Span(5_000, 90_000), "d"),
    ]
    assert list(mismatched(segments).items()) == [("en", 0.68), ("fr", 0.18)]
    assert mismatched(segments[-1:]) == {}
