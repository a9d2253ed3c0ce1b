"""Figures mean what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.moderation import Label, decide
from scripts.training.metrics import choose_thresholds, decide_all, macro_f1, report

CLEAN, OFFENSIVE, HATE = range(3)


def test_a_report_counts_what_was_right_and_what_was_not() -> None:
    truth = [CLEAN, CLEAN, CLEAN, OFFENSIVE, HATE, HATE]
    given_ = np.array([CLEAN, CLEAN, HATE, OFFENSIVE, HATE, CLEAN])
    scores = np.full((6, 3), 0.1, np.float32)
    scores[np.arange(6), given_] = 0.8
    found = report(truth, given_, scores)
    assert found.confusion.tolist() == [[2, 0, 1], [0, 1, 0], [1, 0, 1]]
    clean, hate = found.classes[Label.CLEAN], found.classes[Label.HATE]
    assert (clean.precision, clean.recall, clean.support) == pytest.approx((2 / 3, 2 / 3, 3))
    assert (hate.precision, hate.recall, hate.support) == pytest.approx((1 / 2, 1 / 2, 2))
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.calibration_error == pytest.approx(0.8 - 4 / 6)
    (only,) = found.bins
    assert (only.low, only.high, only.count) == (0.8, 0.9, 6)


def test_a_label_that_nobody_names_does_not_count() -> None:
    assert macro_f1(np.array([CLEAN, HATE]), np.array([CLEAN, HATE])) == 1.0


rows = st.tuples(*[st.floats(0.01, 1)] * 3).map(lambda each: tuple(it / sum(each) for it in each))
thresholds = st.floats(0.01, 1)


@given(scores=st.lists(rows, min_size=1), offensive=thresholds, hate=thresholds)
def test_all_rows_are_decided_as_each_would_be(
    scores: list[tuple[float, ...]], offensive: float, hate: float
) -> None:
    by = {
        Label.OFFENSIVE: float(np.float32(offensive)),
        Label.HATE: float(np.float32(hate)),
    }
    table = np.array(scores, np.float32)
    assert decide_all(table, by).tolist() == [decide(row, by).severity for row in table.tolist()]


def test_thresholds_are_chosen_where_they_part_the_labels_best() -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat([CLEAN, OFFENSIVE, HATE], [600, 100, 100]))
    offensive = np.where(truth == OFFENSIVE, rng.uniform(0.26, 0.4, 800), rng.uniform(0, 0.24, 800))
    hate = np.where(truth == HATE, rng.uniform(0.31, 0.5, 800), rng.uniform(0, 0.29, 800))
    scores = np.stack([1 - offensive - hate, offensive, hate], axis=1).astype(np.float32)
    choice = choose_thresholds(scores, truth.tolist())
    assert choice.at_default < 0.5
    assert choice.cross_checked > 0.95
    assert choice.macro_f1 == pytest.approx(1.0)
    assert choice.thresholds == {Label.OFFENSIVE: 0.25, Label.HATE: 0.3}


def test_thresholds_stay_at_half_where_choosing_brings_nothing() -> None:
    truth = [CLEAN, CLEAN, OFFENSIVE, OFFENSIVE, HATE, HATE] * 5
    scores = np.full((30, 3), 0.05, np.float32)
    scores[np.arange(30), truth] = 0.9
    choice = choose_thresholds(scores, truth)
    assert choice.thresholds == {Label.OFFENSIVE: 0.5, Label.HATE: 0.5}
