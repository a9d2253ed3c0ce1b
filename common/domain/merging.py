"""Merges the texts of windows: no word twice, none lost, times in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.domain.values import Chunk, Segment, Span, Window, Word

SPEECH_WITHOUT_TEXT_MS = 3_000
"""Shorter speech without text gives no warning: a breath, a laugh, a false alarm."""

SAME_WORD_MS = 500
"""How far apart two windows may place a word; Whisper's word times are mostly within 200 ms."""

ChunkSegments = tuple[Chunk, Sequence[Sequence[Segment]]]
"""A chunk and the segments of each of its windows, with times from the window's start."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A window's segments on the recording's clock, and which of its words count.

    A segment without words counts as one word.
    """

    window: Window
    segments: tuple[Segment, ...]
    words: tuple[Word, ...]
    own: slice

    def owned(self) -> Iterator[Segment]:
        """The segments with the words that count."""
        first, last, _ = self.own.indices(len(self.words))
        at = 0
        for segment in self.segments:
            count = len(segment.words) or 1
            kept = slice(max(first - at, 0), max(last - at, 0))
            words = segment.words[kept]
            if words and len(words) < len(segment.words):
                yield segment.with_words(kept)
            elif words or (not segment.words and first <= at < last):
                yield segment
            at += count


def merge(parts: Iterable[ChunkSegments]) -> tuple[Segment, ...]:
    """The windows' segments on the recording's clock, in order, without overlaps.

    A window cut in silence keeps all its words, clipped to its audio if the engine let them end too
    late. Where two windows share audio, the seam is a word that both have near the edge of their
    cores: all before it and itself from the left window, the rest from the right one. Where
    they agree on none, each word counts in the window whose core holds its midpoint. Segments
    without words count whole, by their midpoint.

    The parts are in order; some may be missing.

    Raises:
        ValueError: a chunk has another number of results than windows, or is out of order.
    """
    kept = (segment for placed in _placed_windows(parts) for segment in placed.owned())
    return tuple(_in_order(kept))


class IncrementalMerge:
    """Merges chunks as they arrive in order; the result equals that of merging all at once.

    A chunk cut in silence shares no audio with the next one, so its text is certain. A chunk cut
    within speech is held until the next one arrives.
    """

    def __init__(self) -> None:
        self._held: list[ChunkSegments] = []

    def add(self, parts: Iterable[ChunkSegments]) -> tuple[Segment, ...]:
        """Add ``parts``; returns the segments that became certain."""
        self._held += parts
        certain = 0
        for count, (chunk, _) in enumerate(self._held, 1):
            if chunk.audio.end_ms <= chunk.core.end_ms:
                certain = count
        ready, self._held = self._held[:certain], self._held[certain:]
        return merge(ready)


def speech_without_text(parts: Iterable[ChunkSegments]) -> tuple[Span, ...]:
    """Where at least `SPEECH_WITHOUT_TEXT_MS` of speech have no text.

    Of each window that has more speech than its text can account for, the longest stretch of the
    core without text, if that is long enough too: many short ones are pauses for breath.
    """
    missing = []
    for placed in _placed_windows(parts):
        core = placed.window.core
        written = [segment.span.clipped(core) for segment in placed.owned() if segment.text.strip()]
        unwritten_ms = placed.window.speech_ms - sum(span.duration_ms for span in written)
        longest = max(_gaps(core, written), key=lambda span: span.duration_ms)
        if min(unwritten_ms, longest.duration_ms) >= SPEECH_WITHOUT_TEXT_MS:
            missing.append(longest)
    return tuple(missing)


def _placed_windows(parts: Iterable[ChunkSegments]) -> list[_Placed]:
    """All windows, with the words of each that count."""
    placed = [
        _placed(window, segments)
        for chunk, results in parts
        for window, segments in zip(chunk.windows, results, strict=True)
    ]
    for at, right in enumerate(placed[1:]):
        left = placed[at]
        if left.window.core.end_ms > right.window.core.start_ms:
            raise ValueError(f"the window at {right.window.core.start_ms} ms is out of order")
        if left.window.audio.end_ms > right.window.audio.start_ms:
            until, since = _seam(left, right)
            placed[at] = replace(left, own=slice(left.own.start, until))
            placed[at + 1] = replace(right, own=slice(since, None))
    return placed


def _placed(window: Window, segments: Iterable[Segment]) -> _Placed:
    """A window on the recording's clock, clipped to its audio; all words count."""
    placed = []
    for segment in segments:
        shifted = segment.shifted(window.audio.start_ms)
        words = tuple(replace(word, span=word.span.clipped(window.audio)) for word in shifted.words)
        placed.append(replace(shifted, span=shifted.span.clipped(window.audio), words=words))
    said = tuple(
        word
        for segment in placed
        for word in segment.words or (Word(segment.text, segment.span, 0.0),)
    )
    return _Placed(window, tuple(placed), said, slice(0, None))


def _seam(left: _Placed, right: _Placed) -> tuple[int, int]:
    """How many words of the left window count, and from which on those of the right one."""
    edge = left.window.core.end_ms
    shared = Span(right.window.audio.start_ms, left.window.audio.end_ms)
    seams = [
        (_apart(a, b) + abs(a.span.midpoint_ms - edge), i + 1, j + 1)
        for i, a in enumerate(left.words)
        if shared.holds(a.span.midpoint_ms)
        for j, b in enumerate(right.words)
        if _letters(a) == _letters(b) and _apart(a, b) <= SAME_WORD_MS
    ]
    if seams:
        _, until, since = min(seams)
        return until, since
    return _count_before(edge, left.words), _count_before(edge, right.words)


def _count_before(ms: int, words: Iterable[Word]) -> int:
    return sum(word.span.midpoint_ms < ms for word in words)


def _apart(a: Word, b: Word) -> int:
    return abs(a.span.midpoint_ms - b.span.midpoint_ms)


def _letters(word: Word) -> str:
    return "".join(letter for letter in word.text.casefold() if letter.isalnum())


def _in_order(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Move each start to at least the end before it; the order of the text stays."""
    now = 0
    for segment in segments:
        start = now = max(segment.span.start_ms, now)
        words = []
        for word in segment.words:
            span = Span(max(word.span.start_ms, now), max(word.span.end_ms, now))
            words.append(replace(word, span=span))
            now = span.end_ms
        now = max(segment.span.end_ms, now)
        yield replace(segment, span=Span(start, now), words=tuple(words))


def _gaps(within: Span, spans: Iterable[Span]) -> Iterator[Span]:
    """The parts of ``within`` that none of ``spans``, all inside it, covers; at least one."""
    now = within.start_ms
    for span in sorted(spans):
        yield Span(now, max(now, span.start_ms))
        now = max(now, span.end_ms)
    yield Span(now, within.end_ms)
