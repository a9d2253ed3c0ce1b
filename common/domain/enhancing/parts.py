"""The parts of a transcript that one request to a language model can hold, and their JSON.

A model's tokenizer is not known, so tokens are estimated, and rather too many than too few.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any, TypeVar

from common.domain.masking import masked
from common.domain.transcript import Transcript

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NumberedSegment:
    """A segment of the transcript; ``id`` is its index in its revision.

    ``speaker`` is a name, or the speaker's id; None: not known. ``text`` is not blank.
    ``is_masked``: it has masked words, which proposals must leave as they are.
    """

    id: int
    start_ms: int
    end_ms: int
    speaker: str | None
    text: str
    is_masked: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence that a model wrote about the transcript, and the segments it stands on."""

    text: str
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The data of one request: segments in the first round, and notes in all later ones.

    ``index`` counts from 0, and ``of`` is how many parts its round has.
    """

    index: int
    of: int
    segments: tuple[NumberedSegment, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def ids(self) -> frozenset[int]:
        """The segments that an answer may cite."""
        cited = (segment for note in self.notes for segment in note.segments)
        return frozenset((*(segment.id for segment in self.segments), *cited))


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens: of the model's context, request and answer together, and of the longest answer."""

    context_tokens: int
    max_output_tokens: int


def numbered(transcript: Transcript, *, hide: bool = False) -> tuple[NumberedSegment, ...]:
    """The segments of a transcript that have text; ``hide``: offending words are masked."""
    shown = masked(transcript) if hide else transcript
    return tuple(
        NumberedSegment(
            id=number,
            start_ms=segment.span.start_ms,
            end_ms=segment.span.end_ms,
            speaker=shown.speaker_of(segment),
            text=text,
            is_masked=segment.text != stored.text,
        )
        for number, (segment, stored) in enumerate(
            zip(shown.segments, transcript.segments, strict=True)
        )
        if (text := segment.text.strip())
    )


def pack(items: Sequence[T], tokens_of: Callable[[T], int], limit: int) -> list[list[T]]:
    """Items in order, in groups of at most ``limit`` tokens; each item alone must fit."""
    groups: list[list[T]] = []
    used = limit
    for item in items:
        tokens = tokens_of(item)
        if used + tokens > limit:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += tokens
    return groups


# --- tokens -----------------------------------------------------------------------------------

_PLAIN = ascii_lowercase.encode() + b" "
_CAPITALS = ascii_uppercase.encode()
_TWELFTHS = 12
_PLAIN_COST = 4
"""Of a small letter of ASCII or a space: 3 of them are a token. English has 4 to 5 a token."""
_CAPITAL_COST = 6
_OTHER_COST = 12
_BYTE_COST = 9
"""Of a byte of any other letter's UTF-8: in Vietnamese, an accented letter is 1.5 to 2.3 tokens."""


def estimate_tokens(text: str) -> int:
    """At least as many tokens as common tokenizers make of ``text``."""
    ascii_text = text.encode("ascii", "ignore")
    not_plain = ascii_text.translate(None, _PLAIN)
    other = len(not_plain.translate(None, _CAPITALS))
    plain, capitals = len(ascii_text) - len(not_plain), len(not_plain) - other
    beyond = len(text.encode("utf-8", "surrogatepass")) - len(ascii_text)
    cost = plain * _PLAIN_COST + capitals * _CAPITAL_COST + other * _OTHER_COST
    return -(-(cost + beyond * _BYTE_COST) // _TWELFTHS)


# --- JSON ---------------------------------------------------------------------------------------

_ESCAPED = re.compile(
    # What chat templates, fences and JSON itself delimit with; invisible and lone characters.
    "[<>\\[\\]{}|`#\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\uffe8\uff5c\ufff0-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)


def to_data(value: Any) -> str:
    """JSON on one line, in whose strings nothing can end the string or look like a delimiter.

    A model's server parses special tokens such as ``<|im_start|>`` wherever they are in a message,
    so their characters are escaped by their numbers; to a reader of JSON it is the same text.
    """
    if isinstance(value, Mapping):
        fields = (f"{to_data(str(key))}:{to_data(each)}" for key, each in value.items())
        return "{" + ",".join(fields) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(to_data, value)) + "]"
    if isinstance(value, str):
        return _ESCAPED.sub(_escape, json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def segment_data(segment: NumberedSegment, *, brief: bool) -> dict[str, Any]:
    """A segment as the model reads it; ``brief``: without its time and its speaker."""
    if brief:
        return {"id": segment.id, "text": segment.text}
    speaker = {} if segment.speaker is None else {"speaker": segment.speaker}
    start_s = round(segment.start_ms / 1000, 1)
    return {"id": segment.id, "start": start_s, **speaker, "text": segment.text}


def note_data(note: Note) -> dict[str, Any]:
    """A note as the model reads it, and as it is stored."""
    return {"text": note.text, "segments": list(note.segments)}


def notes_of(stored: Iterable[Mapping[str, Any]]) -> tuple[Note, ...]:
    """Read the output of `note_data`."""
    return tuple(Note(note["text"], tuple(note["segments"])) for note in stored)
