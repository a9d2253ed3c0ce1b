"""The stable part of a growing text: LocalAgreement (Liu et al. 2020; arXiv 2307.14743).

A recognizer that decodes an utterance repeatedly, each time with more audio, mostly changes the
last words. Words on which two successive hypotheses agree seldom change any more.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import takewhile

_WORDS = re.compile(r"\s*\S+")


def agreed(before: str, now: str) -> int:
    """The number of leading characters of ``now`` on which ``before`` agrees.

    Whole words are compared, without case and punctuation. The last word of ``now`` never counts:
    it may be incomplete. Punctuation after the last agreed word counts only if it agrees too.
    """
    words = _WORDS.findall(now)
    pairs = list(
        takewhile(
            lambda pair: _key(pair[0]) == _key(pair[1]),
            zip(_WORDS.findall(before), words[:-1], strict=False),
        )
    )
    if not pairs:
        return 0
    length = sum(len(word) for _, word in pairs)
    last_before, last_now = (word.strip() for word in pairs[-1])
    return length if last_before == last_now else length - len(_marks(last_now))


def _key(word: str) -> str:
    letters = unicodedata.normalize("NFC", word).casefold()
    return "".join(letter for letter in letters if letter.isalnum()) or letters.strip()


def _marks(word: str) -> str:
    """The punctuation at the end of a word; empty if the word is nothing else."""
    letters = word.rstrip("".join({letter for letter in word if not letter.isalnum()}))
    return word[len(letters) :] if letters else ""
