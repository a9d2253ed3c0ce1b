"""A request to a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Message:
    """``system`` has instructions, and ``user`` has data only."""

    role: Literal["system", "user"]
    content: str


@dataclass(frozen=True, slots=True)
class Form:
    """The JSON schema that an answer is to meet; servers that can enforce it are asked to.

    ``is_strict``: all properties are required and no others allowed, at every level. ``name`` is of
    letters, digits, ``_`` and ``-``.
    """

    name: str
    schema: Mapping[str, Any]
    is_strict: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``max_tokens`` bounds the answer; ``form`` None: it is plain text."""

    messages: tuple[Message, ...]
    max_tokens: int
    form: Form | None = None
