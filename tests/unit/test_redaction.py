"""Which stretches are covered: every offending word, and little else."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.moderation import Finding, Label, Mark
from common.domain.redaction import JOIN_MS, MARGIN_MS, spans_to_silence, unmoderated
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word
from tests.support.factories import CLEAN


def foul(*marks: Mark) -> Finding:
    return Finding(Label.OFFENSIVE, (0.1, 0.8, 0.1), marks)


def mark(start: int, end: int) -> Mark:
    return Mark(start, end, Label.OFFENSIVE, "list")


def transcript(*segments: Segment) -> Transcript:
    return Transcript("en", 60_000, segments, ())


SAID = Segment(
    Span(1_000, 9_000),
    " what the fuck is that",
    (
        Word(" what", Span(1_000, 1_400), 0.9),
        Word(" the", Span(1_500, 1_700), 0.9),
        Word(" fuck", Span(3_000, 3_400), 0.9),
        Word(" is", Span(8_000, 8_200), 0.9),
        Word(" that", Span(8_300, 9_000), 0.9),
    ),
)


def test_the_marked_word_is_covered_with_a_margin() -> None:
    moderated = replace(SAID, finding=foul(mark(10, 14)))
    assert spans_to_silence(transcript(moderated)) == [Span(3_000 - MARGIN_MS, 3_400 + MARGIN_MS)]


def test_a_mark_covers_every_word_that_it_touches() -> None:
    moderated = replace(SAID, finding=foul(mark(8, 11)))
    assert spans_to_silence(transcript(moderated)) == [Span(1_400, 1_800), Span(2_900, 3_500)]


@pytest.mark.parametrize(
    "changes",
    [
        {"finding": foul()},
        {"finding": foul(mark(10, 14)), "words": ()},
        {"finding": foul(mark(10, 14)), "text": "what the fuck is that"},
        {"finding": foul(mark(22, 23))},
        {"finding": foul(mark(10, 14), mark(22, 23))},
    ],
    ids=["nothing marked", "no word times", "other words", "mark outside", "one mark outside"],
)
def test_without_known_words_the_whole_segment_is_redacted(changes: dict[str, object]) -> None:
    moderated = replace(SAID, **changes)  # type: ignore[arg-type]
    assert spans_to_silence(transcript(moderated)) == [Span(900, 9_100)]


def test_clean_segments_are_not_redacted() -> None:
    assert spans_to_silence(transcript(replace(SAID, finding=CLEAN))) == []


def test_a_word_at_the_very_start_is_covered_from_the_start() -> None:
    word = Word("fuck", Span(20, 300), 0.9)
    moderated = Segment(Span(20, 300), "fuck", (word,), finding=foul(mark(0, 4)))
    assert spans_to_silence(transcript(moderated)) == [Span(0, 400)]


def test_unmoderated_segments_are_reported_unless_they_have_no_text() -> None:
    silent = replace(SAID, text=" ", words=())
    moderated = replace(SAID, finding=CLEAN)
    assert list(unmoderated(transcript(SAID, silent, moderated))) == [SAID.span]


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    segments = []
    now = 0
    for _ in range(draw(st.integers(0, 5))):
        words = []
        first = now
        for text in draw(st.lists(st.sampled_from([" a", " bb", "-c", " địt"]), max_size=8)):
            start = now + draw(st.integers(0, 500))
            now = start + draw(st.integers(0, 900))
            words.append(Word(text, Span(start, now), 0.9))
        text = "".join(word.text for word in words)
        edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
        marks = [mark(*pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
        finding = draw(st.sampled_from([None, CLEAN, foul(*marks)]))
        timed = tuple(words) if draw(st.booleans()) else ()
        segments.append(Segment(Span(first, now), text, timed, finding=finding))
    return transcript(*segments)


@given(transcripts())
def test_marked_words_are_covered_and_stretches_keep_their_distance(moderated: Transcript) -> None:
    covered = spans_to_silence(moderated)
    for one, other in itertools.pairwise(covered):
        assert other.start_ms - one.end_ms >= JOIN_MS
    for segment in moderated.segments:
        if segment.finding is None or segment.finding.label is Label.CLEAN:
            continue
        at = 0
        for word in segment.words:
            start, at = at, at + len(word.text)
            if any(it.start < at and it.end > start for it in segment.finding.marks):
                assert holds(covered, word.span)
        if not segment.words or not segment.finding.marks:
            assert holds(covered, segment.span)


@given(transcripts())
def test_nothing_far_from_an_offence_is_covered(moderated: Transcript) -> None:
    foul_segments = [
        it.span for it in moderated.segments if it.finding and it.finding.label is not Label.CLEAN
    ]
    for span in spans_to_silence(moderated):
        for edge in (span.start_ms, span.end_ms):
            assert any(
                it.start_ms - MARGIN_MS <= edge <= it.end_ms + MARGIN_MS for it in foul_segments
            )


def holds(covered: list[Span], span: Span) -> bool:
    return any(it.start_ms <= span.start_ms and span.end_ms <= it.end_ms for it in covered)
