"""The moderation of a text: a label with its scores, and the offending characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, Self

Source = Literal["list", "model"]


class Label(StrEnum):
    """The class of a text, in order of severity.

    As in ViHSD (arXiv 2103.11528): OFFENSIVE is foul language without a target, HATE
    attacks a person or a group.
    """

    CLEAN = "CLEAN"
    OFFENSIVE = "OFFENSIVE"
    HATE = "HATE"

    @property
    def severity(self) -> int:
        """0 for CLEAN; higher is worse."""
        return SEVERITIES[self]


SEVERITIES = {label: severity for severity, label in enumerate(Label)}

Thresholds = Mapping[Label, float]
"""The least score, in (0, 1], at which a text gets the label; for every label but CLEAN."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """The offending characters ``[start, end)`` of a text, counted in code points.

    ``source``: a word list, or the model (without these characters it would label the text CLEAN).
    """

    start: int
    end: int
    label: Label
    source: Source


@dataclass(frozen=True, slots=True)
class Finding:
    """The label of a text.

    ``scores`` are probabilities in the order of `Label` that sum to 1; ``marks`` are in order and
    do not overlap. A CLEAN text has none.
    """

    label: Label
    scores: tuple[float, float, float]
    marks: tuple[Mark, ...] = ()

    @property
    def score(self) -> float:
        """The score of the label."""
        return self.scores[self.label.severity]

    def cut(self, start: int, end: int) -> Finding:
        """The finding on the characters ``[start, end)`` alone: same label, with their marks."""
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
        """Read the output of `to_json`."""
        label, (clean, offensive, hate), marks = document
        return cls(
            Label(label),
            (clean, offensive, hate),
            tuple(Mark(start, end, Label(name), source) for start, end, name, source in marks),
        )


@dataclass(frozen=True, slots=True)
class ModeratedBy:
    """The model that moderated a text: its name, the hash of its graph, and its thresholds."""

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


def each_once(models: Iterable[ModeratedBy | None]) -> tuple[ModeratedBy, ...]:
    """The models, in order, each once."""
    found: list[ModeratedBy] = []
    for by in models:
        if by is not None and by not in found:
            found.append(by)
    return tuple(found)


def decide(scores: Sequence[float], thresholds: Thresholds) -> Label:
    """The most probable label that reaches its threshold; CLEAN if none does.

    ``scores`` are in the order of `Label`.
    """
    reached = [label for label, least in thresholds.items() if scores[label.severity] >= least]
    return max(reached, key=lambda label: scores[label.severity], default=Label.CLEAN)
