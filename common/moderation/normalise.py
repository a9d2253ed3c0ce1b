"""Normalises text: disguised, stretched and shortened words become the intended ones.

For Vietnamese and English. Unknown words stay as they are.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.moderation.spellings import DISGUISED, DOUBLED, MEANT, STARRED

LINK, MENTION = "🔗", "@"
"""Placeholders for a web address, and for a user's name or mail address."""

LONGEST_WORD = 40
"""Letters; a longer word is truncated."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """The words, signs and emoji of a text, each with its place in the original.

    ``spans[i]`` are the code points ``[start, end)`` of the original that became ``words[i]``.
    They are in order; two words may have one place.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """The words with single spaces between them."""
        return " ".join(self.words)


def normalise(text: str) -> Normalised:
    """Normalise a text.

    The result is lower case, in composed letters, without invisible characters; normalising it
    again changes nothing. Takes any string; linear in its length.
    """
    plain, starts, ends = _plain(text)
    tokens = list(_meant(list(_rejoined(list(_tokens(plain))))))
    return Normalised(
        tuple(word for word, _, _ in tokens),
        tuple((starts[start], ends[end - 1]) for _, start, end in tokens),
    )


def fold(text: str) -> str:
    """The text without diacritics, and with d for đ."""
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFD", text)
    bare = "".join(char for char in parts if not unicodedata.combining(char))
    return bare.replace("đ", "d").replace("Đ", "D")


# --- characters ---

_TONES = "\u0300\u0301\u0309\u0303\u0323"
"""Grave, acute, hook, tilde, dot below."""
_VOWELS = "aăâeêioôơuưy"


def _toned(vowel: str) -> str:
    return "".join(unicodedata.normalize("NFC", vowel + tone) for tone in _TONES)


_VIETNAMESE = frozenset((*_VOWELS, *"".join(map(_toned, _VOWELS)), "đ"))
_LATIN = frozenset("abcdefghijklmnopqrstuvwxyz") | _VIETNAMESE

_MARK = (
    r"\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    r"\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
)
"""Characters that combine with the one before, or are invisible."""
_SIMPLE = rf"\t\n\r -%'-~{''.join(sorted(_VIETNAMESE))}{''.join(sorted(_VIETNAMESE)).upper()}"
"""Characters that are one letter or sign by themselves."""
_EMOJI = r"[\u231a-\u23ff\u25a0-\u27bf\u2934-\u2b55\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
_DRESSED = rf"{_EMOJI}[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*+"

_CLUSTER = re.compile(
    rf"(?P<simple>[{_SIMPLE}]+(?![{_MARK}]))"
    rf"|(?P<emoji>{_DRESSED}(?:\u200d{_DRESSED})*+)"
    r"|(?P<entity>(?i:&(?:amp;){0,9}(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,30});))"
    rf"|[^{_MARK}][{_MARK}]*+|[{_MARK}]++",
    re.DOTALL,
)
_MOST_MARKS = 8
"""Combining marks of one character that are considered."""
_SAME = str.maketrans(
    {
        **dict.fromkeys("ðɖ", "đ"),
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict(zip("őűąęįų", "ốứạẹịụ", strict=True)),
        **dict(zip("øłıħŧƀɡɑ", "olihtbga", strict=True)),
        **{chr(first + n): chr(97 + n) for first in (0x1F150, 0x1F170) for n in range(26)},
    }
)


def _plain(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """The text in lower case, one code point a character, and the place of each."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in _CLUSTER.finditer(text):
        start, end = match.span()
        if match.lastgroup == "simple":
            if end - start == len(text):
                return text.lower(), range(end), range(1, end + 1)
            parts.append(match[0].lower())
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
            continue
        if match.lastgroup == "emoji":
            plain = text[start].translate(_SAME)
        elif match.lastgroup == "entity":
            named = html.unescape(re.sub("^&(amp;)+", "&", match[0], flags=re.IGNORECASE))
            plain = "".join(map(_plain_character, named))
        else:
            plain = _plain_character(text[start : min(end, start + _MOST_MARKS)])
        parts.append(plain)
        starts.extend([start] * len(plain))
        ends.extend([end] * len(plain))
    return "".join(parts), starts, ends


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    """A character with its marks; empty where it is invisible."""
    composed = unicodedata.normalize("NFKC", character).casefold()
    composed = unicodedata.normalize("NFKC", composed).translate(_SAME)
    return "".join(map(_plain_code_point, composed))


def _plain_code_point(char: str) -> str:
    if char in _LATIN:
        return char
    match unicodedata.category(char):
        case "Cf" | "Cs" | "Mn" | "Me":
            return ""
        case "Cc" | "Zs" | "Zl" | "Zp":
            return " "
        case "Ll":
            base = unicodedata.normalize("NFD", char)[0]
            return base if base in _LATIN else char
        case _:
            return char


# --- words ---

_TOKEN = re.compile(
    r"\s*+(?:(?P<letters>[^\W\d_]++(?!\S))"
    r"|(?P<link>https?://\S++|www\.\S++"
    r"|(?<!\S)(?:[a-z\d-]++\.)+(?:com|vn|net|org|edu|gov|info|io|tv)\b(?:[/?:]\S*+)?)"
    r"|(?P<mention>(?<!\S)[\w.+-]++@[\w-]++(?:\.[\w-]++)++|@\w++(?:\.\w++)*+)"
    r"|(?P<face>[:=;]'?-?(?:(?P<mouth>[)(\]\[<>|*])(?P=mouth)*+|[dpvx3o](?![^\W_]))"
    r"|\^[_.]?\^++|<3++|-_+-|>_+<)"
    r"|(?P<number>\d++(?:[.,:/]\d++)*+(?![^\W_]))"
    r"|(?P<word>[^\W_]++)"
    r"|(?P<flag>[\U0001f1e6-\U0001f1ff]{2})"
    r"|(?P<sign>(?P<once>\S)(?P=once)*+))",
)
_DISGUISE = re.compile(
    r"(?:[^\W_]{1,20}+(?:[*.@$!\-_~'|+/^]{1,3}+[^\W_]{1,20}+){0,3}|[@$][^\W_]{1,20}+)[*$]{0,4}+"
    r"(?![^\W_])"
)
_UNDISGUISED = str.maketrans("013457@$!|", "oieastasii", ".-_~'+/^")
"""The letters that digits and signs resemble; the signs that only separate letters."""
_LEET = re.compile(r"[\d@$!|]")
_SPELLING_SIGNS = frozenset(".-_*~'|/^,")

_Token = tuple[str, int, int]
"""A word and its place."""


def _tokens(plain: str) -> Iterator[_Token]:
    """The words, signs and emoji of a text in lower case."""
    position = 0
    while match := _TOKEN.match(plain, position):
        kind = match.lastgroup or ""
        start, position = match.span(kind)
        if kind == "letters":
            yield _regular(match[kind][:LONGEST_WORD]), start, position
            continue
        disguisable = kind == "word" or plain[start] in "@$"
        disguise = _DISGUISE.match(plain, start) if disguisable else None
        if disguise and (hidden := _undisguised(disguise[0])):
            position = disguise.end()
            yield hidden, start, position
        else:
            yield _read(kind, match[kind]), start, position


def _read(kind: str, word: str) -> str:
    match kind:
        case "word":
            return _regular(word[:LONGEST_WORD])
        case "link":
            return LINK
        case "mention":
            return MENTION
        case "face":
            return _LONG_MOUTH.sub(r"\1", word)
        case "sign":
            return word[0]
        case _:
            return word


_LONG_MOUTH = re.compile(r"(.)\1++(?=.?$)")


@lru_cache(maxsize=8192)
def _undisguised(word: str) -> str | None:
    """The word hidden by signs or digits, if it is one that people disguise."""
    if "*" in word:
        return _STARRED.get(word)
    if word.isalpha():
        return None
    bare = word.translate(_UNDISGUISED)
    if len(bare) < len(word) or not _LEET.search(word):
        return bare if DISGUISED.get(bare) == bare else None
    return DISGUISED.get(bare) or DISGUISED.get(fold(bare))


def _with_stars(word: str) -> Iterator[str]:
    """The word with stars for some letters on end, but never for the first."""
    for start in range(1, len(word)):
        for end in range(start + 1, len(word) + 1):
            yield word[:start] + "*" * (end - start) + word[end:]


_STARRED = {
    form: word for word in STARRED for form in (*_with_stars(word), *_with_stars(fold(word)))
}

_STRETCHED_VOWEL = re.compile("|".join(f"(?<=[{_toned(vowel)}]){vowel}++$" for vowel in _VOWELS))
_STRETCHED_END = re.compile(r"([^\W\d_])\1++$")
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}+")


@lru_cache(maxsize=32768)
def _regular(word: str) -> str:
    """A word in Latin letters, none stretched, with its tone mark in the normal place."""
    if word.isascii():
        if not word.isalpha():
            return _undisguised(word) or word
        return _unstretched(word)
    if any(char in _LATIN for char in word):
        word = word.translate(_LOOKALIKES)
    if not word.isalpha() and (hidden := _undisguised(word)):
        return hidden
    word = _unstretched(word)
    if _VOWEL.search(word):
        word = _STRETCHED_END.sub(r"\1", _STRETCHED_VOWEL.sub("", word))
    return _retoned(word)


_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕԁԛԝһӏγαβεικνορτυχω", "abekmhopctyxijsdqwhlyabeiknoptuxw"
)
"""Cyrillic and Greek letters that look like Latin ones."""


def _unstretched(word: str) -> str:
    """A word with one letter for three and more, unless it is an abbreviation or a number."""
    if _ROMAN.fullmatch(word):
        return word
    if len(set(word)) == 1:
        return word[:2]
    if not _STRETCHED.search(word):
        return word
    once = _STRETCHED.sub(r"\1", word)
    if _VOWEL.search(once) or once in _FOUL_SHORT_FORMS:
        return DOUBLED.get(once, once)
    return word


_ROMAN = re.compile("[ivx]++")
_VOWEL = re.compile(f"[{''.join(_VIETNAMESE - {'đ'})}]")
_FOUL_SHORT_FORMS = frozenset(("clm", "cmn", "vcc", "vcl", "vkl", "vl", "đcm", "đkm", "đm", "dm"))

_SYLLABLE = re.compile(r"([bcdghklmnpqrstvxzđ]*+)(\w\w)([a-z]{0,2})")


def _retoned(word: str) -> str:
    """A syllable with its tone mark in the normal place.

    That is on the first vowel of an open oa, oe, uy, and on the second before a final letter. In qu
    and gi the vowel belongs to the consonant, and has no tone mark.
    """
    if syllable := _SYLLABLE.fullmatch(word):
        initial, vowels, final = syllable.groups()
        right = _ON_SECOND.get(vowels) if final else _ON_FIRST.get(vowels)
        if initial in ("q", "g"):
            right = _AFTER_Q_OR_G.get(initial + vowels) or (right if initial == "g" else None)
        return f"{initial}{right or vowels}{final}"
    return word


def _tone_moved(vowels: str) -> dict[str, str]:
    """Two vowels with each tone on the first, and the same with it on the second."""
    return {
        unicodedata.normalize("NFC", vowels[0] + tone + vowels[1]): unicodedata.normalize(
            "NFC", vowels + tone
        )
        for tone in _TONES
    }


_ON_SECOND = {**_tone_moved("oa"), **_tone_moved("oe"), **_tone_moved("uy")}
_ON_FIRST = {second: first for first, second in _ON_SECOND.items()}
_AFTER_Q_OR_G = {
    vowels[0] + wrong: right
    for vowels in ("qua", "que", "quơ", "quy", "gia", "gio", "giu")
    for wrong, right in _tone_moved(vowels[1:]).items()
}


def _rejoined(tokens: Sequence[_Token]) -> Iterator[_Token]:
    """The tokens, with spelt-out words joined: n g u, v . c . l."""
    index = 0
    while index < len(tokens):
        word, start, end = tokens[index]
        count = 1
        if len(word) == 1 and word in _BEGINNINGS and (spelt := _spelt(tokens, index)):
            word, count = spelt
            end = tokens[index + count - 1][2]
        yield word, start, end
        index += count


_BEGINNINGS = frozenset(form[:end] for form in DISGUISED for end in range(1, len(form) + 1))


def _spelt(tokens: Sequence[_Token], index: int) -> tuple[str, int] | None:
    """The longest disguised word spelt out from ``index``, and its number of tokens."""
    letters = tokens[index][0]
    sign = tokens[index + 1][0] if index + 1 < len(tokens) else ""
    step = 2 if sign in _SPELLING_SIGNS else 1
    fewest = 2 if step == 2 or letters == "đ" else 3
    longest = None
    for at in range(index + step, len(tokens), step):
        letter = tokens[at][0]
        letters += letter
        parted = step == 1 or tokens[at - 1][0] == sign
        if not parted or len(letter) > 1 or letters not in _BEGINNINGS:
            break
        if len(letters) >= fewest and DISGUISED.get(letters) == letters:
            longest = letters, at - index + 1
    return longest


def _meant(tokens: Sequence[_Token]) -> Iterator[_Token]:
    """The tokens, with short forms expanded."""
    for index, (word, start, end) in enumerate(tokens):
        meaning = MEANT.get(word, word)
        if meaning is word or (len(word) == 1 and _names(tokens, index)):
            yield word, start, end
        else:
            for part in meaning.split():
                yield part, start, end


def _names(tokens: Sequence[_Token], index: int) -> bool:
    """Whether a letter is an initial or names a thing: J. Doe, K-pop, 5 k, Q&R."""
    before = tokens[index - 1][0] if index else ""
    after = tokens[index + 1][0] if index + 1 < len(tokens) else ""
    if after == ".":
        return not before[-1:].isalpha()
    return any(side and (side in _NAMING_SIGNS or side[0].isdigit()) for side in (before, after))


_NAMING_SIGNS = frozenset("-&/'+")
