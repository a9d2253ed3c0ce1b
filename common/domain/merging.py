"""From the windows' texts to the recording's: nothing twice, nothing lost, times in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.domain.values import Chunk, Segment, Span, Window, Word

SPEECH_WITHOUT_TEXT_MS = 3_000
"""Speech that may stay without text and without a warning: a breath, a laugh, a false alarm."""

Part = tuple[Chunk, Sequence[Sequence[Segment]]]
"""A chunk and the segments of each of its windows, with times from the window's own start."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The text of a recording on its own clock: segments in order that do not overlap."""

    segments: tuple[Segment, ...]

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)


def merge(parts: Iterable[Part]) -> Merged:
    """Join the windows' segments.

    A window cut in silence gives all its words, pulled into its audio where the engine let them
    end too late. A window that shares audio with its neighbour gives the words whose midpoint lies
    in its core. Segments without words are treated as one word each.

    Raises:
        ValueError: a chunk has not as many results as windows, or chunks are not in order.
    """
    kept: list[Segment] = []
    core_end = 0
    for window, segments in _by_window(parts):
        if window.core.start_ms < core_end:
            raise ValueError(f"the window at {window.core.start_ms} ms is out of order")
        core_end = window.core.end_ms
        kept.extend(_owned(window, segments))
    return Merged(tuple(_in_order(kept)))


def speech_without_text(parts: Iterable[Part]) -> tuple[Span, ...]:
    """Where somebody spoke for at least `SPEECH_WITHOUT_TEXT_MS` and nothing was written.

    Of each window that has more speech than its text can account for, the longest stretch of the
    core without text.
    """
    missing = []
    for window, segments in _by_window(parts):
        written = [segment.span for segment in _owned(window, segments) if segment.text.strip()]
        unwritten = window.speech_ms - sum(span.duration_ms for span in written)
        if unwritten >= SPEECH_WITHOUT_TEXT_MS:
            missing.append(max(_gaps(window.core, written), key=lambda span: span.duration_ms))
    return tuple(missing)


def _by_window(parts: Iterable[Part]) -> Iterator[tuple[Window, Sequence[Segment]]]:
    for chunk, results in parts:
        yield from zip(chunk.windows, results, strict=True)


def _owned(window: Window, segments: Sequence[Segment]) -> Iterator[Segment]:
    """The segments of a window on the recording's clock, with the words that are the window's."""
    for segment in segments:
        placed = segment.shifted(window.audio.start_ms)
        words = [replace(word, span=word.span.clipped(window.audio)) for word in placed.words]
        owned = tuple(word for word in words if _owns(window, word.span))
        span = placed.span.clipped(window.audio)
        if len(owned) < len(words):
            if owned:
                span = Span(owned[0].span.start_ms, max(word.span.end_ms for word in owned))
                text = "".join(word.text for word in owned)
                yield replace(placed, span=span, text=text, words=owned)
        elif words or _owns(window, span):
            yield replace(placed, span=span, words=owned)


def _owns(window: Window, span: Span) -> bool:
    """Whether what is said at ``span`` counts here; where audio is not shared, all of it does."""
    shared_before = window.audio.start_ms < window.core.start_ms
    shared_after = window.audio.end_ms > window.core.end_ms
    too_early = shared_before and span.midpoint_ms < window.core.start_ms
    too_late = shared_after and span.midpoint_ms >= window.core.end_ms
    return not (too_early or too_late)


def _in_order(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Push what starts before its predecessor's end up to that end; the text's order stays."""
    now = 0
    for segment in segments:
        start = max(segment.span.start_ms, now)
        now = start
        words = []
        for word in segment.words:
            span = _not_before(now, word.span)
            words.append(replace(word, span=span))
            now = span.end_ms
        now = max(now, segment.span.end_ms, start)
        yield replace(segment, span=Span(start, now), words=tuple(words))


def _not_before(ms: int, span: Span) -> Span:
    return Span(max(span.start_ms, ms), max(span.end_ms, ms))


def _gaps(within: Span, spans: Iterable[Span]) -> Iterator[Span]:
    """The parts of ``within`` that none of ``spans`` covers, and an empty one at its end."""
    now = within.start_ms
    for span in sorted(spans):
        if span.start_ms > now:
            yield Span(now, min(span.start_ms, within.end_ms))
        now = min(max(now, span.end_ms), within.end_ms)
    yield Span(now, within.end_ms)
