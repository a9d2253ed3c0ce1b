"""Request bodies: size limits, timeouts, and whether the client is still connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from common.errors import BadInput, Stalled, TooLarge

T = TypeVar("T")

TIMEOUT_S = 60.0
"""How long a client may pause in the middle of a body."""
LOWEST_RATE = 1_000
"""Least rate of a body that is read as a whole, in bytes a second after the first `TIMEOUT_S`."""

_INTAKE = "steno.intake"


def documented_body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The documentation of a route that reads its body itself (``openapi_extra``)."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


class BodyRejected(HTTPException):
    """Carries ``error`` out of FastAPI, which passes on only this class while it reads a body."""

    def __init__(self, error: BadInput) -> None:
        super().__init__(error.status, error.message)
        self.error = error


@dataclass(slots=True)
class CountedBody:
    """A body of which ``received`` bytes were read; ``limit`` None: its route limits it."""

    receive: Receive
    declared: int
    limit: int | None
    received: int = 0
    ended: bool = False
    since: float = field(default_factory=time.monotonic)

    async def next(self) -> Message:
        """ASGI's ``receive``.

        Raises:
            BodyRejected: the body is too large, or stalls.
        """
        if self.ended or self.limit is None:
            message = await self.receive()
        else:
            self._check(self.declared)
            late = self.since + TIMEOUT_S + self.received / LOWEST_RATE
            try:
                async with asyncio.timeout(min(TIMEOUT_S, late - time.monotonic())):
                    message = await self.receive()
            except TimeoutError:
                raise BodyRejected(Stalled(limit_s=TIMEOUT_S)) from None
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
            self._check(self.received)
        return message

    def _check(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            error = TooLarge(field="body", limit=f"{self.limit} bytes", value=f"{size} bytes")
            raise BodyRejected(error)


def count_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Count the body of a request, and limit it to ``limit`` bytes; without a body, do nothing."""
    declared = chunked = b""
    for name, value in scope["headers"]:
        if name == b"content-length":
            declared = value
        elif name == b"transfer-encoding":
            chunked = value
    if not chunked and declared in {b"", b"0"}:
        return receive
    intake = CountedBody(receive, int(declared) if declared.isdigit() else 0, limit)
    scope[_INTAKE] = intake
    return intake.next


def limit_body(scope: Scope, limit: int | None) -> None:
    """Limit the body to ``limit`` bytes; None: the route reads it as a stream, and limits it."""
    intake: CountedBody | None = scope.get(_INTAKE)
    if intake is not None:
        intake.limit = limit


def has_unread_body(scope: Scope) -> bool:
    """Whether the client may still be sending."""
    intake: CountedBody | None = scope.get(_INTAKE)
    return intake is not None and not intake.ended


class Body:
    """A request's body, in pieces.

    Raises:
        Stalled: the client sends nothing for `TIMEOUT_S`, and stays connected.
        starlette.requests.ClientDisconnect: it disconnected.
    """

    def __init__(self, request: Request) -> None:
        limit_body(request.scope, None)
        self._stream = request.stream()
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    data = await anext(self._stream, None)
            except TimeoutError:
                raise Stalled(limit_s=TIMEOUT_S) from None
            if data is None:
                self.ended = True
            elif data:
                yield data


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects.

    The request's body must have been read.

    Raises:
        starlette.requests.ClientDisconnect: the client has disconnected.
    """
    working = asyncio.create_task(work)
    disconnecting = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        disconnecting.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
