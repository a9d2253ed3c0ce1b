"""New text in a span: all other words stay as they are, none is doubled, and nothing overlaps."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.moderation import Finding, Label
from common.domain.speakers import Diarization, Turn
from common.domain.splicing import (
    EDGE_MS,
    TOUCHED_MS,
    has_words,
    spliced,
    whole_words,
    with_context,
)
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word

A, B = "SPEAKER_00", "SPEAKER_01"
LENGTH_MS = 20_000


def segment(*words: tuple[str, int, int], **fields: object) -> Segment:
    made = tuple(Word(f" {text}", Span(start, end), 0.9) for text, start, end in words)
    span = Span(made[0].span.start_ms, made[-1].span.end_ms)
    return Segment(span, "".join(it.text for it in made), made, **fields)  # type: ignore[arg-type]


def of(*segments: Segment, **fields: object) -> Transcript:
    return Transcript("en", LENGTH_MS, segments, **fields)  # type: ignore[arg-type]


BEFORE = of(
    segment(("one", 0, 900), ("two", 1_000, 1_900), ("three", 2_000, 2_900)),
    segment(("four", 4_000, 4_900), ("five", 5_000, 5_900)),
)


def texts(transcript: Transcript) -> list[str]:
    return [it.text.strip() for it in transcript.segments]


def test_only_the_words_of_the_span_are_replaced() -> None:
    anew = of(segment(("TWO", 1_000, 1_900)))
    found = spliced(BEFORE, Span(950, 1_950), anew)
    assert texts(found) == ["one", "TWO", "three", "four five"]
    assert found.segments[-1] is BEFORE.segments[-1]
    assert found.segments[0].words == BEFORE.segments[0].words[:1]


def test_a_span_over_several_segments_replaces_them() -> None:
    anew = of(segment(("all", 1_000, 3_000), ("new", 4_100, 4_900)))
    assert texts(spliced(BEFORE, Span(950, 4_950), anew)) == ["one", "all new", "five"]


def test_new_words_end_where_those_that_stay_begin() -> None:
    anew = of(segment(("TWO", 700, 2_300)))
    found = spliced(BEFORE, Span(950, 1_950), anew)
    assert [it.span for it in found.segments] == [
        Span(0, 900),
        Span(900, 2_000),
        Span(2_000, 2_900),
        Span(4_000, 5_900),
    ]


def test_speakers_are_those_of_the_transcript() -> None:
    turns = (Turn(Span(0, 1_500), A), Turn(Span(1_500, 6_000), B))
    spoken = of(
        *(
            segment(*[(it.text.strip(), *_ends(it)) for it in each.words], speaker=B)
            for each in BEFORE.segments
        ),
        diarization=Diarization(turns, {A: "Lan"}),
    )
    anew = of(segment(("both", 1_000, 1_400), ("speak", 1_600, 1_900)))
    found = spliced(spoken, Span(950, 1_950), anew)
    assert [(it.text, it.speaker) for it in found.segments[1:3]] == [(" both", A), (" speak", B)]
    assert found.diarization == spoken.diarization


def _ends(word: Word) -> tuple[int, int]:
    return word.span.start_ms, word.span.end_ms


def test_channels_keep_their_speakers_and_may_overlap() -> None:
    call = of(
        segment(("hello", 0, 900), speaker=A, channel=0),
        segment(("hi", 500, 1_400), speaker=B, channel=1),
        diarization=Diarization((Turn(Span(0, 900), A), Turn(Span(500, 1_400), B))),
    )
    anew = of(
        segment(("HELLO", 0, 900), speaker="SPEAKER_07", channel=0),
        segment(("HI", 500, 1_400), speaker="SPEAKER_08", channel=1),
    )
    found = spliced(call, Span(0, 2_000), anew)
    assert [(it.text, it.speaker, it.span) for it in found.segments] == [
        (" HELLO", A, Span(0, 900)),
        (" HI", B, Span(500, 1_400)),
    ]


def test_a_part_of_a_labelled_segment_has_no_label_until_it_is_moderated() -> None:
    clean = Finding(Label.CLEAN, (0.9, 0.1, 0.0))
    labelled = of(
        segment(("one", 0, 900), ("two", 1_000, 1_900), finding=clean),
        segment(("three", 2_000, 2_900), finding=clean),
    )
    found = spliced(labelled, Span(950, 1_950), of())
    assert [it.finding for it in found.segments] == [None, clean]


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        ((1_500, 1_600), (950, 1_950)),  # a part of a word
        ((1_500, 2_200), (950, 3_150)),  # of two, the second at the end of its segment
        ((1_000, 1_900), (950, 1_950)),  # a whole one
        ((920, 1_980), (920, 1_980)),  # in the pauses around it
        ((1_000, 2_020), (950, 2_000)),  # rounded
        ((880, 1_900), (900, 1_950)),
        ((1_000, 2_040), (950, 3_150)),
        ((3_200, 3_700), (3_200, 3_700)),  # a pause
        ((2_880, 4_020), (2_900, 4_000)),
        ((0, LENGTH_MS), (0, LENGTH_MS)),
        ((5_500, 5_600), (4_950, 6_150)),  # the last word
    ],
)
def test_a_span_has_whole_words(asked: tuple[int, int], done: tuple[int, int]) -> None:
    assert whole_words(BEFORE, Span(*asked)) == Span(*done)


def test_a_segment_without_words_counts_as_one() -> None:
    plain = of(Segment(Span(0, 4_000), " one"), Segment(Span(4_000, 9_000), " two"))
    span = whole_words(plain, Span(1_000, 2_000))
    assert span == Span(0, 4_000)
    found = spliced(plain, span, of(segment(("new", 100, 900), ("words", 1_000, 3_900))))
    assert [(it.text, it.words) for it in found.segments] == [(" new words", ()), (" two", ())]


def test_words_around_the_span_are_no_text_in_it() -> None:
    around = of(segment(("one", 0, 900), ("three", 2_000, 2_900)))
    assert not has_words(around, Span(950, 1_950))
    assert has_words(around, Span(950, 2_500))


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Segments of up to four words, some without words, which do not overlap."""
    segments, at = [], 0
    while at < LENGTH_MS - 6_000 and draw(st.booleans()):
        words = []
        for _ in range(draw(st.integers(1, 4))):
            start = at + draw(st.integers(0, 300))
            at = start + draw(st.integers(1, 900))
            words.append((f"w{start}", start, at))
        made = segment(*words)
        segments.append(made if draw(st.booleans()) else Segment(made.span, made.text))
    return of(*segments)


@given(transcripts(), transcripts(), st.integers(0, LENGTH_MS), st.integers(1, LENGTH_MS))
def test_nothing_else_changes_whatever_the_span(
    before: Transcript, anew: Transcript, start: int, length: int
) -> None:
    span = Span(start, start + length)

    def is_in(it: Segment | Word) -> bool:
        return 2 * span.start_ms <= it.span.start_ms + it.span.end_ms < 2 * span.end_ms

    new = [(it, [word for word in it.words if is_in(word)]) for it in anew.segments]
    inside = of(
        *(
            segment(*((word.text.strip(), *_ends(word)) for word in words)) if words else it
            for it, words in new
            if words or (not it.words and is_in(it))
        )
    )
    found = spliced(before, span, inside)
    kept = [word for it in before.segments for word in it.words if not is_in(word)]
    have = {word for it in found.segments for word in it.words}
    assert have.issuperset(kept)
    whole = [it for it in before.segments if not any(map(is_in, it.words or [it]))]
    assert all(it in found.segments for it in whole)
    gone = [word for it in before.segments for word in it.words if is_in(word)]
    assert not have.intersection(gone) - {w for it in inside.segments for w in it.words}
    for left, right in pairwise(found.segments):
        assert left.span.end_ms <= right.span.start_ms
    for each in found.segments:
        assert all(each.span.start_ms <= it.span.start_ms for it in each.words)
        assert all(it.span.end_ms <= each.span.end_ms for it in each.words)
        for word, following in pairwise(each.words):
            assert word.span.end_ms <= following.span.start_ms


@st.composite
def said(draw: st.DrawFn) -> Transcript:
    """What is said, in segments of words of at least 100 ms, with and without pauses."""
    segments, words, at = [], [], 0
    for number in range(draw(st.integers(1, 25))):
        start = at + draw(st.sampled_from([0, 0, 0, 1, 80, 700, 3_000]))
        at = start + draw(st.integers(100, 900))
        words.append((f"w{number}", start, at))
        if draw(st.booleans()):
            segments.append(segment(*words))
            words = []
    return of(*segments, *([segment(*words)] if words else []))


@given(said(), st.integers(0, LENGTH_MS - 100), st.integers(100, 9_000), st.data())
def test_no_word_is_doubled_or_lost_at_the_edges_of_a_span(
    before: Transcript, start: int, length: int, data: st.DataObject
) -> None:
    asked = Span(start, min(start + length, before.duration_ms))
    span = whole_words(before, asked)
    words = [word for it in before.segments for word in it.words]
    assert all(it.span.end_ms <= span.start_ms or it.span.start_ms >= span.start_ms for it in words)
    assert all(it.span.end_ms <= span.end_ms or it.span.start_ms >= span.end_ms for it in words)
    assert span.start_ms <= asked.start_ms + TOUCHED_MS
    assert span.end_ms >= asked.end_ms - TOUCHED_MS
    touched = [it for it in words if asked.start_ms < it.span.end_ms - TOUCHED_MS]
    touched = [it for it in touched if it.span.start_ms + TOUCHED_MS < asked.end_ms]
    first = min([asked.start_ms, *(it.span.start_ms for it in touched)])
    last = max([asked.end_ms, *(it.span.end_ms for it in touched)])
    assert first - span.start_ms <= EDGE_MS
    assert span.end_ms - last <= EDGE_MS

    # A model recognizes the same words, not quite at the same times, and parts of those that the
    # audio cuts.
    audio = with_context(span)
    recognized = []
    for word in words:
        shift = data.draw(st.integers(-45, 45))
        from_ms = max(audio.start_ms, word.span.start_ms + shift)
        until_ms = min(audio.end_ms, word.span.end_ms + shift)
        if from_ms < until_ms:
            recognized.append((word.text.strip(), from_ms, until_ms))
    anew = of(*([segment(*recognized)] if recognized else []))
    assert spliced(before, span, anew).text == before.text
