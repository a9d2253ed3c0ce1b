"""What becomes of clients that do not speak HTTP as they should (api.http.protocol)."""

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

from api.http import protocol
from api.http.connections import Connections
from tests.support.service import wait_until

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
    """Over HTTP an answer without end; over a WebSocket for half a second, then it closes."""
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
    disconnecting = asyncio.ensure_future(receive())
    while not disconnecting.done():
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})


@contextmanager
def serving(app: Callable[..., Any], **state: Any) -> Iterator[int]:
    """The app on a port of its own, by the gateway's protocols, which find ``state``."""

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        scope["state"].update(state)
        for moment in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{moment}.complete"})

    config = uvicorn.Config(
        with_state,
        port=0,
        http=protocol.Protocol,
        ws=protocol.WebSocketProtocol,
        lifespan="on",
        log_config=None,
        timeout_keep_alive=1,
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
def test_a_client_reading_nothing_is_cut_off(asked: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_MS", 1_000)
    with serving(talkative) as port, deaf(port) as client:
        client.sendall(asked)
        me = client.getsockname()[1]
        wait_until(lambda: is_served(port, me), "the connection")
        wait_until(lambda: not is_served(port, me), "its end")


def test_a_client_that_reads_slowly_is_not_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- heads ------------------------------------------------------------------------------------

HEAD_S = 0.5
BODY = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 12\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers a request with its body, and WebSocket messages with themselves."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    length = str(len(body)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    await send({"type": "http.response.body", "body": body})


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def all_of(client: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            found += piece
    return found


def read_answer(client: socket.socket) -> bytes:
    """One answer of `echo`, which keeps the connection."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += client.recv(65_536)
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65_536)
    return head + body


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first", "second"])
def test_a_head_that_never_ends_is_answered_and_its_connection_closed(before: bytes) -> None:
    with serving(echo, head_s=HEAD_S) as port, connected(port) as client:
        if before:
            client.sendall(before)
            assert read_answer(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(REQUEST[:-2])
        answer = all_of(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "stalled"' in answer


def test_a_head_that_trickles_has_no_more_time() -> None:
    with serving(echo, head_s=HEAD_S) as port, connected(port) as client:
        pause = threading.Event()
        client.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(2_000):
                client.sendall(b"x")
                pause.wait(0.01)
            pytest.fail("it was never closed")


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first", "second"])
def test_an_idle_connection_is_closed(before: bytes) -> None:
    with serving(echo, head_s=HEAD_S) as port, connected(port) as client:
        client.sendall(before)
        assert all_of(client).count(b"HTTP/1.1") == bool(before)


def test_a_slow_body_and_a_websocket_have_no_time_limit() -> None:
    with serving(echo, head_s=HEAD_S) as port, connected(port) as slow, connected(port) as chatty:
        slow.sendall(BODY)
        chatty.sendall(UPGRADE)
        assert b" 101 " in chatty.recv(65_536)
        pause = threading.Event()
        for letter in b"all of it ok":
            pause.wait(HEAD_S / 4)
            slow.sendall(bytes([letter]))
        assert read_answer(slow).endswith(b"all of it ok")
        chatty.sendall(b"\x82\x81" + bytes(4) + b"x")
        assert chatty.recv(65_536) == b"\x82\x01x"


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 4",
        "Content-Length: +4",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "X-Long: a\r\n b\r\nContent-Length: 4",
        "X-Bare: a\nContent-Length: 4",
        "X-Bare: a\rContent-Length: 4",
        "Host: elsewhere",
    ],
)
def test_a_head_that_can_be_read_in_two_ways_ends_the_connection(head: str) -> None:
    asked: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await echo(scope, receive, send)

    request = f"POST /one HTTP/1.1\r\nHost: here\r\n{head}\r\n\r\n0\r\n\r\n"
    smuggled = "GET /two HTTP/1.1\r\nHost: here\r\n\r\n"
    with serving(note) as port, connected(port) as client:
        client.sendall((request + smuggled).encode())
        answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()
    assert b'"code": "malformed"' in answer
    assert asked == []


def test_a_body_that_cannot_be_read_ends_its_request_quietly() -> None:
    received: list[str] = []

    async def note(_: Any, receive: Any, send: Any) -> None:
        while not received or received[-1] == "http.request":
            received.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    request = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"
    with serving(note) as port, connected(port) as client:
        client.sendall(request)
        assert all_of(client).startswith(b"HTTP/1.1 400 ")
        wait_until(lambda: received[-1:] == ["http.disconnect"], "the end")


def test_idle_connections_make_room_for_requests() -> None:
    crowd = Connections(most=20, most_each=1000, proxies=frozenset())
    with (
        contextlib.ExitStack() as stack,
        serving(echo, connections=crowd) as port,
        connected(port) as working,
        connected(port) as chatty,
    ):
        working.sendall(BODY)
        chatty.sendall(UPGRADE)
        assert b" 101 " in chatty.recv(65_536)
        for _ in range(3):
            held = [stack.enter_context(connected(port)) for _ in range(40)]
            for each in held:
                with contextlib.suppress(ConnectionError):
                    each.sendall(REQUEST[:-2])
            with connected(port) as honest:
                honest.sendall(REQUEST)
                assert read_answer(honest).startswith(b"HTTP/1.1 200 ")
            assert len(crowd) <= 20
        working.sendall(b"all of it ok")
        assert read_answer(working).endswith(b"all of it ok")
        chatty.sendall(b"\x82\x81" + bytes(4) + b"x")
        assert chatty.recv(65_536) == b"\x82\x01x"
        chatty.close()
        working.close()
        stack.close()
        wait_until(lambda: not len(crowd), "the end of all connections")


def test_where_all_connections_are_busy_another_is_answered_503() -> None:
    crowd = Connections(most=1000, most_each=2, proxies=frozenset())
    with serving(echo, connections=crowd) as port, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connected(port)).sendall(BODY)
        wait_until(lambda: len(crowd) == 2 and not crowd.waiting, "both requests")
        with connected(port) as client:
            answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in answer
