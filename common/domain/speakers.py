"""Who says what: stretches of one voice, the turns that they become, and the speaker of each word.

A worker finds the stretches of a chunk by itself (`common.diarization.diarizer`). The speakers are
known once the stretches of a whole recording are compared (`common.diarization.clustering`).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, islice, pairwise
from typing import Any, Self

from common.domain.values import Chunk, Segment, Span, Word, join_spans
from common.errors import OptionConflict, OutOfRange, UnknownOption

MAX_SPEAKERS = 30
"""More cannot be requested."""
PAUSE_MS = 500
"""A shorter pause belongs to the turn around it."""
NEAR_MS = 1_000
"""So far from a turn, a word without one is still taken for a part of it."""
_LIKE_AN_ID = re.compile(r"speaker_\d+", re.IGNORECASE)
OVERLAP = "overlap"
"""The flag of a segment in which somebody else speaks at the same time."""
OVERLAP_MS = 200
"""For at least so long."""


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
    audio is too short for that, or where those before and after show whose voice it is. It was made
    of ``embedded_ms`` of audio, in which nobody else speaks if ``alone``, and which came over a
    telephone if ``narrow``.
    """

    window: int
    voice: int
    spoken: tuple[Spoken, ...]
    embedding: bytes | None = field(default=None, repr=False)
    embedded_ms: int = 0
    alone: bool = True
    narrow: bool = False

    @property
    def span(self) -> Span:
        return Span(self.spoken[0].span.start_ms, self.spoken[-1].span.end_ms)

    def moved(self, by_ms: int, within: Span) -> Self | None:
        """Later by ``by_ms`` and cut to ``within``; None where nothing is left."""
        spoken = [replace(it, span=it.span.shifted(by_ms).clipped(within)) for it in self.spoken]
        kept = tuple(it for it in spoken if it.span.duration_ms)
        return replace(self, spoken=kept) if kept else None


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
        for name, value in options.items():
            if value is not None and not 1 <= value <= MAX_SPEAKERS:
                raise OutOfRange(field=name, limit=f"from 1 to {MAX_SPEAKERS}", value=value)
        if max_speakers is not None and (min_speakers or 1) > max_speakers:
            needed = f"max_speakers of at least {min_speakers}; got {max_speakers}"
            raise OptionConflict(field="min_speakers", value=min_speakers, needed=needed)
        if num_speakers is None:
            return cls(min_speakers or 1, max_speakers)
        if min_speakers is not None and min_speakers > num_speakers:
            needed = f"min_speakers of at most {num_speakers}; got {min_speakers}"
            raise OptionConflict(field="num_speakers", value=num_speakers, needed=needed)
        if max_speakers is not None and max_speakers < num_speakers:
            needed = f"max_speakers of at least {num_speakers}; got {max_speakers}"
            raise OptionConflict(field="num_speakers", value=num_speakers, needed=needed)
        return cls(num_speakers, num_speakers)

    def nearest(self, count: int) -> int:
        """The allowed number that is nearest to ``count``."""
        return max(self.minimum, count if self.maximum is None else min(count, self.maximum))


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """A span in which a speaker speaks."""

    span: Span
    speaker: str


@dataclass(frozen=True, slots=True)
class Identified:
    """The enrolled voice that a speaker was named by, and the cosine of the two, in [-1, 1].

    The voice may have been deleted since.
    """

    voice_id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who speaks when in a recording, and the names of speakers, by id.

    ``turns`` are in order of time; those of one speaker do not overlap. Names are given by people,
    or by the voices in ``identified``.
    """

    turns: tuple[Turn, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    identified: Mapping[str, Identified] = field(default_factory=dict)

    @property
    def speakers(self) -> list[str]:
        """The ids, in the order in which they first speak."""
        by_start = sorted((turn.span.start_ms, turn.speaker) for turn in self.turns)
        return list(dict.fromkeys(speaker for _, speaker in by_start))

    def name_of(self, speaker: str) -> str:
        """The name of a speaker; the id, where none was given."""
        return self.names.get(speaker, speaker)

    def spoken_ms(self, speaker: str) -> int:
        """How long a speaker speaks."""
        return sum(turn.span.duration_ms for turn in self.turns if turn.speaker == speaker)

    def changed(self, changes: Mapping[str, str | None]) -> tuple[Self, Mapping[str, str]]:
        """With speakers renamed or merged; and of those merged, into whom.

        ``changes`` has for an id a name, None (no name any more), or the id of another speaker:
        they are the same person, of whom that id stays.

        Raises:
            UnknownOption: there is no speaker of such an id.
            OutOfRange: a name looks like an id, and is not that of another speaker.
            OptionConflict: a speaker is to become a part of one who becomes a part of another.
        """
        known = self.speakers
        for speaker in changes:
            if speaker not in known:
                allowed = ", ".join(known) or "none: nobody speaks"
                raise UnknownOption(field="speaker", allowed=allowed, value=speaker)
        for speaker, name in changes.items():
            others = [it for it in known if it != speaker]
            if name is not None and name not in others and _LIKE_AN_ID.fullmatch(name):
                limit = f"a name, null, or another speaker ({', '.join(others) or 'there is none'})"
                raise OutOfRange(field=speaker, limit=limit, value=name)
        into = {it: name for it, name in changes.items() if name in known and name != it}
        for speaker, other in into.items():
            if other in into:
                needed = (
                    f"{other} to stay, but the request merges {other} into {into[other]}; "
                    "to exchange names, send the names"
                )
                raise OptionConflict(field=speaker, value=other, needed=needed)
        names = {it: name for it, name in self.names.items() if it not in changes}
        names |= {it: name for it, name in changes.items() if name and it not in into}
        identified = {it: voice for it, voice in self.identified.items() if it not in changes}
        turns = _joined(replace(it, speaker=into.get(it.speaker, it.speaker)) for it in self.turns)
        return replace(self, turns=turns, names=names, identified=identified), into

    def reassigned(self, changes: Iterable[tuple[Segment, str | None]]) -> Self:
        """With segments given to other speakers, one after another; None: to nobody.

        In the span of a segment its speaker has no turns any more. The new one speaks during its
        words, and in shorter pauses than `PAUSE_MS` between them. Turns of others stay.
        """
        spans: dict[str, list[Span]] = defaultdict(list)
        for turn in self.turns:
            spans[turn.speaker].append(turn.span)
        given = set()
        for segment, speaker in changes:
            if segment.speaker is not None:
                spans[segment.speaker] = _without(spans[segment.speaker], segment.span)
            if speaker is not None:
                spoken = [word.span for word in _words(segment) if word.span.duration_ms]
                spans[speaker] += join_spans(spoken or [segment.span], _belongs)
                given.add(speaker)
        for speaker in given:
            spans[speaker] = join_spans(sorted(spans[speaker]), _touches)
        turns = (Turn(span, speaker) for speaker, theirs in spans.items() for span in theirs)
        return replace(self, turns=tuple(sorted(turns)))

    def with_names_of(self, earlier: Self) -> Self:
        """With the names that people gave in an earlier diarization of the same recording.

        Each is given to who now speaks for the most of that speaker's time, once.
        """
        near = _Near(self.turns)
        names: dict[str, str] = {}
        for speaker, name in earlier.names.items():
            if speaker not in earlier.identified:
                shared: Counter[str] = Counter()
                for turn in earlier.turns:
                    if turn.speaker == speaker:
                        shared.update(_shared_ms([turn.span], near.to(turn.span)))
                found = max(shared, key=lambda who: (shared[who], who), default=None)
                if found is not None:
                    names.setdefault(found, name)
        identified = {it: voice for it, voice in self.identified.items() if it not in names}
        return replace(self, names={**self.names, **names}, identified=identified)

    def completed_by(self, anew: Self) -> Self:
        """With the turns of another diarization of the same recording, where this one has none.

        Its speakers are those of this one, each once, with whom they share the most; others get new
        ids.
        """
        near = _Near(self.turns)
        shared: Counter[tuple[str, str]] = Counter()
        for turn in anew.turns:
            for speaker, ms in _shared_ms([turn.span], near.to(turn.span)).items():
                shared[turn.speaker, speaker] += ms
        same: dict[str, str] = {}
        for theirs, ours in sorted(shared, key=lambda pair: (-shared[pair], pair)):
            if theirs not in same and ours not in same.values():
                same[theirs] = ours
        free = (it for it in map(speaker_id, count()) if it not in self.speakers)
        same |= {it: next(free) for it in anew.speakers if it not in same}
        added = (
            Turn(turn.span, same[turn.speaker])
            for turn in anew.turns
            if not _shared_ms([turn.span], near.to(turn.span))
        )
        return replace(self, turns=_joined([*self.turns, *added]))

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {
            "turns": [[it.span.start_ms, it.span.end_ms, it.speaker] for it in self.turns],
            "names": dict(self.names),
            "identified": {
                speaker: [it.voice_id, it.similarity] for speaker, it in self.identified.items()
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        turns = (Turn(Span(start, end), speaker) for start, end, speaker in document["turns"])
        identified = document.get("identified", {})  # older ones have none
        return cls(
            tuple(turns),
            document["names"],
            {speaker: Identified(*voice) for speaker, voice in identified.items()},
        )


def stretches_to_json(stretches: Sequence[Stretch]) -> dict[str, Any]:
    """The stored form; the embeddings of all are one piece."""
    return {
        "stretches": [
            [
                it.window,
                it.voice,
                [
                    [each.span.start_ms, each.span.end_ms, int(each.overlapped)]
                    for each in it.spoken
                ],
                it.embedded_ms,
                int(it.alone),
                int(it.narrow),
            ]
            for it in stretches
        ],
        "embeddings": b64encode(b"".join(it.embedding or b"" for it in stretches)).decode(),
    }


def stretches_from_json(document: Mapping[str, Any]) -> list[Stretch]:
    """Read the output of `stretches_to_json`."""
    embeddings = b64decode(document["embeddings"])
    embedded = sum(embedded_ms > 0 for _, _, _, embedded_ms, *_ in document["stretches"])
    size = len(embeddings) // max(1, embedded)
    pieces = (embeddings[at : at + size] for at in count(0, size))
    return [
        Stretch(
            window,
            voice,
            tuple(Spoken(Span(start, end), bool(both)) for start, end, both in spoken),
            next(pieces) if embedded_ms else None,
            embedded_ms,
            bool(alone),
            bool(narrow),
        )
        for window, voice, spoken, embedded_ms, alone, narrow in document["stretches"]
    ]


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
        (it.span, speaker)
        for stretch, speaker in zip(stretches, speakers, strict=True)
        for it in stretch.spoken
    )
    order = {speaker: at for at, speaker in enumerate(dict.fromkeys(who for _, who in spoken))}
    return _joined(Turn(span, speaker_id(order[speaker])) for span, speaker in spoken)


def turns_in(segments: Iterable[Segment]) -> tuple[Turn, ...]:
    """The turns, in order of time, of segments whose speakers are known."""
    return _joined(
        Turn(word.span, segment.speaker)
        for segment in segments
        if segment.speaker is not None
        for word in _words(segment)
    )


def speaker_id(number: int) -> str:
    """The id of a speaker; they are numbered from 0."""
    return f"SPEAKER_{number:02}"


def _joined(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns, in order; those of one speaker with a shorter pause than `PAUSE_MS` are one."""
    by_speaker: dict[str, list[Span]] = defaultdict(list)
    for turn in sorted(turns):
        by_speaker[turn.speaker].append(turn.span)
    return tuple(
        sorted(
            Turn(span, speaker)
            for speaker, theirs in by_speaker.items()
            for span in join_spans(theirs, _belongs)
        )
    )


def _touches(one: Span, other: Span) -> bool:
    return other.start_ms <= one.end_ms


def _without(spans: Iterable[Span], gone: Span) -> list[Span]:
    """The parts of the spans before and after another one."""
    left = []
    for span in spans:
        if span.end_ms <= gone.start_ms or gone.end_ms <= span.start_ms:
            left.append(span)
            continue
        if span.start_ms < gone.start_ms:
            left.append(Span(span.start_ms, gone.start_ms))
        if gone.end_ms < span.end_ms:
            left.append(Span(gone.end_ms, span.end_ms))
    return left


def _belongs(one: Span, other: Span) -> bool:
    return other.start_ms - one.end_ms < PAUSE_MS


def speakers_of(words: Sequence[Word], turns: Sequence[Turn]) -> list[str | None]:
    """The speaker of each word, in order: who speaks for the most of it.

    Where two speak for as much of it, the speaker of the word before. A word in nobody's turn
    belongs to the nearest turn, if one is within `NEAR_MS`; None otherwise.
    """
    near = _Near(turns)
    speakers: list[str | None] = []
    for word in words:
        before = speakers[-1] if speakers else None
        speakers.append(_speaker_of(word, near.to(word.span), before))
    return speakers


class _Near:
    """Finds the turns that may have to do with a span."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._starts = [turn.span.start_ms for turn in turns]
        self._ends = list(accumulate((turn.span.end_ms for turn in turns), max))
        """When all turns up to each have ended."""

    def to(self, span: Span) -> Sequence[Turn]:
        """Those that share some of the span, or are within `NEAR_MS` of it, and some more."""
        first = bisect_left(self._ends, span.start_ms - NEAR_MS)
        return self._turns[first : bisect_right(self._starts, span.end_ms + NEAR_MS)]


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


def voiced_by(stretches: Sequence[Stretch], turns: Sequence[Turn]) -> dict[str, list[Stretch]]:
    """The stretches in which nobody else speaks, by the speaker.

    A stretch is that of who speaks for the most of it, by ``turns``; in nobody's turn it is left
    out.
    """
    near = _Near(turns)
    found: dict[str, list[Stretch]] = defaultdict(list)
    for stretch in stretches:
        if stretch.alone:
            shared = _shared_ms([it.span for it in stretch.spoken], near.to(stretch.span))
            if shared:
                found[max(shared, key=lambda who: (shared[who], who))].append(stretch)
    return dict(found)


def _shared_ms(spans: Sequence[Span], turns: Iterable[Turn]) -> dict[str, int]:
    """How long each speaker speaks in these spans; those who do not are left out."""
    shared: dict[str, int] = defaultdict(int)
    for turn in turns:
        shared[turn.speaker] += sum(turn.span.clipped(span).duration_ms for span in spans)
    return {speaker: ms for speaker, ms in shared.items() if ms}


def attribute(segments: Sequence[Segment], turns: Sequence[Turn]) -> list[tuple[Segment, ...]]:
    """The parts of each segment with their speakers, split where the speaker changes.

    A segment without words is one part, of who speaks for the most of it. Parts in which somebody
    else speaks as well have the flag `OVERLAP`.
    """
    near = _Near(turns)
    speakers = iter(speakers_of([word for it in segments for word in _words(it)], turns))
    return [
        tuple(
            _flagged(part, near.to(part.span))
            for part in _split(segment, list(islice(speakers, len(_words(segment)))))
        )
        for segment in segments
    ]


def marked_overlaps(segments: Iterable[Segment], turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """The segments, with the flag `OVERLAP` where somebody else speaks as well."""
    near = _Near(turns)
    return tuple(_flagged(segment, near.to(segment.span)) for segment in segments)


def _words(segment: Segment) -> Sequence[Word]:
    return segment.words or [Word(segment.text, segment.span, 0.0)]


def _split(segment: Segment, speakers: Sequence[str | None]) -> Iterator[Segment]:
    changes = [at for at in range(1, len(speakers)) if speakers[at] != speakers[at - 1]]
    if not changes:
        yield replace(segment, speaker=speakers[0])
        return
    for start, end in pairwise([0, *changes, len(speakers)]):
        yield replace(segment.with_words(slice(start, end)), speaker=speakers[start])


def _flagged(segment: Segment, turns: Iterable[Turn]) -> Segment:
    """With the flag `OVERLAP` if two speakers have turns at the same time in it."""
    spans = sorted(
        (turn.span.clipped(segment.span), turn.speaker)
        for turn in turns
        if turn.span.clipped(segment.span).duration_ms
    )
    both_ms = 0
    speaking: list[tuple[Span, str]] = []
    for span, who in spans:
        speaking = [it for it in speaking if it[0].end_ms > span.start_ms]
        both_ms += sum(
            min(other.end_ms, span.end_ms) - span.start_ms
            for other, another in speaking
            if another != who
        )
        speaking.append((span, who))
    others = tuple(flag for flag in segment.flags if flag != OVERLAP)
    return replace(segment, flags=(*others, OVERLAP) if both_ms >= OVERLAP_MS else others)
