"""The rewriting of words, and the replacements that people make."""

from __future__ import annotations

from itertools import pairwise
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.glossary import (
    LONGEST_CHANGE,
    PROMPT_BYTES,
    Entry,
    Glossary,
    hotwords,
    replacements,
    rewritten,
)
from common.domain.moderation import Finding, Label, Mark
from common.domain.values import Segment, Span, Word

AN = Entry("Nguyễn Văn An", ("nguyen van an", "Nguyễn Vân An"))
STENO = Entry("Stenopool", ("steno pool", "stenapool"))


def spoken(*texts: str, **fields: object) -> Segment:
    """A segment with these words, of 100 ms each."""
    words = tuple(
        Word(text, Span(100 * at, 100 * at + 100), (at + 1) / 10) for at, text in enumerate(texts)
    )
    span = Span(0, 100 * len(texts))
    return Segment(span, "".join(texts), words, **fields)  # type: ignore[arg-type]


def said(text: str) -> Segment:
    return spoken(*(f" {word}" for word in text.split()))


def written(text: str, *entries: Entry) -> str:
    (segment,) = rewritten([said(text)], entries)
    assert segment.text == "".join(word.text for word in segment.words)
    bare = Segment(Span(0, 1), text)
    assert rewritten([bare], entries)[0].text == segment.text.strip()
    return segment.text.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("anh nguyen van an, nói", "anh Nguyễn Văn An, nói"),
        ("(NGUYEN VAN AN).", "(Nguyễn Văn An)."),
        ("“nguyễn vân an” đi", "“Nguyễn Văn An” đi"),
        ("Nguyễn Văn An đi", "Nguyễn Văn An đi"),
        ("nguyen van ana", "nguyen van ana"),
        ("nguyen van. An toàn", "nguyen van. An toàn"),
        ("xnguyen van an", "xnguyen van an"),
        ("nguyen-van-an", "nguyen-van-an"),
        ("Use steno pool! Or Stenapool's", "Use Stenopool! Or Stenapool's"),
    ],
)
def test_whole_words_are_written_right_with_the_punctuation_around_them(
    text: str, expected: str
) -> None:
    assert written(text, AN, STENO) == expected


def test_decomposed_letters_are_the_same_letters() -> None:
    assert written(normalize("NFD", "nguyễn vân an"), AN) == "Nguyễn Văn An"
    right = said(normalize("NFD", "Nguyễn Văn An"))
    assert rewritten([right], [AN])[0] is right


def test_the_longest_spelling_wins() -> None:
    short, long = Entry("Lan", ("lam",)), Entry("Lam Anh", ("lam anh",))
    assert written("lam anh và lam", short, long) == "Lam Anh và Lan"
    assert written("lam anh và lam", long, short) == "Lam Anh và Lan"


def test_of_entries_with_one_spelling_the_first_counts() -> None:
    assert written("lam", Entry("Lan", ("lam",)), Entry("Lâm", ("lam",))) == "Lan"


def test_what_is_right_is_no_part_of_another_spelling() -> None:
    assert written("An", Entry("Văn An", ("an",))) == "Văn An"
    assert written("Văn An", Entry("Văn An", ("an",))) == "Văn An"
    assert written("b", Entry("b", ("a",)), Entry("c", ("b",))) == "b"
    assert written("nguyen van An", Entry("An", ()), AN) == "Nguyễn Văn An"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ask yahoo", "ask Yahoo !"),
        ("ask yahoo.", "ask Yahoo !."),
        ("ask Yahoo !", "ask Yahoo !"),
        ("ask Yahoo !!", "ask Yahoo !!"),
        ("ask yahoo !", "ask Yahoo ! !"),
        ("a", "( a a ("),
        ("( a a (", "( a a ("),
        ("x y", "z"),
        ("x y !", "z !"),
    ],
)
def test_punctuation_of_a_word_may_stand_alone(text: str, expected: str) -> None:
    """It is found again, so that the word is not written into itself again and again."""
    entries = [Entry("Yahoo !", ("yahoo",)), Entry("( a a (", ("a",)), Entry("z", ("x y",))]
    assert written(text, *entries) == expected
    assert written(expected, *entries) == expected


@pytest.mark.parametrize(
    ("word", "expected"), [("ΐx", "\u03aa\u0301x"), ("\u0131x", "\u0131x"), ("ßx", "SSx")]
)
def test_a_capital_does_not_make_another_word(word: str, expected: str) -> None:
    assert written("Q", Entry(f"{word} y", ("q",))).split()[0] == expected
    assert written(f"{expected} y", Entry(f"{word} y", ("q", word))) == f"{expected} y"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Khach san đẹp", "Khách sạn đẹp"),
        ("ở khach san đẹp", "ở khách sạn đẹp"),
        ("Iphone mới", "iPhone mới"),
        ("Dùng c plus plus.", "Dùng C++."),
        ("Dùng c++.", "Dùng C++."),
        ("Vitamin c.", "Vitamin c."),
        ("Có ai. Và ai", "Có A.I. Và A.I."),
    ],
)
def test_capitals_and_marks_follow_the_word_and_its_place(text: str, expected: str) -> None:
    entries = [
        Entry("khách sạn", ("khach san",)),
        Entry("iPhone", ("iphone",)),
        Entry("C++", ("c plus plus", "c++")),
        Entry("A.I.", ("ai",)),
    ]
    assert written(text, *entries) == expected


def test_as_many_words_keep_their_own_times_and_probabilities() -> None:
    segment = spoken(" anh", " nguyen", " van", " An,")
    (new,) = rewritten([segment], [AN])
    assert [(it.span, it.probability) for it in new.words] == [
        (it.span, it.probability) for it in segment.words
    ]
    assert new.words[0] is segment.words[0]
    assert new.words[3] is segment.words[3]


def test_other_words_share_the_time_by_their_letters() -> None:
    (one,) = rewritten([spoken(" Use", " steno", " pool.")], [STENO])
    assert one.words[1:] == (Word(" Stenopool.", Span(100, 300), 0.2),)
    (two,) = rewritten([spoken(" Vanan", " ơi")], [Entry("Vă Na An", ("vanan",))])
    assert [(it.text, it.span) for it in two.words] == [
        (" Vă", Span(0, 33)),
        (" Na", Span(33, 66)),
        (" An", Span(66, 100)),
        (" ơi", Span(100, 200)),
    ]


def test_pieces_of_a_word_are_no_words() -> None:
    whole = spoken(" 3", ",5", " van", "an")
    assert rewritten([whole], [Entry("x", ("3", "5", "van", "an"))])[0] is whole
    assert rewritten([whole], [Entry("Vạn An", ("vanan",))])[0].text == " 3,5 Vạn An"


def test_a_segment_ends_a_spelling() -> None:
    parts = [said("steno"), said("pool")]
    assert rewritten(parts, [STENO]) == tuple(parts)


def test_marks_stay_at_their_text() -> None:
    # Offending: "bad", then the spelling itself, then "worse".
    text = " bad steno pool is worse"
    marks = [(1, 4), (5, 10), (19, 24)]
    finding = Finding(
        Label.HATE, (0, 0, 1), tuple(Mark(*mark, Label.HATE, "list") for mark in marks)
    )
    (new,) = rewritten([spoken(*(f" {it}" for it in text.split()), finding=finding)], [STENO])
    assert new.finding is not None
    assert [new.text[it.start : it.end] for it in new.finding.marks] == [
        "bad",
        "Stenopool",
        "worse",
    ]


syllables = st.sampled_from(["a", "b", "A", "B", "c", "à", "\u0131", "ΐ"])
signs = st.sampled_from(["!", "(", "- ("])
phrases = st.one_of(
    st.lists(syllables, min_size=1, max_size=3).map(" ".join),
    st.builds("{} {}".format, syllables, signs),
    st.builds("{} {} {}".format, signs, syllables, syllables),
)
glossaries = st.lists(
    st.builds(Entry, phrases, st.lists(phrases, max_size=3).map(tuple)), max_size=5
)
tokens = st.lists(
    st.builds(str.__add__, syllables, st.sampled_from(["", "", "", ",", ".", " !"])), max_size=12
)


@given(tokens, glossaries)
def test_rewriting_keeps_words_in_order_and_is_idempotent(
    texts: list[str], entries: list[Entry]
) -> None:
    segment = said(" ".join(texts))
    (new,) = rewritten([segment], entries)
    assert new.text == "".join(word.text for word in new.words)
    assert all(one.span.end_ms <= other.span.start_ms for one, other in pairwise(new.words))
    assert all(segment.span.start_ms <= word.span.start_ms for word in new.words)
    assert all(word.span.end_ms <= segment.span.end_ms for word in new.words)
    (again,) = rewritten([new], entries)
    assert again is new


@given(tokens, glossaries, st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=4))
def test_marks_stay_in_order_and_in_the_text(
    texts: list[str], entries: list[Entry], places: list[tuple[int, int]]
) -> None:
    text = said(" ".join(texts)).text
    marks: list[Mark] = []
    for start, length in sorted(places):
        if start + length <= len(text) and (not marks or marks[-1].end <= start):
            marks.append(Mark(start, start + length, Label.HATE, "list"))
    finding = Finding(Label.HATE, (0, 0, 1), tuple(marks))
    (new,) = rewritten([spoken(*(f" {it}" for it in texts), finding=finding)], entries)
    assert new.finding is not None
    ends = [0, *(at for it in new.finding.marks for at in (it.start, it.end)), len(new.text)]
    assert ends == sorted(ends)
    assert bool(new.finding.marks) == bool(marks)


@given(glossaries)
def test_a_glossary_can_be_stored(entries: list[Entry]) -> None:
    glossary = Glossary("names", tuple(entries), rewrite=True, language="vi")
    assert Glossary.from_json(glossary.to_json()) == glossary


# --- hotwords ---------------------------------------------------------------------------------


def of(*words: str) -> list[Glossary]:
    return [Glossary("names", tuple(map(Entry, words)))]


def test_words_follow_the_hotwords_of_the_request() -> None:
    both = [*of("Lan", "Huế"), *of("Lan", "Đà Lạt")]
    assert hotwords("Nam, ", None, both, for_whisper=True) == ("Nam, Lan, Huế, Đà Lạt", False)
    assert hotwords(None, None, of("Lan"), for_whisper=True) == ("Lan", False)
    assert hotwords(" Nam", None, [], for_whisper=True) == (" Nam", False)
    assert hotwords(None, None, [], for_whisper=True) == (None, False)


def test_the_first_words_that_fit_are_taken() -> None:
    words = [f"Từ{number:03}" for number in range(600)]
    text, truncated = hotwords("Nam", "x" * 100, of(*words), for_whisper=True)
    assert truncated
    assert text is not None
    taken = text.split(", ")
    assert taken == ["Nam", *words][: len(taken)]
    assert PROMPT_BYTES - 110 < len(text.encode()) <= PROMPT_BYTES - 100
    assert hotwords(None, "x" * 500, of("Lan"), for_whisper=True) == (None, True)
    phrases, truncated = hotwords(None, "x" * 500, of(*words), for_whisper=False)
    assert phrases == ", ".join(words[:500])
    assert truncated


# --- suggestions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("anh Nguyen Van an đi", "anh Nguyễn Văn An, đi", [("nguyen van an", "Nguyễn Văn An")]),
        ("the steno pool", "the Stenopool", [("steno pool", "Stenopool")]),
        ("gặp lan hôm qua", "gặp Lan hôm qua", [("lan", "Lan")]),
        ("Hôm nay. lan đến", "Hôm nay. Lan đến", []),
        ("gặp Lan hôm qua", "gặp lan hôm qua", []),
        ("xin chào", "Xin chào!", []),
        ("một hai ba", "một ba", []),
        ("một", "một hai", []),
        ("", "", []),
        ("a b c d e f", "g h i j k l", []),
        ("Lam nói. Lam đi", "Lan nói. Lan đi", [("lam", "Lan")]),
        ("2.5 đồng", "2,5 đồng", []),
    ],
)
def test_replaced_words_are_found(old: str, new: str, expected: list[tuple[str, str]]) -> None:
    assert replacements(old, new) == expected


@given(st.text(), st.text())
def test_replacements_have_few_words(old: str, new: str) -> None:
    for before, after in replacements(old, new):
        assert 1 <= len(before.split()) <= LONGEST_CHANGE
        assert 1 <= len(after.split()) <= LONGEST_CHANGE
        assert before != after


def test_long_texts_are_not_compared() -> None:
    assert replacements("a " * 100_000, "b " * 100_000) == []
