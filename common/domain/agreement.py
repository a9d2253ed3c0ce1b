"""What of a growing text is stable: LocalAgreement (Liu et al. 2020; arXiv 2307.14743).

A recognizer that hears an utterance again and again, each time with more sound, changes its mind
about the last words mostly: words on which two hypotheses in a row agree seldom change any more.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import takewhile

_WORDS = re.compile(r"\s*\S+")


def agreed(before: str, now: str) -> int:
    """How many characters of ``now`` the hypothesis ``before`` it agrees with.

    They are whole words, whatever their case and marks; the last word of ``now`` is not among them,
    as more may be said of it. Where the two differ in the marks of the last one, those are not.
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
    """The marks that a word ends with; none where it is nothing else."""
    letters = word.rstrip("".join({letter for letter in word if not letter.isalnum()}))
    return word[len(letters) :] if letters else ""
