"""The gateway's composition root."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import TypedDict

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api.asr import routes as asr
from api.auth import keys, usage
from api.http import problems
from api.http.connections import Connections, warn_seldom_of_accepting, warn_seldom_of_bad_requests
from api.http.middleware import HeadLimits, LocalOnly, RequestLog, SafeHeaders
from api.http.request_rules import HeadRules
from api.jobs import events, submissions, upload_routes
from api.jobs import routes as jobs
from api.moderation import routes as moderation
from api.openai import routes as openai
from api.openai.schemas import install as install_openai
from api.ops import docs, health, metrics_routes, models
from api.ops.metrics import HttpMetrics, RequestMetrics, Scraper
from api.ops.shared import Shared
from api.services import Gateway
from api.streams import routes as live
from api.streams import saved
from api.transcripts import routes as transcripts
from api.version import VERSION
from api.webhooks import routes as webhooks
from common.settings import Settings

PREFIX = "/api/v1"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CLIENTS_SEND = (
    *("Authorization", "X-API-Key", "X-Tenant-Id", "X-Request-Id", "Content-Type"),
    *("Idempotency-Key", "Last-Event-ID", "Range"),
)
"""What pages of other origins may send (CORS)."""
CLIENTS_READ = (
    *("X-Request-Id", "X-Job-Id", "Location", "Idempotent-Replayed", "Retry-After"),
    "X-Ignored-Parameters",
    *("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"),
    *("Content-Disposition", "Content-Length", "Content-Range", "WWW-Authenticate"),
)
"""What they may read of an answer's head."""
PREFLIGHT_S = 600
"""How long a browser may remember that they may."""


STREAMS_END_S = 8.0
"""What live streams get for their last words when the gateway is told to end."""
MOMENT_S = 0.05


class State(TypedDict):
    """What each request finds in ``request.state``; the last two are for `api.http.protocol`."""

    gateway: Gateway
    scraper: Scraper
    parts: Shared[health.Parts]
    connections: Connections
    head_s: float


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over ``settings``, by default those of the environment."""
    resolved = settings or Settings()
    public_url = resolved.api.public_url
    http = HttpMetrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        warn_seldom_of_accepting(asyncio.get_running_loop())
        warn_seldom_of_bad_requests()
        async with Gateway.open(resolved) as gateway:
            parts = health.looking_at(gateway)
            with _told_of_the_end(gateway):
                first_look = asyncio.create_task(parts.get())  # so that the log tells what is out
                yield {
                    "gateway": gateway,
                    "scraper": Scraper(gateway, http),
                    "parts": parts,
                    "connections": Connections.of(resolved.api),
                    "head_s": resolved.api.head_timeout,
                }
                first_look.cancel()

    app = FastAPI(
        title="Stenopool",
        version=VERSION,
        summary="Recordings in, their text out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_tags=docs.TAGS,
        servers=[{"url": public_url}] if public_url else None,
        root_path_in_servers=public_url is None,
    )
    _add_middleware(app, resolved)
    app.add_middleware(RequestMetrics, metrics=http)
    problems.install(app)
    install_openai(app)
    docs.install(app, public_url)
    for module, prefix in (
        (upload_routes, PREFIX),
        (submissions, PREFIX),
        (transcripts, PREFIX),
        (jobs, PREFIX),
        (events, PREFIX),
        (saved, PREFIX),
        (live, ""),
        (moderation, ""),
        (models, PREFIX),
        (keys, PREFIX),
        (usage, PREFIX),
        (webhooks, PREFIX),
        (openai, ""),
        (asr, ""),
        (health, ""),
        (metrics_routes, ""),
    ):
        app.include_router(module.router, prefix=prefix)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """From the inside out: what comes last sees a request first."""
    app.add_middleware(HeadRules)
    app.add_middleware(LocalOnly, origins=settings.cors.allowed)
    app.add_middleware(
        HeadLimits,
        max_head_bytes=settings.api.max_header_kb * 1000,
        max_body_bytes=settings.api.max_body_kb * 1000,
    )
    app.add_middleware(RequestLog)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors.allowed,
        allow_methods=METHODS,
        allow_headers=CLIENTS_SEND,
        expose_headers=CLIENTS_READ,
        max_age=PREFLIGHT_S,
    )
    https = (settings.api.public_url or "").startswith("https:")
    app.add_middleware(SafeHeaders, https=https)


async def _end_streams(gateway: Gateway, then: Callable[[], object]) -> None:
    """Have live streams come to their ends; the server would cut their connections at once."""
    gateway.lives.finish()
    for _ in range(round(STREAMS_END_S / MOMENT_S)):
        if not len(gateway.lives):
            break
        await asyncio.sleep(MOMENT_S)
    then()


@contextmanager
def _told_of_the_end(gateway: Gateway) -> Iterator[None]:
    """End long polls when a signal asks to: the server waits for them before it ends the rest."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    leaving: list[int] = []
    tasks: list[asyncio.Task[None]] = []
    servers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def leave(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(gateway.changes.wake_all_for_good)
        server = servers[signal.Signals(number)]
        if not callable(server):
            return
        if leaving or not len(gateway.lives):
            server(number, frame)
        else:
            leaving.append(number)
            loop.call_soon_threadsafe(end_streams, lambda: server(number, frame))

    def end_streams(then: Callable[[], object]) -> None:
        tasks.append(asyncio.create_task(_end_streams(gateway, then)))

    for number in servers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, server in servers.items():
            signal.signal(number, server)
