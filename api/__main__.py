"""The gateway: ``python -m api``."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from tempfile import TemporaryDirectory
from types import FrameType

import uvicorn
from fastapi import FastAPI
from loguru import logger
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from api.app import create_app
from api.auth.exposure import listening_host
from api.http.connections import backlog, raise_descriptor_limit
from api.http.protocol import Protocol, WebSocketProtocol
from api.ops.metrics import SHARED_FOLDER
from api.services import check_settings
from common.errors import StenoError
from common.process.logs import set_up_logging
from common.process.orphans import die_with_parent
from common.settings import Settings, load_settings

DATE_S = 1.0
SWITCH_S = 0.001
"""How long a thread may compute while another one waits; Python's own is 5 ms."""
SHORT_KEY = 20
"""Shorter keys cause a warning."""
MESSAGE_BYTES = 1_000_000
"""Largest message of a WebSocket: half a minute of audio."""
PONG_S = 60.0
"""A client's pong may be queued behind audio that is not read yet."""
SHUTDOWN_S = 20
"""How long requests in progress may take to finish at a shutdown."""


def build() -> FastAPI:
    """The application of one gateway process."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:  # one of several, which share a port
        die_with_parent(parent.pid)
    settings = Settings()
    set_up_logging(settings.log, f"gateway:{os.getpid()}")
    app = create_app(settings)
    _lower_latency()
    return app


def _lower_latency() -> None:
    """Keep the latency of the event loop low.

    Threads that compute yield to it sooner, and the garbage collector skips the objects made at the
    start, which live on. This halves the 95th percentile under load
    (`tests/system/load.py`: 104 ms without, 58 ms with both).
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    raise_descriptor_limit()
    try:
        settings = load_settings()
        set_up_logging(settings.log, "gateway")
        check_settings(settings)
        host = listening_host(settings, settings.database.address, logger.warning)
    except StenoError as error:
        logger.error("{}", error)
        sys.exit(1)
    own = settings.key.gateway_api_key
    if own is not None and len(own.get_secret_value()) < SHORT_KEY:
        logger.warning(
            "GATEWAY_API_KEY is short enough to be guessed; make one with `openssl rand -hex 32`"
        )
    os.environ["API_HOST"] = host  # for the processes that serve
    with _shared_metrics(settings.api.workers):
        _serve(settings, host)


@contextmanager
def _shared_metrics(processes: int) -> Iterator[None]:
    """Give several processes a folder for their common metrics, which any of them reports."""
    if processes == 1:
        yield
        return
    with TemporaryDirectory(prefix="stenopool-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        yield


class GatewayServer(uvicorn.Server):
    """A server that waits for its signal; uvicorn's polls ten times a second."""

    _wake: Callable[[], object] = staticmethod(lambda: None)

    async def main_loop(self) -> None:
        """Set the Date header once a second, until a signal ends it."""
        stopping = asyncio.Event()
        self._wake = partial(asyncio.get_running_loop().call_soon_threadsafe, stopping.set)
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), DATE_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._wake()


def _serve(settings: Settings, host: str) -> None:
    config = uvicorn.Config(
        "api.__main__:build",
        factory=True,
        host=host,
        port=settings.api.port,
        workers=settings.api.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=settings.api.keep_alive,
        backlog=backlog(),
        root_path=settings.api.root_path,
        forwarded_allow_ips=settings.api.forwarded_allow_ips,
        ws=WebSocketProtocol,  # it reads no faster than the gateway
        ws_max_size=MESSAGE_BYTES,
        ws_ping_timeout=PONG_S,
        ws_per_message_deflate=False,  # audio does not compress
        http=Protocol,  # on h11: httptools would take heads of any size
        h11_max_incomplete_event_size=max(64_000, 2000 * settings.api.max_header_kb),
    )
    if config.workers > 1:
        Multiprocess(config, sockets=[config.bind_socket()]).run()
        return
    server = GatewayServer(config)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


if __name__ == "__main__":
    main()
