"""Moderates texts by a model's scores and word lists, and marks the words that decide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from common.domain.moderation import Finding, Label, Mark, ModeratedBy, decide
from common.moderation.lexicon import Lexicon
from common.moderation.moderator import Moderator

LISTED_SCORE = 0.9
"""The minimum score of a label given by a word list."""
MAX_WORDS_TRIED = 100
"""Words of a text that are left out in turn, to find those that cause its label."""
REMAINING = 0.5
"""Without a word that causes the label, at most this share of its score remains: near a threshold,
any word would change the label."""

_WORD = re.compile(r"\w(?:\S*\w)?|\S+")
"""A word without the punctuation around it."""


class Moderation:
    """A model and the word lists. Not thread-safe; one per process.

    The model sets the label; unambiguous word-list matches override it. The listed words are
    marked; without any, those words without which the text would be CLEAN, with at most half of
    the label's score.
    """

    def __init__(self, moderator: Moderator, lexicon: Lexicon) -> None:
        self._moderator = moderator
        self._lexicon = lexicon

    @property
    def by(self) -> ModeratedBy:
        return self._moderator.by

    def classify(self, texts: Sequence[str]) -> list[Finding]:
        """One finding a text, in order; a blank text is CLEAN.

        Raises:
            ModerationFailed: the model failed (transient).
        """
        findings = [
            self._listed(text, scores)
            for text, scores in zip(texts, self._scores(texts), strict=True)
        ]
        unmarked = [
            index
            for index, finding in enumerate(findings)
            if finding.label is not Label.CLEAN and not finding.marks
        ]
        for index in unmarked:
            finding = findings[index]
            marks = tuple(self._deciding_words(texts[index], finding))
            findings[index] = Finding(finding.label, finding.scores, marks)
        return findings

    def _scores(self, texts: Sequence[str]) -> list[tuple[float, float, float]]:
        said = [index for index, text in enumerate(texts) if text.strip()]
        scores = [(1.0, 0.0, 0.0)] * len(texts)
        if said:
            rows = self._moderator.scores([texts[index] for index in said])
            for index, (clean, offensive, hate) in zip(said, rows.tolist(), strict=True):
                scores[index] = (clean, offensive, hate)
        return scores

    def _listed(self, text: str, scores: tuple[float, float, float]) -> Finding:
        finds = self._lexicon.find(text)
        label = decide(scores, self.by.thresholds)
        decided = [find.mark.label for find in finds if find.decides]
        worst = max([label, *decided], key=lambda found: found.severity)
        if worst is not label:
            label, scores = worst, _raised(scores, worst)
        marks = () if label is Label.CLEAN else tuple(find.mark for find in finds)
        return Finding(label, scores, marks)

    def _deciding_words(self, text: str, finding: Finding) -> Iterator[Mark]:
        words = [match.span() for match in _WORD.finditer(text)]
        if not 1 < len(words) <= MAX_WORDS_TRIED:
            return
        without = [f"{text[:start]}{text[end:]}" for start, end in words]
        for (start, end), scores in zip(words, self._scores(without), strict=True):
            left = scores[finding.label.severity] / finding.score
            if left <= REMAINING and decide(scores, self.by.thresholds) is Label.CLEAN:
                yield Mark(start, end, finding.label, "model")


def _raised(scores: tuple[float, float, float], label: Label) -> tuple[float, float, float]:
    """The scores with that of ``label`` at least `LISTED_SCORE`, the others in proportion."""
    raised = max(LISTED_SCORE, scores[label.severity])
    others = 1 - scores[label.severity]
    share = (1 - raised) / others if others else 0.0
    clean, offensive, hate = (
        raised if index == label.severity else score * share for index, score in enumerate(scores)
    )
    return clean, offensive, hate
