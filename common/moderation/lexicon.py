"""Word lists of offensive words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.domain.moderation import Label, Mark
from common.moderation.normalise import fold, normalise

WORDS_DIR = Path(__file__).with_name("words")
"""The lists; each begins with a description of its format."""


@dataclass(frozen=True, slots=True)
class Find:
    """A listed word in a text.

    It ``decides`` where it is unambiguous; else it only counts in a text that the model labels
    offensive.
    """

    mark: Mark
    decides: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A phrase of a list; an innocent phrase that contains a listed word has no label."""

    phrase: str
    label: Label | None
    decides: bool


class Lexicon:
    """The word lists, Vietnamese and English. Loads in a few milliseconds."""

    def __init__(self) -> None:
        self._vietnamese = _Phrases(read_entries(WORDS_DIR / "vi.txt"))
        self._english = _Phrases(read_entries(WORDS_DIR / "en.txt"))

    def find(self, text: str) -> tuple[Find, ...]:
        """The listed words in a text, in order, without overlaps.

        Of phrases that begin with the same word the longest wins. Linear in the text's length.
        """
        return tuple(self._finds(text))

    def _finds(self, text: str) -> Iterator[Find]:
        normalised = normalise(text)
        words, spans = normalised.words, normalised.spans
        # No English entry is a Vietnamese syllable without its diacritics.
        folded = words if text.isascii() else tuple(map(fold, words))
        index, place = 0, 0
        while index < len(words):
            entry, count = self._vietnamese.longest(words, index)
            if not entry:
                entry, count = self._english.longest(folded, index)
            start, end = spans[index][0], spans[index + count - 1][1]
            if entry and entry.label and start >= place:
                yield Find(Mark(start, end, entry.label, "list"), entry.decides)
                place = end
            index += count


class _Phrases:
    """Entries by their words."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = {normalise(entry.phrase).words: entry for entry in entries}
        counts: defaultdict[str, set[int]] = defaultdict(set)
        for words in self._entries:
            counts[words[0]].add(len(words))
        self._counts = {word: sorted(found, reverse=True) for word, found in counts.items()}

    def longest(self, words: Sequence[str], index: int) -> tuple[Entry | None, int]:
        """The longest entry that begins at ``index``, and its number of words; else None and 1."""
        for count in self._counts.get(words[index], ()):
            phrase = tuple(words[index : index + count])
            if entry := self._entries.get(phrase):
                return entry, len(phrase)
        return None, 1


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a list, one for each ending."""
    label: Label | None = None
    decides = False
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("["):
            kind, *more = line.strip("[]").split()
            label = None if kind == "innocent" else Label(kind)
            decides = more == ["decides"]
        elif line and not line.startswith("#"):
            stem, *endings = line.split("|")
            for ending in ("", *endings):
                yield Entry(stem + ending, label, decides)
