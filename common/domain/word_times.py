"""The times of words after a person has changed a text, or the span of its segment.

Words that stay keep their times. The others are interpolated, and marked `Word.estimated`, until
the text is aligned to the audio again.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from common.domain.matching import matching
from common.domain.values import Span, Word

_UNSPACED = re.compile(
    "["
    "\u0e00-\u109f"  # Thai, Lao, Tibetan, Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "]"
)
"""The scripts that are written without spaces between words."""


def retimed(words: Sequence[Word], text: str, span: Span) -> tuple[Word, ...]:
    """The words of a new text, with times in ``span``; joined they are ``text``.

    ``words`` are those of the text before, in order and in ``span``. One whose letters are still
    there keeps its times and its probability, also where its case or its punctuation has changed.
    The others share the time between their neighbours, or of the words that they replace, by their
    letters; words that replace as many others take their times. Each gets 1 ms at least: where
    there is less, the neighbours give some of theirs, and are estimated too. Typed words have a
    probability of 1, as a person is certain of them.
    """
    before, after = tokens("".join(word.text for word in words)), tokens(text)
    places = matching([*map(_letters, before)], [*map(_letters, after)])
    kept = list(_kept(words, before, places))
    new: list[Word] = []
    holes: list[tuple[int, int, Sequence[Word]]] = []
    used = taken = 0
    for of_words, of_tokens in [*kept, (slice(len(words), None), slice(len(after), None))]:
        typed = [Word(token, span, 1.0, estimated=True) for token in after[taken : of_tokens.start]]
        holes.append((len(new), len(new) + len(typed), words[used : of_words.start]))
        new += typed
        new += _respelled(words[of_words], "".join(after[of_tokens]))
        used, taken = of_words.stop, of_tokens.stop
    for first, last, replaced in holes:
        _fill(new, first, last, replaced, span)
    return tuple(new)


def moved_into(words: Sequence[Word], span: Span) -> tuple[Word, ...]:
    """The words, in order, inside ``span``: those inside already stay, the others are estimated."""
    new = list(words)
    first = bisect_left(words, span.start_ms, key=lambda word: word.span.start_ms)
    last = bisect_right(words, span.end_ms, key=lambda word: word.span.end_ms)
    if first >= last:
        first, last = len(words), len(words)
    _fill(new, 0, first, words[:first], span)
    _fill(new, last, len(words), words[last:], span)
    return tuple(new)


def tokens(text: str) -> list[str]:
    """The words of a text, each with the spaces before it; joined they are the text.

    In scripts without spaces each letter is one. Punctuation belongs to the word before it.
    """
    found: list[str] = []
    for token in re.findall(r"\s*\S+|\s+", text):
        found += _letter_by_letter(token) if _UNSPACED.search(token) else [token]
    if len(found) > 1 and found[-1].isspace():
        found[-2:] = ["".join(found[-2:])]
    return found


def _letter_by_letter(token: str) -> list[str]:
    """A token with letters of scripts without spaces, each by itself."""
    found = [""]
    last = None  # whether the last letter is one of these; None: there is none yet
    for letter in token:
        if unicodedata.category(letter)[0] in "LN":
            unspaced = _UNSPACED.match(letter) is not None
            if last or (last is False and unspaced):
                found.append("")
            last = unspaced
        found[-1] += letter
    return found


def space_before(text: str) -> str:
    """What stands before a text that follows another one: nothing in scripts without spaces."""
    first = next(filter(str.isalpha, text), "")
    return "" if _UNSPACED.match(first) else " "


def _letters(token: str) -> str:
    """What makes two tokens the same word; punctuation only where there is nothing else."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", token.strip()).casefold())
    if folded.isalnum():  # as most words are
        return folded
    return "".join(it for it in folded if unicodedata.category(it)[0] in "LNMS") or token.strip()


def _kept(
    words: Sequence[Word], before: Sequence[str], places: dict[int, int]
) -> Iterator[tuple[slice, slice]]:
    """The words that stay, with their tokens in the new text.

    A token may be several words (" don", "'t"), and a word several tokens: they stay together.
    """
    word = token = words_end = tokens_end = 0
    first_word = first_token = 0
    while word < len(words):
        if words_end <= tokens_end:
            words_end += len(words[word].text)
            word += 1
        while tokens_end < words_end:
            tokens_end += len(before[token])
            token += 1
        if words_end == tokens_end:
            at = [places.get(it) for it in range(first_token, token)]
            start = at[0] if at else None
            if start is not None and at == [*range(start, start + len(at))]:
                yield slice(first_word, word), slice(start, start + len(at))
            first_word, first_token = word, token


def _respelled(words: Sequence[Word], text: str) -> list[Word]:
    """Words that stay, with the case and the punctuation of ``text``, which is their new text."""
    if "".join(word.text for word in words) == text:
        return list(words)
    letters = [at for at, letter in enumerate(text) if letter.isalnum()]
    new, start, count = [], 0, 0
    for word in words[:-1]:
        count += sum(map(str.isalnum, word.text))
        end = letters[count] if count < len(letters) else len(text)
        new.append(replace(word, text=text[start:end]))
        start = end
    new += [replace(word, text=text[start:]) for word in words[-1:]]
    return [word for word in new if word.text]


def _fill(words: list[Word], first: int, last: int, replaced: Sequence[Word], span: Span) -> None:
    """Give ``words[first:last]`` times between their neighbours, in ``span``."""
    count = last - first
    if not count:
        return
    start = words[first - 1].span.end_ms if first else span.start_ms
    end = words[last].span.start_ms if last < len(words) else span.end_ms
    between = Span(start, max(start, end))
    times = [word.span.clipped(between) for word in replaced]
    if len(times) != count or not all(it.duration_ms for it in times):
        if times:
            extent = Span(times[0].start_ms, max(times[0].start_ms, times[-1].end_ms))
            between = extent if extent.duration_ms >= count else between
        if between.duration_ms < count:
            between = _widened(words, first, last, between)
        times = _shares([word.text for word in words[first:last]], between)
    for at, time in enumerate(times, first):
        words[at] = replace(words[at], span=time, estimated=True)


def _widened(words: list[Word], first: int, last: int, between: Span) -> Span:
    """``between`` with the time that the words beside it can give, the longer one first."""
    start, end = between.start_ms, between.end_ms
    beside = [at for at in (first - 1, last) if 0 <= at < len(words)]
    for at in sorted(beside, key=lambda it: -words[it].span.duration_ms):
        word = words[at]
        given = min(last - first - (end - start), word.span.duration_ms - 1)
        if given > 0:
            if at < first:
                start -= given
                shorter = Span(word.span.start_ms, start)
            else:
                end += given
                shorter = Span(end, word.span.end_ms)
            words[at] = replace(word, span=shorter, estimated=True)
    return Span(start, end)


def _shares(texts: Sequence[str], span: Span) -> list[Span]:
    """The parts of a span for texts by their letters; of at least 1 ms each if it has so many."""
    least = 1 if span.duration_ms >= len(texts) else 0
    rest = span.duration_ms - least * len(texts)
    lengths = [0, *accumulate(max(1, len(_letters(text))) for text in texts)]
    cuts = [
        span.start_ms + least * at + rest * length // lengths[-1]
        for at, length in enumerate(lengths)
    ]
    return [Span(start, end) for start, end in pairwise(cuts)]
