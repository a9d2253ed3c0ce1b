"""Changes that people make to a transcript: its text, its times, its segments, its speakers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import Final, Literal

from common.domain.results import seconds
from common.domain.speakers import OVERLAP, marked_overlaps
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word
from common.domain.word_times import moved_into, retimed, space_before
from common.errors import (
    FieldMissing,
    NoSpeakers,
    OptionConflict,
    OutOfRange,
    StenoError,
    TooLarge,
    UnknownOption,
)

MAX_EDITS = 1_000
"""In one sequence."""
MAX_TEXT = 10_000
"""Characters that a person may write into a segment."""
MAX_ALL_TEXT = 200_000
"""Characters in all texts of one sequence: what is said in four hours. To find out which words stay
takes the gateway 2 µs for each; up to 25 µs in scripts in which each letter is a word."""

_UNSTORED = re.compile("[\0\ud800-\udfff]")
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters (Cc), and what separates lines and paragraphs."""


class Unchanged(Enum):
    """The type of `UNCHANGED`, as None is a speaker too: nobody who is known."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class Replace:
    """Change some of a segment: at least one of its text, its times and its speaker."""

    segment: int
    text: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    speaker: str | Literal[Unchanged.UNCHANGED] | None = UNCHANGED


@dataclass(frozen=True, slots=True)
class Split:
    """Split a segment in two, between words: the nearest to a time, or before a word.

    One of both is given. ``word`` counts the segment's words from 0; where it has none, those of
    its text.
    """

    segment: int
    at_ms: int | None = None
    word: int | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """Join the segments from ``first`` to ``last``, of one speaker.

    Where the transcript has channels, these are the segments of one channel; those of others that
    are between them stay.
    """

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a segment. Turns of the diarization stay: somebody speaks there all the same."""

    segment: int


@dataclass(frozen=True, slots=True)
class Insert:
    """Add a segment.

    Where the transcript has channels, it belongs to the one that its speaker has most segments of;
    to none, where there is no speaker.
    """

    start_ms: int
    end_ms: int
    text: str
    speaker: str | None = None


Edit = Replace | Split | Join | Delete | Insert


def apply_edits(
    transcript: Transcript, edits: Sequence[Edit], *, is_limited: bool = True
) -> Transcript:
    """The transcript after edits, made one after another: all, or none.

    Segments are named by their index in ``transcript``. One that is deleted, joined or split has no
    index any more, and those that come of edits have none yet.

    A segment with a new text, a part and a join have no finding. A new text has no flags of the
    engine and nothing detected either. The numbers of the decoding stay, as they say how the audio
    was transcribed; a join has those of its first segment. If a segment gets another speaker, its
    time in the diarization does too (`Diarization.reassigned`): that of its words after all edits.
    Moved times alone change no turns.

    ``is_limited``: there may be `MAX_EDITS` with `MAX_ALL_TEXT`, as one request can send. What a
    language model proposes for a whole transcript is more.

    Raises:
        TooLarge: there are too many edits, a text is too long, or all are together.
        OutOfRange: an index, a time or a text is not possible, or segments of a channel overlap.
        FieldMissing, OptionConflict: an edit lacks something, or contradicts another one or itself.
        UnknownOption: nobody in the diarization is the speaker.
        NoSpeakers: the transcript has none.
    """
    if is_limited:
        _check_size(edits)
    draft = _Draft(transcript)
    for number, edit in enumerate(edits):
        draft.apply(number, edit)
    return draft.finished()


def _check_size(edits: Sequence[Edit]) -> None:
    if len(edits) > MAX_EDITS:
        raise TooLarge(field="edits", limit=f"{MAX_EDITS} edits", value=len(edits))
    letters = sum(len(edit.text or "") for edit in edits if isinstance(edit, Replace | Insert))
    if letters > MAX_ALL_TEXT:
        limit = f"{MAX_ALL_TEXT} characters in all texts"
        raise TooLarge(field="edits", limit=limit, value=letters)


@dataclass(eq=False)
class _Piece:
    """A segment in the making. ``name`` is how errors call it.

    ``placed``: the number of the edit that set its times, if one did, and its fields for them.
    ``speaker``: whose time in the diarization it has, until it is settled.
    """

    name: str
    segment: Segment
    placed: tuple[int, str, str] | None = None
    speaker: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.speaker = self.segment.speaker


class _Draft:
    """A transcript in the making."""

    def __init__(self, transcript: Transcript) -> None:
        self._base = transcript
        self._pieces = [
            [_Piece(f"segment {index}", segment)]
            for index, segment in enumerate(transcript.segments)
        ]
        self._inserted: list[_Piece] = []
        self._gone: dict[int, int] = {}
        self._known = transcript.diarization.speakers if transcript.diarization else []
        self._speakers: list[tuple[Segment, str | None]] = []
        self._channels: dict[str | None, Counter[int | None]] = defaultdict(Counter)
        for segment in transcript.segments:
            self._channels[segment.speaker][segment.channel] += 1

    def apply(self, number: int, edit: Edit) -> None:
        """Make one edit; ``number`` is its index."""
        match edit:
            case Replace():
                self._replace(number, edit)
            case Split():
                self._split(number, edit)
            case Join():
                self._join(number, edit)
            case Delete():
                self._piece(f"edits[{number}].segment", edit.segment)
                self._end(number, edit.segment)
            case Insert():
                self._insert(number, edit)

    def finished(self) -> Transcript:
        """The transcript after all edits.

        Raises:
            OutOfRange: an edit lets a segment overlap another one of its channel.
        """
        old = [piece for pieces in self._pieces for piece in pieces]
        _check_order(old)
        pieces = sorted([*old, *self._inserted], key=_place)
        _check_order(pieces)
        segments = tuple(piece.segment for piece in pieces)
        diarization = self._base.diarization
        if diarization is not None:
            for piece in pieces:
                self._settle(piece)
            diarization = diarization.reassigned(self._speakers)
            silent = {it.speaker for it in segments} - {None, *diarization.speakers}
            lost = [(it, it.speaker) for it in segments if it.speaker in silent]
            diarization = diarization.reassigned(lost)
            segments = marked_overlaps(segments, diarization.turns)
        return replace(self._base, segments=segments, diarization=diarization)

    # --- the edits ------------------------------------------------------------------------------

    def _replace(self, number: int, edit: Replace) -> None:
        field = f"edits[{number}]"
        piece = self._piece(f"{field}.segment", edit.segment)
        segment = old = piece.segment
        moved = not (edit.start_ms is None and edit.end_ms is None)
        if edit.text is None and edit.speaker is UNCHANGED and not moved:
            raise FieldMissing(field=f"{field}.text, start, end or speaker")
        span = old.span
        if moved:
            span = self._span(field, edit.start_ms, edit.end_ms, old.span)
            piece.placed = number, f"{field}.start", f"{field}.end"
        if edit.text is not None:
            text = _one_line(f"{field}.text", edit.text, "; delete the segment instead")
            if text != " ".join(unicodedata.normalize("NFC", old.text).split()):
                # New words at the end of a text may be what its segment is made longer for.
                room = Span(
                    min(span.start_ms, old.span.start_ms), max(span.end_ms, old.span.end_ms)
                )
                segment = _with_text(segment, text, room)
        segment = replace(segment, span=span, words=moved_into(segment.words, span))
        if edit.speaker is not UNCHANGED:
            self._check_speaker(f"{field}.speaker", edit.speaker)
            segment = replace(segment, speaker=edit.speaker)
        piece.segment = segment

    def _split(self, number: int, edit: Split) -> None:
        field = f"edits[{number}]"
        piece = self._piece(f"{field}.segment", edit.segment)
        segment = piece.segment
        words = segment.words or retimed((), segment.text, segment.span)
        if edit.word is None and edit.at_ms is None:
            raise FieldMissing(field=f"{field}.at or {field}.word")
        if edit.word is not None and edit.at_ms is not None:
            raise OptionConflict(
                field=f"{field}.word", value=edit.word, needed="an edit without at"
            )
        if len(words) < 2:
            limit = "a segment of at least two words"
            raise OutOfRange(field=f"{field}.segment", limit=limit, value=edit.segment)
        if edit.word is not None:
            if not 0 < edit.word < len(words):
                limit = f"from 1 to {len(words) - 1}"
                raise OutOfRange(field=f"{field}.word", limit=limit, value=edit.word)
            at = edit.word
        else:
            at = self._boundary(f"{field}.at", edit.at_ms or 0, segment.span, words)
        whole = replace(segment, words=words, finding=None)
        ends = whole.span.start_ms, whole.span.end_ms
        left, right = whole.with_words(slice(0, at)), whole.with_words(slice(at, None))
        spans = Span(ends[0], left.span.end_ms), Span(right.span.start_ms, ends[1])
        self._end(number, edit.segment)
        self._pieces[edit.segment] = [
            _Piece(
                f"a part of segment {edit.segment}",
                replace(part, span=span, words=part.words if segment.words else ()),
                placed=piece.placed,
            )
            for part, span in zip((left, right), spans, strict=True)
        ]

    def _join(self, number: int, edit: Join) -> None:
        field = f"edits[{number}]"
        first = self._piece(f"{field}.first", edit.first).segment
        last = self._piece(f"{field}.last", edit.last).segment
        if edit.last <= edit.first:
            limit = f"more than first, which is {edit.first}"
            raise OutOfRange(field=f"{field}.last", limit=limit, value=edit.last)
        if last.channel != first.channel:
            needed = f"a segment of the channel of segment {edit.first}, {first.channel}"
            raise OptionConflict(field=f"{field}.last", value=edit.last, needed=needed)
        indexes = [
            index
            for index in range(edit.first, edit.last + 1)
            if self._base.segments[index].channel == first.channel
        ]
        pieces = [self._piece(f"{field}.last", index) for index in indexes]
        for index, piece in zip(indexes, pieces, strict=True):
            if piece.segment.speaker != first.speaker:
                needed = (
                    f"one speaker; segment {edit.first} has {first.speaker or 'none'}, "
                    f"segment {index} has {piece.segment.speaker or 'none'}"
                )
                raise OptionConflict(field=f"{field}.last", value=edit.last, needed=needed)
        _check_order(pieces)
        joined = _joined([piece.segment for piece in pieces])
        for index in indexes:
            self._end(number, index)
        placed = number, f"{field}.first", f"{field}.last"
        name = f"the segment of edits[{number}]"
        self._pieces[edit.first] = [_Piece(name, joined, placed=placed)]

    def _insert(self, number: int, edit: Insert) -> None:
        field = f"edits[{number}]"
        span = self._span(field, edit.start_ms, edit.end_ms, Span(0, 0))
        text = _one_line(f"{field}.text", edit.text)
        channel = None
        self._check_speaker(f"{field}.speaker", edit.speaker)
        if edit.speaker is not None:
            theirs = self._channels[edit.speaker].most_common(1)
            channel = theirs[0][0] if theirs else None
        segment = _with_text(Segment(span, space_before(text), channel=channel), text, span)
        others = self._base.segments
        if not others or any(it.words for it in others):
            segment = replace(segment, words=retimed((), segment.text, span))
        placed = number, f"{field}.start", f"{field}.end"
        piece = _Piece(f"the segment of edits[{number}]", segment, placed=placed)
        piece.segment = replace(segment, speaker=edit.speaker)
        self._inserted.append(piece)

    # --- what is allowed ------------------------------------------------------------------------

    def _piece(self, field: str, index: int) -> _Piece:
        """The segment of an index, as it is by now."""
        if not 0 <= index < len(self._pieces):
            limit = (
                f"from 0 to {len(self._pieces) - 1}" if self._pieces else "left out: there are none"
            )
            raise OutOfRange(field=field, limit=limit, value=index)
        if index in self._gone:
            limit = "a segment that no earlier edit deletes, joins or splits"
            value = f"{index}, of edits[{self._gone[index]}]"
            raise OutOfRange(field=field, limit=limit, value=value)
        return self._pieces[index][0]

    def _end(self, number: int, index: int) -> None:
        """The segment has no index any more."""
        self._settle(self._pieces[index][0])
        self._gone[index] = number
        self._pieces[index] = []

    def _settle(self, piece: _Piece) -> None:
        """Note who gets its time in the diarization, where edits gave it another speaker."""
        if piece.segment.speaker != piece.speaker:
            before = replace(piece.segment, speaker=piece.speaker)
            self._speakers.append((before, piece.segment.speaker))

    def _span(self, field: str, start_ms: int | None, end_ms: int | None, old: Span) -> Span:
        """A span in the recording; what is not given is that of ``old``."""
        for name, ms in (("start", start_ms), ("end", end_ms)):
            if ms is not None and not 0 <= ms <= self._base.duration_ms:
                limit = f"from 0 to {seconds(self._base.duration_ms)}, the recording's end"
                raise OutOfRange(field=f"{field}.{name}", limit=limit, value=_shown(ms))
        start = old.start_ms if start_ms is None else start_ms
        end = old.end_ms if end_ms is None else end_ms
        if start >= end and end_ms is not None:
            limit = f"after the segment's start at {seconds(start)}"
            raise OutOfRange(field=f"{field}.end", limit=limit, value=_shown(end))
        if start >= end:
            limit = f"before the segment's end at {seconds(end)}"
            raise OutOfRange(field=f"{field}.start", limit=limit, value=_shown(start))
        return Span(start, end)

    def _boundary(self, field: str, at_ms: int, span: Span, words: Sequence[Word]) -> int:
        """The word before which a time is, or nearly."""
        if not span.start_ms < at_ms < span.end_ms:
            limit = f"in the segment, after {seconds(span.start_ms)}, before {seconds(span.end_ms)}"
            raise OutOfRange(field=field, limit=limit, value=_shown(at_ms))
        pauses = [left.span.end_ms + right.span.start_ms for left, right in pairwise(words)]
        return 1 + min(range(len(pauses)), key=lambda it: abs(pauses[it] - 2 * at_ms))

    def _check_speaker(self, field: str, speaker: str | None) -> None:
        if speaker is None:
            return
        if self._base.diarization is None:
            raise NoSpeakers
        if speaker not in self._known:
            allowed = ", ".join(self._known) or "none: nobody speaks"
            raise UnknownOption(field=field, allowed=allowed, value=speaker[:200])


def _check_order(pieces: Iterable[_Piece]) -> None:
    """Raise an error if one of a channel's ends after the next one starts, because of an edit."""
    before: dict[int | None, _Piece] = {}
    for piece in pieces:
        other = before.get(piece.segment.channel)
        before[piece.segment.channel] = piece
        if other is not None and other.segment.span.end_ms > piece.segment.span.start_ms:
            error = _overlap(other, piece)
            if error is not None:
                raise error


def _overlap(left: _Piece, right: _Piece) -> StenoError | None:
    """The error for two that overlap: the later edit is wrong; None: no edit made them so."""
    start, end = seconds(right.segment.span.start_ms), seconds(left.segment.span.end_ms)
    if left.placed is not None and (right.placed is None or left.placed > right.placed):
        limit = f"at most {start}, where {right.name} starts"
        return OutOfRange(field=left.placed[2], limit=limit, value=end)
    if right.placed is not None:
        limit = f"at least {end}, where {left.name} ends"
        return OutOfRange(field=right.placed[1], limit=limit, value=start)
    return None


def _place(piece: _Piece) -> tuple[int, int, int]:
    """Sorts as `common.domain.merging` does."""
    segment = piece.segment
    return segment.span.start_ms, segment.channel or 0, segment.span.end_ms


def _with_text(segment: Segment, text: str, span: Span) -> Segment:
    """The segment with another text, its words in ``span``."""
    if segment.text[:1].isspace():
        text = f" {text}"
    return replace(
        segment,
        text=text,
        words=retimed(segment.words, text, span) if segment.words else (),
        flags=tuple(flag for flag in segment.flags if flag == OVERLAP),
        detected=None,
        finding=None,
    )


def _joined(segments: Sequence[Segment]) -> Segment:
    """One segment of several, in order."""
    span = Span(segments[0].span.start_ms, max(segment.span.end_ms for segment in segments))
    has_words = any(segment.words for segment in segments)
    text, words = "", []
    for segment in segments:
        touching = text and segment.text and not (text[-1].isspace() or segment.text[0].isspace())
        space = space_before(segment.text) if touching else ""
        text += space + segment.text
        if has_words:
            more = [*(segment.words or retimed((), segment.text, segment.span))]
            more[:1] = [replace(word, text=space + word.text) for word in more[:1]]
            words += more
    detected = {segment.detected for segment in segments}
    return replace(
        segments[0],
        span=span,
        text=text,
        words=tuple(words),
        flags=tuple(dict.fromkeys(flag for segment in segments for flag in segment.flags)),
        detected=detected.pop() if len(detected) == 1 else None,
        finding=None,
    )


def _one_line(field: str, text: str, instead: str = "") -> str:
    """A text that a person wrote, as it is stored: composed (NFC), on one line.

    Raises:
        TooLarge: it is longer than `MAX_TEXT`.
        OutOfRange: it has lone surrogates or NUL, or nothing that can be seen.
    """
    if len(text) > MAX_TEXT:
        raise TooLarge(field=field, limit=f"{MAX_TEXT} characters", value=len(text))
    if wrong := _UNSTORED.search(text):
        limit = "Unicode without lone surrogates and NUL"
        raise OutOfRange(field=field, limit=limit, value=f"one at {wrong.start()}")
    line = " ".join(unicodedata.normalize("NFC", _CONTROLS.sub(" ", text)).split())
    if all(unicodedata.category(it)[0] in "CZ" for it in line):
        limit = f"a text that is not blank{instead}"
        raise OutOfRange(field=field, limit=limit, value=text[:200])
    return line


def _shown(ms: int) -> float:
    """A time in an error, in seconds; those beyond all recordings may be beyond all floats."""
    return seconds(max(-(10**15), min(ms, 10**15)))
