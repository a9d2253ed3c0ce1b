"""The words of texts and queries, passages, and the places that are shown of them."""

from __future__ import annotations

from itertools import pairwise
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.searching import (
    PASSAGE_MS,
    PASSAGE_WORDS,
    SNIPPET,
    FoundText,
    Passage,
    Wanted,
    find,
    fold,
    lexemes_of,
    passages_of,
    words_of,
)
from common.domain.speakers import Diarization
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span
from common.errors import OutOfRange

HOTEL = "Cái khách sạn gần biển đó đẹp lắm."
SAID = st.lists(st.sampled_from(["ba", "bà", "bá", "đi", "di", "biển", "the", "sea"]), max_size=30)


def transcript(*texts: str, each_ms: int = 5_000) -> Transcript:
    segments = (
        Segment(Span(at * each_ms, (at + 1) * each_ms), said) for at, said in enumerate(texts)
    )
    return Transcript("vi", len(texts) * each_ms, tuple(segments))


def found(query: str, *texts: str) -> list[FoundText]:
    wanted = Wanted.parse(query)
    places = (find(passage, wanted) for passage in passages_of(transcript(*texts)))
    return [place for place in places if place]


def marked(place: FoundText) -> list[str]:
    return [place.text[it.start : it.end] for it in place.matches]


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Khách sạn ĐẸP", "khach san dep"),
        (normalize("NFD", "Tiếng Việt"), "tieng viet"),
        ("Ngày 2.5, “mưa”…", "ngay 2 5 mua"),
        ("Straße ØRE Łódź", "strasse ore lodz"),
        ("Ёлка", "елка"),
        ("你好", "你 好"),
        ("नमस्ते।", "नमस्ते"),
        ("한국어", "한국어"),
        ("ﾄｳｷｮｳ", "トウキョウ"),
        ("_?!-", ""),
    ],
)
def test_words_are_compared_without_case_and_marks(text: str, folded: str) -> None:
    assert fold(text) == folded


@given(st.text())
def test_every_word_is_where_it_says(text: str) -> None:
    for word in words_of(text):
        assert fold(text[word.start : word.end]) == word.folded
    for one, other in pairwise(words_of(text)):
        assert one.end <= other.start


@given(st.text(max_size=100))
def test_a_query_with_a_word_is_always_understood(text: str) -> None:
    if words_of(text.replace('"', " ")):
        assert Wanted.parse(text).tiers()


@pytest.mark.parametrize("query", ["", "  ", '""', "?!", "́"])
def test_a_query_without_a_word_is_rejected_by_name(query: str) -> None:
    with pytest.raises(OutOfRange, match="q must be text with at least one letter or digit"):
        Wanted.parse(query)


def test_words_typed_with_marks_are_ranked_before_others() -> None:
    assert Wanted.parse("khách san").tiers() == [
        ["khach san", "=khách"],
        ["khach san"],
        ["=khách", "san"],
        ["khach", "san"],
    ]
    assert Wanted.parse("khách").tiers() == [["=khách"], ["khach"]]
    assert Wanted.parse("khach").tiers() == [["khach"]]


def test_a_phrase_is_required_of_what_is_quoted_or_has_no_spaces() -> None:
    assert Wanted.parse('gần "khách sạn"').tiers()[-1] == ["gan", "khach", "san", "khach san"]
    assert Wanted.parse("你好").tiers() == [["你 好"], ["你", "好", "你 好"]]


@given(st.lists(SAID.map(" ".join), max_size=60), st.integers(100, 90_000))
def test_passages_have_every_segment_with_words_once_and_share_one(
    texts: list[str], each_ms: int
) -> None:
    passages = list(passages_of(transcript(*texts, each_ms=each_ms)))

    own = [it for passage in passages for it in passage.segments[: -passage.shared or None]]
    assert [it.text for it in own] == [text for text in texts if text]
    for one, other in pairwise(passages):
        assert one.shared == 1
        assert one.segments[-1] == other.segments[0]
    for passage in passages:
        alone = len(passage.segments) - passage.shared == 1
        assert alone or passage.span.duration_ms <= PASSAGE_MS
        assert Passage.from_json(passage.to_json(), passage.shared) == passage


def test_a_long_segment_is_divided() -> None:
    passages = list(passages_of(transcript(" ".join(["từ"] * 1_000))))

    counts = [len(words_of(it.segments[0].text)) for it in passages]
    assert counts == [PASSAGE_WORDS, PASSAGE_WORDS, 1_000 - 2 * PASSAGE_WORDS]


def test_a_passage_is_found_by_words_pairs_marks_language_and_speaker() -> None:
    segment = Segment(Span(0, 1_000), "Bà bá", speaker="SPEAKER_00")
    diarization = Diarization((), names={"SPEAKER_00": "Lan Trần"})
    [passage] = passages_of(Transcript("vi", 1_000, (segment,), diarization=diarization))

    assert lexemes_of(passage) == {
        "ba": [1, 2],
        "=bà": [],
        "=bá": [],
        "ba ba": [],
        "#vi": [],
        "~lan tran": [],
    }


def test_the_words_that_are_searched_for_are_marked() -> None:
    [place] = found("khach san bien", HOTEL)

    assert place.text == HOTEL
    assert marked(place) == ["khách", "sạn", "biển"]


def test_the_time_is_that_of_the_segment_with_the_words() -> None:
    [place] = found("khách sạn", "Hôm nay khách đến.", "Mưa.", HOTEL, "Hết.")

    assert place.segment.span == Span(10_000, 15_000)


def test_a_phrase_across_two_segments_is_found_once_also_between_passages() -> None:
    texts = [f"câu {number}" for number in range(30)]
    texts[11], texts[12] = "có một khách", "sạn ở đây"  # the first passage ends between them

    [place] = found('"khách sạn"', *texts)

    assert place.segment.span.start_ms == 55_000
    assert marked(place)[:2] == ["khách", "sạn"]


def test_a_phrase_has_its_words_in_a_row() -> None:
    assert found('"đi khách sạn"', "đi khách", "hàng khách sạn") == []
    assert found('"đi khách sạn"', "đi khách", "sạn") != []


def test_words_as_they_were_typed_are_shown_before_others() -> None:
    [place] = found("bán", "các bạn ơi", "bạn bè", "bán nhà")

    assert place.segment.text == "bán nhà"


@given(st.lists(SAID.map(" ".join), min_size=1, max_size=40), SAID.filter(bool))
def test_what_is_shown_is_short_and_of_the_text(texts: list[str], query: list[str]) -> None:
    everything = " ".join(text for text in texts if text)
    for place in found(" ".join(query), *texts):
        assert place.text in everything
        assert len(place.text) <= SNIPPET + 20
        assert {fold(it) for it in marked(place)} <= {fold(it) for it in query}
        assert place.segment.text in texts


@given(st.lists(SAID.map(" ".join), min_size=1, max_size=40), SAID.filter(bool))
def test_words_of_one_segment_are_always_found(texts: list[str], said: list[str]) -> None:
    assert found(" ".join(said), *texts, " ".join(said), *texts)


def test_a_text_without_spaces_is_cut_as_well() -> None:
    [place] = found("好", "你好" + "我" * 2_000)

    assert len(place.text) <= SNIPPET + 4
    assert marked(place) == ["好"]
