"""Server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = ": heartbeat\n\n"
"""A comment that keeps proxies from closing a quiet connection."""


class EventStream(StreamingResponse):
    """Sends events until they end or the client disconnects; then closes their source."""

    def __init__(
        self,
        content: AsyncIterator[str],
        source: AsyncExitStack,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Proxies such as nginx would otherwise buffer the events.
        merged = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(content, headers=merged, media_type=MEDIA_TYPE)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._source:
            await super().__call__(scope, receive, send)


def event(data: Mapping[str, Any], *, name: str = "", number: int | str = "") -> str:
    """One event; ``number`` is its id."""
    head = (f"event: {name}\n" if name else "") + (f"id: {number}\n" if number != "" else "")
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"
