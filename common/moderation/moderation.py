"""Judges texts: a model's scores, the word lists' finds, and the words that tip the scale."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from common.domain.moderation import Label, Mark, ModeratedBy, Verdict, decide
from common.moderation.lexicon import Lexicon
from common.moderation.moderator import Moderator

LISTED_SCORE = 0.9
"""The least score of a label that a word list gave."""
MAX_WORDS_TRIED = 100
"""Words of a text that are left out in turn to see which of them give offence."""
TIPPING = 0.5
"""How much of the label's score may be left without a word that is to blame for it: near a
threshold, any word tips the scale."""

_WORD = re.compile(r"\w(?:\S*\w)?|\S+")
"""Without the punctuation around it."""


class Moderation:
    """A model and the word lists. Not thread-safe; one per process.

    The model decides, and a listed word that can mean nothing else decides over it. What is marked
    are the listed words; where there are none, the words without any one of which the model would
    call the text CLEAN and think half as ill of it.
    """

    def __init__(self, moderator: Moderator, lexicon: Lexicon) -> None:
        self._moderator = moderator
        self._lexicon = lexicon

    @property
    def by(self) -> ModeratedBy:
        return self._moderator.by

    def judge(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict a text, in order; a blank text is CLEAN.

        Raises:
            ModerationFailed: the model refused or broke (transient).
        """
        verdicts = [
            self._listed(text, scores)
            for text, scores in zip(texts, self._scores(texts), strict=True)
        ]
        unmarked = [
            index
            for index, verdict in enumerate(verdicts)
            if verdict.label is not Label.CLEAN and not verdict.marks
        ]
        for index in unmarked:
            verdict = verdicts[index]
            marks = tuple(self._tipping(texts[index], verdict))
            verdicts[index] = Verdict(verdict.label, verdict.scores, marks)
        return verdicts

    def _scores(self, texts: Sequence[str]) -> list[tuple[float, float, float]]:
        said = [index for index, text in enumerate(texts) if text.strip()]
        scores = [(1.0, 0.0, 0.0)] * len(texts)
        if said:
            rows = self._moderator.scores([texts[index] for index in said])
            for index, (clean, offensive, hate) in zip(said, rows.tolist(), strict=True):
                scores[index] = (clean, offensive, hate)
        return scores

    def _listed(self, text: str, scores: tuple[float, float, float]) -> Verdict:
        finds = self._lexicon.find(text)
        label = decide(scores, self.by.thresholds)
        decided = [find.mark.label for find in finds if find.decides]
        worst = max([label, *decided], key=lambda found: found.severity)
        if worst is not label:
            label, scores = worst, _raised(scores, worst)
        marks = () if label is Label.CLEAN else tuple(find.mark for find in finds)
        return Verdict(label, scores, marks)

    def _tipping(self, text: str, verdict: Verdict) -> Iterator[Mark]:
        words = [match.span() for match in _WORD.finditer(text)]
        if not 1 < len(words) <= MAX_WORDS_TRIED:
            return
        without = [f"{text[:start]}{text[end:]}" for start, end in words]
        for (start, end), scores in zip(words, self._scores(without), strict=True):
            left = scores[verdict.label.severity] / verdict.score
            if left <= TIPPING and decide(scores, self.by.thresholds) is Label.CLEAN:
                yield Mark(start, end, verdict.label, "model")


def _raised(scores: tuple[float, float, float], label: Label) -> tuple[float, float, float]:
    """The scores with that of ``label`` at least `LISTED_SCORE`, the others in proportion."""
    raised = max(LISTED_SCORE, scores[label.severity])
    others = 1 - scores[label.severity]
    share = (1 - raised) / others if others else 0.0
    clean, offensive, hate = (
        raised if index == label.severity else score * share for index, score in enumerate(scores)
    )
    return clean, offensive, hate
