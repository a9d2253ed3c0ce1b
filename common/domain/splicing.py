"""Puts the new text of a span into a transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from common.domain.moderation import each_once
from common.domain.speakers import attribute, marked_overlaps
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span


def spliced(transcript: Transcript, span: Span, anew: Transcript) -> Transcript:
    """The transcript with the segments of ``anew`` in place of its own words in ``span``.

    A word is in the span if its midpoint is; a segment without words counts as one. All other words
    stay as they are: a segment that crosses an edge of the span is cut there. New words that reach
    over an edge are cut off at the words that stay. The speakers are those of ``transcript``.
    """
    kept = [part for segment in transcript.segments for part in _outside(segment, span)]
    new = [
        clipped
        for segment in _with_speakers(transcript, anew.segments)
        if (clipped := _clipped(segment, kept)) is not None
    ]
    segments = sorted(
        [*kept, *new], key=lambda it: (it.span.start_ms, it.channel or 0, it.span.end_ms)
    )
    diarization = transcript.diarization
    models = transcript.moderated_by
    return replace(
        transcript,
        segments=tuple(segments)
        if diarization is None
        else marked_overlaps(segments, diarization.turns),
        moderated_by=models and each_once([*models, *(anew.moderated_by or ())]),
    )


def _outside(segment: Segment, span: Span) -> Iterator[Segment]:
    """The parts of a segment before and after the span."""
    if not segment.words:
        if not _is_in(segment.span, span):
            yield segment
        return
    at = 0
    for is_in, words in groupby(segment.words, lambda word: _is_in(word.span, span)):
        count = len(list(words))
        part = slice(at, at + count)
        at += count
        if count == len(segment.words) and not is_in:
            yield segment
        elif not is_in:
            yield replace(segment.with_words(part), finding=None)


def _is_in(span: Span, other: Span) -> bool:
    """Whether the midpoint of one is in the other."""
    return 2 * other.start_ms <= span.start_ms + span.end_ms < 2 * other.end_ms


def _with_speakers(transcript: Transcript, segments: Sequence[Segment]) -> list[Segment]:
    if transcript.diarization is None:
        return [replace(segment, speaker=None) for segment in segments]
    of_channel: dict[int | None, str | None] = {
        it.channel: it.speaker for it in transcript.segments if it.channel is not None
    }
    if of_channel:
        return [replace(it, speaker=of_channel.get(it.channel)) for it in segments]
    parts = attribute(segments, transcript.diarization.turns)
    return [
        replace(part, finding=None) if len(each) > 1 else part for each in parts for part in each
    ]


def _clipped(segment: Segment, kept: Sequence[Segment]) -> Segment | None:
    """The segment between those of its channel that are before and after it; None: no room."""
    middle = segment.span.start_ms + segment.span.end_ms
    own = [it.span for it in kept if it.channel == segment.channel]
    start = max((it.end_ms for it in own if it.start_ms + it.end_ms <= middle), default=0)
    end = min(
        (it.start_ms for it in own if it.start_ms + it.end_ms > middle),
        default=segment.span.end_ms,
    )
    if max(start, segment.span.start_ms) >= min(end, segment.span.end_ms):
        return None
    room = Span(start, end)
    return replace(
        segment,
        span=segment.span.clipped(room),
        words=tuple(replace(word, span=word.span.clipped(room)) for word in segment.words),
    )
