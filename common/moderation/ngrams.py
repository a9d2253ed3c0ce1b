"""The inputs of a model of hashed n-grams: for each syllable, the numbers of its features.

A syllable's features are itself, itself without diacritics, its letters two to four at a time, the
same without diacritics, and the pair and the triple of syllables that it ends. Each is hashed to a
row of the model's tables, so that there is no vocabulary (Weinberger et al., arXiv 0902.2206; for
letters, fastText, arXiv 1607.04606).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from common.moderation.inputs import Batch, Row, packed
from common.moderation.normalise import fold, normalise

Features = NDArray[np.int32]
"""Row numbers, shape (syllables, `SLOTS`); 0 where a syllable has no more features."""

BUCKETS = 1 << 17
"""Rows of the tables; row 0 is unused."""
SLOTS = 28
_LETTERS = slice(2, SLOTS - 2)
_PAIR, _TRIPLE = SLOTS - 2, SLOTS - 1

WINDOW = 96
"""Syllables in one row."""
OVERLAP = 32
BATCH_ROWS = 32
BATCH_SYLLABLES = 1024

_SYLLABLE = re.compile(r"\w{1,32}|[^\w\s]")
_REMEMBERED = 1 << 14
"""Vietnamese has some 7,000 syllables."""


def features(text: str) -> Features:
    """The features of a text's syllables; a text without any has one empty syllable."""
    syllables = _SYLLABLE.findall(normalise(text).text) or [""]
    found = np.stack([_of_syllable(syllable) for syllable in syllables])
    before = ["^", "^", *syllables]
    for at, syllable in enumerate(syllables):
        pair = f"{before[at + 1]} {syllable}"
        found[at, _PAIR] = _row(f"b{pair}")
        if at:
            found[at, _TRIPLE] = _row(f"t{before[at]} {pair}")
    return found


class NgramInputs:
    """``features``, one row a window of a text (see `common.moderation.inputs.Inputs`)."""

    def batches(self, texts: Sequence[str]) -> Iterator[Batch]:
        rows: list[Row] = [
            (owner, window)
            for owner, text in enumerate(texts)
            for window in windows(features(text))
        ]
        for batch in packed(rows, BATCH_ROWS, BATCH_SYLLABLES):
            owners = np.array([owner for owner, _ in batch], np.intp)
            yield Batch({"features": padded([window for _, window in batch])}, owners)


def windows(found: Features) -> list[Features]:
    """A text's features in overlapping windows of at most `WINDOW` syllables."""
    step = WINDOW - OVERLAP
    return [found[at : at + WINDOW] for at in range(0, max(len(found) - OVERLAP, 1), step)]


def padded(rows: Sequence[Features]) -> NDArray[np.int32]:
    """Rows of several lengths as one array, shape (rows, longest, `SLOTS`)."""
    block = np.zeros((len(rows), max(map(len, rows)), SLOTS), np.int32)
    for at, row in enumerate(rows):
        block[at, : len(row)] = row
    return block


@lru_cache(maxsize=_REMEMBERED)
def _of_syllable(syllable: str) -> Features:
    found = np.zeros(SLOTS, np.int32)
    plain = fold(syllable)
    found[:2] = _row(f"w{syllable}"), _row(f"f{plain}")
    letters = dict.fromkeys(
        [
            *(f"c{gram}" for gram in _grams(f"<{syllable}>", (2, 3, 4))),
            *(f"d{gram}" for gram in _grams(f"<{plain}>", (3, 4))),
        ]
    )
    rows = [_row(gram) for gram in islice(letters, _LETTERS.stop - _LETTERS.start)]
    found[_LETTERS.start : _LETTERS.start + len(rows)] = rows
    return found


def _grams(word: str, sizes: Sequence[int]) -> Iterator[str]:
    for size in sizes:
        if size < len(word):
            yield from (word[at : at + size] for at in range(len(word) - size + 1))


def _row(feature: str) -> int:
    return crc32(feature.encode(errors="replace")) % (BUCKETS - 1) + 1
