"""What the small HTTP servers of benchmarks and tests have in common."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class LocalServer(ThreadingHTTPServer):
    """Listens on a port of its own for as long as the block lasts.

    Handlers have it as their ``server``; one that waits ends at ``closing``.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.closing = threading.Event()
        self.url = f"http://{address}:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()
