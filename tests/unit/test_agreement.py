from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.agreement import agreed


@pytest.mark.parametrize(
    ("before", "now", "stable"),
    [
        ("", "Hello there", ""),
        ("Hello there", "", ""),
        ("Hello there", "Hello there you", "Hello there"),
        ("Hello there.", "Hello there you", "Hello there"),
        ("Hello there", "Hello there", "Hello"),
        ("Hello their", "Hello there you", "Hello"),
        ("hello there my", "Hello there, my friend", "Hello there, my"),
        ("hello there. My", "Hello, there, you", "Hello, there"),
        ("Xin chào các", "Xin chào các bạn", "Xin chào các"),
        ("Xin cha\u0300o ca\u0301c", "Xin chào các bạn", "Xin chào các"),
        ("- no", "no way", ""),
        ("?? !! ..", "?? !! .. ,,", "?? !! .."),
    ],
)
def test_common_words_but_the_last_are_stable(before: str, now: str, stable: str) -> None:
    assert now[: agreed(before, now)] == stable


texts = st.lists(st.sampled_from(["a", "b", "b,", "B", "c.", "đ", "..."]), max_size=6).map(" ".join)


@given(texts, texts)
def test_no_word_is_cut_in_two(before: str, now: str) -> None:
    rest = now[agreed(before, now) :]
    assert not rest or not rest[0].isalnum() or agreed(before, now) == 0
