"""Where a sentence may be broken: after its clauses, before some words, never inside a name.

All of it follows from the letters of neighbouring words, in any language; the words listed here are
English and Vietnamese. A Vietnamese word of several syllables is not recognized as one, so a
break goes before a function word where it can: those begin no such word.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")  # noqa: RUF001 - the full-width marks are meant
CLAUSE_ENDS = (",", ";", ":", "，", "、", "；", "：")  # noqa: RUF001
ABBREVIATION = re.compile(r"(\w\.)+|(Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|TP|ThS|TS|GS|PGS)\.")
"""Ends in a full stop, yet not a sentence: initials and titles."""
DASHES: Final = ("–", "—")  # noqa: RUF001
_QUOTES: Final = "\"'”’)»"  # noqa: RUF001 - they may follow what ends a sentence or a clause

_AROUND: Final = "\"'“”‘’«»().,;:?!…"  # noqa: RUF001

_CONJUNCTION: Final = re.compile(
    "and|but|or|nor|so|yet|because|if|when|while|where|which|who|whose|that|than|although|though"
    "|unless|until|since|before|after|with|without|from|for|in|on|at|by|about|into|through"
    "|và|nhưng|mà|thì|hay|hoặc|vì|nên|nếu|khi|để|rằng|tuy|dù|bởi|còn|với|của|trong|theo|từ"
)
"""A word that begins a clause or a phrase."""
_COUNTED: Final = re.compile(
    "no|number|page|chapter|section|room"
    "|ngày|tháng|năm|số|điều|khoản|chương|quý|trang|phòng|khóa|lớp|quận"
)
"""A word whose number follows it."""
_SCALE: Final = re.compile(
    "hundred|thousand|million|billion|trillion|trăm|nghìn|ngàn|vạn|triệu|tỷ|tỉ"
)
"""The part of a number that is written as a word."""
_NUMBER: Final = re.compile(r"[+\-−]?[$€£¥₫]?\d+([.,:/]\d+)*")  # noqa: RUF001


class Break(IntEnum):
    """How natural a break between two words is; lower is better."""

    SENTENCE = 0
    CLAUSE = 1
    CONJUNCTION = 2
    PAUSE = 3
    OTHER = 5


def ends_sentence(word: str) -> bool:
    """Whether a sentence ends with ``word``, which has its punctuation."""
    said = word.strip().rstrip(_QUOTES)
    return said.endswith(SENTENCE_ENDS) and not ABBREVIATION.fullmatch(said)


def break_between(word: str, following: str) -> Break:
    """The kind of break between two words of a text, from their letters alone."""
    if ends_sentence(word):
        return Break.SENTENCE
    if word.rstrip(_QUOTES).endswith((*CLAUSE_ENDS, *DASHES)):
        return Break.CLAUSE
    starts_phrase = _is(_CONJUNCTION, following) and not _is(_CONJUNCTION, word)
    return Break.CONJUNCTION if starts_phrase else Break.OTHER


def belong_together(word: str, following: str) -> bool:
    """Whether two words of a text are part of one name, or of a number with its unit."""
    if not (word[-1].isalnum() or ABBREVIATION.fullmatch(word)) or ends_sentence(word):
        return False
    if _is(_NUMBER, following):
        return _is(_COUNTED, word) or _is(_NUMBER, word)
    if _is(_NUMBER, word) or _is(_SCALE, word):
        return following[0].isalpha() and not _is(_CONJUNCTION, following)
    return _is_capitalised(word) and _is_capitalised(following)


def _is(kind: re.Pattern[str], word: str) -> bool:
    """Whether a word is of a kind, without regard to its case and punctuation."""
    return kind.fullmatch(word.lower().strip(_AROUND)) is not None


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() and word not in {"I", "I'm", "I'll", "I'd", "I've"}
