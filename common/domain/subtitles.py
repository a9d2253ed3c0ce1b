"""Cues of subtitles: a transcript's words cut anew, to fit a screen and the speed of a reader.

The cuts of a run of words are those of least cost, found by dynamic programming: breaks cost more
the less natural they are (`common.domain.clauses`), and so do cues that are shown for too short a
time. The lines of a cue are found in the same way.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise, zip_longest
from math import ceil, inf
from typing import Final, Self

from common.domain.clauses import Break, belong_together, break_between
from common.domain.moderation import Label
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span, Word
from common.errors import OptionConflict, OutOfRange

SCREEN_LETTERS: Final = 84
SCREEN_MS: Final = 7_000
"""At most two lines of 42 letters on screen for at most 7 s (BBC and Netflix guides)."""

LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "max_line_width": (10, 200),
    "max_line_count": (1, 10),
    "max_cue_seconds": (0.5, 60),
    "min_cue_seconds": (0, 10),
    "max_cps": (5, 100),
}
"""The least and the greatest value of each option of a layout."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The limits of cues. Without any, each segment is a cue of one line.

    ``max_line_width``: characters of a line. ``max_line_count``: lines of a cue.
    ``max_cps``: characters that may be read in a second, spaces included.
    """

    max_line_width: float = inf
    max_line_count: float = inf
    max_cue_ms: float = inf
    min_cue_ms: float = 0
    max_cps: float = inf

    @classmethod
    def of(
        cls,
        *,
        max_line_width: int | None = None,
        max_line_count: int | None = None,
        max_cue_seconds: float | None = None,
        min_cue_seconds: float | None = None,
        max_cps: float | None = None,
    ) -> Self:
        """From the options of a request.

        Raises:
            OutOfRange: one is beyond its `LIMITS`.
            OptionConflict: it needs another one, or contradicts it.
        """
        given = {
            "max_line_width": max_line_width,
            "max_line_count": max_line_count,
            "max_cue_seconds": max_cue_seconds,
            "min_cue_seconds": min_cue_seconds,
            "max_cps": max_cps,
        }
        for name, value in given.items():
            least, most = LIMITS[name]
            if value is not None and not least <= value <= most:
                raise OutOfRange(field=name, limit=f"from {least:g} to {most:g}", value=value)
        if max_line_count is not None and max_line_width is None:
            needed = "max_line_width, which says how much fits in a line"
            raise OptionConflict(field="max_line_count", value=max_line_count, needed=needed)
        if (min_cue_seconds or 0) > (max_cue_seconds or inf):
            needed = f"max_cue_seconds of at least as much; got {max_cue_seconds}"
            raise OptionConflict(field="min_cue_seconds", value=min_cue_seconds, needed=needed)
        return cls(
            max_line_width or inf,
            max_line_count or inf,
            round(max_cue_seconds * 1000) if max_cue_seconds else inf,
            round((min_cue_seconds or 0) * 1000),
            max_cps or inf,
        )

    def needed_ms(self, letters: int) -> float:
        """How long a cue of so many characters should be shown."""
        return max(self.min_cue_ms, letters * 1000 / self.max_cps)


NO_LAYOUT: Final = Layout()


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines on screen for a time.

    ``segments`` are those of which it has words, in order: all of one speaker, channel, language
    and label.
    """

    span: Span
    lines: tuple[str, ...]
    segments: tuple[Segment, ...]


Heading = Callable[[Segment], str]
"""What is shown before the text of a segment's cues, such as its speaker; empty: nothing."""


def cues(
    transcript: Transcript, layout: Layout = NO_LAYOUT, heading: Heading = lambda _: ""
) -> tuple[Cue, ...]:
    """The cues of all segments that have text, in order of their starts.

    Without a layout each segment is a cue, with the segment's times. With one, a cue

    - has no more lines than allowed, and no line is wider unless a word (or a heading) is;
    - is not longer than allowed, has at most `MOST_WORDS` words, and overlaps no other;
    - ends inside a segment only where it must, at the most natural place: not in a name, nor
      between a number and its unit, unless they do not fit in a line;
    - is shown on into the pause after it, as long as it takes to read. Where that does not do, it
      is joined with the segment before or after. Text that is spoken too fast for that stays so.

    Where channels overlap, a cue ends where the next one begins, but not before `SHORT_MS`: then
    the next one begins later.
    """
    segments = [segment for segment in transcript.segments if segment.text.strip()]
    if layout == NO_LAYOUT:
        return tuple(
            Cue(segment.span, (f"{heading(segment)} {text_of(segment)}".lstrip(),), (segment,))
            for segment in segments
        )
    channels: dict[int | None, list[Segment]] = defaultdict(list)
    for segment in segments:
        channels[segment.channel].append(segment)
    found: list[Cue] = []
    for spoken in channels.values():
        runs = list(_runs(spoken))
        starts = [run[0].span.start_ms for run in runs[1:]] + [transcript.duration_ms]
        for run, following_ms in zip(runs, starts, strict=True):
            found += _Run(run, _pieces(run, layout), following_ms, layout, heading(run[0])).cues()
    return tuple(_apart(sorted(found, key=lambda cue: cue.span.start_ms)))


def text_of(segment: Segment) -> str:
    """The text on one line: a line break or a tab in it would end a record."""
    return " ".join(segment.text.split())


# --- runs -------------------------------------------------------------------------------------

RUN_PAUSE_MS: Final = 1_000
"""A longer pause is between cues."""


def _runs(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The segments of a channel, in groups whose words may share cues."""
    for _, alike in groupby(segments, _kind):
        run: list[Segment] = []
        for segment in alike:
            if run and segment.span.start_ms - run[-1].span.end_ms >= RUN_PAUSE_MS:
                yield run
                run = []
            run.append(segment)
        yield run


def _kind(segment: Segment) -> tuple[str | None, str | None, Label]:
    label = segment.finding.label if segment.finding else Label.CLEAN
    return segment.speaker, segment.language, label


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is not broken: a word, or the words of a name or of a number with its unit.

    ``segment`` is its place in the run; ``spaced``: there is a space before it; ``before`` is the
    kind of break that there is before it.
    """

    text: str
    span: Span
    segment: int
    spaced: bool
    before: Break = Break.OTHER

    def __add__(self, other: _Piece) -> _Piece:
        text = f"{self.text}{' ' * other.spaced}{other.text}"
        span = Span(self.span.start_ms, max(self.span.end_ms, other.span.end_ms))
        return replace(self, text=text, span=span)


_UNSPACED: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(r"\S+")
_LETTER_OR_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
"""Of texts whose words are not known: in scripts without spaces each letter counts as one."""
_SPACELESS: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff\uf900-\uffef]"
)
"""Letters and marks of scripts in which words follow each other without a space."""

PAUSE_MS: Final = 300
"""A break in a shorter pause is no better than anywhere."""
MOST_BOUND: Final = 5
"""More words in a row that look like one name are none: a headline, or text in capitals."""


def _pieces(segments: Sequence[Segment], layout: Layout) -> list[_Piece]:
    """The words of a run, in order; those that belong together are one piece if that fits."""
    words = [word for at, segment in enumerate(segments) for word in _words(segment, at)]
    groups: list[list[_Piece]] = []
    for word in words:
        before = groups[-1][-1] if groups else None
        if before is not None:
            word = replace(word, before=_break(before, word))
        if before is not None and before.segment == word.segment and _belong(before, word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [piece for group in groups for piece in _joined(group, layout)]


def _joined(group: list[_Piece], layout: Layout) -> list[_Piece]:
    if not 1 < len(group) <= MOST_BOUND:
        return group
    whole = sum(group[1:], start=group[0])
    is_wide = len(whole.text) > layout.max_line_width
    return group if is_wide or whole.span.duration_ms > layout.max_cue_ms else [whole]


def _break(before: _Piece, word: _Piece) -> Break:
    kind = break_between(before.text, word.text)
    has_pause = word.span.start_ms - before.span.end_ms >= PAUSE_MS
    return min(kind, Break.PAUSE) if has_pause else kind


def _belong(before: _Piece, word: _Piece) -> bool:
    return word.spaced and belong_together(before.text, word.text)


def _words(segment: Segment, number: int) -> list[_Piece]:
    """The words of a segment, in its span and in order.

    Where there are none, or they are not those of its text, their times are shares of its span by
    letters.
    """
    words, pattern = segment.words, _WORD
    if "".join(word.text for word in words).split() != segment.text.split():
        words, pattern = (Word(segment.text, segment.span, 0.0),), _LETTER_OR_WORD
    found: list[_Piece] = []
    clock_ms, is_spaced = segment.span.start_ms, True
    for word in words:
        span = word.span.clipped(Span(clock_ms, segment.span.end_ms))
        clock_ms = span.start_ms
        size = len(word.text.strip())
        lead = len(word.text) - len(word.text.lstrip())
        for part in pattern.finditer(word.text):
            is_spaced |= word.text[max(0, part.start() - 1) : part.start()].isspace()
            places = (span.duration_ms * (at - lead) // size for at in part.span())
            start_ms, end_ms = (span.start_ms + place for place in places)
            piece = _Piece(part[0], Span(start_ms, end_ms), number, is_spaced)
            if found and not is_spaced and not _may_break(found[-1].text, piece.text):
                piece = found.pop() + piece
            found.append(piece)
            is_spaced = False
        is_spaced |= word.text[-1:].isspace()
    # An uncut segment keeps its times.
    found[0] = replace(found[0], span=Span(segment.span.start_ms, found[0].span.end_ms))
    found[-1] = replace(found[-1], span=Span(found[-1].span.start_ms, segment.span.end_ms))
    return found


def _may_break(text: str, following: str) -> bool:
    """Whether there may be a break between two words without a space between them."""
    last, first = text[-1], following[0]
    if not (_SPACELESS.match(last) or _SPACELESS.match(first)):
        return False
    opens = unicodedata.category(last) in {"Ps", "Pi"}
    return not opens and unicodedata.category(first)[0] in "LNS"


# --- cutting ----------------------------------------------------------------------------------

MOST_WORDS: Final = 50
"""Of a cue. It bounds the search; what people read on a screen is far shorter."""
CUT_COST: Final = 5.0
"""Of a break between cues inside a segment, beside its `Break`."""
JOIN_COST: Final = 5.0
"""Of words of two segments in one cue."""
MS_LACKING: Final = 50
"""A cue that is shown for so much shorter than needed costs 1."""
CUE_BALANCE: Final = 8.0
"""The cost of a full cue; of others by the square, so that parts of a segment are alike. Two full
halves cost as much as a cut less, so nothing is cut for it."""
LINE_BALANCE: Final = 16.0
"""As `CUE_BALANCE`, for lines."""
LINE_COST: Final = 1_000.0
"""More than breaks and balance can cost: there are never more lines than needed."""


_Row = tuple[int, bool, int, int, int]
"""Of a piece: its letters, whether it is spaced, its end, its segment; and when the next starts."""


@dataclass(frozen=True, slots=True)
class _Run:
    """The segments of one kind that follow each other, to be cut into cues.

    ``following_ms``: when the channel's next run starts.
    """

    segments: Sequence[Segment]
    pieces: Sequence[_Piece]
    following_ms: int
    layout: Layout
    heading: str

    def cues(self) -> Iterator[Cue]:
        """The cues of least cost; each word is in one."""
        count = len(self.pieces)
        costs = [0.0] + [inf] * count
        starts = [0] * (count + 1)
        following = [piece.span.start_ms for piece in self.pieces[1:]] + [self.following_ms]
        rows = [
            (len(piece.text), piece.spaced, piece.span.end_ms, piece.segment, following_ms)
            for piece, following_ms in zip(self.pieces, following, strict=True)
        ]
        for first in range(count):
            before = costs[first] + self._cut_cost(first)
            for end, cost in self._from(first, rows[first : first + MOST_WORDS]):
                if before + cost < costs[end]:
                    costs[end], starts[end] = before + cost, first
        for first, end in pairwise(_cuts(starts)):
            yield self._cue(first, end)

    def _cut_cost(self, at: int) -> float:
        """The cost of a cue that begins with the piece ``at``."""
        if at == 0:
            return 0.0
        before, piece = self.pieces[at - 1 : at + 1]
        if before.segment == piece.segment:
            return CUT_COST + piece.before
        return (
            CUT_COST + Break.OTHER if piece.before > Break.PAUSE and _belong(before, piece) else 0.0
        )

    def _from(self, first: int, rows: Sequence[_Row]) -> Iterator[tuple[int, float]]:
        """Where a cue that begins with the piece ``first`` may end, with its cost.

        It is called for each word, and looks at up to `MOST_WORDS`: so it is written to be fast.
        """
        layout = self.layout
        width, most_lines, most_ms = layout.max_line_width, layout.max_line_count, layout.max_cue_ms
        most_letters = width * most_lines
        needs_time = layout.min_cue_ms > 0 or layout.max_cps < inf
        start_ms, end_ms = self.pieces[first].span.start_ms, 0
        letters = line = len(self.heading)
        lines, joins, segment = 1, 0, self.pieces[first].segment
        for end, (size, is_spaced, its_end_ms, its_segment, following_ms) in enumerate(
            rows, first + 1
        ):
            gap = letters > 0 and (is_spaced or end == first + 1)
            line += gap + size
            if line > width:
                lines, line = lines + (letters > 0), size
            letters += gap + size
            if its_end_ms > end_ms:
                end_ms = its_end_ms
            length_ms = end_ms - start_ms
            if its_segment != segment:
                joins, segment = joins + 1, its_segment
            is_too_much = lines > most_lines or length_ms > most_ms
            if joins:
                is_too_much |= letters > SCREEN_LETTERS or length_ms > SCREEN_MS
            if is_too_much and end > first + 1:
                return
            full = min(1.0, max(letters / most_letters, length_ms / most_ms))
            cost = JOIN_COST * joins + CUE_BALANCE * full * full
            if needs_time:
                room_ms = self._room_ms(start_ms, end_ms, following_ms)
                lacking_ms = layout.needed_ms(letters) - room_ms
                if lacking_ms > 0:
                    cost += lacking_ms / MS_LACKING
            yield end, cost

    def _room_ms(self, start_ms: int, end_ms: int, following_ms: int) -> float:
        """How long a cue may be shown whose words end at ``end_ms``, until the next word starts."""
        return min(max(end_ms, following_ms) - start_ms, self.layout.max_cue_ms)

    def _cue(self, first: int, end: int) -> Cue:
        pieces = self.pieces[first:end]
        start_ms, end_ms = pieces[0].span.start_ms, max(piece.span.end_ms for piece in pieces)
        lines = _lines(self.heading, pieces, self.layout)
        needed_ms = max(end_ms - start_ms, ceil(self.layout.needed_ms(len(" ".join(lines)))))
        is_last = end == len(self.pieces)
        following_ms = self.following_ms if is_last else self.pieces[end].span.start_ms
        shown_ms = int(min(needed_ms, self._room_ms(start_ms, end_ms, following_ms)))
        segments = self.segments[pieces[0].segment : pieces[-1].segment + 1]
        return Cue(Span(start_ms, start_ms + shown_ms), lines, tuple(segments))


def _lines(heading: str, pieces: Sequence[_Piece], layout: Layout) -> tuple[str, ...]:
    """The lines of a cue: as few as needed, of like widths, broken at natural places."""
    if heading:
        first = replace(pieces[0], spaced=True, before=Break.OTHER)
        pieces = [replace(first, text=heading), first, *pieces[1:]]
    if layout.max_line_width == inf:
        return (_text(pieces),)
    reached = [0, *accumulate(piece.spaced + len(piece.text) for piece in pieces)]
    costs, starts = [0.0], [0]
    for end in range(1, len(pieces) + 1):
        found: list[tuple[float, int]] = []
        for start in range(end - 1, -1, -1):
            full = (reached[end] - reached[start] - pieces[start].spaced) / layout.max_line_width
            if full > 1 and found:
                break
            cost = LINE_COST + pieces[start].before + LINE_BALANCE * min(full, 1) ** 2
            found.append((costs[start] + cost, start))
        cost, start = min(found)
        costs.append(cost)
        starts.append(start)
    lines = [_text(pieces[start:end]) for start, end in pairwise(_cuts(starts))]
    if len(lines) > layout.max_line_count:  # a heading and a word that do not fit in one
        lines = [" ".join(lines)]
    return tuple(lines)


def _text(pieces: Sequence[_Piece]) -> str:
    return "".join(f"{' ' * piece.spaced}{piece.text}" for piece in pieces).strip()


def _cuts(starts: Sequence[int]) -> Iterator[int]:
    """The cuts of the cheapest division, where ``starts`` has that of the last part before each."""
    cuts = [len(starts) - 1]
    while cuts[-1]:
        cuts.append(starts[cuts[-1]])
    return reversed(cuts)


# --- times ------------------------------------------------------------------------------------

SHORT_MS: Final = 500
"""So long a cue is shown, or as long as it was spoken, even where another channel speaks."""


def _apart(found: Sequence[Cue]) -> Iterator[Cue]:
    """Cues in order of their starts, without overlaps; each lasts at least a millisecond."""
    free_ms = 0
    for cue, following in zip_longest(found, found[1:]):
        end_ms = cue.span.end_ms
        if following is not None:
            end_ms = min(end_ms, following.span.start_ms)
        start_ms = max(cue.span.start_ms, free_ms)
        least_ms = max(1, min(cue.span.duration_ms, SHORT_MS))
        free_ms = max(start_ms + least_ms, end_ms)
        yield replace(cue, span=Span(start_ms, free_ms))
