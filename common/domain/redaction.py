"""The spans of a recording to redact, from its moderated transcript."""

from __future__ import annotations

from collections.abc import Iterator

from common.domain.masking import marked_words
from common.domain.moderation import Label, Mark
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, join_spans

MARGIN_MS = 100
"""Added before and after a word: the times of words are accurate to about 200 ms."""

JOIN_MS = 200
"""A shorter pause between two spans is redacted too: nothing can be understood in it."""


def unmoderated(transcript: Transcript) -> Iterator[Span]:
    """The times of the segments with text that could not be moderated."""
    for segment in transcript.segments:
        if segment.finding is None and segment.text.strip():
            yield segment.span


def spans_to_silence(transcript: Transcript) -> list[Span]:
    """The spans with offending words, in order and at least `JOIN_MS` apart.

    Of a segment that is not CLEAN these are its marked words, or the whole segment if the words or
    their times are not known.
    """
    widened = sorted(
        Span(max(0, span.start_ms - MARGIN_MS), span.end_ms + MARGIN_MS)
        for segment in transcript.segments
        if segment.finding is not None and segment.finding.label is not Label.CLEAN
        for span in _offences(segment, segment.finding.marks)
    )
    return join_spans(widened, lambda before, span: span.start_ms - before.end_ms < JOIN_MS)


def _offences(segment: Segment, marks: tuple[Mark, ...]) -> list[Span]:
    if not marks or "".join(word.text for word in segment.words) != segment.text:
        return [segment.span]
    words = list(marked_words(segment, marks))
    return [word.span for each in words for word in each] if all(words) else [segment.span]
