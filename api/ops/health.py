"""Health checks, and the home page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from html import escape
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse
from loguru import logger
from redis.exceptions import RedisError
from starlette.responses import Response

from api.cache import SingleFlight
from api.http.fields import Document
from api.http.problems import RETRY_AFTER_S
from api.jobs.resolving import Resolver
from api.processes.child import LOADING, OFF, OK
from api.processes.moderator import ModerationProcess
from api.processes.recognizers import Recognizers
from api.services import VERSION, Services, ServicesDep
from common.db.version import check_version
from common.errors import StenoError

Parts = dict[str, str]
"""The state of each part: `OK`, or what is wrong with it."""

router = APIRouter(tags=["health"])

PROBES = frozenset({"/health", "/healthz", "/readyz"})
"""Paths that are requested every few seconds."""

TIMEOUT_S = 8.0
MODERATION, STREAMS, WEIGHTS = "moderation", "streams", "weights"
CACHED_S = 1.0
"""How long a result is cached: no key is required, and checks cost connections and threads."""


class Health(Document):
    """The health of all parts."""

    status: Literal["healthy", "degraded"]
    version: str
    parts: dict[str, str]
    workers: int | None
    """Number of live workers; 0: nothing is transcribed. Null: unknown, Redis is unavailable."""
    dispatchers: int | None
    """Number of dispatchers that reach everything they need; 0: no job proceeds. Null: unknown."""


class PartChecks(SingleFlight[Parts]):
    """Checks of all parts that jobs need; changes are logged."""

    def __init__(self, services: Services) -> None:
        logged: Parts = {}
        super().__init__(lambda: _check_all(services, logged), cached_s=CACHED_S)


@router.get("/healthz", summary="Liveness")
async def alive() -> dict[str, str]:
    """The process is running."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Readiness",
    responses={503: {"description": "A part does not work; it is named"}},
)
async def ready(services: ServicesDep) -> Response:
    """200 where every part that jobs need works, else 503 and the parts that do not.

    `weights` fails where neither a worker nor this machine has the default weights; this makes the
    gateway unready only where there are no other weights for jobs either. Live streams count where
    their weights are loaded at the start (`STREAM_PRELOAD`). Moderation is reported, but does not
    count: without it jobs still run, and their transcripts carry a warning.
    """
    needed = {**await services.get(PartChecks).get(), **_streams(services)}
    parts = {**needed, MODERATION: services.get(ModerationProcess).state}
    if needed[WEIGHTS] != OK:
        others = await asyncio.to_thread(services.get(Resolver).installed)
        needed[WEIGHTS] = OK if others else needed[WEIGHTS]
    if all(state == OK for state in needed.values()):
        return JSONResponse({"status": "ready", "parts": parts})
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse({"status": "not ready", "parts": parts}, 503, headers=retry)


@router.get("/health", summary="Health of all parts")
async def health(services: ServicesDep) -> Health:
    """The state of all parts; the status is 200 as long as the process runs.

    `degraded`: a part does not work. Moderation may be off, and models may be loading.
    """
    parts = {
        **await services.get(PartChecks).get(),
        **_streams(services),
        MODERATION: services.get(ModerationProcess).state,
    }
    whole = all(state in {OK, OFF, LOADING} for state in parts.values())
    workers = dispatchers = None
    if parts["redis"] == OK:
        with suppress(RedisError):
            workers = await asyncio.to_thread(services.queue.live_workers)
            dispatchers = await asyncio.to_thread(services.queue.live_dispatchers)
    return Health(
        status="healthy" if whole else "degraded",
        version=VERSION,
        parts=parts,
        workers=workers,
        dispatchers=dispatchers,
    )


@router.get("/", include_in_schema=False)
async def home(request: Request, services: ServicesDep) -> Response:
    """The home page, or links as JSON."""
    root = request.scope.get("root_path", "")
    if "text/html" not in request.headers.get("accept", ""):
        paths = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health"}
        links = {name: root + path for name, path in paths.items()}
        return JSONResponse({"name": "stenopool", "version": VERSION, **links})
    base = services.settings.api.public_url or str(request.base_url).rstrip("/")
    page = _HOME.format(version=VERSION, root=root, base=escape(f"{base}/"))
    return HTMLResponse(page, headers={"Content-Security-Policy": _HOME_POLICY})


_HOME_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HOME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Stenopool</title>
<link rel="icon" href="{root}/docs/assets/favicon-32x32.png">
<style>
  body {{ font-family: system-ui; max-width: 44rem; margin: 4rem auto; padding: 0 1rem }}
  pre {{ background: #f3f3f3; padding: .8rem; overflow-x: auto }}
</style>
<h1>Stenopool {version}</h1>
<p>Transcribe a recording:</p>
<pre>curl -F file=@talk.mp3 -F language=vi {base}api/v1/upload</pre>
<p>Moderate a text:</p>
<pre>curl --json '{{"text": "Have a nice day"}}' {base}moderation</pre>
<ul>
  <li><a href="{root}/docs">API documentation</a>
  <li><a href="{root}/openapi.json">OpenAPI document</a>
  <li><a href="{root}/health">Health of this gateway</a>
</ul>
"""


async def _check_all(services: Services, logged: Parts) -> Parts:
    checks: dict[str, Callable[[], None]] = {
        "postgres": services.database.ping,
        "migrations": lambda: check_version(services.database),
        "redis": services.check_queue,
        "storage": services.check_storage,
        WEIGHTS: services.get(Resolver).check_defaults,
    }
    states = await asyncio.gather(*(_check(name, check, logged) for name, check in checks.items()))
    return dict(zip(checks, states, strict=True))


def _streams(services: Services) -> Parts:
    """The state of the recognizer that is loaded at the start, if any."""
    wanted = services.settings.stream
    if not wanted.preload:
        return {}
    return {STREAMS: services.get(Recognizers).state(wanted.engine, wanted.model)}


async def _check(name: str, check: Callable[[], None], logged: Parts) -> str:
    """A part's state as clients see it; the log has the full error."""
    state = in_full = OK
    try:
        await asyncio.wait_for(asyncio.to_thread(check), TIMEOUT_S)
    except StenoError as error:
        state, in_full = error.message, str(error)
    except TimeoutError:
        state = in_full = "It does not answer"
    except Exception as error:
        state, in_full = "It does not work; the log says why", repr(error)
    if in_full != logged.get(name, OK):
        logger.warning("{}: {}", name, in_full)
    logged[name] = in_full
    return state
