"""How the gateway speaks HTTP: as uvicorn does, with limits for clients that misbehave.

- A head has to be complete in API_HEAD_TIMEOUT seconds. uvicorn alone waits for ever for the rest.
- There are only so many connections at once (`api.http.connections`).
- A head that another server could read otherwise is rejected, and its connection closed: what
  follows it might be taken for another client's request (request smuggling, RFC 9112, 11.2).
- A client that does not read its response is disconnected.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.http.connections import Connections
from api.http.problems import Problem

UNREAD_MS = 60_000
"""A client that reads nothing of its response for so long is disconnected (as by nginx).

Without this a closed connection stays open until the client has read everything that was written:
for one that never reads, until it ends by itself.
"""
KEEPALIVE_S = 60
"""How often the kernel probes a quiet connection: a response that waits for its job (`/asr`) may
send nothing for an hour, and networks forget connections that are quiet for some minutes."""
HEAD_S = 10.0
"""The default, for applications that set no ``head_s``, as in tests."""
NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)

_AMBIGUOUS = (
    (re.compile(rb"(?<!\r)\n|\r(?!\n)"), "a line that does not end with CR LF"),
    (re.compile(rb"\r\n[ \t]"), "a header that is folded over several lines"),
    (re.compile(rb"\r\ncontent-length:[^\r]*,", re.IGNORECASE), "a list as Content-Length"),
)
_LENGTH = re.compile(rb"\r\ncontent-length:", re.IGNORECASE)


class StrictConnection(h11.Connection):
    """Rejects heads that two servers could read differently."""

    def next_event(self) -> Any:
        """As h11 does.

        Raises:
            h11.RemoteProtocolError: also of such a head.
        """
        raw, _ = self.trailing_data if self.their_state is h11.IDLE else (b"", False)
        event = super().next_event()
        if isinstance(event, h11.Request):
            left, _ = self.trailing_data
            self._check(raw[: len(raw) - len(left)].lstrip(b"\r\n"), event)
        return event

    @staticmethod
    def _check(head: bytes, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        reason = next((what for how, what in _AMBIGUOUS if how.search(head)), None)
        if {b"content-length", b"transfer-encoding"} <= names:
            reason = "both Content-Length and Transfer-Encoding"
        elif len(_LENGTH.findall(head)) > 1:
            reason = "more than one Content-Length"
        elif b"transfer-encoding" in names and request.http_version < b"1.1":
            reason = "Transfer-Encoding in HTTP/1.0"
        if reason is not None:
            raise h11.RemoteProtocolError(f"The head has {reason}")


class Protocol(H11Protocol):
    """HTTP/1.1 by h11; a WebSocket takes over the same connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        size = self.config.h11_max_incomplete_event_size
        self.conn = StrictConnection(h11.SERVER, *([] if size is None else [size]))
        self._connections: Connections | None = self.app_state.get("connections")
        self._head_s: float = self.app_state.get("head_s", HEAD_S)
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, and start the timer for its first head."""
        connection = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                (
                    "TCP_USER_TIMEOUT",
                    UNREAD_MS,
                ),  # only the kernel knows what the client has acknowledged
                ("TCP_KEEPIDLE", KEEPALIVE_S),
                ("TCP_KEEPINTVL", KEEPALIVE_S),
            ):
                if option := getattr(socket, name, None):  # Linux has them all
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        if self._connections is not None and not self._connections.admit(self, address):
            self._refused = True
            transport.write(NO_ROOM)
            transport.close()
            return
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._head_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Stop the timer once a head is complete."""
        if self._refused:
            return
        super().data_received(data)
        if not self._is_waiting:
            self._works()

    def on_response_complete(self) -> None:
        """Wait for the next head, unless it has been received already."""
        if not self.transport.is_closing():
            self._stop_timer()
            self._timer = self.loop.call_later(
                self.timeout_keep_alive + self._head_s, self._head_is_late
            )
            if self._connections is not None:
                self._connections.waits(self)
        super().on_response_complete()
        if not self._is_waiting:
            self._works()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Count the WebSocket in place of this connection."""
        self._stop_timer()
        super().handle_websocket_upgrade(event)
        if self._connections is not None and isinstance(
            other := self.transport.get_protocol(), WebSocketProtocol
        ):
            self._connections.becomes(self, other)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._refused:
            return
        self._stop_timer()
        if self._connections is not None:
            self._connections.closed(self)
        super().connection_lost(exc)

    def make_room(self) -> None:
        """Close at once, for another connection."""
        self._stop_timer()
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, and close."""
        self._close_with(Problem(400, "malformed", msg))

    @property
    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _works(self) -> None:
        self._stop_timer()
        if self._connections is not None:
            self._connections.works(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        begun, _ = self.conn.trailing_data
        if not begun:
            self.transport.close()
            return
        detail = f"The head of the request was not complete within {self._head_s:g} s"
        self._close_with(Problem(408, "stalled", detail))

    def _close_with(self, answer: Problem) -> None:
        """Answer in place of the application, unless its response has begun, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application sends now is discarded
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                *answer.raw_headers,
                (b"connection", b"close"),
                (b"x-content-type-options", b"nosniff"),
                (b"cross-origin-resource-policy", b"same-origin"),
            ]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket, which counts as a connection as long as it is open."""

    def connection_lost(self, exc: Exception | None) -> None:
        connections: Connections | None = self.app_state.get("connections")
        if connections is not None:
            connections.closed(self)
        super().connection_lost(exc)

    def make_room(self) -> None:
        """Never called: a WebSocket works as long as it is open."""
        self.transport.abort()
