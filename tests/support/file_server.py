"""An HTTP server of files that can cut, stall, lie and redirect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from scripts.bench.local_server import LocalServer


@dataclass
class Served:
    """What is at a path.

    ``cuts``: after how many bytes of the body the line is cut, request by request; when they are
    used up, nothing is cut. ``statuses``: answered in place of the file, likewise. ``chunked``: its
    length is not sent. ``absurd``: parts are said to be of a file beyond all size.
    ``stall_after``: nothing more comes after so many bytes, until something else is put there.
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
    path: str
    headers: Mapping[str, str]


class FileServer(LocalServer):
    """Serves ``files``, by path; ``asked`` are the requests that came."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__(_FileHandler, address)
        self.files: dict[str, Served] = {}
        self.asked: list[SeenRequest] = []

    def put(self, path: str, served: Served) -> str:
        """Serve it; returns its URL."""
        served.cuts, served.statuses = iter(served.cuts), iter(served.statuses)
        self.files[path] = served
        return self.url + path


class _FileHandler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(SeenRequest(self.path, headers))
        self.close_connection = True
        served = self.server.files.get(self.path.partition("?")[0])
        if served is None:
            self.send_error(404)
            return
        status = next(iter(served.statuses), served.status)
        begin = self._begin(served, headers) if status == 200 else 0
        if begin:
            status = 206
        if begin >= max(1, len(served.content)):
            self.send_error(416)
            return
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
        cut = next(iter(served.cuts), None)
        stop = cut if cut is not None else served.stall_after
        self._write(body[:stop], chunked=served.chunked or served.endless)
        while served.endless and not self.server.closing.is_set():
            self._write(bytes(1 << 16), chunked=True)
        if cut is not None:
            return
        if served.stall_after is not None:
            path = self.path.partition("?")[0]
            while self.server.files.get(path) is served and not self.server.closing.wait(0.02):
                continue
        elif served.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes, *, chunked: bool) -> None:
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked and data else data)
        except ConnectionError:
            self.server.closing.set()

    def log_message(self, *_: object) -> None:
        """Who asks reads `FileServer.asked`."""
