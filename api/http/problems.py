"""Errors as clients see them: problem details (RFC 9457), one shape for all."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from math import isfinite
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from loguru import logger
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.bodies import BodyRejected, has_unread_body, limit_body
from api.http.fields import metadata_of, unsupported
from common.errors import (
    BadInput,
    FieldMissing,
    Forbidden,
    Malformed,
    ModerationOff,
    ModerationUnusable,
    NotAudio,
    NotFound,
    NotPlanned,
    NotReady,
    OutOfRange,
    OverLimit,
    PreconditionMissing,
    RateLimited,
    RecognizerUnusable,
    StaleRevision,
    Stalled,
    StenoError,
    TooLarge,
    Transient,
    Unauthorised,
    Unavailable,
    UnknownOption,
)

Model = TypeVar("Model", bound=BaseModel)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
LONGEST_ECHO = 200
"""Characters of an invalid value that an error repeats."""

CLIENT_DISCONNECTED = 499
"""nginx's status for a request whose client has disconnected; only logs show it."""
LINGER_S = 2.0

PUBLIC_ERRORS = BadInput | Transient | ModerationOff | ModerationUnusable | RecognizerUnusable
"""Errors whose messages clients may see; any other is reported as an internal error."""

_CODES = {400: Malformed.code, 404: NotFound.code, 405: "method_not_allowed"}
_TIME = "a time with its zone, such as 2026-01-31T00:00:00Z"
_LIMITS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_long": "at most {max_length} characters long",
    "string_too_short": "at least {min_length} characters long",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text without lone surrogates",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "uuid_parsing": "a UUID",
    "uuid_type": "a UUID",
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "timezone_aware": _TIME,
}
"""Pydantic's kinds of error, as the end of "... must be"."""
_ONE = re.compile(r"\b1 (character|item)s\b")


class ProblemDocument(BaseModel):
    """Problem details (RFC 9457); errors about a value also name field, limit or allowed, value."""

    type: str = Field("about:blank")
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["priority must be one of high, normal, low; got 'urgent'"])
    code: str = Field(examples=["unknown_option"])


class Problem(Response):
    """An error's response; where the error is ``passing``, it says when to retry."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        details: Mapping[str, Any] | None = None,
        *,
        passing: bool = False,
    ) -> None:
        self.document = _document(status, code, detail, details or {})
        headers = {"Retry-After": str(RETRY_AFTER_S)} if passing else None
        # Values that clients sent may contain lone surrogates: \ud800 is JSON for one.
        text = json.dumps(self.document, ensure_ascii=False).encode(errors="backslashreplace")
        super().__init__(text, status, headers)


class ClosingAnswer(Response):
    """Sends a response before the request's body has been read, then closes the connection.

    The client may still be sending, and closing at once could destroy the response on its way
    (RFC 9112, section 9.6): so what comes in is discarded for a moment.
    """

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.body, answer.status_code)
        self.raw_headers = [*answer.raw_headers, (b"connection", b"close")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit_body(scope, None)  # one response is enough
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await receive()).get("more_body"):
                    continue
        await send({"type": "http.response.body", "body": b""})


def problem(error: StenoError) -> Problem:
    """The response for ``error``, without internals of this machine."""
    if not isinstance(error, BadInput):
        logger.warning("answered {}: {}", error.code, error)
    if not isinstance(error, PUBLIC_ERRORS):
        return internal_error()
    passing = isinstance(error, Transient | ModerationUnusable | RecognizerUnusable)
    answer = Problem(error.status, error.code, error.message, details_of(error), passing=passing)
    if isinstance(error, Unauthorised):
        answer.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, OverLimit | NotPlanned):
        answer.headers["Retry-After"] = str(error.details["retry_after_s"])
    return answer


def details_of(error: StenoError) -> dict[str, Any]:
    """What a response adds to the message of a client's mistake: field, limit and value."""
    details = error.details if isinstance(error, BadInput) else {}
    return {key: _plain(value) for key, value in details.items()}


def internal_error() -> Problem:
    """The response for an error that clients must not see."""
    return Problem(500, StenoError.code, "Internal error; the gateway's log says more")


def validation_error(
    error: Mapping[str, Any], sent: object, known: Collection[str] = ()
) -> BadInput:
    """Our error for one of pydantic's, with the field, what is allowed, and the value.

    ``sent`` is what was validated; ``known`` has its fields, to suggest one for an unknown name.
    """
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind in {"too_long", "too_short"} and isinstance(value, str):  # of a union with a text
        kind = f"string_{kind}"
    place = error["loc"]
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        place = (*place, context["discriminator"].strip("'"))
    is_missing = kind in {"missing", "union_tag_not_found"}
    field = _field(place, sent, missing=is_missing)
    if is_missing:
        return FieldMissing(field=field)
    if kind == "union_tag_invalid":
        allowed = context["expected_tags"].replace("'", "")
        return UnknownOption(field=field, allowed=allowed, value=echoed(context["tag"]))
    if kind == "extra_forbidden":
        return unsupported(field, known)
    if kind in {"literal_error", "enum"}:
        allowed = context["expected"].replace("'", "").replace(" or ", ", ")
        return UnknownOption(field=field, allowed=allowed, value=echoed(value))
    if kind == "json_invalid":
        return Malformed(reason="the body is not JSON")
    limit = _LIMITS.get(kind)
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    text = limit.format(**context) if limit else said
    return OutOfRange(field=field, limit=_ONE.sub(r"1 \1", text), value=echoed(value))


def validated(kind: type[Model], sent: Mapping[str, Any]) -> Model:
    """The document ``kind`` with the fields ``sent``; the field ``metadata`` may be text, of JSON.

    Raises:
        UnknownOption, OutOfRange, Unsupported: one of them is wrong; it is named.
    """
    given = dict(sent)
    try:
        if isinstance(given.get("metadata"), str):
            given["metadata"] = metadata_of(given["metadata"])
        return kind.model_validate(given)
    except ValidationError as error:
        raise validation_error(dict(error.errors()[0]), given, kind.model_fields) from None
    except ValueError as error:
        value = echoed(given["metadata"])
        raise OutOfRange(field="metadata", limit=error, value=value) from None


def _field(place: Sequence[int | str], sent: object, *, missing: bool = False) -> str:
    """The field of an invalid value: of a parameter its own name.

    A field in an object has the names of both, as in ``consent.by``; an item and its fields are
    named with their list, as in ``entries[3].word``. What ``place`` has beside the names in
    ``sent`` is pydantic's own; the last one of a ``missing`` field is its name.
    """
    if len(place) > 1 and place[0] in {"query", "path", "header"}:
        return str(place[1])
    names = place[1:] if place[:1] == ("body",) else place
    field = item = ""
    for at, name in enumerate(names):
        is_sent = isinstance(sent, Mapping) and name in sent
        if is_sent or (missing and at == len(names) - 1):
            field = f"{field}{item}.{name}".removeprefix(".")
            item = ""
        if isinstance(sent, Mapping):
            sent = sent[name] if is_sent else sent
        elif isinstance(sent, Sequence) and isinstance(name, int) and name < len(sent):
            sent, item = sent[name], f"{item}[{name}]"
    return f"{field}{item}"[:LONGEST_ECHO] or "body"


def _fields_of(request: Request, error: Mapping[str, Any]) -> Collection[str]:
    """The fields of the body's document, where the error is about one of them."""
    body = getattr(request.scope.get("route"), "body_field", None)
    fields = getattr(body and body.field_info.annotation, "model_fields", {})
    return fields if len(error["loc"]) == 2 else ()


Present = Callable[[Request, Problem], Response]
"""Chooses the response for a problem: itself, or another form of it."""


def install(app: FastAPI, present: Present) -> None:
    """Answer every error of ``app`` as a problem, in the form that ``present`` gives it."""

    def answered(request: Request, error: Problem) -> Response:
        """Close the connection after a response that is sent before the body was read."""
        answer = present(request, error)
        return ClosingAnswer(answer) if has_unread_body(request.scope) else answer

    @app.exception_handler(StenoError)
    async def _ours(request: Request, error: StenoError) -> Response:
        return answered(request, problem(error))

    @app.exception_handler(ClientDisconnect)
    async def _disconnected(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_DISCONNECTED)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        ours = validation_error(first, error.body, _fields_of(request, first))
        return answered(request, problem(ours))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if isinstance(error, BodyRejected):
            return answered(request, problem(error.error))
        code = _CODES.get(error.status_code, "http_error")
        answer = Problem(error.status_code, code, str(error.detail))
        answer.headers.update(error.headers or {})
        return present(request, answer)


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if isfinite(value) else str(value)  # JSON has no infinity
    return value if value is None or isinstance(value, bool | int) else str(value)


def echoed(value: object) -> object:
    """A client's value as an error repeats it, truncated where it is long."""
    text = str(value)
    return _plain(value) if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}..."


def _document(status: int, code: str, detail: str, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **details,
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }


_EXAMPLES = {
    error.status: error
    for error in (
        Malformed(reason="the form is incomplete"),
        Unauthorised(reason="Unknown API key"),
        Forbidden(reason="The API key does not have the scope admin"),
        NotFound(what="job", value="3fa85f64-5717-4562-b3fc-2c963f66afa6"),
        Stalled(limit_s=60.0),
        NotReady(status_now="PROCESSING"),
        StaleRevision(newest=3, value=2),
        PreconditionMissing(),
        TooLarge(field="texts[3]", limit="50000 characters", value="1000000"),
        NotAudio(reason="the file is empty"),
        RateLimited(
            field="requests_per_minute", period="minute", limit=1200, value=1201, retry_after_s=42
        ),
        UnknownOption(field="format", allowed="json, txt, srt", value="docx"),
        Unavailable(what="Postgres"),
    )
}
"""An example of each status, for the documentation."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can fail in these ways."""
    schema = ProblemDocument.model_json_schema()
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema, "example": _example(status)}},
        }
        for status in statuses
    }


def _example(status: int) -> dict[str, Any]:
    if status == HTTPStatus.REQUEST_URI_TOO_LONG:  # answered by `api.http.middleware`
        details = {"field": "url", "limit": 8000, "value": 8613}
        return _document(status, TooLarge.code, "The URL may have at most 8000 bytes", details)
    error = _EXAMPLES[status]
    details = error.details if isinstance(error, BadInput) else {}
    return _document(status, error.code, error.message, details)
