"""An HTTP server of recordings that can cut, stall, lie and redirect."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass
class Served:
    """What is at a path.

    ``cuts``: after how many bytes of the body the line is cut, request by request; when they are
    used up, nothing is cut. ``statuses``: answered in place of the file, likewise. ``chunked``: its
    length is not stated. ``absurd``: parts claim to be of a file beyond all size.
    ``stall_after``: nothing more comes after so many bytes.
    """

    content: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    chunked: bool = False
    endless: bool = False
    absurd: bool = False
    stall_after: int | None = None
    cuts: Iterable[int] = ()
    statuses: Iterable[int] = ()


@dataclass(frozen=True)
class SeenRequest:
    """A request."""

    path: str
    headers: Mapping[str, str]


class FileServer:
    """Serves ``files``, by path, on a port of its own for as long as the block lasts."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        owner = self

        class Handler(_FileHandler):
            server_of = owner

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.closing = threading.Event()
        self.files: dict[str, Served] = {}
        self.asked: list[SeenRequest] = []
        self.port = self._server.server_port
        self.url = f"http://{address}:{self.port}"

    def put(self, path: str, served: Served) -> str:
        """Serve it; returns its URL."""
        served.cuts, served.statuses = iter(served.cuts), iter(served.statuses)
        self.files[path] = served
        return self.url + path

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _FileHandler(BaseHTTPRequestHandler):
    server_of: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server_of.asked.append(SeenRequest(self.path, headers))
        self.close_connection = True
        served = self.server_of.files.get(self.path.partition("?")[0])
        if served is None:
            self.send_error(404)
            return
        status = next(_iterator(served.statuses), served.status)
        begin = self._begin(served, headers) if status == 200 else 0
        if begin:
            status = 206
        self.send_response(status)
        for name, value in served.headers.items():
            self.send_header(name, value)
        if begin:
            size = "9" * 5_000 if served.absurd else len(served.content)
            self.send_header("content-range", f"bytes {begin}-{len(served.content) - 1}/{size}")
        if served.chunked or served.endless:
            self.send_header("transfer-encoding", "chunked")
        elif "content-length" not in served.headers:
            self.send_header("content-length", str(len(served.content) - begin))
        self.end_headers()
        self._send_body(served, served.content[begin:])

    def _begin(self, served: Served, headers: Mapping[str, str]) -> int:
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        validators = {served.headers.get("etag"), served.headers.get("last-modified")}
        if not wanted or not served.ranges or headers.get("if-range") not in validators:
            return 0
        return int(wanted[1])

    def _send_body(self, served: Served, body: bytes) -> None:
        cut = next(_iterator(served.cuts), None)
        stop = cut if cut is not None else served.stall_after
        self._write(body[:stop], chunked=served.chunked or served.endless)
        while served.endless and not self.server_of.closing.is_set():
            self._write(bytes(1 << 16), chunked=True)
        if cut is not None:
            return
        if served.stall_after is not None:
            self.server_of.closing.wait()
        elif served.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes, *, chunked: bool) -> None:
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked and data else data)
        except ConnectionError:
            self.server_of.closing.set()

    def log_message(self, *_: object) -> None:
        """Who asks reads `FileServer.asked`."""


def _iterator(values: Iterable[int]) -> Iterator[int]:
    return iter(values)
