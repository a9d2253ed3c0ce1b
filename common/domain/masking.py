"""Masks the offending words of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from common.domain.moderation import Mark
from common.domain.transcript import Transcript
from common.domain.values import Segment, Word

MASK = "*"


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


def marked_words(segment: Segment, mark: Mark) -> list[Word]:
    """The words that a mark touches."""
    said = zip(segment.words, places(segment.words), strict=True)
    return [word for word, (start, end) in said if start < mark.end and end > mark.start]


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
