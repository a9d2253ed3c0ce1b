"""Which audio edited words are aligned to, and which times they take from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.aligning import (
    LEAST_PROBABILITY,
    LONGEST_WORD_MS,
    Passage,
    passages,
    spread,
    with_times,
)
from common.domain.transcript import segments_from_json, segments_to_json
from common.domain.values import MAX_WINDOW_MS, Segment, Span, Word


@st.composite
def transcripts(draw: st.DrawFn) -> tuple[Segment, ...]:
    """Segments of one or two channels, some of whose words are estimated."""
    segments = []
    for channel in draw(st.sampled_from([(None,), (0, 1)])):
        now = 0
        for count in draw(st.lists(st.integers(0, 25), max_size=5)):
            now += draw(st.integers(0, 3_000))
            start, words = now, []
            for at in range(count):
                now += draw(st.integers(0, 300))
                length = draw(st.integers(1, 900) | st.just(1) | st.integers(10_000, 40_000))
                estimated = draw(st.booleans())
                words.append(Word(f" w{at}", Span(now, now + length), 0.9, estimated))
                now += length
            span = Span(start, now + draw(st.integers(1, 200)))
            text = "".join(word.text for word in words)
            segments.append(Segment(span, text, tuple(words), channel=channel))
            now = span.end_ms
    return tuple(sorted(segments, key=lambda it: it.span.start_ms))


@st.composite
def edited(
    draw: st.DrawFn,
) -> tuple[tuple[Segment, ...], list[tuple[Passage, tuple[Word, ...] | None]]]:
    """A transcript, and what an engine may give for its passages."""
    segments = draw(transcripts())
    aligned: list[tuple[Passage, tuple[Word, ...] | None]] = []
    for passage in passages(segments):
        count, length = len(passage.texts), passage.audio.duration_ms
        ms = st.integers(0, length)
        edges = sorted(draw(st.lists(ms, min_size=2 * count, max_size=2 * count)))
        likely = draw(st.sampled_from([0.01, 0.5, 0.9]))
        words = tuple(
            Word(text, Span(edges[2 * at], edges[2 * at + 1]), likely)
            for at, text in enumerate(passage.texts)
        )
        aligned.append((passage, draw(st.sampled_from([words, words, None]))))
    return segments, aligned


def word_at(segments: tuple[Segment, ...], segment: int, word: int) -> Word:
    return segments[segment].words[word]


@given(transcripts())
def test_each_estimated_word_is_in_one_passage_of_at_most_30_s(
    segments: tuple[Segment, ...],
) -> None:
    found = passages(segments)
    places = [(it.segment, it.word) for passage in found for it in passage.places]
    for passage in found:
        assert passage.audio.duration_ms <= MAX_WINDOW_MS
        own = [word_at(segments, it.segment, it.word) for it in passage.places]
        assert [word.text for word in own] == list(passage.texts)
        assert {segments[it.segment].channel for it in passage.places} == {passage.channel}
        assert passage.audio.start_ms <= own[0].span.start_ms
        assert own[-1].span.end_ms <= passage.audio.end_ms
        assert any(word.estimated for word in own)
    for index, segment in enumerate(segments):
        for at, word in enumerate(segment.words):
            if word.estimated and word.span.duration_ms < MAX_WINDOW_MS - 2_000:
                assert (index, at) in places


@given(edited())
def test_only_estimated_words_move_and_all_stay_in_order_in_their_segment(
    case: tuple[tuple[Segment, ...], list[tuple[Passage, tuple[Word, ...] | None]]],
) -> None:
    before, aligned = case
    after = with_times(before, aligned)
    for old, new in zip(before, after, strict=True):
        assert replace(new, words=old.words) == old
        for was, word in zip(old.words, new.words, strict=True):
            assert word.text == was.text
            assert was == word or (was.estimated and not word.estimated)
            assert old.span.start_ms <= word.span.start_ms < word.span.end_ms <= old.span.end_ms
        for left, right in pairwise(new.words):
            assert left.span.end_ms <= right.span.start_ms


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500))), st.integers(0, 300), st.data()
)
def test_spread_spans_are_in_order_in_their_room(
    edges: list[tuple[int, int]], start_ms: int, data: st.DataObject
) -> None:
    room = Span(start_ms, start_ms + len(edges) + data.draw(st.integers(0, 500)))
    found = spread([Span(min(it), max(it)) for it in edges], room)
    ends = [room.start_ms, *(ms for span in found for ms in (span.start_ms, span.end_ms))]
    assert [*ends, room.end_ms] == sorted([*ends, room.end_ms])
    assert all(span.duration_ms >= 1 for span in found)


def a_segment(estimated: set[int], count: int = 30) -> Segment:
    """Words of 300 ms, one every 400 ms from 100 s on."""
    words = [
        Word(f" w{at}", Span(100_000 + 400 * at, 100_300 + 400 * at), 0.9, at in estimated)
        for at in range(count)
    ]
    return Segment(
        Span(99_900, 100_000 + 400 * count), "".join(it.text for it in words), tuple(words)
    )


def test_a_passage_has_kept_words_on_both_sides() -> None:
    (passage,) = passages([a_segment({10, 11})])
    assert passage.texts == tuple(f" w{at}" for at in range(5, 17))
    assert passage.audio == Span(101_800, 106_900)


def test_far_words_have_passages_of_their_own_and_near_ones_share_one() -> None:
    assert len(passages([a_segment({2, 20})])) == 1
    assert len(passages([a_segment({2, 120}, count=130)])) == 2
    assert passages([a_segment(set())]) == []


def aligned(passage: Passage, shift_ms: int) -> tuple[Word, ...]:
    """Each word as it is in `a_segment`, later by ``shift_ms``."""
    starts = [100_000 + 400 * it.word + shift_ms for it in passage.places]
    return tuple(
        Word(text, Span(at - passage.audio.start_ms, at + 250 - passage.audio.start_ms), 0.7)
        for text, at in zip(passage.texts, starts, strict=True)
    )


def test_an_estimated_word_takes_the_time_and_the_probability_of_the_alignment() -> None:
    segment = a_segment({10, 11})
    (passage,) = passages([segment])
    (found,) = with_times([segment], [(passage, aligned(passage, 30))])
    assert found.words[10] == Word(" w10", Span(104_030, 104_280), 0.7)
    assert found.words[11] == Word(" w11", Span(104_430, 104_680), 0.7)
    assert found.words[:10] == segment.words[:10]
    assert found.words[12:] == segment.words[12:]


def test_words_are_kept_between_those_that_did_not_change() -> None:
    segment = a_segment({10})
    (passage,) = passages([segment])
    (found,) = with_times([segment], [(passage, aligned(passage, 300))])
    assert found.words[10].span == Span(104_300, 104_400)


@pytest.mark.parametrize("wrong", ["improbable", "long", "elsewhere", "none"])
def test_words_that_are_not_said_stay_estimated(wrong: str) -> None:
    segment = a_segment({10, 11})
    (passage,) = passages([segment])
    words: tuple[Word, ...] | None = aligned(passage, 2_000 if wrong == "elsewhere" else 0)
    assert words is not None
    if wrong == "improbable":
        words = tuple(replace(it, probability=LEAST_PROBABILITY / 2) for it in words)
    elif wrong == "long":
        end_ms = words[5].span.start_ms + LONGEST_WORD_MS + 1
        words = (
            *words[:5],
            replace(words[5], span=Span(words[5].span.start_ms, end_ms)),
            *words[6:],
        )
    elif wrong == "none":
        words = None
    assert with_times([segment], [(passage, words)]) == (segment,)


def test_stored_words_say_whether_they_are_estimated() -> None:
    segment = a_segment({1}, count=2)
    (document,) = segments_to_json([segment])
    assert document["words"] == [[" w0", 100_000, 100_300, 0.9], [" w1", 100_400, 100_700, 0.9, 1]]
    assert segments_from_json([document]) == (segment,)
