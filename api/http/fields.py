"""The bases of documents, and types of fields that several resources take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from common.errors import Misnamed, Unsupported

T = TypeVar("T")

MAX_BYTES = 16 * 1024
"""As compact JSON in UTF-8."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode's overrides and isolates: text after them may be shown in another order."""
MAX_DEPTH = 32
"""Nested objects and lists; JSON writers fail at some greater depth."""


class Document(BaseModel):
    """A document whose fields are described by their docstrings; made of JSON or of an object."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class RequestDocument(Document):
    """A document that clients send; fields that it does not have are rejected."""

    model_config = ConfigDict(extra="forbid")


def metadata_of(text: str) -> Any:
    """The JSON in a form's field.

    Raises:
        ValueError: it is not JSON; the message says what is expected.
    """
    try:
        return json.loads(text, parse_constant=_reject)
    except (ValueError, RecursionError):
        raise ValueError("a JSON object") from None


def unsupported(field: str, known: Iterable[str]) -> Unsupported:
    """The error that there is no such field; it names the most similar of ``known``."""
    nearest = get_close_matches(field, known, n=1, cutoff=0.65)
    return Misnamed(field=field, nearest=nearest[0]) if nearest else Unsupported(field=field)


def checked(value: dict[str, Any]) -> dict[str, Any]:
    """The same value, if it can be stored and returned.

    Raises:
        ValueError: it cannot; the message says what is expected.
    """
    _check(value, MAX_DEPTH)
    try:
        encoded = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise ValueError("text without lone surrogates") from None
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES} bytes of JSON")
    return value


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"at most {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for part in value.values():
            _check(part, depth - 1)
    elif isinstance(value, list):
        for part in value:
            _check(part, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("JSON with finite numbers")


def _reject(constant: str) -> NoReturn:
    raise ValueError(constant)


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _joined(value: object) -> object:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return value


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _no_control(text: str) -> str:
    if any(ord(letter) < 32 and letter not in "\t\r\n" for letter in text):
        raise ValueError("text without control characters")
    return text


def _no_direction(text: str) -> str:
    if not _DIRECTIONS.isdisjoint(text):
        raise ValueError("text without characters that change its direction")
    return text


def _one_line(text: str) -> str:
    """As it can stand before a line of text."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("not empty")
    return text


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


Omittable = Annotated[T | SkipJsonSchema[None], Field(json_schema_extra=_without_default)]
"""A field that may be left out, and is None then; null is not documented."""
Word = BeforeValidator(_lower)
"""A name, in any case."""
Names = BeforeValidator(_joined)
"""Names separated by commas, as a form sends them; JSON may have a list of them."""
Prose = Annotated[str, Field(max_length=2000), AfterValidator(_no_control)]
NoDirection = AfterValidator(_no_direction)
"""Text whose characters are shown in their order."""
Name = Annotated[str, Field(max_length=200), AfterValidator(_no_control), NoDirection]
OneLine = Annotated[Name, AfterValidator(_one_line)]
"""A name that is not blank; spaces and line breaks become one space."""
Note = Annotated[
    str, Field(max_length=1_000), AfterValidator(_no_control), AfterValidator(_one_line)
]
"""Why something was done; spaces and line breaks become one space."""
Metadata = Annotated[dict[str, Any], AfterValidator(checked)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
"""Of milliseconds."""
Number = Annotated[float, Field(allow_inf_nan=False)]
