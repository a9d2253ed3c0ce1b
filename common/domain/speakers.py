"""Who says what: stretches of one voice, the turns that they become, and the speaker of each word.

A worker finds the stretches of a chunk by itself (`common.diarization.diarizer`). The speakers are
known once the stretches of a whole recording are compared (`common.diarization.clustering`).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from common.domain.values import Chunk, Segment, Span, Word, join_spans
from common.errors import OptionConflict, OutOfRange

MAX_SPEAKERS = 30
"""More cannot be requested."""
PAUSE_MS = 500
"""A shorter pause belongs to the turn around it."""
NEAR_MS = 1_000
"""So far from a turn, a word without one is still taken for a part of it."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A span in which a voice speaks; ``overlapped``: at the same time as another one."""

    span: Span
    overlapped: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some seconds of one voice in a window of diarization.

    ``window`` numbers the windows of a recording (of a chunk, until it is gathered); ``voice`` the
    voices of a window, which are those of different people. ``spoken`` is in order of time, with
    short pauses between. ``embedding`` describes the voice: float16, little-endian; None where the
    audio is too short for that. It was made of ``embedded_ms`` of audio, in which nobody else
    speaks if ``alone``.
    """

    window: int
    voice: int
    spoken: tuple[Spoken, ...]
    embedding: bytes | None = None
    embedded_ms: int = 0
    alone: bool = True

    @property
    def span(self) -> Span:
        return Span(self.spoken[0].span.start_ms, self.spoken[-1].span.end_ms)

    def moved(self, by_ms: int, within: Span) -> Self | None:
        """Later by ``by_ms`` and cut to ``within``; None where nothing is left."""
        spoken = [replace(it, span=it.span.shifted(by_ms).clipped(within)) for it in self.spoken]
        kept = tuple(it for it in spoken if it.span.duration_ms)
        return replace(self, spoken=kept) if kept else None

    def to_json(self) -> list[Any]:
        """The stored form."""
        return [
            self.window,
            self.voice,
            [[it.span.start_ms, it.span.end_ms, int(it.overlapped)] for it in self.spoken],
            self.embedding and b64encode(self.embedding).decode(),
            self.embedded_ms,
            int(self.alone),
        ]

    @classmethod
    def from_json(cls, document: Sequence[Any]) -> Self:
        """Read the output of `to_json`."""
        window, voice, spoken, embedding, embedded_ms, alone = document
        return cls(
            window,
            voice,
            tuple(Spoken(Span(start, end), bool(both)) for start, end, both in spoken),
            b64decode(embedding) if embedding else None,
            embedded_ms,
            bool(alone),
        )


@dataclass(frozen=True, slots=True)
class SpeakerCount:
    """How many speakers a recording may have; ``maximum`` None: as many as are found."""

    minimum: int = 1
    maximum: int | None = None

    @classmethod
    def of(
        cls,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> Self:
        """From the options of a request.

        Raises:
            OutOfRange: one is less than 1, or more than `MAX_SPEAKERS`.
            OptionConflict: the minimum is above the maximum, or the number is not between them.
        """
        options = {
            "num_speakers": num_speakers,
            "min_speakers": min_speakers,
            "max_speakers": max_speakers,
        }
        for field, value in options.items():
            if value is not None and not 1 <= value <= MAX_SPEAKERS:
                raise OutOfRange(field=field, limit=f"from 1 to {MAX_SPEAKERS}", value=value)
        if max_speakers is not None and (min_speakers or 1) > max_speakers:
            needed = f"max_speakers of at least {min_speakers}; got {max_speakers}"
            raise OptionConflict(field="min_speakers", value=min_speakers, needed=needed)
        if num_speakers is None:
            return cls(min_speakers or 1, max_speakers)
        if not (min_speakers or 1) <= num_speakers <= (max_speakers or MAX_SPEAKERS):
            needed = f"a number from {min_speakers or 1} to {max_speakers or MAX_SPEAKERS}"
            raise OptionConflict(field="num_speakers", value=num_speakers, needed=needed)
        return cls(num_speakers, num_speakers)

    def nearest(self, count: int) -> int:
        """The allowed number that is nearest to ``count``."""
        return max(self.minimum, count if self.maximum is None else min(count, self.maximum))


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """A span in which a speaker speaks; ``overlapped``: somewhere in it another one does, too."""

    span: Span
    speaker: str
    overlapped: bool = False


def gather(chunks: Iterable[tuple[Chunk, Sequence[Stretch]]]) -> list[Stretch]:
    """The stretches of all chunks on the recording's clock, each in the core of its chunk.

    Those of a chunk count from the start of its audio. The result is the same for any order of the
    chunks: it is in order of time.
    """
    found: list[Stretch] = []
    windows = 0
    for chunk, stretches in sorted(chunks, key=lambda pair: pair[0].core):
        for stretch in stretches:
            moved = stretch.moved(chunk.audio.start_ms, chunk.core)
            if moved is not None:
                found.append(replace(moved, window=windows + moved.window))
        windows += 1 + max((stretch.window for stretch in stretches), default=-1)
    return sorted(found, key=lambda it: (it.span, it.window, it.voice))


def turns_of(stretches: Sequence[Stretch], speakers: Sequence[int]) -> tuple[Turn, ...]:
    """The turns, in order of time, of stretches whose speakers are numbered anyhow.

    Speakers are called ``SPEAKER_00``, ... in the order in which they first speak.
    """
    spoken = sorted(
        (it.span, speaker, it.overlapped)
        for stretch, speaker in zip(stretches, speakers, strict=True)
        for it in stretch.spoken
    )
    order = {speaker: at for at, speaker in enumerate(dict.fromkeys(who for _, who, _ in spoken))}
    by_speaker: dict[int, list[tuple[Span, bool]]] = defaultdict(list)
    for span, speaker, overlapped in spoken:
        by_speaker[order[speaker]].append((span, overlapped))
    turns = []
    for number, theirs in by_speaker.items():
        both = [span for span, overlapped in theirs if overlapped]
        for span in join_spans([span for span, _ in theirs], _belongs):
            overlapped = any(span.start_ms <= it.start_ms < span.end_ms for it in both)
            turns.append(Turn(span, f"SPEAKER_{number:02}", overlapped))
    return tuple(sorted(turns))


def _belongs(one: Span, other: Span) -> bool:
    return other.start_ms - one.end_ms < PAUSE_MS


def speakers_of(words: Sequence[Word], turns: Sequence[Turn]) -> list[str | None]:
    """The speaker of each word, in order: who speaks for the most of it.

    Where two speak for as much of it, the speaker of the word before. A word in nobody's turn
    belongs to the nearest turn, if one is within `NEAR_MS`; None otherwise.
    """
    speakers: list[str | None] = []
    first = 0
    longest_ms = max((turn.span.duration_ms for turn in turns), default=0)
    for word in words:
        while (
            first < len(turns)
            and turns[first].span.start_ms + longest_ms < word.span.start_ms - NEAR_MS
        ):
            first += 1
        before = speakers[-1] if speakers else None
        speakers.append(_speaker_of(word, _reaching(word.span, turns, first), before))
    return speakers


def _reaching(span: Span, turns: Sequence[Turn], first: int) -> Iterator[Turn]:
    """The turns that may have to do with a span."""
    for turn in turns[first:]:
        if turn.span.start_ms > span.end_ms + NEAR_MS:
            return
        yield turn


def _speaker_of(word: Word, turns: Iterable[Turn], before: str | None) -> str | None:
    shared: dict[str, int] = defaultdict(int)
    distance: dict[str, int] = {}
    for turn in turns:
        apart = max(turn.span.start_ms - word.span.end_ms, word.span.start_ms - turn.span.end_ms, 0)
        if apart <= NEAR_MS:
            distance[turn.speaker] = min(apart, distance.get(turn.speaker, apart))
        shared[turn.speaker] += turn.span.clipped(word.span).duration_ms
    return min(
        distance,
        key=lambda who: (-shared[who], distance[who], who != before, who),
        default=None,
    )


def split_by_speaker(segment: Segment, turns: Sequence[Turn]) -> list[tuple[Segment, str | None]]:
    """The parts of a segment, cut where the speaker changes, each with its speaker.

    A segment without words is one part, of who speaks for the most of it.
    """
    if not segment.words:
        return [(segment, speakers_of([Word(segment.text, segment.span, 0.0)], turns)[0])]
    speakers = speakers_of(segment.words, turns)
    changes = [at for at in range(1, len(speakers)) if speakers[at] != speakers[at - 1]]
    if not changes:
        return [(segment, speakers[0])]
    edges = [0, *changes, len(speakers)]
    return [
        (segment.with_words(slice(start, end)), speakers[start]) for start, end in pairwise(edges)
    ]
