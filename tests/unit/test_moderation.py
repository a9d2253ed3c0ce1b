"""What the lists and the model make of a text together, and which words they hold to account."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.moderation import Finding, Label, Mark, ModeratedBy, decide
from common.moderation.lexicon import Lexicon
from common.moderation.moderation import LISTED_SCORE, MAX_WORDS_TRIED, Moderation
from common.moderation.moderator import Scores

ILL = {"xấu": (0.2, 0.7, 0.1), "độc": (0.1, 0.1, 0.8), "hơi": (0.58, 0.41, 0.01)}
"""Words that no list has, and the scores of a text with one of them."""
OTHERWISE = (0.9, 0.06, 0.04)


class WordModel:
    """A model whose reasons can be seen: the worst of its words decides."""

    by = ModeratedBy("words", "0" * 64, {Label.OFFENSIVE: 0.4, Label.HATE: 0.5})

    def scores(self, texts: Sequence[str]) -> Scores:
        assert all(text.strip() for text in texts)
        rows = [
            min((ILL[word] for word in text.lower().split() if word in ILL), default=OTHERWISE)
            for text in texts
        ]
        return np.array(rows, np.float32).reshape(-1, 3)


@pytest.fixture(scope="module")
def moderation() -> Moderation:
    return Moderation(WordModel(), Lexicon())


def classify(moderation: Moderation, text: str) -> tuple[Finding, list[str]]:
    (finding,) = moderation.classify([text])
    return finding, [text[mark.start : mark.end] for mark in finding.marks]


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_a_blank_text_is_clean_for_sure(moderation: Moderation, text: str) -> None:
    assert moderation.classify([text]) == [Finding(Label.CLEAN, (1.0, 0.0, 0.0))]


def test_findings_come_in_the_order_of_the_texts(moderation: Moderation) -> None:
    texts = ["", "trời đẹp", "người xấu", " ", "lời độc", "trời đẹp"]
    labels = [finding.label for finding in moderation.classify(texts)]
    assert labels == ["CLEAN", "CLEAN", "OFFENSIVE", "CLEAN", "HATE", "CLEAN"]
    assert moderation.classify([]) == []


def test_words_that_tip_the_scale_are_marked_without_punctuation(moderation: Moderation) -> None:
    finding, marked = classify(moderation, "Ôi, người xấu quá!")
    assert (finding.label, marked) == (Label.OFFENSIVE, ["xấu"])
    assert finding.marks[0].source == "model"
    assert classify(moderation, "(xấu) thật")[1] == []  # the model did not know it like this


def test_no_word_is_blamed_where_any_of_two_is_enough(moderation: Moderation) -> None:
    finding, marked = classify(moderation, "xấu thì xấu")
    assert (finding.label, marked) == (Label.OFFENSIVE, [])


def test_near_a_threshold_no_word_is_blamed_for_little() -> None:
    class Doubtful(WordModel):
        def scores(self, texts: Sequence[str]) -> Scores:
            return np.array([[0.6 - len(t) / 200, 0.4 + len(t) / 200, 0] for t in texts], "f4")

    doubtful = Doubtful()
    (finding,) = Moderation(doubtful, Lexicon()).classify(["một hai"])
    assert decide(finding.scores, doubtful.by.thresholds) is Label.OFFENSIVE
    assert finding.marks == ()


def test_english_profanity_is_not_clean_whatever_its_scores(moderation: Moderation) -> None:
    finding, marked = classify(moderation, "This is fucking great")
    assert finding.label is Label.OFFENSIVE
    assert marked == ["fucking"]
    assert finding.score == pytest.approx(LISTED_SCORE)
    assert sum(finding.scores) == pytest.approx(1)
    assert finding.scores[0] > finding.scores[2]  # the others keep their order


def test_a_listed_word_makes_no_finding_milder(moderation: Moderation) -> None:
    finding, marked = classify(moderation, "fucking độc")
    assert finding.label is Label.HATE
    assert finding.score == pytest.approx(0.8)
    assert marked == ["fucking"]


def test_a_word_that_may_be_innocent_is_marked_in_bad_company_only(moderation: Moderation) -> None:
    assert [find.decides for find in Lexicon().find("khùng")] == [False]
    finding, marked = classify(moderation, "khùng thật")
    assert (finding.label, marked) == (Label.CLEAN, [])
    assert classify(moderation, "khùng xấu")[1] == ["khùng"]


def test_the_words_of_a_long_text_are_not_tried_one_by_one(moderation: Moderation) -> None:
    finding, marked = classify(moderation, " ".join(["trời"] * MAX_WORDS_TRIED + ["xấu"]))
    assert (finding.label, marked) == (Label.OFFENSIVE, [])


@given(
    texts=st.lists(
        st.lists(st.sampled_from([*ILL, "trời", "fuck", "cút", "...", "🖕"])).map(" ".join)
    )
)
def test_marks_lie_in_their_texts_and_clean_texts_have_none(texts: list[str]) -> None:
    findings = Moderation(WordModel(), Lexicon()).classify(texts)
    for text, finding in zip(texts, findings, strict=True):
        assert sum(finding.scores) == pytest.approx(1)
        assert finding.marks == () or finding.label is not Label.CLEAN
        ends = [Mark(0, 0, Label.CLEAN, "list"), *finding.marks]
        for before, mark in zip(ends, finding.marks, strict=False):
            assert before.end <= mark.start < mark.end <= len(text)
            assert text[mark.start : mark.end].strip() == text[mark.start : mark.end]
