"""A gateway as operators run it: a process of its own, over real services, asked over HTTP."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 60


class GatewayProcess:
    """``python -m api`` on a free port; ``http`` is a client of it.

    ``settings`` are environment variables. ``max_file_bytes`` is how far the process may write a
    file: beyond it the system refuses, as a full disk would.
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        redis_url: str,
        max_file_bytes: int | None = None,
        /,
        **settings: str,
    ) -> None:
        self.folder = folder
        self.database_url = database_url
        self.redis_url = redis_url
        self.log_file = folder / "gateway.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self._limit = max_file_bytes
        self._environment = os.environ | {
            "API_PORT": str(self.port),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "LOG_LEVEL": "DEBUG",
            "DATA_DIR": str(folder),
            "MODELS_DIR": str(ROOT / "models"),
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def incoming(self) -> list[Path]:
        """Uploads that are neither committed nor cleared away."""
        return list((self.folder / "uploads" / ".incoming").iterdir())

    @property
    def recordings(self) -> list[Path]:
        return list((self.folder / "uploads" / "recordings").iterdir())

    def __enter__(self) -> Self:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api"],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=self._limit_files if self._limit else None,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._lives():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the gateway did not start: {self.log_file.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
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

    def _limit_files(self) -> None:
        limit = self._limit or resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


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
