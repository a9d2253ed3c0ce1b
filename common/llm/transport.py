"""The transport of the package `openai`: it sends by `common.net.egress`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpcore
import httpx
import httpx2

from common.errors import AnswerBroken, ChatRejected
from common.net.egress import Outbound, headers_of

USER_AGENT = "Stenopool/1"
KEPT_HEADERS = ("host", "content-type", "content-length")
"""Of those that the package sends; the others say what this machine is."""
EVENTS = "text/event-stream"


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends requests to the addresses that ``outbound`` allows, with the key of the server.

    The key is added here, so that no object of the package, and none of its errors, holds it.
    Errors of httpcore pass through.
    """

    def __init__(self, outbound: Outbound, *, host: str, key: str | None, max_bytes: int) -> None:
        self._outbound = outbound
        self._host = host
        self._max_bytes = max_bytes
        self._headers = {
            "accept": EVENTS,
            "accept-encoding": "identity",
            "user-agent": USER_AGENT,
        }
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        kept = {name: request.headers[name] for name in KEPT_HEADERS if name in request.headers}
        content = await request.aread()
        async with AsyncExitStack() as stack:
            sending = self._outbound.send(
                request.method, httpx.URL(str(request.url)), kept | self._headers, content
            )
            response = await stack.enter_async_context(sending)
            self._check(response.status, headers_of(response))
            body = _Body(response, stack.pop_all(), self._host, self._max_bytes)
            return httpx2.Response(response.status, headers=response.headers, stream=body)

    def _check(self, status: int, headers: httpx.Headers) -> None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise AnswerBroken(host=self._host, reason="it is compressed, which was not requested")
        if status == 200 and not headers.get("content-type", "").lower().startswith(EVENTS):
            raise ChatRejected(
                host=self._host, reason="it answered without a stream of events; check its address"
            )


class _Body(httpx2.AsyncByteStream):
    """The body of a response, of at most ``max_bytes``; closing it closes the connection."""

    def __init__(
        self, response: httpcore.Response, opened: AsyncExitStack, host: str, max_bytes: int
    ) -> None:
        self._response = response
        self._opened = opened
        self._host = host
        self._max_bytes = max_bytes
        self._parts = self._read()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts  # the package reads on with a second iterator, to the body's end

    async def _read(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._response.aiter_stream():
            size += len(part)
            if size > self._max_bytes:
                raise AnswerBroken(
                    host=self._host, reason=f"it has more than {self._max_bytes} bytes"
                )
            yield part

    async def aclose(self) -> None:
        await self._opened.aclose()
