"""A name for each request, in its answer and in every log line it causes."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping

from loguru import logger
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import unforeseen

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MORE = "steno.headers"
_ROUTINE = {"/health", "/healthz", "/readyz"}


def answer_with(scope: Scope, headers: Mapping[str, str]) -> None:
    """Have the answer to a request carry ``headers``, however it is made."""
    scope[_MORE].update(headers)


class RequestLog:
    """Takes over a decent ``X-Request-Id`` or makes one; logs one line a request.

    Plain ASGI: Starlette's base class for middleware would sit between an upload and its bytes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _ID.fullmatch(sent) else uuid.uuid4().hex
        started = time.monotonic()
        status = 0
        more: dict[str, str] = {}
        scope[_MORE] = more

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.update(more)
            await send(message)

        with logger.contextualize(request_id=request_id):
            try:
                await self._app(scope, receive, send_named)
            except Exception:
                logger.exception("request {} failed", request_id)
                if status:
                    raise
                await unforeseen()(scope, receive, send_named)
            finally:
                logger.log(
                    "DEBUG" if scope["path"] in _ROUTINE else "INFO",
                    "{} {} {} in {:.0f} ms, request {}",
                    scope["method"],
                    scope["path"].encode("unicode_escape").decode(),
                    status or "broken off",
                    (time.monotonic() - started) * 1000,
                    request_id,
                )
