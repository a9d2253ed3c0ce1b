"""Writes text one way: what people disguise, stretch and shorten becomes the words they meant.

It serves Vietnamese and English. What it does not know it leaves as it is.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.moderation.spellings import DOUBLED, HIDDEN, MASKED, MEANT, PROFANE

LINK, MENTION = "🔗", "@"
"""What stands for a web address, and for a person's name or mail address."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """The words, signs and emoji of a text, each with the place where the original has it.

    ``spans[i]`` are the code points ``[start, end)`` of the original that became ``words[i]``.
    They are in order; two words may come of one place.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """The words with single spaces between them."""
        return " ".join(self.words)


def normalise(text: str) -> Normalised:
    """Write a text one way.

    The result is lower case and NFC, without invisible characters; normalising it again changes
    nothing. Takes any string, and time in proportion to its length.
    """
    plain, starts, ends = _plain(text)
    words, spans = [], []
    for word, start, end in _meant(_rejoined(list(_tokens(plain)))):
        words.append(word)
        spans.append((starts[start], ends[end - 1]))
    return Normalised(tuple(words), tuple(spans))


def fold(text: str) -> str:
    """The text without diacritics, and with d for đ, as people type in haste."""
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFD", text)
    bare = "".join(char for char in parts if not unicodedata.combining(char))
    return bare.replace("đ", "d").replace("Đ", "D")


# --- characters ---

_TONES = "\u0300\u0301\u0309\u0303\u0323"
"""Grave, acute, hook, tilde, dot below."""
_VIETNAMESE = frozenset(
    unicodedata.normalize("NFC", vowel + tone) for vowel in "aăâeêioôơuưy" for tone in ("", *_TONES)
) | {"đ"}
_LATIN = frozenset("abcdefghijklmnopqrstuvwxyz") | _VIETNAMESE

_MARK = (
    r"\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    r"\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
)
"""What is written upon the character before it, or is invisible."""
_EMOJI = r"[\u231a-\u23ff\u25a0-\u27bf\u2934-\u2b55\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
_DRESSED = rf"{_EMOJI}[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*+"

_CLUSTER = re.compile(
    rf"(?P<emoji>{_DRESSED}(?:\u200d{_DRESSED})*+)"
    r"|(?P<entity>&(?:amp;){0,9}(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,30});)"
    rf"|[^{_MARK}][{_MARK}]*+|[{_MARK}]++",
    re.DOTALL | re.IGNORECASE,
)
_MOST_MARKS = 8
"""Those of one character that are read."""
_SIMPLE = re.compile(
    rf"[\t\n\r -%'-~{''.join(sorted(_VIETNAMESE))}{''.join(sorted(_VIETNAMESE)).upper()}]*+"
)
"""A text whose characters are each one letter or sign."""

_SAME = str.maketrans(
    {
        **dict.fromkeys("ðɖ", "đ"),
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict(zip("øłıħŧƀɡɑ", "olihtbga", strict=True)),
        **{chr(first + n): chr(97 + n) for first in (0x1F150, 0x1F170) for n in range(26)},
    }
)


def _plain(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """The text in lower case and one code point a character, and where each comes from."""
    if _SIMPLE.fullmatch(text):
        return text.lower(), range(len(text)), range(1, len(text) + 1)
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in _CLUSTER.finditer(text):
        start, end = match.span()
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
    """A character with the marks upon it; nothing where there is nothing to see."""
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
    r"(?P<letters>[^\W\d_]++(?!\S))"
    r"|(?P<link>https?://\S++|www\.\S++"
    r"|(?<!\S)(?:[a-z\d-]++\.)+(?:com|vn|net|org|edu|gov|info|io|tv)\b(?:[/?:]\S*+)?)"
    r"|(?P<mention>(?<!\S)[\w.+-]++@[\w-]++(?:\.[\w-]++)++|@\w++(?:\.\w++)*+)"
    r"|(?P<face>[:=;]['’]?-?(?:(?P<mouth>[)(\]\[<>|*])(?P=mouth)*+|[dpvx3o](?![^\W_]))"
    r"|\^[_.]?\^++|<3++|-_+-|>_+<)"
    r"|(?P<number>\d++(?:[.,:/]\d++)*+(?![^\W_]))"
    r"|(?P<word>[^\W_]++)"
    r"|(?P<flag>[\U0001f1e6-\U0001f1ff]{2})"
    r"|(?P<sign>(?P<once>.)(?P=once)*+)",
    re.DOTALL,
)
_SPACE = re.compile(r"\s++")
_DISGUISE = re.compile(
    r"(?:[^\W_]{1,20}+(?:[*.@$!\-_~'|+/^]{1,3}+[^\W_]{1,20}+){0,8}|[@$][^\W_]{1,20}+)\*{0,4}+"
    r"(?![^\W_])"
)
_LEET = str.maketrans("013457@$!|", "oieastasii", ".-_~'+/^")

_Token = tuple[str, int, int]
"""A word and its place."""


def _tokens(plain: str) -> Iterator[_Token]:
    position, length = 0, len(plain)
    while position < length:
        if space := _SPACE.match(plain, position):
            position = space.end()
            continue
        match = _TOKEN.match(plain, position)
        assert match is not None  # noqa: S101 - any character is at least a sign
        kind, word, end = match.lastgroup, match[0], match.end()
        if kind == "letters":
            yield _regular(word), position, end
        else:
            if kind in ("word", "mention", "sign"):
                disguise = _DISGUISE.match(plain, position)
                hidden = disguise and _undisguised(disguise[0])
                if disguise and hidden:
                    yield hidden, position, disguise.end()
                    position = disguise.end()
                    continue
            if kind == "word":
                word = _regular(word)
            elif kind == "link":
                word = LINK
            elif kind == "mention":
                word = MENTION
            elif kind == "face":
                word = _FACES.sub(r"\1", word)
            elif kind == "sign":
                word = word[0]
            yield word, position, end
        position = end


_FACES = re.compile(r"(.)\1+(?=.?$)")


@lru_cache(maxsize=8192)
def _undisguised(disguise: str) -> str | None:
    """The word that signs or digits hide, where it is one that people hide."""
    if "*" in disguise:
        return _MASKED.get(disguise)
    if disguise.isalpha():
        return None
    bare = disguise.translate(_LEET)
    return HIDDEN.get(bare) or HIDDEN.get(fold(bare))


def _masks(word: str) -> Iterator[str]:
    """The word with stars for its letters but the first, one or more on end."""
    for start in range(1, len(word)):
        for end in range(start + 1, len(word) + 1):
            yield word[:start] + "*" * (end - start) + word[end:]


_MASKED = {mask: word for word in MASKED for mask in (*_masks(word), *_masks(fold(word)))}

_STRETCHED = re.compile(r"([^\W\d_])\1{2,}")
_LAUGH = re.compile(
    r"(?:k{2,}|h{2,}|(?:k?[aàá]*h[aàâáeiíì]+){2,}h*|(?:k[aàá]){2,}k?|(?:h[uú]){2,})"
)


@lru_cache(maxsize=65536)
def _regular(word: str) -> str:
    """A word without stretched letters, with its tone where we write it."""
    if len(word) > LONGEST_WORD:
        word = word[:LONGEST_WORD]
    if not word.isascii():
        word = _latin(word)
    if not word.isalpha() and (hidden := _undisguised(word)):
        return hidden
    if len(set(word)) == 1:
        return word[:2]
    if _STRETCHED.search(word):
        word = _STRETCHED.sub(r"\1", word)
        word = DOUBLED.get(word, word)
    if not word.isascii():
        while len(word) > 2 and word[-1].isalpha() and word[-1] in (word[-2], fold(word[-2])):
            word = word[:-1]
        word = _TONE_MISPLACED.sub(lambda match: _TONE_PLACED[match[0]], word)
    return PROFANE.get(word, word)


LONGEST_WORD = 40
"""Letters; what is longer is cut, as it is no word."""

_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕԁԛԝһӏγαβεικνορτυχω", "abekmhopctyxijsdqwhlyabeiknoptuxw"
)


def _latin(word: str) -> str:
    """The word with Latin letters for those that only look like them, if it has Latin ones too."""
    return word.translate(_LOOKALIKES) if any(char in _LATIN for char in word) else word


def _tone_places() -> dict[str, str]:
    """Ends of syllables with the tone on the wrong vowel, and the same with it on the right one."""
    places: dict[str, str] = {}
    for tone in _TONES:
        for vowels in ("oa", "oe", "uy"):
            first, second = vowels
            wrong = unicodedata.normalize("NFC", first + second + tone)
            places[wrong] = unicodedata.normalize("NFC", first + tone + second)
    return places


_TONE_PLACED = _tone_places()
_TONE_MISPLACED = re.compile(rf"(?<!q)(?:{'|'.join(_TONE_PLACED)})$")


def _rejoined(tokens: Sequence[_Token]) -> Iterator[_Token]:
    """Tokens with words put together again that were spelt out, as in n g u or v . c . l."""
    index = 0
    while index < len(tokens):
        if len(tokens[index][0]) == 1 and (spelt := _spelt(tokens, index)):
            word, count = spelt
            yield word, tokens[index][1], tokens[index + count - 1][2]
            index += count
        else:
            yield tokens[index]
            index += 1


_LONGEST_SPELT = max(map(len, HIDDEN))


def _spelt(tokens: Sequence[_Token], index: int) -> tuple[str, int] | None:
    """The longest hidden word spelt from here, and how many tokens spell it."""
    sign = tokens[index + 1][0] if index + 1 < len(tokens) else ""
    step, least = (2, 2) if sign in _SPELLING_SIGNS else (1, 3)
    if tokens[index][0] == "đ":
        least = 2
    letters, best = tokens[index][0], None
    for at in range(index + step, min(len(tokens), index + step * _LONGEST_SPELT), step):
        letter = tokens[at][0]
        if len(letter) > 1 or not letter.isalpha() or (step > 1 and tokens[at - 1][0] != sign):
            break
        letters += letter
        if len(letters) >= least and (hidden := HIDDEN.get(letters)):
            best = hidden, at - index + 1
    return best


_SPELLING_SIGNS = frozenset(".-_*~'|/^,")


def _meant(tokens: Iterator[_Token]) -> Iterator[_Token]:
    """Tokens with short forms written out."""
    for word, start, end in tokens:
        meaning = MEANT.get(word, word)
        if " " in meaning:
            for part in meaning.split():
                yield part, start, end
        else:
            yield meaning, start, end
