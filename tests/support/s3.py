"""An S3 server in a process of its own, a line to it that can be cut, and one that lacks a call."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import boto3
import httpx

from scripts.stack.embedded import free_port
from tests.support.service import wait_until

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "stenopool"
SECRET = "s3-secret-of-the-tests"


class S3Server:
    """moto's server, with one empty bucket; ends with the block."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
            )
        wait_until(self._listens, "the S3 server")
        self.client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def client(self) -> S3Client:
        """The bucket's owner."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key=SECRET,
        )

    def names(self) -> list[str]:
        """Of all objects."""
        listed = self.client.list_objects_v2(Bucket=BUCKET)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def empty(self) -> None:
        """Delete all objects."""
        for name in self.names():
            self.client.delete_object(Bucket=BUCKET, Key=name)

    def settings(self, url: str | None = None) -> dict[str, str]:
        """What makes this the storage, by names in the environment; ``url`` leads here."""
        return {
            "STORAGE_BACKEND": "s3",
            "S3_BUCKET": BUCKET,
            "S3_PREFIX": "steno",
            "S3_ENDPOINT_URL": url or self.url,
            "S3_REGION": "us-east-1",
            "S3_ACCESS_KEY_ID": "tests",
            "S3_SECRET_ACCESS_KEY": SECRET,
            "S3_ADDRESSING_STYLE": "path",
        }

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class OneByOne:
    """The same objects by a server that deletes one at a time, and only what is there, as Google's
    did until 2026; ``rejected`` counts what it did not know."""

    def __init__(self, server: S3Server) -> None:
        self.behind = server.url
        self.status = 400
        """Of an answer to what it does not know."""
        self.rejected = 0
        handler = type("Handler", (_OneByOne,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _OneByOne(BaseHTTPRequestHandler):
    server_of: OneByOne
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        query = self.path.partition("?")[2]
        if self.command == "POST" and query == "delete":
            self.server_of.rejected += 1
            self._reject(self.server_of.status, "InvalidArgument")
        elif self.command == "DELETE" and self._pass_on("HEAD").status_code == 404:
            self._reject(404, "NoSuchKey")
        else:
            answer = self._pass_on(self.command, body)
            self._answer(answer.status_code, answer.content, answer.headers["content-type"])

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def _pass_on(self, method: str, body: bytes = b"") -> httpx.Response:
        return httpx.request(
            method,
            self.server_of.behind + self.path,
            content=body,
            headers={"authorization": self.headers["authorization"]},
            trust_env=False,
        )

    def _reject(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), "application/xml")

    def _answer(self, status: int, content: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


class CutLine:
    """Passes everything on to a local port, until it is cut; ``received`` counts bytes that came
    back."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._port = free_port()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._port}"
        self.received = 0
        self.cut_after: int | None = None
        """Once so many more bytes have come back, the connection in use is cut, once."""

    def __enter__(self) -> Self:
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def mend(self) -> None:
        """Take connections (again)."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        if self._listener is not None:
            # Closed alone, it would go on listening for as long as somebody waits in accept.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server, suppress(OSError):
            both = {client, server}
            self._open |= both
            with selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ, server)
                selector.register(server, selectors.EVENT_READ, client)
                while self._pass_on(selector):
                    continue
            self._open -= both

    def _pass_on(self, selector: selectors.DefaultSelector) -> bool:
        for key, _ in selector.select():
            source, target = key.fileobj, key.data
            assert isinstance(source, socket.socket)
            data = source.recv(65_536)
            if not data:
                return False
            if source.getpeername() == self._server:
                self.received += len(data)
                if self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after < 0:
                        self.cut_after = None
                        return False
            target.sendall(data)
        return True


@contextmanager
def cut_line_to(database_url: str) -> Iterator[tuple[CutLine, str]]:
    """A line to Postgres that can be cut, and the database's URL over it."""
    parts = urlsplit(database_url)
    assert parts.port is not None
    with CutLine(parts.port) as line:
        login = parts.netloc.rpartition("@")[0]
        netloc = f"{login}@{urlsplit(line.url).netloc}"
        yield line, parts._replace(netloc=netloc).geturl()
