"""The gateway's composition root."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import TypedDict

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api.asr import routes as asr
from api.auth import keys, usage
from api.auth.callers import LocalOnly
from api.auth.exposure import is_loopback
from api.auth.key_cache import KeyCache
from api.auth.links import Links
from api.auth.rate_limits import RateLimiter
from api.enhance import routes as enhance
from api.enhance import server as chat_server
from api.glossaries import routes as glossaries
from api.http import problems
from api.http.connections import Connections, throttle_accept_warnings, throttle_request_warnings
from api.http.middleware import HeadLimits, RequestLog, SafeHeaders
from api.http.request_rules import RequestRules
from api.jobs import events, submissions
from api.jobs import routes as jobs
from api.jobs.changes import JobChanges
from api.jobs.feeds import JobFeeds
from api.jobs.resolving import Resolver
from api.jobs.uploads import UploadSlots
from api.moderation import routes as moderation
from api.openai import routes as openai
from api.openai.schemas import error_answer
from api.ops import docs, health, metrics, models
from api.ops.health import PROBES, PartChecks
from api.ops.metrics import HttpMetrics, RequestMetrics, Scraper
from api.processes.moderator import ModerationProcess
from api.processes.peaks import PeakProcesses
from api.processes.prober import Prober
from api.processes.recognizers import Recognizers
from api.processes.wav import WavFiles
from api.search import routes as search
from api.services import VERSION, Services
from api.streams import routes as live
from api.streams import saved
from api.streams.live import LiveStreams
from api.streams.options import StreamResolver
from api.transcripts import archive, links, peaks, reruns, revisions, speakers
from api.transcripts import routes as transcripts
from api.voices import routes as voices
from api.webhooks import routes as webhooks
from common.db.keys import AllKeys
from common.settings import Settings

PREFIX = "/api/v1"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CLIENTS_SEND = (
    *("Authorization", "X-API-Key", "X-Tenant-Id", "X-Request-Id", "Content-Type"),
    *("Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Range"),
)
"""Request headers that pages of other origins may send (CORS)."""
CLIENTS_READ = (
    *("X-Request-Id", "X-Job-Id", "Location", "Idempotent-Replayed", "Retry-After"),
    *("X-Ignored-Parameters", "X-Revision", "ETag"),
    *("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"),
    *("Content-Disposition", "Content-Length", "Content-Range", "WWW-Authenticate"),
)
"""Response headers that they may read."""
PREFLIGHT_S = 600
"""How long browsers may cache these permissions."""


STREAMS_END_S = 8.0
"""How long live streams may take to finish at a shutdown."""
POLL_S = 0.05


class AppState(TypedDict):
    """What each request finds in ``request.state``; the last two are for `api.http.protocol`."""

    services: Services
    connections: Connections
    head_s: float


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over ``settings``, by default those of the environment."""
    resolved = settings or Settings()
    api = resolved.api
    http = HttpMetrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[AppState]:
        throttle_accept_warnings(asyncio.get_running_loop())
        throttle_request_warnings()
        async with _open_services(resolved) as services:
            services.add(Scraper(services, http))
            checks = services.add(PartChecks(services))
            with _stopping_on_signals(services):
                first_check = asyncio.create_task(checks.get())  # so that the log says what fails
                yield {
                    "services": services,
                    "connections": Connections.within(
                        api.max_connections,
                        most_each=api.max_connections_each,
                        proxies=api.forwarded_allow_ips,
                    ),
                    "head_s": api.head_timeout,
                }
                first_check.cancel()

    app = FastAPI(
        title="Stenopool",
        version=VERSION,
        summary="Recordings in, text out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_tags=docs.TAGS,
        servers=[{"url": api.public_url}] if api.public_url else None,
        root_path_in_servers=api.public_url is None,
    )
    _add_middleware(app, resolved)
    app.add_middleware(RequestMetrics, metrics=http)
    problems.install(app, error_answer)
    docs.install(app, api.public_url)
    for module, prefix in (
        (submissions, PREFIX),
        (transcripts, PREFIX),
        (links, PREFIX),
        (archive, PREFIX),
        (peaks, PREFIX),
        (speakers, PREFIX),
        (revisions, PREFIX),
        (reruns, PREFIX),
        (jobs, PREFIX),
        (events, PREFIX),
        (saved, PREFIX),
        (live, ""),
        (moderation, ""),
        (models, PREFIX),
        (keys, PREFIX),
        (usage, PREFIX),
        (webhooks, PREFIX),
        (voices, PREFIX),
        (glossaries, PREFIX),
        (search, PREFIX),
        (chat_server, PREFIX),  # before the route that would take its name for an id
        (enhance, PREFIX),
        (openai, ""),
        (asr, ""),
        (health, ""),
        (metrics, ""),
    ):
        app.include_router(module.router, prefix=prefix)
    return app


@asynccontextmanager
async def _open_services(settings: Settings) -> AsyncIterator[Services]:
    """All services of one gateway process, started, for as long as the block lasts."""
    services = Services(settings)
    watching, own_key = settings.events, settings.key.gateway_api_key
    async with AsyncExitStack() as stack:
        stack.callback(services.close)
        prober = services.add(Prober())
        stack.push_async_callback(prober.close)
        moderation = services.add(ModerationProcess(settings.moderation))
        stack.push_async_callback(moderation.close)
        recognizers = services.add(Recognizers(settings.asr, settings.stream, services.weights))
        stack.push_async_callback(recognizers.close)
        changes = services.add(JobChanges(services.redis_url))
        stack.push_async_callback(changes.close)
        keys = services.add(
            KeyCache(
                AllKeys(services.database),
                services.in_thread,
                own=None if own_key is None else own_key.get_secret_value(),
                loopback=is_loopback(settings.api.host),
            )
        )
        stack.push_async_callback(keys.close)
        services.add(Links(keys, settings.key.for_secrets))
        limiter = services.add(RateLimiter(services.redis_url, services.redis.breaker))
        stack.push_async_callback(limiter.close)
        services.add(
            JobFeeds(changes, limit=watching.max_watchers, limit_each=watching.max_watchers_each)
        )
        services.add(
            Resolver(
                *(settings, services.weights, services.egress),
                of_workers=services.weights_of_workers,
                failed_fetches=services.failed_fetches,
            )
        )
        services.add(StreamResolver(settings, services.weights))
        services.add(LiveStreams())
        services.add(UploadSlots())
        services.add(WavFiles())
        peak_processes = services.add(PeakProcesses())
        stack.push_async_callback(peak_processes.close)
        await asyncio.gather(prober.start(), changes.start())
        moderation.start()
        if settings.stream.preload:
            recognizers.load(settings.stream.engine, settings.stream.model)
        keys.start()
        yield services


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Added from the inside out: the last one sees a request first."""
    app.add_middleware(RequestRules)
    app.add_middleware(LocalOnly, origins=settings.cors.allowed, probes=PROBES)
    app.add_middleware(
        HeadLimits,
        max_head_bytes=settings.api.max_header_kb * 1000,
        max_body_bytes=settings.api.max_body_kb * 1000,
    )
    app.add_middleware(RequestLog, quiet=PROBES)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors.allowed,
        allow_methods=METHODS,
        allow_headers=CLIENTS_SEND,
        expose_headers=CLIENTS_READ,
        max_age=PREFLIGHT_S,
    )
    https = (settings.api.public_url or "").startswith("https:")
    app.add_middleware(SafeHeaders, https=https, static=docs.ASSETS)


async def _end_streams(streams: LiveStreams) -> None:
    """Finish live streams first: the server would close their connections at once."""
    streams.finish()
    with suppress(TimeoutError):
        async with asyncio.timeout(STREAMS_END_S):
            while len(streams):
                await asyncio.sleep(POLL_S)


@contextmanager
def _stopping_on_signals(services: Services) -> Iterator[None]:
    """On a signal end long polls and live streams first, since the server waits for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    servers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    async def stop(number: int, frame: FrameType | None, *, again: bool) -> None:
        services.get(JobChanges).shut_down()
        server = servers[signal.Signals(number)]
        if callable(server):
            if not again:
                await _end_streams(services.get(LiveStreams))
            server(number, frame)

    def begin(number: int, frame: FrameType | None) -> None:
        # A second signal does not wait for the streams.
        tasks.append(loop.create_task(stop(number, frame, again=bool(tasks))))

    def received(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, number, frame)

    for number in servers:
        signal.signal(number, received)
    try:
        yield
    finally:
        for number, server in servers.items():
            signal.signal(number, server)
