"""How the gateway speaks HTTP: as uvicorn does, but not for ever with who does not listen."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

UNREAD_MS = 60_000
"""A client that takes nothing of what it was sent for so long is cut off (as by nginx).

Without it a connection that is closed stays until the client has read all that was written to it:
for one that never reads, until that ends.
"""


KEEPALIVE_S = 60
"""How often the kernel asks after a quiet connection: an answer that waits for its job (`/asr`) may
send nothing for an hour, and networks forget connections that are quiet for some minutes."""


class Protocol(H11Protocol):
    """HTTP/1.1 by h11; a WebSocket goes on over the same connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Have the kernel count, which alone knows what the other side has taken."""
        connection = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_USER_TIMEOUT", UNREAD_MS),
                ("TCP_KEEPIDLE", KEEPALIVE_S),
                ("TCP_KEEPINTVL", KEEPALIVE_S),
            ):
                if option := getattr(socket, name, None):  # Linux has them all
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
        super().connection_made(transport)
