"""Middleware: request ids and the access log, limits of heads, and headers for browsers."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Collection

from loguru import logger
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.bodies import count_body
from api.http.headers import EXTRA_HEADERS
from api.http.problems import ClosingAnswer, Problem, internal_error

NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of responses that are not pages."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_STARTS = {"http.response.start", "websocket.http.response.start"}


class HeadLimits:
    """Rejects heads that are too large, and counts bodies (`api.http.bodies`)."""

    def __init__(self, app: ASGIApp, *, max_head_bytes: int, max_body_bytes: int) -> None:
        self._app = app
        self._max_head = max_head_bytes
        self._max_body = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        receive = count_body(scope, receive, self._max_body)
        target = len(scope["raw_path"]) + len(scope["query_string"])
        head = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if target > self._max_head // 2:
            await self._reject(414, "The URL", target, self._max_head // 2)(scope, receive, send)
        elif head > self._max_head:
            await self._reject(431, "The head", head, self._max_head)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @staticmethod
    def _reject(status: int, what: str, size: int, limit: int) -> ClosingAnswer:
        detail = f"{what} may have at most {limit} bytes; got {size}"
        details = {"field": "url" if status == 414 else "headers", "limit": limit, "value": size}
        return ClosingAnswer(Problem(status, "too_large", detail, details))


class SafeHeaders:
    """Restricts what browsers may do with responses.

    Strict transport security (RFC 6797) for a year where the gateway's public address is HTTPS.
    Pages bring their own content policy. Only files under ``static`` may be cached.
    """

    def __init__(self, app: ASGIApp, *, https: bool, static: str) -> None:
        self._app = app
        self._static = static
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"content-security-policy", NOTHING.encode()),
        ]
        if https:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))
        self._uncached = [*self._headers, (b"cache-control", b"no-store")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        ours = self._headers if self._static in scope["path"] else self._uncached

        async def send_safely(message: Message) -> None:
            if message["type"] in _STARTS:
                there = {name for name, _ in message["headers"]}
                more = [header for header in ours if header[0] not in there]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._app(scope, receive, send_safely)


class RequestLog:
    """Takes over a valid ``X-Request-Id`` or makes one; logs one line a request, or WebSocket.

    Requests to the paths ``quiet`` are logged as DEBUG.

    Plain ASGI: Starlette's base class for middleware would buffer an upload.
    """

    def __init__(self, app: ASGIApp, *, quiet: Collection[str]) -> None:
        self._app = app
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _ID.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.monotonic()
        status = 0
        more: dict[str, str] = {}
        scope[EXTRA_HEADERS] = more

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.close":
                status = message.get("code", 0)
            elif message["type"] in _STARTS:
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
                if status or scope["type"] == "websocket":
                    raise
                await internal_error()(scope, receive, send_named)
            finally:
                logger.log(
                    "DEBUG" if scope["path"] in self._quiet else "INFO",
                    "{} {} {} in {:.0f} ms, request {}",
                    scope.get("method", "WebSocket"),
                    scope["path"].encode("unicode_escape").decode(),
                    status or "aborted",
                    (time.monotonic() - started) * 1000,
                    request_id,
                    job_id=scope.get("path_params", {}).get("job_id"),
                )
