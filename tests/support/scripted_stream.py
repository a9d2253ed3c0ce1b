"""A small real WebSocket server in a gateway's place, which sends what it is given."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

Document = dict[str, Any]


def status(state: str, **details: Any) -> Document:
    return {"type": "status", "status": state, **details}


def partial(text: str, stable: int = 0) -> Document:
    return {"type": "partial", "text": text, "stable": stable}


def final(text: str) -> Document:
    return {"type": "final", "text": text, "is_final": True}


def error(detail: str, *, fatal: bool) -> Document:
    return {"type": "error", "code": "some_code", "detail": detail, "fatal": fatal}


LOADING = status("loading", model_id="base")
READY = status("ready", language="vi", session_id="3fa85f64-5717-4562-b3fc-2c963f66afa6")
CLOSED = status("closed", reason="completed", audio_seconds=1.5)


@dataclass
class ScriptedStream:
    """The server. What it is to send is set from outside, what it receives is kept."""

    at_start: list[Document] = field(default_factory=lambda: [LOADING, READY])
    at_audio: list[Document] = field(default_factory=list)
    """Sent when the first audio comes in."""
    at_end: list[Document] = field(default_factory=lambda: [CLOSED])
    """Sent when the client closes the stream."""
    code: int = 1000
    """What the stream is then closed with."""
    close_early: bool = False
    """Close it right after what is sent at the start."""
    break_off: bool = False
    """Break the connection off at the first audio."""
    reject: tuple[int, bytes] | None = None
    """Status and body of the answer to the handshake."""
    may_end: threading.Event = field(default_factory=threading.Event)
    """The end is put off until it is set."""
    may_read: threading.Event = field(default_factory=threading.Event)
    """Nothing is read but the first message until it is set."""
    audio: bytearray = field(default_factory=bytearray)
    received: list[Document] = field(default_factory=list)
    """The client's messages that are no audio; the first has its options."""
    headers: Headers = field(default_factory=Headers)
    path: str = ""

    def __post_init__(self) -> None:
        self.may_end.set()
        self.may_read.set()

    def __enter__(self) -> Self:
        self._server = serve(self._serve, "127.0.0.1", 0, process_request=self._greet)
        port = self._server.socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in (self.may_end, self.may_read):
            event.set()
        self._server.shutdown()

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        self.headers, self.path = request.headers, request.path
        if self.reject is None:
            return None
        code, body = self.reject
        response = connection.respond(HTTPStatus(code), "")
        response.body = body
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(body))
        return response

    def _serve(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            self._talk(connection)

    def _talk(self, connection: ServerConnection) -> None:
        self.received.append(json.loads(connection.recv()))
        self._send(connection, self.at_start)
        if self.close_early:
            connection.close(self.code)
        self.may_read.wait()
        for message in connection:
            if isinstance(message, bytes):
                self._take(connection, message)
                continue
            self.received.append(json.loads(message))
            if self.received[-1] == {"type": "CloseStream"}:
                self.may_end.wait()
                self._send(connection, self.at_end)
                connection.close(self.code)

    def _take(self, connection: ServerConnection, audio: bytes) -> None:
        first = not self.audio
        self.audio += audio
        if first and self.break_off:
            connection.socket.close()
        elif first:
            self._send(connection, self.at_audio)

    def _send(self, connection: ServerConnection, documents: list[Document]) -> None:
        for number, document in enumerate(documents, 1):
            common = {"seq": number, "start": 0.0, "end": 0.0, "text": "", "is_final": False}
            connection.send(json.dumps(common | document, ensure_ascii=False))
