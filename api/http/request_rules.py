"""Rules of RFC 9110 that hold for every route: HEAD, Content-Encoding and Range."""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.bodies import has_unread_body
from api.http.problems import ClosingAnswer, problem
from common.errors import EncodedBody

_RANGE = r"(\d{1,18}-\d{0,18}|-\d{1,18})"
_RANGES = re.compile(rf"bytes=\s*{_RANGE}(\s*,\s*{_RANGE})*", re.ASCII | re.IGNORECASE)
_CLOSED = re.compile(r"(\d+)-(\d+)", re.ASCII)


class RequestRules:
    """Answers HEAD wherever GET is, rejects encoded bodies, and drops invalid ranges."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip()
        if encoding.lower() not in {"", "identity"} and has_unread_body(scope):
            answer = problem(EncodedBody(field="Content-Encoding", value=encoding[:100]))
            answer.headers["Accept-Encoding"] = "identity"  # section 15.5.16
            await ClosingAnswer(answer)(scope, receive, send)
            return
        if "range" in headers and not is_range(headers["range"]):
            scope["headers"] = [each for each in scope["headers"] if each[0] != b"range"]
        if scope["method"] == "HEAD":
            await self._answer_head(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as to GET, and stop where the body would begin (section 9.3.2)."""
        scope["method"] = "GET"
        answered = False

        async def send_head(message: Message) -> None:
            nonlocal answered
            if message["type"] != "http.response.start":
                return
            scope["method"] = "HEAD"
            answered = True
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            getting.cancel()

        async def get() -> None:
            await self._app(scope, receive, send_head)

        getting = asyncio.create_task(get())
        try:
            await getting
        except asyncio.CancelledError:
            if not answered:
                raise


def is_range(value: str) -> bool:
    """Whether a header Range is one of bytes and well-formed; any other is to be ignored (14.2)."""
    return _RANGES.fullmatch(value.strip()) is not None and all(
        int(first) <= int(last) for first, last in _CLOSED.findall(value)
    )
