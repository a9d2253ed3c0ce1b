"""Puts the new text of a span into a transcript.

The span ends between words, and the audio around it is transcribed with it: so what is at its edges
is recognized as well as the rest, and in whole words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from common.domain.moderation import each_once
from common.domain.speakers import attribute, marked_overlaps
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span

CONTEXT_MS = 1_000
"""Audio before and after a span that is transcribed with it. Measured with base, for 144 edges of
spans of 2 to 9 s (an English interview, Vietnamese read speech): the text at 73 edges is that of
the first transcription if no more than the given span is read, at 90 if whole words are, at 122
with 1 s around them, and at 120 with 2 s."""
EDGE_MS = 250
"""How far a span reaches into a pause, at most: the times of words are not exact."""
TOUCHED_MS = 30
"""A word of which no more is in a span is not what its caller means: times may be rounded."""


def whole_words(transcript: Transcript, span: Span) -> Span:
    """The span with the whole words that it cuts, and with some of the pauses around them.

    Segments without words count as one. Where channels speak at once, it may still cut words, which
    then belong to it if their midpoint does.
    """
    every = [it.span for segment in transcript.segments for it in segment.words or (segment,)]
    inside = {it for it in every if _is_in(it, span) or _shared_ms(it, span) > TOUCHED_MS}
    first = min((it.start_ms for it in inside), default=span.midpoint_ms)
    last = max((it.end_ms for it in inside), default=span.midpoint_ms)
    others = [it for it in every if it not in inside]
    before = [it.end_ms for it in others if it.midpoint_ms < first]
    after = [it.start_ms for it in others if it.midpoint_ms >= last]
    earliest = min(max(before, default=0), first)
    latest = max(min(after, default=max(transcript.duration_ms, last)), last)
    start = min(span.start_ms, max(first - EDGE_MS, (earliest + first) // 2))
    end = max(span.end_ms, min(last + EDGE_MS, (last + latest + 1) // 2))
    return Span(max(start, earliest), min(end, latest))


def with_context(span: Span) -> Span:
    """The audio to transcribe for a span; it may reach past the end of the recording."""
    return Span(max(0, span.start_ms - CONTEXT_MS), span.end_ms + CONTEXT_MS)


def spliced(transcript: Transcript, span: Span, anew: Transcript) -> Transcript:
    """The transcript with the words of ``anew`` in ``span`` in place of its own there.

    A word is in the span if its midpoint is; a segment without words counts as one. All other words
    stay as they are: a segment that crosses an edge of the span is cut there. New words that reach
    over an edge are cut off at the words that stay. The speakers are those of ``transcript``; where
    that has no words with times, the new segments have none either.
    """
    kept = [part for it in transcript.segments for part in _parts(it, span, inside=False)]
    found = [part for it in anew.segments for part in _parts(it, span, inside=True)]
    new = [
        clipped
        for segment in _with_speakers(transcript, found)
        if (clipped := _clipped(segment, kept)) is not None
    ]
    if transcript.segments and not any(it.words for it in transcript.segments):
        new = [replace(segment, words=()) for segment in new]
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


def has_words(transcript: Transcript, span: Span) -> bool:
    """Whether any word is in the span."""
    return any(_parts(it, span, inside=True) for it in transcript.segments)


def _parts(segment: Segment, span: Span, *, inside: bool) -> list[Segment]:
    """The parts of a segment in the span, or those before and after it."""
    if not segment.words:
        return [segment] * (_is_in(segment.span, span) is inside)
    parts = []
    at = 0
    for is_in, words in groupby(segment.words, lambda word: _is_in(word.span, span)):
        count = len(list(words))
        if is_in is inside:
            whole = count == len(segment.words)
            part = segment if whole else segment.with_words(slice(at, at + count))
            parts.append(part if whole else replace(part, finding=None))
        at += count
    return parts


def _is_in(span: Span, other: Span) -> bool:
    """Whether the midpoint of one is in the other."""
    return 2 * other.start_ms <= span.start_ms + span.end_ms < 2 * other.end_ms


def _shared_ms(span: Span, other: Span) -> int:
    """How long two spans overlap; negative: they do not."""
    return min(span.end_ms, other.end_ms) - max(span.start_ms, other.start_ms)


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
