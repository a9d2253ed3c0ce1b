"""Which audio edited words are aligned to, and the times that they get from it.

An edited transcript has words whose times are estimated (`Word.estimated`). A *passage* is a piece
of one channel's audio with all the words in it: the estimated ones, and kept ones around them, so
that the alignment has something to hold on to. An engine aligns the words of a passage
(`common.asr.engine.SpeechEngine.align`); only the estimated ones take the new times.

Measured by `scripts.bench.aligning` (base; rows of up to five words of English read speech whose
times were taken away): starts and ends differ from those of the transcription by 77 ms in the
median while interpolated (95 %: 347 ms), and by 0 ms after the alignment (95 %: 20 ms).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, takewhile
from statistics import geometric_mean

from common.domain.values import MAX_WINDOW_MS, Segment, Span, Word

CONTEXT_WORDS = 5
CONTEXT_MS = 2_000
"""Kept words on either side of estimated ones: so many, or so long, whichever is less."""
MARGIN_MS = 200
"""Audio before the first word and after the last one."""
LONGEST_MS = MAX_WINDOW_MS - 2 * MARGIN_MS
"""From the first word of a passage to the last."""

LEAST_PROBABILITY = 0.005
"""Of a row of words (`probability_of`). All rows that the model itself transcribed have more; of
those that it got wrong, corrected as the reference has them, 92 % do in Vietnamese and 83 % in
English (63 each); of rows of other clips' words, which nobody says, 1 % (of 187) and 2 % (of 63).
"""
PROBABILITY_FLOOR = 1e-4
"""Of a word: one alone does not decide about its row."""
LONGEST_WORD_MS = 3_000
"""A longer word is aligned to something else."""
TOLERANCE_MS = 500
"""How far the alignment may put a word beyond the words that were kept on both sides."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a word is: the numbers of its segment, and of the word in it."""

    segment: int
    word: int


@dataclass(frozen=True, slots=True)
class Passage:
    """Audio of one channel, at most 30 s, and the words in it, in order.

    ``channel`` and ``language`` are those of their segments (`Segment`). ``audio`` may reach past
    the end of the recording.
    """

    audio: Span
    channel: int | None
    language: str | None
    places: tuple[Place, ...]
    texts: tuple[str, ...]


def passages(segments: Sequence[Segment]) -> list[Passage]:
    """The passages to align, so that each estimated word is in one, by channel and time.

    A word too long to be in a passage is in none. Words near each other share a passage: to align
    one costs nearly the same, whatever its length.
    """
    found: list[Passage] = []
    for channel, language in dict.fromkeys((it.channel, it.language) for it in segments):
        words = [
            (Place(index, at), word)
            for index, segment in enumerate(segments)
            if (segment.channel, segment.language) == (channel, language)
            for at, word in enumerate(segment.words)
        ]
        for first, last in _stretches([word for _, word in words]):
            within = words[first:last]
            start_ms = max(0, within[0][1].span.start_ms - MARGIN_MS)
            audio = Span(start_ms, within[-1][1].span.end_ms + MARGIN_MS)
            places, texts = (place for place, _ in within), (word.text for _, word in within)
            found.append(Passage(audio, channel, language, tuple(places), tuple(texts)))
    return found


def with_times(
    segments: Sequence[Segment],
    aligned: Iterable[tuple[Passage, Sequence[Word] | None]],
) -> tuple[Segment, ...]:
    """The segments with the times of the alignment, for estimated words only.

    ``aligned`` has the words of each of `passages`, whose times count from the start of its audio;
    None: they could not be aligned. Words stay in order, between the kept ones on both sides, and
    in their segment, whose span stays as it is. Where the alignment cannot be right, they stay
    estimated: the text is not what is said.
    """
    new = [list(segment.words) for segment in segments]
    for passage, words in aligned:
        if words is None:
            continue
        timed = zip(passage.places, words, strict=True)
        for index, group in groupby(timed, key=lambda each: each[0].segment):
            own = new[index]
            found = {place.word: word.shifted(passage.audio.start_ms) for place, word in group}
            for first, last in _runs([at in found and it.estimated for at, it in enumerate(own)]):
                room = _room(segments[index].span, own, first, last)
                own[first:last] = _timed(
                    own[first:last], [found[at] for at in range(first, last)], room
                )
    return tuple(
        replace(segment, words=tuple(words)) for segment, words in zip(segments, new, strict=True)
    )


def probability_of(words: Sequence[Word]) -> float:
    """How probable a row of aligned words is: the geometric mean, as few of them may be wrong."""
    return geometric_mean(max(word.probability, PROBABILITY_FLOOR) for word in words)


def spread(spans: Sequence[Span], room: Span) -> list[Span]:
    """The spans in order, inside ``room``, without overlaps, each at least 1 ms long.

    ``room`` has at least 1 ms for each.
    """
    found: list[Span] = []
    start_ms = room.start_ms
    for left, span in zip(range(len(spans) - 1, -1, -1), spans, strict=True):
        latest = room.end_ms - left
        start_ms = min(max(span.start_ms, start_ms), latest - 1)
        end_ms = min(max(span.end_ms, start_ms + 1), latest)
        found.append(Span(start_ms, end_ms))
        start_ms = end_ms
    return found


def _stretches(words: Sequence[Word]) -> list[tuple[int, int]]:
    """The first word, and the one after the last, of each passage."""
    found: list[tuple[int, int]] = []
    for first, last in _pieces(words):
        start = first - _context(words[:first][: -CONTEXT_WORDS - 1 : -1], words[first])
        end = last + _context(words[last : last + CONTEXT_WORDS], words[last - 1])
        while start < first and _length(words, start, end) > LONGEST_MS:
            start += 1
        while end > last and _length(words, start, end) > LONGEST_MS:
            end -= 1
        if found and _length(words, found[-1][0], end) <= LONGEST_MS:
            start = found.pop()[0]
        found.append((start, end))
    return found


def _pieces(words: Sequence[Word]) -> Iterator[tuple[int, int]]:
    """The runs of estimated words, cut so that each fits in a passage with its context."""
    for first, last in _runs([word.estimated for word in words]):
        start = first
        for at in range(first, last):
            if _length(words, start, at + 1) > LONGEST_MS - 2 * CONTEXT_MS:
                if start < at:
                    yield start, at
                start = at if _length(words, at, at + 1) <= LONGEST_MS else at + 1
        if start < last:
            yield start, last


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """The first place, and the one after the last, of each run of True."""
    padded = [False, *flags, False]
    edges = [at for at, (before, after) in enumerate(pairwise(padded)) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _context(neighbours: Sequence[Word], edge: Word) -> int:
    """How many of the words beside an estimated one belong to its passage, nearest first."""
    near = takewhile(lambda word: _reach(word, edge) <= CONTEXT_MS, neighbours)
    return sum(1 for _ in near)


def _reach(word: Word, edge: Word) -> int:
    """From an estimated word to the far end of one beside it."""
    return max(edge.span.start_ms - word.span.start_ms, word.span.end_ms - edge.span.end_ms)


def _length(words: Sequence[Word], first: int, last: int) -> int:
    return words[last - 1].span.end_ms - words[first].span.start_ms


def _room(segment: Span, words: Sequence[Word], first: int, last: int) -> Span:
    """The time between the words around a run, in their segment."""
    start_ms = words[first - 1].span.end_ms if first else segment.start_ms
    end_ms = words[last].span.start_ms if last < len(words) else segment.end_ms
    return Span(start_ms, max(start_ms, end_ms))


def _timed(words: Sequence[Word], aligned: Sequence[Word], room: Span) -> list[Word]:
    """A run of estimated words with the times of the alignment, or as they are."""
    outside = [
        max(room.start_ms - word.span.end_ms, word.span.start_ms - room.end_ms) for word in aligned
    ]
    if (
        room.duration_ms < len(words)
        or probability_of(aligned) < LEAST_PROBABILITY
        or max(word.span.duration_ms for word in aligned) > LONGEST_WORD_MS
        or max(outside) > TOLERANCE_MS
    ):
        return list(words)
    spans = spread([word.span for word in aligned], room)
    return [
        replace(word, span=span, probability=found.probability, estimated=False)
        for word, found, span in zip(words, aligned, spans, strict=True)
    ]
