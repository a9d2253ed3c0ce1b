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


class Protocol(H11Protocol):
    """HTTP/1.1 by h11; a WebSocket goes on over the same connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Have the kernel count, which alone knows what the other side has taken."""
        connection = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6) and (
            option := getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, UNREAD_MS)
        super().connection_made(transport)
