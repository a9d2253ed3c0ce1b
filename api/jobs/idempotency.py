"""``Idempotency-Key``: the same request sent again makes nothing again.

Named as in draft-ietf-httpapi-idempotency-key-header; its value is taken as it is, quoted or not.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request

from api.http.headers import answer_with
from api.http.problems import echoed
from common.db.jobs import Created, Idempotency
from common.errors import OutOfRange

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
_KEY = re.compile(r"[\x20-\x7e]{1,200}")

PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"},
    "description": "A name for this request. The same request sent again under it, by whomever of "
    f"the tenant, is answered with the same job and `{REPLAYED}: true`; another request is a 409.",
}
"""The header in the documentation."""


def request_sha256(endpoint: str, options: BaseModel, recording_sha256: str | None = None) -> str:
    """What two requests share that ask for the same; in lower-case hex."""
    asked = {
        "endpoint": endpoint,
        "options": options.model_dump(mode="json", exclude_defaults=True),
        "recording": recording_sha256,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def idempotency_key(request: Request) -> str | None:
    """The key that a request was sent with.

    Raises:
        OutOfRange: it cannot be one.
    """
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        limit = "1 to 200 printable ASCII characters"
        raise OutOfRange(field=HEADER, limit=limit, value=echoed(key))
    return key


def idempotency(
    request: Request, options: BaseModel, recording_sha256: str | None = None
) -> Idempotency | None:
    """What tells the request from others under its key; None where it has none.

    Raises:
        OutOfRange: it cannot be one.
    """
    key = idempotency_key(request)
    if key is None:
        return None
    endpoint = f"{request.method} {request.url.path}"
    return Idempotency(key, request_sha256(endpoint, options, recording_sha256))


def mark_replay(request: Request, created: Created) -> None:
    """Have the answer say whether it is one that was given before."""
    if created.replayed:
        answer_with(request.scope, {REPLAYED: "true"})
