"""Texts become rows of n-gram features in which every syllable is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.moderation.ngrams import (
    BATCH_ROWS,
    BATCH_SYLLABLES,
    BUCKETS,
    OVERLAP,
    SLOTS,
    WINDOW,
    NgramInputs,
    features,
    windows,
)

NUMBERS = ["không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín"]


def spoken(length: int) -> str:
    """A text of so many syllables that does not repeat itself soon."""
    return " ".join(NUMBERS[(at * at + at // 7) % 10] for at in range(length))


@given(text=st.text())
def test_any_text_has_features(text: str) -> None:
    found = features(text)
    assert found.dtype == np.int32
    assert len(found) > 0
    assert found.shape[1] == SLOTS
    assert (found >= 0).all()
    assert (found < BUCKETS).all()
    assert (found[:, 0] > 0).all()  # a syllable differs from padding by its first feature


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ud83d"])
def test_a_text_without_syllables_has_one_empty_row(text: str) -> None:
    assert features(text).shape == (1, SLOTS)


def test_a_feature_is_the_same_wherever_and_whenever_it_is_met() -> None:
    # They are numbers of rows in models that were trained before: another hash would break those.
    first, second = features("xin chào")
    assert first.tolist()[:3] == [11295, 69770, 96537]
    assert (features("chào xin xin chào")[2] == first).sum() >= len(first) - 2
    assert second[-2] != features("chào")[0][-2]  # the pair depends on what goes before


def test_the_same_word_in_other_dress_has_the_same_features() -> None:
    for other in ("XIN CHÀO", "xin  cha\u0300o", "xin chàoooo", "xin\u200b chào"):
        np.testing.assert_array_equal(features(other), features("xin chào"))


def test_a_word_without_its_diacritics_shares_features_with_it() -> None:
    with_marks, without = features("đường")[0], features("duong")[0]
    shared = set(with_marks[with_marks > 0]) & set(without[without > 0])
    assert len(shared) >= 4


@given(length=st.integers(1, 1000))
def test_windows_hold_every_syllable_and_overlap(length: int) -> None:
    found = features(spoken(length))
    assert len(found) == length
    cut = windows(found)
    assert all(len(window) <= WINDOW for window in cut)
    np.testing.assert_array_equal(
        np.concatenate([cut[0], *(window[OVERLAP:] for window in cut[1:])]), found
    )


def test_a_word_of_a_million_letters_is_read_to_its_end() -> None:
    end = features("ab" * 500_000 + " cuối")[-1]
    assert end[0] == features("cuối")[0][0]


@given(lengths=st.lists(st.integers(0, 300), max_size=60))
def test_batches_hold_every_window_once_and_stay_small(lengths: list[int]) -> None:
    texts = [spoken(length) for length in lengths]
    seen: list[int] = []
    for batch in NgramInputs().batches(texts):
        block = batch.feeds["features"]
        assert block.shape[0] == len(batch.owners) <= BATCH_ROWS
        assert len(batch.owners) == 1 or block.shape[0] * block.shape[1] <= BATCH_SYLLABLES
        seen += batch.owners.tolist()
    expected = [owner for owner, text in enumerate(texts) for _ in windows(features(text))]
    assert sorted(seen) == expected
