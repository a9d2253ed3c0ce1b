"""Which words stay: difflib's blocks, found in a time that grows with the texts."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from common.domain.matching import MAX_PAIRS, matching

WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=40)


@st.composite
def changed(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """A text, and the same with some pieces replaced."""
    old = draw(st.lists(st.sampled_from("abcdefghijklmnopqrst"), max_size=60))
    new = list(old)
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, len(new)))
        new[start : start + draw(st.integers(0, 4))] = draw(
            st.lists(st.sampled_from("abcxyz"), max_size=4)
        )
    return old, new


def ends(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """How many items both begin with, and how many of the others they end with."""
    shorter = min(len(old), len(new))
    head = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    rest = shorter - head
    return head, next((at for at in range(rest) if old[-1 - at] != new[-1 - at]), rest)


@given(changed() | st.tuples(WORDS, WORDS))
def test_what_stays_is_what_difflib_finds_between_a_common_beginning_and_end(
    texts: tuple[list[str], list[str]],
) -> None:
    old, new = texts
    head, tail = ends(old, new)
    middle, other = old[head : len(old) - tail], new[head : len(new) - tail]
    assume(sum(map(other.count, middle)) <= MAX_PAIRS * (len(middle) + len(other)))
    expected = {at: at for at in range(head)}
    for it in SequenceMatcher(None, middle, other, autojunk=False).get_matching_blocks():
        expected |= {head + it.a + at: head + it.b + at for at in range(it.size)}
    expected |= {len(old) - at: len(new) - at for at in range(1, tail + 1)}

    found = matching(old, new)

    assert found == expected
    assert all(old[was] == new[now] for was, now in found.items())
    assert all(a < c and b < d for (a, b), (c, d) in pairwise(found.items()))


def test_texts_of_few_words_again_and_again_are_compared_at_their_ends_only() -> None:
    """All pairs of them would be a hundred million."""
    old, new = ["a", "b"] * 10_000, ["b", "a"] * 10_000
    assert matching([*old, "c"], [*new, "c"]) == {20_000: 20_000}
    assert matching(["c", *old], ["c", *new]) == {0: 0}


def test_long_texts_with_a_change_in_every_other_word_are_compared() -> None:
    """difflib takes the square of the time: a quarter of an hour for so many."""
    old = [str(number) for number in range(100_000)]
    new = [word if at % 2 else f"new {word}" for at, word in enumerate(old)]
    assert matching(old, new) == {at: at for at in range(1, 100_000, 2)}
    assert matching(old, list(reversed(old))) == {0: 99_999}
