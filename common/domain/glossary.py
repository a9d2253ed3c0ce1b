"""Glossaries: words that a tenant wants to be written right, and the spellings to replace.

Their words are hotwords of the decoder. Where a glossary rewrites, its spellings are replaced in
the text as well. What people replace again and again is suggested for a glossary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Self
from unicodedata import category, normalize

from common.domain.matching import matching
from common.domain.moderation import Finding, Mark
from common.domain.values import Segment, Span, Word

NO_GLOSSARY = "none"
"""In place of names: no glossary, not even the default one."""
GLOSSARY_TRUNCATED = "glossary_truncated"
"""The warning that some words of a job's glossaries are no hotwords, as there was no room."""
MOST_ENTRIES = 1_000
"""Of a glossary, and of all glossaries of a job."""
LONGEST_WORD = 100
"""In characters; also of a spelling."""
MOST_SPELLINGS = 20
"""Of an entry."""
MOST_HOTWORDS = 500
"""Phrases that sherpa-onnx is given."""
PROMPT_BYTES = 446
"""Whisper takes a prompt of 223 tokens (openai/whisper, decoding.py), and drops what precedes them.
Lists of names take 0.39 (English), 0.40 (Vietnamese) and 0.49 (Chinese) tokens a byte of UTF-8;
measured with the tokenizer of faster-whisper-base."""
LONGEST_CHANGE = 5
"""In words; a longer replacement is another sentence rather than another spelling."""
MOST_COMPARED = 500
"""Words of a text in which replacements are looked for."""
MOST_PASSES = 10
"""Over a segment: where a replacement makes another spelling complete, that is replaced as well."""
SENTENCE_END = re.compile(r"[.!?…]\W*$")


@dataclass(frozen=True, slots=True)
class Entry:
    """A word, or several, and spellings that it replaces in any case.

    All are in NFC, with single spaces between words.
    """

    word: str
    instead_of: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {"word": self.word, "instead_of": list(self.instead_of)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        return cls(document["word"], tuple(document["instead_of"]))


@dataclass(frozen=True, slots=True)
class Glossary:
    """A named list of words, as a job uses it.

    ``language`` is a Whisper code: jobs in other languages cannot use it; None: it is for all.
    """

    name: str
    entries: tuple[Entry, ...]
    rewrite: bool = False
    language: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {
            "name": self.name,
            "entries": [entry.to_json() for entry in self.entries],
            "rewrite": self.rewrite,
            "language": self.language,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        entries = tuple(map(Entry.from_json, document["entries"]))
        return cls(document["name"], entries, document["rewrite"], document["language"])


def cleaned(text: str) -> str:
    """In NFC, with single spaces."""
    return " ".join(normalize("NFC", text).split())


# --- hotwords ---------------------------------------------------------------------------------


def hotwords(
    asked: str | None, prompt: str | None, glossaries: Iterable[Glossary], *, for_whisper: bool
) -> tuple[str | None, bool]:
    """The hotwords that a request asks for, with the words of its glossaries after them.

    As many as fit, in their order; and whether some are left out. ``prompt`` is the initial prompt,
    which takes room as well: ``for_whisper`` both share `PROMPT_BYTES`.
    """
    text = asked.strip().rstrip(",") if asked else ""
    words = list(dict.fromkeys(entry.word for each in glossaries for entry in each.entries))
    room = PROMPT_BYTES - len((prompt or "").encode())
    for at, word in enumerate(words):
        longer = f"{text}, {word}" if text else word
        if len(longer.encode()) > room if for_whisper else at >= MOST_HOTWORDS:
            return text or asked, True
        text = longer
    return (text if words else asked), False


# --- rewriting --------------------------------------------------------------------------------


def rewritten(segments: Iterable[Segment], entries: Iterable[Entry]) -> tuple[Segment, ...]:
    """The segments, with the spellings that ``entries`` replace written right.

    Only whole words are replaced, in any case, the longest spellings first, and within a segment.
    Punctuation around a spelling stays; within it there must be the same. A word that is all in
    small letters keeps a capital that its place had. What is already right stays, unless it is a
    part of a longer word to write; so rewriting again changes nothing. The first entry with a
    spelling counts.

    A replacement of as many words has the times of each. Otherwise its words share the span of the
    replaced ones by their letters, with the least of their probabilities. Marks of a finding move
    with the text; those on replaced words cover the whole replacement.

    Segments without changes stay the same objects. In languages without spaces nothing is found.
    """
    segments, entries = tuple(segments), list(entries)
    if not segments or not entries:
        return segments
    right = _Phrases((entry.word, entry.word) for entry in entries)
    spellings: dict[str, tuple[str, str]] = {}
    for entry in entries:
        for spelling in entry.instead_of:
            spellings.setdefault(_folded(spelling), (spelling, entry.word))
    wrong = _Phrases(spellings.values())
    return tuple(_rewritten(segment, right, wrong) for segment in segments)


@dataclass(frozen=True, slots=True)
class _Token:
    """Some of a segment's words with no space between them; ``text`` in NFC without spaces around.

    ``head`` and ``tail`` are the punctuation around its core; all is tail where it has none.
    """

    words: tuple[Word, ...]
    text: str
    head: str
    tail: str

    @classmethod
    def of(cls, words: Sequence[Word]) -> Self:
        text = cleaned("".join(word.text for word in words))
        return cls(tuple(words), text, *_around(text))


class _Phrases:
    """What to look for, by its folded core: the text without punctuation around it.

    Of each core the punctuation before and after it, and the word that the phrase stands for.
    """

    def __init__(self, phrases: Iterable[tuple[str, str]]) -> None:
        self._known: dict[str, list[tuple[str, str, str]]] = {}
        for phrase, word in dict.fromkeys(phrases):
            if core := _folded(_core(phrase)):
                self._known.setdefault(core, []).append((*_around(phrase), word))
        self._begins = {core.partition(" ")[0] for core in self._known}
        self._lengths = sorted({core.count(" ") + 1 for core in self._known}, reverse=True)

    def found(self, tokens: Sequence[_Token]) -> Iterator[_Found]:
        """Where they are in the tokens, the longest first; those of a length from left to right."""
        begins = []
        for token in tokens:
            body = token.text[len(token.head) :]
            alone = body[: len(body) - len(token.tail)]
            begins.append({_folded(body), _folded(alone)} & self._begins)
        for length in self._lengths:
            for first in range(len(tokens) - length + 1):
                if begins[first]:
                    yield from self._at(tokens, first, first + length)

    def _at(self, tokens: Sequence[_Token], first: int, last: int) -> Iterator[_Found]:
        text = " ".join(token.text for token in tokens[first:last])
        head, tail = tokens[first].head, tokens[last - 1].tail
        core = text[len(head) : len(text) - len(tail)]
        for before, after, word in self._known.get(_folded(core), ()):
            # Punctuation of a phrase may stand alone, as in "Yahoo !".
            start, end = first - before.count(" "), last + after.count(" ")
            if start < 0 or end > len(tokens):
                continue
            left, right = tokens[start:first], tokens[last:end]
            if any(it.tail != it.text for it in (*left, *right)):
                continue
            all_head = " ".join([*(it.text for it in left), head])
            all_tail = " ".join([tail, *(it.text for it in right)])
            if all_head.endswith(before) and all_tail.startswith(after):
                kept = all_head.removesuffix(before), all_tail.removeprefix(after)
                yield _Found(start, end, core, word, *kept)


@dataclass(frozen=True, slots=True)
class _Found:
    """A phrase in the tokens ``[first, last)``, with ``core``, for which ``word`` stands.

    ``head`` and ``tail``: the punctuation around it.
    """

    first: int
    last: int
    core: str
    word: str
    head: str
    tail: str

    @property
    def is_right(self) -> bool:
        """Whether it is the word."""
        return self.core in (_core(self.word), _core(_capitalised(self.word)))

    @property
    def text(self) -> str:
        """The word in its place."""
        word = _capitalised(self.word) if self.core[:1].isupper() else self.word
        if self.tail.startswith("."):
            word = word.removesuffix(".")
        return f"{self.head}{word}{self.tail}"

    @property
    def places(self) -> range:
        """The numbers of the tokens."""
        return range(self.first, self.last)

    def keeps(self, right: _Found) -> bool:
        """Whether what is right is but a part of it, and of the word that it stands for."""
        is_part = self.first <= right.first and right.last <= self.last
        is_less = right.last - right.first < self.last - self.first
        return is_part and is_less and f" {_core(right.word)} " in f" {_core(self.word)} "


def _rewritten(segment: Segment, right: _Phrases, wrong: _Phrases) -> Segment:
    for _ in range(MOST_PASSES):
        tokens = _tokens(segment.words or _pieces(segment))
        changes = _changes(tokens, right, wrong)
        if not changes:
            break
        segment = _changed(segment, tokens, changes)
    return segment


def _pieces(segment: Segment) -> Sequence[Word]:
    """The words of a segment that has none; only their texts count."""
    pieces = re.findall(r"\s*\S+\s*$|\s*\S+", segment.text)
    return [Word(piece, segment.span, 0.0) for piece in pieces]


def _changed(segment: Segment, tokens: Sequence[_Token], changes: Iterable[_Found]) -> Segment:
    words: list[Word] = []
    places: list[tuple[int, int, int, int]] = []
    at = old_at = new_at = 0
    for change in changes:
        kept = [word for token in tokens[at : change.first] for word in token.words]
        replaced = [word for token in tokens[change.first : change.last] for word in token.words]
        new = _replacement(replaced, change.text)
        words += [*kept, *new]
        old_start, new_start = old_at + _length(kept), new_at + _length(kept)
        old_at, new_at = old_start + _length(replaced), new_start + _length(new)
        space = _length(replaced[:1]) - len(replaced[0].text.lstrip())
        places.append((old_start + space, old_at, new_start + space, new_at))
        at = change.last
    words += [word for token in tokens[at:] for word in token.words]
    return replace(
        segment,
        text="".join(word.text for word in words),
        words=tuple(words) if segment.words else (),
        finding=segment.finding and _moved(segment.finding, places),
    )


def _tokens(words: Sequence[Word]) -> list[_Token]:
    """The words, those without a space between them together."""
    starts = [
        at
        for at, word in enumerate(words)
        if at == 0 or word.text[:1].isspace() or words[at - 1].text[-1:].isspace()
    ]
    return [_Token.of(words[one:other]) for one, other in pairwise([*starts, len(words)])]


def _changes(tokens: Sequence[_Token], right: _Phrases, wrong: _Phrases) -> list[_Found]:
    """What is to be replaced, in order."""
    candidates = list(wrong.found(tokens))
    if not candidates:
        return []
    stays: dict[int, list[_Found]] = {at: [] for found in candidates for at in found.places}
    for found in right.found(tokens):
        if found.is_right:
            for at in stays.keys() & found.places:
                stays[at].append(found)
    changes: list[_Found] = []
    taken: set[int] = set()
    for found in candidates:
        if taken.isdisjoint(found.places) and all(
            found.keeps(each) for at in found.places for each in stays[at]
        ):
            changes.append(found)
            taken.update(found.places)
    return sorted(changes, key=lambda it: it.first)


def _replacement(replaced: Sequence[Word], text: str) -> list[Word]:
    """The words ``text``, at the times of those replaced."""
    first, last = replaced[0].text, replaced[-1].text
    before, after = first[: len(first) - len(first.lstrip())], last[len(last.rstrip()) :]
    pieces = text.split(" ")
    texts = [f"{' ' if at else before}{piece}" for at, piece in enumerate(pieces)]
    texts[-1] += after
    if len(texts) == len(replaced):
        pairs = zip(replaced, texts, strict=True)
        return [word if word.text == new else replace(word, text=new) for word, new in pairs]
    start_ms, end_ms = replaced[0].span.start_ms, max(word.span.end_ms for word in replaced)
    letters = list(accumulate(map(len, pieces), initial=0))
    at_ms = [start_ms + (end_ms - start_ms) * count // letters[-1] for count in letters]
    like = min(replaced, key=lambda word: word.probability)
    return [
        replace(like, text=new, span=Span(*span))
        for new, span in zip(texts, pairwise(at_ms), strict=True)
    ]


def _moved(finding: Finding, places: Sequence[tuple[int, int, int, int]]) -> Finding:
    """The finding, with its marks where their text is now."""

    def moved(at: int, *, is_end: bool) -> int:
        shift = 0
        for old_start, old_end, new_start, new_end in places:
            if old_start < at < old_end or (at == (old_end if is_end else old_start)):
                return new_end if is_end else new_start
            if at >= old_end:
                shift = new_end - old_end
        return at + shift

    marks: list[Mark] = []
    for mark in finding.marks:
        start, end = moved(mark.start, is_end=False), moved(mark.end, is_end=True)
        start = max(start, marks[-1].end) if marks else start
        if start < end:
            marks.append(replace(mark, start=start, end=end))
    return replace(finding, marks=tuple(marks))


def _length(words: Iterable[Word]) -> int:
    return sum(len(word.text) for word in words)


def _capitalised(word: str) -> str:
    """With a capital at its start, if it is all in small letters, and then still the same word."""
    at = len(_around(word)[0])
    capital = normalize("NFC", f"{word[:at]}{word[at : at + 1].upper()}{word[at + 1 :]}")
    is_same = word == word.lower() and _folded(capital) == _folded(word)
    return capital if is_same else word


def _folded(text: str) -> str:
    return normalize("NFC", text.casefold())


def _core(text: str) -> str:
    head, tail = _around(text)
    return text[len(head) : len(text) - len(tail)]


def _around(text: str) -> tuple[str, str]:
    """The punctuation before and after the letters and digits of a text; all after, without any."""
    places = range(len(text))
    start = next((at for at in places if is_written(text[at])), None)
    if start is None:
        return "", text
    end = next(at for at in reversed(places) if is_written(text[at])) + 1
    return text[:start], text[end:]


def is_written(letter: str) -> bool:
    """Whether it is a part of a word: a letter, a digit, or a mark on one."""
    return category(letter)[0] in "LNM"


# --- suggestions ------------------------------------------------------------------------------


def replacements(old: str, new: str) -> list[tuple[str, str]]:
    """What a person replaced in a text: what was written, in small letters, and what is now.

    Each has 1 to `LONGEST_CHANGE` words without punctuation around them. Changes of punctuation do
    not count; changes of case only where a capital was added within a sentence, as to a name.
    What has a comma, which no glossary takes, does not count either. Nothing is looked for in texts
    of more than `MOST_COMPARED` words.
    """
    before, after = _spoken(old), _spoken(new)
    if max(len(before), len(after)) > MOST_COMPARED:
        return []
    places = matching([word for word, _ in before], [word for word, _ in after])
    found: dict[tuple[str, str], None] = {}
    at = now_at = 0
    for stays, now_stays in [*places.items(), (len(before), len(after))]:
        gone, come = before[at:stays], after[now_at:now_stays]
        at, now_at = stays + 1, now_stays + 1
        if not (gone and come) or max(len(gone), len(come)) > LONGEST_CHANGE:
            continue
        was, now = (" ".join(word for word, _ in words) for words in (gone, come))
        if max(len(was), len(now)) > LONGEST_WORD or "," in now:  # no glossary takes these
            continue
        if _folded(was) == _folded(now) and (come[0][1] or not _gains_capital(was, now)):
            continue
        found[was.lower(), now] = None
    return list(found)


def _spoken(text: str) -> list[tuple[str, bool]]:
    """The words without the punctuation around them, and whether each begins a sentence."""
    words, begins = [], True
    for token in cleaned(text).split():
        if core := _core(token):
            words.append((core, begins))
            begins = False
        begins = begins or SENTENCE_END.search(token) is not None
    return words


def _gains_capital(was: str, now: str) -> bool:
    pairs = zip(was.split(), now.split(), strict=True)
    return any(new[:1].isupper() and not old[:1].isupper() for old, new in pairs)
