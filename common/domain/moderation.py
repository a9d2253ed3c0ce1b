"""How a text was judged: a label with its scores, and the characters that gave offence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, Self

Source = Literal["list", "model"]


class Label(StrEnum):
    """What a text is, the worse the later.

    As ViHSD has them (arXiv 2103.11528): OFFENSIVE is foul language that attacks nobody, HATE
    attacks a person or a group.
    """

    CLEAN = "CLEAN"
    OFFENSIVE = "OFFENSIVE"
    HATE = "HATE"

    @property
    def severity(self) -> int:
        """0 for CLEAN, and the more the worse."""
        return SEVERITIES[self]


SEVERITIES = {label: severity for severity, label in enumerate(Label)}

Thresholds = Mapping[Label, float]
"""The least score, in (0, 1], at which a text gets the label; for every label but CLEAN."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """The characters ``[start, end)`` of a text that gave offence, counted in code points.

    ``source`` tells who found them: a word list, or the model (without them it would call the
    text CLEAN).
    """

    start: int
    end: int
    label: Label
    source: Source


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text was judged to be.

    ``scores`` are probabilities in the order of `Label` that sum to 1; ``marks`` are in order and
    do not overlap. A CLEAN text has none.
    """

    label: Label
    scores: tuple[float, float, float]
    marks: tuple[Mark, ...] = ()

    @property
    def score(self) -> float:
        """That of the label."""
        return self.scores[self.label.severity]

    def cut(self, start: int, end: int) -> Verdict:
        """The same of the characters ``[start, end)`` alone, as far as one can tell."""
        kept = tuple(
            replace(mark, start=max(mark.start, start) - start, end=min(mark.end, end) - start)
            for mark in self.marks
            if mark.start < end and mark.end > start
        )
        return replace(self, marks=kept)

    def to_json(self) -> list[Any]:
        """The stored form."""
        return [
            self.label,
            [round(score, 4) for score in self.scores],
            [[mark.start, mark.end, mark.label, mark.source] for mark in self.marks],
        ]

    @classmethod
    def from_json(cls, document: Sequence[Any]) -> Self:
        """What `to_json` stored."""
        label, (clean, offensive, hate), marks = document
        return cls(
            Label(label),
            (clean, offensive, hate),
            tuple(Mark(start, end, Label(name), source) for start, end, name, source in marks),
        )


@dataclass(frozen=True, slots=True)
class ModeratedBy:
    """Who judged: the model's name, the hash of its graph, and the thresholds that it judged by."""

    model: str
    sha256: str
    thresholds: Thresholds

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "sha256": self.sha256,
            "threshold": {str(label): value for label, value in self.thresholds.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        thresholds = {Label(name): value for name, value in document["threshold"].items()}
        return cls(document["model"], document["sha256"], thresholds)


def decide(scores: Sequence[float], thresholds: Thresholds) -> Label:
    """The likeliest of the labels that reach their thresholds; CLEAN where none does.

    ``scores`` are in the order of `Label`.
    """
    reached = [label for label, least in thresholds.items() if scores[label.severity] >= least]
    return max(reached, key=lambda label: scores[label.severity], default=Label.CLEAN)
