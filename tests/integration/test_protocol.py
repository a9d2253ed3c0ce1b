"""What becomes of a client that takes nothing of what it is sent (api.protocol)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import uvicorn

from api import protocol
from tests.service import wait_until

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux lets a program say how long"
)
PIECE = bytes(100_000)
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def talkative(scope: Any, receive: Any, send: Any) -> None:
    """Over HTTP an answer without end; over a WebSocket so much, and then it hangs up."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await send({"type": "websocket.send", "bytes": PIECE})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await receive()  # the request's body
    leaving = asyncio.ensure_future(receive())
    while not leaving.done():
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})


@contextmanager
def serving(app: Callable[..., Any]) -> Iterator[int]:
    """The app on a port of its own, by the gateway's protocols."""
    config = uvicorn.Config(
        app, port=0, http=protocol.Protocol, ws="websockets-sansio", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def deaf(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect(("127.0.0.1", port))
    return client


def is_served(port: int, client: int) -> bool:
    return any(
        each.laddr.port == port and each.raddr and each.raddr.port == client
        for each in psutil.Process().net_connections("tcp")
    )


@pytest.mark.parametrize("asked", [REQUEST, UPGRADE], ids=["HTTP", "WebSocket"])
def test_who_takes_nothing_of_what_is_sent_is_cut_off(
    asked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "UNREAD_MS", 1_000)
    with serving(talkative) as port, deaf(port) as client:
        client.sendall(asked)
        me = client.getsockname()[1]
        wait_until(lambda: is_served(port, me), "the connection")
        wait_until(lambda: not is_served(port, me), "its end")


def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_MS", 1_000)
    with serving(talkative) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(REQUEST)
        me, pause = client.getsockname()[1], threading.Event()
        for _ in range(25):
            assert client.recv(500_000)
            pause.wait(0.1)
        assert is_served(port, me)


def test_a_quiet_connection_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, int]] = []

    class Noted(protocol.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            line = transport.get_extra_info("socket")
            alive = line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            kept.append((alive, line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))

    monkeypatch.setattr(protocol, "Protocol", Noted)
    with serving(talkative) as port, socket.create_connection(("127.0.0.1", port)):
        wait_until(lambda: kept, "the connection")
    assert kept == [(1, protocol.KEEPALIVE_S)]
