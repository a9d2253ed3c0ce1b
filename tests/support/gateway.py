"""A gateway as operators run it: a process of its own, over real services, asked over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx
import psutil

from common.settings import ROOT
from scripts.stack.embedded import free_port
from tests.support.fork_server import Program

START_LIMIT_S = 60


class GatewayProcess:
    """``python -m api`` on a free port; ``http`` is a client of it.

    ``settings`` are environment variables.
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        redis_url: str,
        **settings: str,
    ) -> None:
        self.folder = folder
        self.database_url = database_url
        self.redis_url = redis_url
        self.log_file = folder / "gateway.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self._environment = os.environ | {
            "API_PORT": str(self.port),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "LOG_LEVEL": "DEBUG",
            "DATA_DIR": str(folder),
            "MODELS_DIR": str(ROOT / "models"),
            **settings,
        }
        self.process: Program

    @property
    def incoming(self) -> list[Path]:
        """Uploads that are neither committed nor deleted."""
        return list((self.folder / "uploads" / ".incoming").iterdir())

    @property
    def recordings(self) -> list[Path]:
        return list((self.folder / "uploads" / "recordings").iterdir())

    def answer_to(self, begun: bytes) -> bytes:
        """The answer to the beginning of a request, up to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            line.sendall(begun)
            received = b""
            while data := line.recv(65_536):
                received += data
        return received

    def __enter__(self) -> Self:
        with self.log_file.open("ab") as log:
            self.process = Program("api", self._environment, log)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._lives():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the gateway did not start: {self.log_file.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _lives(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


StartGateway = Callable[..., GatewayProcess]
"""Starts a `GatewayProcess` with settings of its own, given by their names in the environment."""


def children(module: str, parent: int | None = None, *, argument: str = "") -> list[psutil.Process]:
    """The processes that run ``module`` as children of ``parent``, else of this process.

    ``argument`` is in their last argument.
    """

    def is_one(process: psutil.Process) -> bool:
        try:
            command = process.cmdline()
        except psutil.Error:  # it has just ended
            return False
        return module in command and argument in command[-1]

    return [each for each in psutil.Process(parent).children() if is_one(each)]
