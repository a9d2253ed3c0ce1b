"""Evaluation of labels and scores: macro-F1, precision, recall, calibration, thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from common.domain.moderation import Label, Thresholds
from common.moderation.folder import DEFAULT_THRESHOLD
from common.moderation.moderator import Scores

Labels = NDArray[np.intp]
"""Labels by number in the order of `Label`, shape (texts,)."""

MODERATED = tuple(label for label in Label if label is not Label.CLEAN)
"""The labels that have a threshold."""
GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The thresholds that are tried."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Precision and recall of one label."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Texts whose label has a score in ``[low, high)``: how sure on average, how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Report:
    """Evaluation of labels and scores against the references.

    ``confusion`` counts, a row per true label and a column per label given, in the order of
    `Label`. ``calibration_error`` is the expected one (ECE) over ``bins``.
    """

    confusion: NDArray[np.intp]
    classes: dict[Label, ClassFigures]
    macro_f1: float
    accuracy: float
    calibration_error: float
    bins: tuple[Bin, ...]


def report(truth: Sequence[int], given: Labels, scores: Scores) -> Report:
    """Compare the labels ``given``, and the scores that they have, with the truth."""
    true = np.asarray(truth, np.intp)
    confusion = np.zeros((len(Label), len(Label)), np.intp)
    np.add.at(confusion, (true, given), 1)
    bins = tuple(_bins(scores[np.arange(len(given)), given], true == given))
    return Report(
        confusion,
        {label: _figures(confusion, label.severity) for label in Label},
        macro_f1(true, given),
        float((true == given).mean()),
        sum(it.count * abs(it.confidence - it.accuracy) for it in bins) / len(true),
        bins,
    )


def macro_f1(truth: Labels, given: Labels) -> float:
    """The mean F1 over the labels that occur in either."""
    figures = []
    for label in np.union1d(truth, given):
        both = np.sum((truth == label) & (given == label))
        figures.append(2 * both / (np.sum(truth == label) + np.sum(given == label)))
    return float(np.mean(figures))


def decide_all(scores: Scores, thresholds: Thresholds) -> Labels:
    """`common.domain.moderation.decide` of every row."""
    least = np.array([thresholds.get(label, np.inf) for label in Label], np.float32)
    reached = np.where(scores >= least, scores, -1.0)
    best = reached.argmax(axis=1)
    return np.where(reached.max(axis=1) < 0, Label.CLEAN.severity, best)


@dataclass(frozen=True, slots=True)
class Choice:
    """Thresholds and their macro-F1 on the part that they were chosen on.

    ``cross_checked`` is that of thresholds chosen on either half of it, on the other half: what
    the choice brings, without the luck of choosing.
    """

    thresholds: Thresholds
    macro_f1: float
    cross_checked: float
    at_default: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gave: scores of texts that were not learned from, and thresholds chosen there.

    ``epoch`` is the one whose weights are kept.
    """

    scores: Scores
    choice: Choice
    epoch: int


def choose_thresholds(scores: Scores, truth: Sequence[int], seed: int = 0) -> Choice:
    """The thresholds with the best macro-F1, or the default ones where these hold up as well."""
    true = np.asarray(truth, np.intp)
    default: Thresholds = dict.fromkeys(MODERATED, DEFAULT_THRESHOLD)
    half = np.random.default_rng(seed).permutation(len(true)) % 2 == 0
    given = np.zeros_like(true)
    for part in (half, ~half):
        given[~part] = decide_all(scores[~part], _best(scores[part], true[part]))
    cross_checked = macro_f1(true, given)
    at_default = macro_f1(true, decide_all(scores, default))
    chosen = _best(scores, true) if cross_checked > at_default else default
    return Choice(chosen, macro_f1(true, decide_all(scores, chosen)), cross_checked, at_default)


def _best(scores: Scores, truth: Labels) -> Thresholds:
    candidates: list[Thresholds] = [
        dict(zip(MODERATED, values, strict=True)) for values in product(GRID, repeat=len(MODERATED))
    ]
    return max(candidates, key=lambda each: macro_f1(truth, decide_all(scores, each)))


def _figures(confusion: NDArray[np.intp], label: int) -> ClassFigures:
    both = confusion[label, label]
    support, called = confusion[label].sum(), confusion[:, label].sum()
    return ClassFigures(
        float(both / called) if called else 0.0,
        float(both / support) if support else 0.0,
        float(2 * both / (support + called)) if support + called else 0.0,
        int(support),
    )


def _bins(confidence: NDArray[np.float32], right: NDArray[np.bool_], count: int = 10) -> list[Bin]:
    at = np.minimum((confidence * count).astype(np.intp), count - 1)
    return [
        Bin(
            number / count,
            (number + 1) / count,
            int(np.sum(at == number)),
            float(confidence[at == number].mean()),
            float(right[at == number].mean()),
        )
        for number in np.unique(at)
    ]
