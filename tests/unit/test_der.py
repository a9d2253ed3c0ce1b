from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.values import Span
from scripts.bench.der import Errors, Turns, score

Made = tuple[int, int, int]
"""A seed, how many speakers, and how many turns."""


def made_up(seed: int, speakers: int, count: int) -> Turns:
    """Turns of a linear congruential generator; those of one speaker do not touch."""
    turns = []
    ends: dict[int, int] = {}
    state = seed

    def draw(limit: int) -> int:
        nonlocal state
        state = (1_103_515_245 * state + 12_345) % 2**31
        return state // 65_536 % limit

    now = 0
    for _ in range(count):
        who = draw(speakers)
        start = max(now + draw(1_500) - 700, ends.get(who, 0) + 10, 0)
        end = start + 50 + draw(4_000)
        turns.append((Span(start, end), f"{who}"))
        ends[who] = now = end
    return turns


@pytest.mark.parametrize(
    ("reference", "found", "collar_ms", "expected"),
    [
        ((1, 3, 12), (2, 3, 12), 0, (3279, 10929, 6780, 18232)),
        ((1, 3, 12), (2, 3, 12), 250, (2009, 8933, 4720, 13865)),
        ((1, 3, 12), (2, 3, 12), 500, (1022, 7632, 3171, 10498)),
        ((3, 2, 30), (4, 4, 25), 0, (7333, 11251, 24903, 49094)),
        ((3, 2, 30), (4, 4, 25), 250, (4981, 7213, 19426, 38012)),
        ((3, 2, 30), (4, 4, 25), 500, (3170, 4016, 15784, 29850)),
        ((5, 6, 40), (6, 3, 50), 0, (10933, 44185, 42430, 80032)),
        ((5, 6, 40), (6, 3, 50), 250, (7191, 36968, 34642, 64951)),
        ((5, 6, 40), (6, 3, 50), 500, (5730, 31215, 28430, 53824)),
        ((7, 4, 20), (8, 8, 20), 0, (6971, 9203, 20445, 42440)),
        ((7, 4, 20), (8, 8, 20), 250, (4348, 7409, 16847, 34104)),
        ((7, 4, 20), (8, 8, 20), 500, (3402, 6380, 13952, 28643)),
        ((9, 1, 5), (10, 2, 6), 0, (534, 2091, 2665, 9654)),
        ((9, 1, 5), (10, 2, 6), 250, (389, 1014, 2540, 8439)),
        ((9, 1, 5), (10, 2, 6), 500, (264, 556, 2415, 7439)),
    ],
)
def test_each_part_is_that_of_pyannote_metrics(
    reference: Made, found: Made, collar_ms: int, expected: tuple[int, ...]
) -> None:
    # computed by pyannote.metrics 4.2: DiarizationErrorRate(collar=...)(..., detailed=True)
    errors = score(made_up(*reference), made_up(*found), collar_ms=collar_ms)
    assert errors == Errors(*expected)


@given(st.integers(1, 2**30), st.integers(1, 5), st.integers(0, 25))
def test_the_reference_itself_has_no_errors_under_any_names(
    seed: int, speakers: int, count: int
) -> None:
    turns = made_up(seed, speakers, count)
    renamed = [(span, f"speaker {who}") for span, who in turns]
    errors = score(turns, renamed)
    assert errors.rate == 0
    assert errors.total == sum(span.duration_ms for span, _ in turns)


def test_speech_where_the_reference_has_none_is_wrong_altogether() -> None:
    assert score([], [(Span(0, 100), "a")]).rate == 1
    assert score([], []).rate == 0
