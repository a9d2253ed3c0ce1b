"""The route to moderate texts directly, without a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from api.auth.callers import Transcriber
from api.http.bodies import documented_body, limit_body, while_connected
from api.http.fields import unsupported
from api.http.problems import documented, echoed
from api.moderation.schemas import MAX_LETTERS, MAX_TEXTS, ModerationAnswer, ModerationRequest
from api.processes.moderator import ModerationProcess
from api.services import ServicesDep
from common.domain.moderation import Finding, Label, ModeratedBy
from common.errors import FieldMissing, Malformed, OutOfRange, TooLarge

router = APIRouter(tags=["moderation"])

MAX_BODY_BYTES = 4_000_000
_FIELDS = frozenset(ModerationRequest.model_fields)


@router.post(
    "/moderation",
    summary="Moderate texts",
    response_model=ModerationAnswer,
    responses=documented(400, 408, 413, 422, 503),
    openapi_extra=documented_body("application/json", ModerationRequest.model_json_schema()),
)
async def moderate(request: Request, services: ServicesDep, _: Transcriber) -> Response:
    """Label a text, or up to 1,000, CLEAN, OFFENSIVE or HATE, and locate the offensive parts.

    A text has up to 50,000 characters, the body up to 4 MB. A text longer than the model's input
    is classified in pieces, and gets the label of its worst piece.
    """
    limit_body(request.scope, MAX_BODY_BYTES)
    moderation = services.get(ModerationProcess)
    moderation.check()
    texts = read_texts(await request.body())
    by, findings = await while_connected(request, moderation.moderate(texts))
    return JSONResponse(answer_document(texts, by, findings))


def read_texts(content: bytes) -> list[str]:
    """The texts in a request's body.

    Raises:
        BadInput: it is not a JSON object with either ``text`` or ``texts``, or a text is invalid.
    """
    document = _document(content)
    if unknown := document.keys() - _FIELDS:
        raise unsupported(str(echoed(json.dumps(min(unknown))[1:-1])), _FIELDS)
    if len(document) > 1:
        raise OutOfRange(field="text", limit="left out where texts is given", value="both")
    if "text" in document:
        return [_text("text", document["text"])]
    if "texts" not in document:
        raise FieldMissing(field="text")
    texts = document["texts"]
    if not isinstance(texts, list) or not texts:
        limit = f"a list of 1 to {MAX_TEXTS} texts"
        raise OutOfRange(field="texts", limit=limit, value=_echoed(texts))
    if len(texts) > MAX_TEXTS:
        raise TooLarge(field="texts", limit=f"{MAX_TEXTS} texts", value=str(len(texts)))
    return [_text(f"texts[{index}]", text) for index, text in enumerate(texts)]


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Malformed(reason=f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Malformed(reason=f"the body is not JSON ({where})") from error
    except (ValueError, RecursionError) as error:  # a huge number, or too deep nesting
        raise Malformed(reason="the body is JSON beyond what can be parsed") from error
    if not isinstance(document, dict):
        raise Malformed(reason="the body is not a JSON object")
    return document


def _text(field: str, text: object) -> str:
    if not isinstance(text, str):
        raise OutOfRange(field=field, limit="a string", value=_echoed(text))
    if not text.strip():
        raise OutOfRange(field=field, limit="a text that is not blank", value=echoed(text))
    if len(text) > MAX_LETTERS:
        limit = f"{MAX_LETTERS} characters"
        raise TooLarge(field=field, limit=limit, value=str(len(text)))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        limit = "Unicode without lone surrogates"
        raise OutOfRange(field=field, limit=limit, value=f"one at {error.start}") from error
    return text


def _echoed(value: object) -> object:
    """An invalid value as an error repeats it."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return echoed(json.dumps(value))


def answer_document(
    texts: Sequence[str], by: ModeratedBy, findings: Sequence[Finding]
) -> dict[str, Any]:
    """The response that `ModerationAnswer` describes."""
    return {
        "results": [
            {
                "label": finding.label,
                "score": finding.score,
                "scores": dict(zip(Label, finding.scores, strict=True)),
                "spans": [
                    {
                        "start": mark.start,
                        "end": mark.end,
                        "text": text[mark.start : mark.end],
                        "label": mark.label,
                        "source": mark.source,
                    }
                    for mark in finding.marks
                ],
            }
            for text, finding in zip(texts, findings, strict=True)
        ],
        "model": by.model,
        "threshold": {str(label): least for label, least in by.thresholds.items()},
    }
