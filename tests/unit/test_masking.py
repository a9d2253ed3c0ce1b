from __future__ import annotations

from itertools import accumulate, compress, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.masking import (
    MASK,
    marked_words,
    mask,
    masked,
    masked_segment,
    places,
    unmasked,
)
from common.domain.moderation import Finding, Label, Mark
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[str, tuple[Mark, ...]]:
    text = draw(st.text(max_size=60))
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    chosen = draw(st.lists(st.booleans(), min_size=len(places), max_size=len(places)))
    spans = compress(pairwise(places), chosen)
    return text, tuple(Mark(start, end, Label.OFFENSIVE, "list") for start, end in spans)


@st.composite
def marked_segments(draw: st.DrawFn) -> Segment:
    text, marks = draw(marked_texts())
    sizes = draw(st.lists(st.integers(1, 9), max_size=20))
    cuts = [0, *(at for at in accumulate(sizes) if at < len(text)), len(text)]
    words = tuple(
        Word(text[start:end], Span(start, end), 0.9) for start, end in pairwise(cuts) if end > start
    )
    finding = Finding(Label.OFFENSIVE, (0.1, 0.8, 0.1), marks)
    return Segment(Span(0, len(text)), text, words, finding=finding)


@pytest.mark.parametrize(
    ("text", "start", "end", "shown"),
    [
        ("đụmá nhé", 0, 4, "đ*** nhé"),
        (" đụ má nhé", 1, 6, " đ* ** nhé"),
        ("f u c k", 0, 7, "f * * *"),
        ('"f.u.c.k"!', 0, 10, "*f********"),
        ("oh 🖕!", 3, 4, "oh *!"),
        ("a b", 0, 9, "a *"),
        ("clean", 2, 2, "clean"),
    ],
)
def test_a_mark_shows_its_first_letter_only(text: str, start: int, end: int, shown: str) -> None:
    assert mask(text, [Mark(start, end, Label.HATE, "model")]) == shown


@given(marked_texts())
def test_masks_change_no_other_character_and_no_length(case: tuple[str, tuple[Mark, ...]]) -> None:
    text, marks = case
    shown = mask(text, marks)
    hidden = {at for mark in marks for at in range(mark.start, mark.end)}
    assert len(shown) == len(text)
    assert all(shown[at] == text[at] for at in range(len(text)) if at not in hidden)
    for each in marks:
        assert sum(map(str.isalpha, shown[each.start : each.end])) <= 1
    assert [letter.isspace() for letter in shown] == [letter.isspace() for letter in text]


@given(marked_segments())
def test_words_are_masked_exactly_as_their_segment_is(segment: Segment) -> None:
    (shown,) = masked(Transcript("vi", 1000, (segment,))).segments
    assert "".join(word.text for word in shown.words) == shown.text
    assert [word.span for word in shown.words] == [word.span for word in segment.words]
    assert shown.finding == segment.finding


def test_unmoderated_segments_stay_as_they_are() -> None:
    talk = Transcript("vi", 1000, (Segment(Span(0, 500), " đm"),))
    assert masked(talk) == talk


@given(marked_segments())
def test_the_words_of_a_mark_are_those_with_some_of_its_characters(segment: Segment) -> None:
    assert segment.finding is not None
    marks = segment.finding.marks
    found = [list(words) for words in marked_words(segment, marks)]
    said = list(zip(segment.words, places(segment.words), strict=True))
    assert found == [
        [word for word, (start, end) in said if start < mark.end and end > mark.start]
        for mark in marks
    ]


@given(marked_segments())
def test_what_was_masked_can_be_put_back(segment: Segment) -> None:
    assert unmasked(masked_segment(segment).text, segment) == segment.text


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Anh ta nói: đ* ** mày!", "Anh ta nói: đụ má mày!"),
        ("ANH TA NÓI Đ* ** MÀY", "ANH TA NÓI Đụ má MÀY"),
        ("đ* **", "đụ má"),
        ("anh ta nói đ*", None),
        ("anh ta nói má mày", None),
        ("anh ta nói đ* *** mày", None),
        ("anh ta nói ** đ* mày", None),
        ("anh ta nói đ* ** đ* mày", None),
    ],
)
def test_other_words_are_not_taken_for_the_masked_ones(written: str, plain: str | None) -> None:
    text = "anh ta nói đụ má mày"
    marks = (Mark(11, 16, Label.HATE, "list"),)
    finding = Finding(Label.HATE, (0.1, 0.1, 0.8), marks)
    segment = Segment(Span(0, 900), text, finding=finding)
    assert masked_segment(segment).text == "anh ta nói đ* ** mày"
    assert unmasked(written, segment) == plain


def test_a_text_without_marks_may_have_asterisks() -> None:
    assert unmasked(f"it {MASK}coughs{MASK}", Segment(Span(0, 900), "it coughs")) == "it *coughs*"
