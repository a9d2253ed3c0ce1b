"""A receiver of webhooks that behaves as its URLs' paths say, and records what arrives.

``/ok``; ``/fail/3`` answers 503 to the first three attempts at each message; ``/status/410``;
``/redirect`` (to a loopback address of its own, ``/inside``); ``/hang`` never answers; ``/late/20``
answers after 20 s; ``/drip`` sends its answer a byte a second. More may follow: ``/ok/other``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from scripts.bench.local_server import LocalServer


@dataclass(frozen=True, slots=True)
class Arrival:
    """One attempt at a message; header names are lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    answered: int | None
    """The status; None: nothing yet, or never."""

    @property
    def message_id(self) -> str:
        return self.headers.get("webhook-id", "")


class Receiver(LocalServer):
    """Takes webhook messages."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__(_ReceiverHandler, address)
        self._lock = threading.Lock()
        self._arrivals: list[Arrival] = []

    def arrivals(self, path: str = "/") -> list[Arrival]:
        """What came to ``path`` and below it, in order."""
        with self._lock:
            return [it for it in self._arrivals if it.path.startswith(path)]

    def take(self, arrival: Arrival) -> int:
        """Remember an attempt; returns how often its message came to this path before."""
        with self._lock:
            before = sum(
                1
                for it in self._arrivals
                if it.path == arrival.path and it.message_id == arrival.message_id
            )
            self._arrivals.append(arrival)
            return before


class _ReceiverHandler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        """Behave as the path says; whoever sends may hang up meanwhile."""
        with suppress(ConnectionError):
            self._behave()

    def _behave(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        before = self.server.take(Arrival(self.path, headers, body, None))
        kind, _, rest = self.path.removeprefix("/").partition("/")
        number = int(rest.partition("/")[0]) if rest.partition("/")[0].isdecimal() else 0
        if kind == "hang":
            self.server.closing.wait()
        elif kind == "late":
            self.server.closing.wait(number)
            self._answer(200)
        elif kind == "drip":
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x-slow: 1\r\n" * 100:
                self.wfile.write(bytes([byte]))
                if self.server.closing.wait(1):
                    return
        elif kind == "fail":
            self._answer(503 if before < number else 200)
        elif kind == "redirect":
            self._answer(307, location=f"{self.server.url}/inside")
        else:
            self._answer(number if kind == "status" else 200)

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: who runs this reads `Receiver.arrivals`."""
