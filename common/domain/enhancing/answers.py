"""What a language model answered: the JSON in it, its schema, and schemas that callers bring."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from common.errors import AnswerRejected, SchemaRefused

MAX_SCHEMA_BYTES = 16_000
MAX_SCHEMA_PARTS = 2_000
"""The values in a schema, after all its references are replaced."""
MAX_SCHEMA_DEPTH = 20
MAX_INLINED_BYTES = 64_000
"""Of a schema, after that: a reference may stand for much."""
MAX_ANSWER_DEPTH = 32
"""Lists and objects in an answer, one in another: code that reads or writes JSON fails at some
greater depth."""

Schema = Mapping[str, Any]

_KEYWORDS = frozenset(
    (
        *("type", "enum", "const", "anyOf", "oneOf", "allOf", "properties", "required"),
        *("additionalProperties", "minProperties", "maxProperties", "items", "minItems"),
        *("maxItems", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "title", "description", "default", "examples", "format"),
    )
)
"""Those whose cost is bounded: no ``pattern``, no ``uniqueItems``."""
_LITERAL = frozenset({"enum", "const", "default", "examples", "required", "type"})
"""Their values are no schemas."""
_DEFINITIONS = frozenset({"$defs", "definitions"})
_IGNORED = frozenset({"$schema", "$id", "$comment"}) | _DEFINITIONS
_LOCAL = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")

_THOUGHT = re.compile(r"\s*<(think|thinking)>.*?</\1>", re.DOTALL)
_FENCE = "```"
_UNSTORABLE = re.compile("\0|\\\\u0000|[\ud800-\udfff]")
"""What Postgres does not store, in a text or in JSON."""


def answer_text(text: str) -> str:
    """An answer without the model's reasoning before it."""
    return _THOUGHT.sub("", text, count=1).strip() if _THOUGHT.match(text) else text.strip()


def is_storable(text: str) -> bool:
    """Whether ``text``, which may be JSON, has neither NUL nor half a letter."""
    return not _UNSTORABLE.search(text)


def read_answer(text: str, schema: Schema) -> Any:
    """The JSON of an answer that meets ``schema``; it may be in a fence, as models like to write.

    ``schema`` has no references: of a caller's, take `checked_schema`.

    Raises:
        AnswerRejected: it is not JSON, or breaks the schema. The reason quotes none of it.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    found = answer_text(text)
    first, _, rest = found.partition("\n")
    if first.startswith(_FENCE) and rest.endswith(_FENCE):
        found = rest.removesuffix(_FENCE)
    try:
        value = json.loads(found)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise AnswerRejected(reason="it is not JSON") from None
    if not is_storable(written):
        raise AnswerRejected(reason="it has characters that are no text")
    if is_deeper(value, MAX_ANSWER_DEPTH):
        raise AnswerRejected(reason=f"it has more than {MAX_ANSWER_DEPTH} levels")
    broken = best_match(Draft202012Validator(schema).iter_errors(value))
    if broken is not None:
        rule = "/".join(str(step) for step in broken.absolute_schema_path)
        raise AnswerRejected(reason=f"it breaks the schema at {rule}")
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects in ``value`` are one in another, more than ``levels`` of them."""
    inside = [value]
    for _ in range(levels + 1):
        inside = [
            each
            for it in inside
            if isinstance(it, list | Mapping)
            for each in (it.values() if isinstance(it, Mapping) else it)
        ]
    return bool(inside)


def one_line(text: str) -> str:
    """``text`` on one line, without control characters.

    Raises:
        AnswerRejected: nothing is left.
    """
    shown = (" " if letter.isspace() else letter for letter in text)
    line = " ".join("".join(it for it in shown if unicodedata.category(it) != "Cc").split())
    if not line:
        raise AnswerRejected(reason="a text in it is blank")
    return line


def checked_schema(schema: Mapping[str, Any], field: str = "schema") -> dict[str, Any]:
    """A caller's schema of an answer, with its references replaced by what they refer to.

    Validating an answer by it takes bounded time: there are no references left, no patterns, and
    at most `MAX_SCHEMA_PARTS` values.

    Raises:
        SchemaRefused: it is too large, is no JSON schema, or uses what is not supported.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, RecursionError):  # also of lone surrogates
        raise SchemaRefused(field=field, reason="it is not JSON") from None
    if size > MAX_SCHEMA_BYTES:
        raise SchemaRefused(
            field=field, reason=f"it has {size} bytes, and {MAX_SCHEMA_BYTES} are allowed"
        )
    inlined = _Inliner(schema, field).inlined(schema, ())
    size = len(json.dumps(inlined, ensure_ascii=False).encode())
    if size > MAX_INLINED_BYTES:
        raise SchemaRefused(
            field=field,
            reason=f"it has {size} bytes with its references replaced, and {MAX_INLINED_BYTES} are"
            " allowed",
        )
    if not isinstance(inlined, dict) or inlined.get("type") != "object":
        raise SchemaRefused(field=field, reason='its "type" must be "object"')
    try:
        Draft202012Validator.check_schema(inlined)
    except SchemaError as error:
        path = "/".join(str(step) for step in error.absolute_path) or "its root"
        raise SchemaRefused(field=field, reason=f"it is no JSON schema at {path}") from None
    return inlined


class _Inliner:
    """Replaces the references in a schema."""

    def __init__(self, root: Mapping[str, Any], field: str) -> None:
        self._root = root
        self._field = field
        self._parts = 0

    def inlined(self, schema: Any, within: tuple[str, ...], depth: int = 0) -> Any:
        """``schema`` without references; ``within`` are those that are being replaced."""
        self._parts += 1
        if self._parts > MAX_SCHEMA_PARTS or depth > MAX_SCHEMA_DEPTH:
            raise self._too_large()
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._refused("it has a value where a schema must be")
        if "$ref" in schema:
            return self._referred(schema["$ref"], within, depth)
        plain: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _IGNORED:
                continue
            if key not in _KEYWORDS:
                raise self._refused(f"{str(key)[:50]!r} is not supported")
            plain[key] = self._value(key, value, within, depth + 1)
        return plain

    def _value(self, key: str, value: Any, within: tuple[str, ...], depth: int) -> Any:
        if key in _LITERAL or isinstance(value, str | int | float):
            if is_deeper(value, MAX_SCHEMA_DEPTH):
                raise self._too_large()
            return value
        if key == "properties" and isinstance(value, Mapping):
            return {name: self.inlined(each, within, depth) for name, each in value.items()}
        if isinstance(value, list):  # anyOf and its like
            return [self.inlined(each, within, depth) for each in value]
        return self.inlined(value, within, depth)

    def _referred(self, reference: Any, within: tuple[str, ...], depth: int) -> Any:
        found = _LOCAL.fullmatch(reference) if isinstance(reference, str) else None
        if found is None:
            raise self._refused("a $ref may only lead to the schema's own $defs")
        definitions = self._root.get(found[1])
        if not isinstance(definitions, Mapping) or found[2] not in definitions:
            raise self._refused(f"a $ref leads to {found[2][:50]!r}, which is not in its $defs")
        if found[2] in within:
            raise self._refused(f"{found[2][:50]!r} refers to itself")
        return self.inlined(definitions[found[2]], (*within, found[2]), depth + 1)

    def _too_large(self) -> SchemaRefused:
        limit = f"{MAX_SCHEMA_PARTS} values, or {MAX_SCHEMA_DEPTH} levels"
        return self._refused(f"it has more than {limit}")

    def _refused(self, reason: str) -> SchemaRefused:
        return SchemaRefused(field=self._field, reason=reason)
