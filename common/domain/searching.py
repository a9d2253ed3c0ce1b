"""Searching texts: the words of a text and of a query, the passages that are found, their marks.

Words are compared folded: without case and without marks, so that "khach san" finds "khách sạn".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Self

from common.domain.transcript import Transcript
from common.domain.values import Segment, Span
from common.errors import OutOfRange

MAX_QUERY = 200
"""Characters of a query."""
PASSAGE_MS = 60_000
PASSAGE_WORDS = 400
"""A passage ends before the first segment that would exceed either; one segment may exceed the
first."""
SNIPPET = 240
"""Characters that are shown of a passage, and up to a word more."""
LONGEST_WORD = 100
"""Characters of a word that are compared; Postgres takes 2046 bytes."""
LONGEST_NAME = 200
"""Characters of a speaker's name, likewise."""

_MARKS = re.compile("[\u0300-\u036f]+")
_OTHER_LETTERS = str.maketrans("đłøı", "dloi")
"""Letters with strokes and the like, which Unicode does not decompose."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Scripts without spaces between words, of which each letter counts as a word: Thai, Lao, Burmese,
Khmer, kana, and Chinese characters."""
_WORD = re.compile(
    # Letters and digits with their marks; of the scripts of India all but the stops.
    f"(?:[^\\W_{_UNSPACED}]|[\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff])+"
    f"|[{_UNSPACED}]"
)


class SearchWord(NamedTuple):
    """A word of a text, at ``[start, end)`` in it; a tuple, as these are made by the thousand.

    ``exact`` is without case, ``folded`` also without marks.
    """

    exact: str
    folded: str
    start: int
    end: int


def words_of(text: str) -> list[SearchWord]:
    """The words of a text; in Vietnamese these are syllables, in Chinese characters."""
    return [
        SearchWord(*forms, *match.span())
        for match in _WORD.finditer(text)
        if (forms := _forms(match[0]))[1]
    ]


def _forms_in(text: str) -> list[tuple[str, str]]:
    """The same words exact and folded: what indexing needs, and fast."""
    return [forms for forms in map(_forms, _WORD.findall(text)) if forms[1]]


@lru_cache(50_000)
def _forms(word: str) -> tuple[str, str]:
    exact = unicodedata.normalize("NFKC", word).casefold()
    bare = _MARKS.sub("", unicodedata.normalize("NFKD", exact)).translate(_OTHER_LETTERS)
    folded = unicodedata.normalize("NFC", bare)
    return unicodedata.normalize("NFC", exact)[:LONGEST_WORD], folded[:LONGEST_WORD]


def fold(text: str) -> str:
    """The words of a text, folded, with one space between them."""
    return " ".join(folded for _, folded in _forms_in(text))


# --- what is stored -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PassageSegment:
    """A segment of a passage, or a part of a long one; ``speaker`` is a name."""

    span: Span
    language: str
    text: str
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """Consecutive segments, up to `PASSAGE_MS`.

    The last ``shared`` of them are also the first of the next passage, so that no phrase is lost
    between the two.
    """

    segments: tuple[PassageSegment, ...]
    shared: int = 0

    @property
    def span(self) -> Span:
        """Without the shared segments."""
        own = self.segments[: len(self.segments) - self.shared]
        return Span(own[0].span.start_ms, max(it.span.end_ms for it in own))

    def to_json(self) -> list[list[Any]]:
        """The stored form of the segments."""
        return [
            [it.span.start_ms, it.span.end_ms, it.language, it.text, it.speaker]
            for it in self.segments
        ]

    @classmethod
    def from_json(cls, segments: Sequence[Sequence[Any]], shared: int) -> Self:
        """Read the output of `to_json`."""
        return cls(
            tuple(PassageSegment(Span(start, end), *rest) for start, end, *rest in segments),
            shared,
        )


def passages_of(transcript: Transcript) -> Iterator[Passage]:
    """The passages of a text, in order; segments without words are in none."""
    pieces = [piece for it in transcript.segments for piece in _pieces(transcript, it)]
    for part, following in pairwise([*_parts(pieces), []]):
        shared = following[:1]
        yield Passage((*part, *shared), len(shared))


def _pieces(transcript: Transcript, segment: Segment) -> Iterator[PassageSegment]:
    """A segment in pieces of at most `PASSAGE_WORDS` words; all have its time."""
    language = segment.language or transcript.language
    speaker = transcript.speaker_of(segment)
    begins: list[int] = []
    count = _count(segment.text)
    if count > PASSAGE_WORDS:
        begins = [it.start() for it in _WORD.finditer(segment.text)][PASSAGE_WORDS::PASSAGE_WORDS]
    for start, end in pairwise([0, *begins, len(segment.text)] if count else []):
        yield PassageSegment(segment.span, language, segment.text[start:end].strip(), speaker)


def _count(text: str) -> int:
    return len(_WORD.findall(text))


def _parts(pieces: Sequence[PassageSegment]) -> Iterator[list[PassageSegment]]:
    part: list[PassageSegment] = []
    words = 0
    for piece in pieces:
        more = _count(piece.text)
        longer = part and piece.span.end_ms - part[0].span.start_ms > PASSAGE_MS
        if longer or words + more > PASSAGE_WORDS:
            if part:
                yield part
            part, words = [], 0
        part.append(piece)
        words += more
    if part:
        yield part


def lexemes_of(passage: Passage) -> dict[str, list[int]]:
    """What a passage is found by: each folded word with its positions, from 1 on.

    And without positions each pair of neighbours, each word that has marks, each language, and each
    speaker.
    """
    found: dict[str, list[int]] = {}
    words = [forms for it in passage.segments for forms in _forms_in(it.text)]
    for at, (exact, folded) in enumerate(words, 1):
        found.setdefault(folded, []).append(at)
        if exact != folded:
            found.setdefault(_exact(exact), [])
    for (_, one), (_, other) in pairwise(words):
        found.setdefault(_pair(one, other), [])
    for it in passage.segments:
        found.setdefault(of_language(it.language), [])
        if it.speaker:
            found.setdefault(of_speaker(it.speaker), [])
    return found


def _pair(one: str, other: str) -> str:
    # Words have neither spaces nor signs, so these are never taken for one.
    return f"{one} {other}"


def _exact(word: str) -> str:
    return f"={word}"


def of_speaker(name: str) -> str:
    """The lexeme of passages in which a person of that name speaks, in any case."""
    return f"~{fold(name)[:LONGEST_NAME]}"


def of_language(code: str) -> str:
    """The lexeme of passages with text in a language."""
    return f"#{code}"


def to_tsvector(lexemes: Mapping[str, Sequence[int]]) -> str:
    """The text form of a Postgres ``tsvector``."""
    return " ".join(
        f"{quoted(lexeme)}:{','.join(map(str, places))}" if places else quoted(lexeme)
        for lexeme, places in lexemes.items()
    )


def to_tsquery(lexemes: Iterable[str]) -> str:
    """The text form of a Postgres ``tsquery`` for all of ``lexemes``."""
    return " & ".join(map(quoted, lexemes))


def quoted(lexeme: str) -> str:
    """A lexeme as both text forms have it."""
    if "'" in lexeme or "\\" in lexeme:  # most have neither
        lexeme = lexeme.replace("\\", "\\\\").replace("'", "''")
    return f"'{lexeme}'"


# --- what is searched for -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """The words of a query.

    ``phrases`` are ranges ``[start, end)`` of words that must follow one another: those in
    quotation marks, and those of a script without spaces.
    """

    words: tuple[SearchWord, ...]
    phrases: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, query: str) -> Self:
        """Read what a person typed; apart from quotation marks nothing has a meaning.

        Raises:
            OutOfRange: it has no word.
        """
        words: list[SearchWord] = []
        phrases: list[tuple[int, int]] = []
        for number, part in enumerate(re.split('["“”„«»]', query)):
            begin = len(words)
            words += words_of(part)
            if number % 2:
                phrases.append((begin, len(words)))
                continue
            first = begin
            for at in range(begin + 1, len(words) + 1):
                if at == len(words) or words[at].start > words[at - 1].end:
                    phrases.append((first, at))
                    first = at
        if not words:
            limit = "text with at least one letter or digit"
            raise OutOfRange(field="q", limit=limit, value=query)
        return cls(tuple(words), tuple(it for it in phrases if it[1] - it[0] > 1))

    def tiers(self) -> list[list[str]]:
        """What passages must have, the best first.

        All words in a row and with their marks; in a row; with their marks; all words.
        """
        words = [word.folded for word in self.words]
        phrases = [
            _pair(*pair) for start, end in self.phrases for pair in pairwise(words[start:end])
        ]
        marked = [_exact(word.exact) for word in self.words if word.exact != word.folded]
        # A pair implies its words, and a word with its marks the folded one: fewer lexemes are
        # found faster.
        row = [_pair(*pair) for pair in pairwise(words)] or words
        exact = [*marked, *(word.folded for word in self.words if word.exact == word.folded)]
        tiers = [row + marked, row, exact + phrases, words + phrases]
        if len(words) == 1:
            tiers = [exact, words]
        return [list(it) for it in dict.fromkeys(tuple(dict.fromkeys(it)) for it in tiers)]


@dataclass(frozen=True, slots=True)
class TextRange:
    """Characters ``[start, end)`` of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoundText:
    """Where a passage has what is searched for.

    ``text``: its part with the densest matches. ``matches``: the words in it that are searched for.
    ``segment``: the one in which the first of the densest matches is.
    """

    segment: PassageSegment
    text: str
    matches: tuple[TextRange, ...]


def find(passage: Passage, wanted: Wanted) -> FoundText | None:
    """The best place of a passage; None: it has none, or only in what the next passage has too."""
    text, starts = "", []
    for segment in passage.segments:
        starts.append(len(text) + bool(text))
        text = f"{text} {segment.text}" if text else segment.text
    words = words_of(text)
    if not all(_has_phrase(words, wanted.words[slice(*it)]) for it in wanted.phrases):
        return None
    own = len(text) if not passage.shared else starts[-passage.shared]
    best = _densest(words, wanted, own)
    if best is None:
        return None
    first, last = words[best[0]], words[best[1]]
    at = max(n for n, start in enumerate(starts) if start <= first.start)
    segment = passage.segments[at]
    begin, end = _around(text, first.start, last.end, starts[at])
    theirs = {word.folded for word in wanted.words}
    return FoundText(
        segment,
        text[begin:end],
        tuple(
            TextRange(word.start - begin, word.end - begin)
            for word in words
            if word.folded in theirs and begin <= word.start and word.end <= end
        ),
    )


def _has_phrase(words: Sequence[SearchWord], phrase: Sequence[SearchWord]) -> bool:
    wanted = [word.folded for word in phrase]
    row = [word.folded for word in words]
    return any(
        row[at : at + len(wanted)] == wanted for at, word in enumerate(row) if word == wanted[0]
    )


def _densest(words: Sequence[SearchWord], wanted: Wanted, own: int) -> tuple[int, int] | None:
    """The first and the last word of the shortest stretch with all words.

    It begins before ``own``, where the next passage begins. Of equally short ones it is that with
    most marks as they were typed, and the first of these.
    """
    theirs = {word.folded for word in wanted.words}
    exact = {word.exact for word in wanted.words}
    row = [word.folded for word in wanted.words]
    last_at: dict[str, int] = {}
    best: tuple[tuple[int, int, int], tuple[int, int]] | None = None
    for at, word in enumerate(words):
        if word.folded not in theirs:
            continue
        last_at[word.folded] = at
        if len(last_at) < len(theirs):
            continue
        begin = min(last_at.values())
        # A phrase with a word twice is longer than its different words.
        full = at - len(row) + 1
        ordered = full >= 0 and [it.folded for it in words[full : at + 1]] == row
        if ordered:
            begin = full
        if words[begin].start >= own:
            break
        same = sum(it.exact in exact for it in words[begin : at + 1])
        cost = (0 if ordered else at - begin + 1, -same, at)
        if best is None or cost < best[0]:
            best = cost, (begin, at)
    return None if best is None else best[1]


def _around(text: str, first: int, last: int, segment: int) -> tuple[int, int]:
    """The range of ``text`` that is shown: from the segment's start, if that is near enough."""
    begin = segment if last - segment <= SNIPPET else first
    if begin < first and first - begin > SNIPPET // 2:
        begin = text.rfind(" ", begin, first - SNIPPET // 3) + 1 or begin
    end = begin + SNIPPET
    if end >= len(text):
        return begin, len(text)
    space = text.find(" ", end, end + LONGEST_WORD)
    return begin, end if space < 0 else space
