"""``Idempotency-Key``: a request that is sent again creates nothing new.

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
    "description": "A name for this request. The same request sent again with it is answered with "
    f"the same job and `{REPLAYED}: true`; another request with it is a 409. Keys are scoped per "
    "tenant and released on deletion.",
}
"""The header in the documentation."""


def request_sha256(endpoint: str, options: BaseModel, recording_sha256: str | None = None) -> str:
    """A hash of what a request asks for, equal for equal requests; in lower-case hex."""
    asked = {
        "endpoint": endpoint,
        "options": options.model_dump(mode="json", exclude_defaults=True),
        "recording": recording_sha256,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def idempotency_key(request: Request) -> str | None:
    """The key that a request was sent with.

    Raises:
        OutOfRange: it is malformed.
    """
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        limit = "1 to 200 printable ASCII characters"
        raise OutOfRange(field=HEADER, limit=limit, value=echoed(key))
    return key


def idempotency(
    request: Request, options: BaseModel, recording_sha256: str | None = None
) -> Idempotency | None:
    """The request's key and hash; None where it has no key.

    Raises:
        OutOfRange: it is malformed.
    """
    key = idempotency_key(request)
    if key is None:
        return None
    endpoint = f"{request.method} {request.url.path}"
    return Idempotency(key, request_sha256(endpoint, options, recording_sha256))


def mark_replay(request: Request, created: Created) -> None:
    """Mark the response where the job was created by an earlier request."""
    if created.replayed:
        answer_with(request.scope, {REPLAYED: "true"})
