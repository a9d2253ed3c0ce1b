"""A line to Postgres that breaks at the worst moment."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

COMMIT = b"COMMIT"


class LosesTheCommit:
    """Passes everything on to the server of ``url``; once ``armed``, it drops the next COMMIT's
    answer and the connection with it, after the server has answered.

    Only the COMMIT of a transaction that wrote a job counts.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        login, _, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
        self.armed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Postgres's protocol is questions and answers, so one thread can take them in turn."""
        wrote_a_job = False
        with client, socket.create_connection(self._server) as server, suppress(OSError):
            threading.Thread(target=self._pass_back, args=(server, client), daemon=True).start()
            while data := client.recv(65_536):
                wrote_a_job = wrote_a_job or b"INSERT INTO jobs" in data
                if self.armed and wrote_a_job and COMMIT in data:
                    self.armed = False
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(data)
                    server.settimeout(5)
                    server.shutdown(socket.SHUT_WR)
                    return
                server.sendall(data)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
