"""Headers of responses: those added while a request is handled, and the names of files."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import quote

from starlette.types import Scope

from common.filenames import NAMELESS

EXTRA_HEADERS = "steno.headers"
"""Where `api.http.middleware.RequestLog` keeps them, in the request's scope."""


def answer_with(scope: Scope, headers: Mapping[str, str]) -> None:
    """Add ``headers`` to the response of a request, whoever makes it."""
    scope[EXTRA_HEADERS].update(headers)


def attachment(name: str | None, ending: str) -> str:
    """The Content-Disposition of a file made from the recording ``name`` (RFC 6266)."""
    return disposition(f"{PurePosixPath(name or NAMELESS).stem}.{ending}")


def disposition(full: str) -> str:
    """The Content-Disposition of a file that is to be saved as ``full``."""
    plain = unicodedata.normalize("NFKD", full).encode("ascii", "ignore").decode()
    plain = "".join("_" if letter in '"\\%' else letter for letter in plain)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(full, safe='')}"
