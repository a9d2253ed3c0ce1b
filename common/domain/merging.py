"""Merges the texts of windows: no word twice, none lost, times in order.

Where the channels of a recording are transcribed separately, each is merged by itself, and their
segments are put in the order of their starts. Segments of different channels may overlap.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from common.domain.speakers import speaker_id
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
    """The windows' segments on the recording's clock, in order of their starts.

    Those of one channel do not overlap. If channels were transcribed separately, a segment has its
    channel, and a speaker: SPEAKER_00 is the channel that speaks first, and so on.

    A window cut in silence keeps all its words, clipped to its audio if the engine let them end too
    late. Where two windows share audio, the seam is a word that both have near the edge of their
    cores: all before it and itself from the left window, the rest from the right one. Where
    they agree on none, each word counts in the window whose core holds its midpoint. Segments
    without words count whole, by their midpoint.

    The parts are in order; some may be missing.

    Raises:
        ValueError: a chunk has another number of results than windows, or is out of order.
    """
    merged = _Channels()
    for channel, of_channel in _by_channel(parts):
        merged.add(channel, of_channel)
    return merged.take()


class IncrementalMerge:
    """Merges chunks as they arrive in order; the result equals that of merging all at once.

    A chunk cut in silence shares no audio with the next one of its channel, so its text is certain.
    A chunk cut within speech is held until that one arrives.

    Where channels are transcribed separately, chunks arrive in the order in which their audio
    starts. So a segment is returned once no chunk that may have an earlier one is missing.
    """

    def __init__(self) -> None:
        self._held: dict[int | None, list[ChunkSegments]] = {}
        self._merged = _Channels()
        self._started_ms = 0
        """No later chunk of any channel has audio before this."""

    def add(self, parts: Iterable[ChunkSegments]) -> tuple[Segment, ...]:
        """Add ``parts``; returns the segments that became certain."""
        for channel, of_channel in _by_channel(parts):
            held = self._held.get(channel, []) + of_channel
            certain = 0
            for count, (chunk, _) in enumerate(held, 1):
                if chunk.audio.end_ms <= chunk.core.end_ms:
                    certain = count
            self._merged.add(channel, held[:certain])
            self._held[channel] = held[certain:]
            self._started_ms = max(self._started_ms, of_channel[-1][0].audio.start_ms)
        if None in self._held:
            return self._merged.take()
        waiting = [held[0][0].audio.start_ms for held in self._held.values() if held]
        return self._merged.take(min([self._started_ms, *waiting]))


@dataclass(eq=False)
class _Channels:
    """Puts the merged segments of channels in order, and numbers those who speak."""

    _speakers: dict[int, str] = field(default_factory=dict)
    _segments: list[Segment] = field(default_factory=list)

    def add(self, channel: int | None, parts: Sequence[ChunkSegments]) -> None:
        """Add chunks of a channel, in order; None: of the mix."""
        kept = (segment for placed in _placed_windows(parts) for segment in placed.owned())
        self._segments += (replace(segment, channel=channel) for segment in _in_order(kept))

    def take(self, before_ms: float = math.inf) -> tuple[Segment, ...]:
        """The segments that start before this, in order; they are added no more."""
        # The sort is stable: segments of the same channel and start keep their order.
        ordered = sorted(self._segments, key=lambda it: (it.span.start_ms, it.channel or 0))
        count = sum(segment.span.start_ms < before_ms for segment in ordered)
        self._segments = ordered[count:]
        return tuple(map(self._with_speaker, ordered[:count]))

    def _with_speaker(self, segment: Segment) -> Segment:
        if segment.channel is None:
            return segment
        speaker = self._speakers.setdefault(segment.channel, speaker_id(len(self._speakers)))
        return replace(segment, speaker=speaker)


def _by_channel(
    parts: Iterable[ChunkSegments],
) -> Iterable[tuple[int | None, list[ChunkSegments]]]:
    found: dict[int | None, list[ChunkSegments]] = defaultdict(list)
    for part in parts:
        found[part[0].channel].append(part)
    return found.items()


def speech_without_text(parts: Iterable[ChunkSegments]) -> tuple[Span, ...]:
    """Where at least `SPEECH_WITHOUT_TEXT_MS` of speech have no text.

    Each channel counts by itself. Of each window that has more speech than its text can account
    for, the longest stretch of the core without text, if that is long enough too: many short ones
    are pauses for breath.
    """
    missing = []
    every = [placed for _, each in _by_channel(parts) for placed in _placed_windows(each)]
    for placed in every:
        core = placed.window.core
        written = [segment.span.clipped(core) for segment in placed.owned() if segment.text.strip()]
        unwritten_ms = placed.window.speech_ms - sum(span.duration_ms for span in written)
        longest = max(_gaps(core, written), key=lambda span: span.duration_ms)
        if min(unwritten_ms, longest.duration_ms) >= SPEECH_WITHOUT_TEXT_MS:
            missing.append(longest)
    return tuple(sorted(missing))


def _placed_windows(parts: Iterable[ChunkSegments]) -> list[_Placed]:
    """All windows of a channel, with the words of each that count."""
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
