"""Which language a recording is in (common.domain.detection)."""

from __future__ import annotations

from itertools import pairwise, product
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.detection import (
    LANGUAGE_UNCERTAIN,
    LEAST,
    MIXED_LANGUAGES,
    MOST_ASKED,
    SWITCH_COST,
    Detection,
    follow,
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


# --- several languages ----------------------------------------------------------------------------

DECLARED = ("vi", "en", "fr")
Pieces = list[dict[str, float]]


def cost(pieces: Pieces, path: tuple[str, ...], first: str) -> float:
    """What `follow` minimizes."""
    total = SWITCH_COST * sum(left != right for left, right in pairwise((first, *path)))
    for piece, code in zip(pieces, path, strict=True):
        known = sum(piece.get(each, 0.0) for each in DECLARED)
        if known:
            total -= known * log(max(LEAST, piece.get(code, 0.0) / known))
    return total


@st.composite
def probabilities(draw: st.DrawFn) -> dict[str, float]:
    """Of the declared languages and another one."""
    weights = draw(st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(any))
    return {
        code: weight / sum(weights) for code, weight in zip((*DECLARED, "th"), weights, strict=True)
    }


@given(st.lists(probabilities(), max_size=5), st.sampled_from(DECLARED))
def test_the_languages_of_pieces_are_the_most_probable_path(pieces: Pieces, first: str) -> None:
    found = tuple(follow(pieces, DECLARED, first))
    assert len(found) == len(pieces)
    least = min(cost(pieces, path, first) for path in product(DECLARED, repeat=len(pieces)))
    assert cost(pieces, found, first) == pytest.approx(least, abs=1e-9)


@given(st.lists(st.sampled_from(DECLARED)), st.sampled_from(DECLARED))
def test_clear_speech_keeps_its_language_however_often_it_changes(
    spoken: list[str], first: str
) -> None:
    assert follow([{code: 0.95, "th": 0.05} for code in spoken], DECLARED, first) == spoken


@given(st.lists(st.one_of(st.none(), st.sampled_from(DECLARED))), st.sampled_from(DECLARED))
def test_pieces_in_no_declared_language_follow_their_neighbours(
    spoken: list[str | None], first: str
) -> None:
    pieces = [{"th": 1.0} if code is None else {code: 1.0} for code in spoken]
    found = follow(pieces, DECLARED, first)
    before = [first, *found][: len(found)]
    after = [*found[1:], *found[-1:]]
    for code, chosen, left, right in zip(spoken, found, before, after, strict=True):
        assert chosen == code or (code is None and chosen in (left, right))


def test_a_doubtful_piece_does_not_interrupt_a_language() -> None:
    doubtful, clear = {"en": 0.7, "vi": 0.3}, {"en": 0.9, "vi": 0.1}
    assert follow([VIETNAMESE, doubtful, VIETNAMESE], DECLARED, "vi") == ["vi"] * 3
    assert follow([VIETNAMESE, clear, VIETNAMESE], DECLARED, "vi") == ["vi", "en", "vi"]


def test_the_order_in_which_languages_are_reported_changes_nothing() -> None:
    pieces = [VIETNAMESE, MUSIC, ENGLISH, {"en": 0.5, "vi": 0.5}]
    backwards = [dict(reversed(piece.items())) for piece in pieces]
    assert follow(pieces, DECLARED, "en") == follow(backwards, DECLARED, "en")
