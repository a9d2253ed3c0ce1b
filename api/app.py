"""The gateway's composition root."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import TypedDict

from fastapi import FastAPI

from api import docs, problems
from api.gateway import Gateway
from api.middleware import RequestLog
from api.routes import events, health, jobs, keys, models, moderation, uploads, usage
from api.version import VERSION
from common.settings import Settings

PREFIX = "/api/v1"


class State(TypedDict):
    """What each request finds in ``request.state``."""

    gateway: Gateway


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over ``settings``, by default those of the environment."""
    resolved = settings or Settings()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with Gateway.open(resolved) as gateway:
            with _told_of_the_end(gateway):
                yield {"gateway": gateway}

    app = FastAPI(
        title="Stenopool",
        version=VERSION,
        summary="Recordings in, their text out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_tags=docs.TAGS,
    )
    app.add_middleware(RequestLog)
    problems.install(app)
    docs.install(app)
    for module, prefix in (
        (uploads, PREFIX),
        (jobs, PREFIX),
        (events, PREFIX),
        (moderation, ""),
        (models, PREFIX),
        (keys, PREFIX),
        (usage, PREFIX),
        (health, ""),
    ):
        app.include_router(module.router, prefix=prefix)
    return app


@contextmanager
def _told_of_the_end(gateway: Gateway) -> Iterator[None]:
    """End long polls when a signal asks to: the server waits for them before it ends the rest."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    servers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def leave(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(gateway.changes.wake_all_for_good)
        server = servers[signal.Signals(number)]
        if callable(server):
            server(number, frame)

    for number in servers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, server in servers.items():
            signal.signal(number, server)
