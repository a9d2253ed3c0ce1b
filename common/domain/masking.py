"""Masks the offending words of texts."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

from common.domain.moderation import Mark
from common.domain.transcript import Transcript
from common.domain.values import Segment, Word

MASK = "*"
_MASKED = re.compile(r"\w*\*[\w*]*")
"""A word with masked letters, in a masked text."""


def masked(transcript: Transcript) -> Transcript:
    """The transcript with all marks masked, in texts and words alike."""
    return replace(transcript, segments=tuple(map(masked_segment, transcript.segments)))


def mask(text: str, marks: Iterable[Mark]) -> str:
    """Mask each mark except its first letter and its spaces; the length stays."""
    letters = list(text)
    for mark in marks:
        shown = False
        for at in range(mark.start, min(mark.end, len(letters))):
            if letters[at].isalpha() and not shown:
                shown = True
            elif not letters[at].isspace():
                letters[at] = MASK
    return "".join(letters)


def places(words: Sequence[Word]) -> Iterator[tuple[int, int]]:
    """The range ``[start, end)`` of each word in the text that they form."""
    end = 0
    for word in words:
        start, end = end, end + len(word.text)
        yield start, end


def marked_words(segment: Segment, marks: Iterable[Mark]) -> Iterator[Sequence[Word]]:
    """The words that each mark touches."""
    found = list(places(segment.words))
    for mark in marks:
        first = bisect_right(found, mark.start, key=itemgetter(1))
        last = bisect_left(found, mark.end, key=itemgetter(0))
        yield segment.words[first:last]


def masked_segment(segment: Segment) -> Segment:
    """The segment with its marks masked."""
    if segment.finding is None or not segment.finding.marks:
        return segment
    text = mask(segment.text, segment.finding.marks)
    words = tuple(
        replace(word, text=text[start:end])
        for word, (start, end) in zip(segment.words, places(segment.words), strict=True)
    )
    return replace(segment, text=text, words=words)


def keeps_masked(text: str, before: str) -> bool:
    """Whether ``text`` has the masked words of ``before`` in their order, in any case."""
    return _folded(text) == _folded(before)


def unmasked(text: str, segment: Segment) -> str | None:
    """``text``, written after the masked text of ``segment``, with the masked letters put back.

    None: it does not have the same masked words.
    """
    before = masked_segment(segment).text
    if before == segment.text:
        return text
    if not keeps_masked(text, before):
        return None
    plain = (segment.text[it.start() : it.end()] for it in _MASKED.finditer(before))
    return _MASKED.sub(lambda found: _revealed(found[0], next(plain)), text)


def _folded(text: str) -> list[tuple[int, str]]:
    return [(len(word), word.casefold()) for word in _MASKED.findall(text)]


def _revealed(word: str, plain: str) -> str:
    """A masked word with its masked letters; the others may be in another case."""
    return "".join(
        letter if shown == MASK else shown for shown, letter in zip(word, plain, strict=True)
    )
