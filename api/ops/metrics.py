"""Metrics for Prometheus: the service's, from Postgres, and this gateway's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from math import inf
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from loguru import logger
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from redis.exceptions import RedisError
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.callers import may_read_metrics
from api.cache import SingleFlight
from api.http.problems import documented
from api.services import VERSION, Services, ServicesDep
from common.db.monitoring import MOST, Observed, Waiting, observe_service
from common.db.streams import COMPLETED, INTERRUPTED
from common.domain.job import JobStatus
from common.domain.metrics import (
    AUDIO_TRANSCRIBED,
    COUNTERS,
    HISTOGRAMS,
    JOBS_ENDED,
    JOBS_SUBMITTED,
    LEASES_EXPIRED,
    STREAM_AUDIO,
    STREAMS_ENDED,
    STREAMS_OPENED,
)
from common.domain.metrics import Counter as Counted
from common.domain.pipeline import StepKind
from common.errors import StenoError
from common.redis.queue import StepQueue

router = APIRouter(tags=["health"])

Labels = tuple[str, ...]
Part = SingleFlight[list[Metric] | None]
"""The metrics of a part of the service; None: it is unavailable."""

TIMEOUT_S = 3.0
"""For Postgres, Redis and the disk; what does not answer in time is left out."""
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which several gateway processes share their counts."""
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
ELSEWHERE = "none"
"""The label of requests without a route."""
FINISHED = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)
USUAL_OUTCOMES = (COMPLETED, INTERRUPTED)
"""Outcomes of streams that are not error codes."""
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class HttpMetrics:
    """Counts the requests to this gateway, over all of its processes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "stenopool_http_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "stenopool_http_response_seconds",
            "Time until a response begins, including the request's body; without long polls",
            ("method", "route"),
            buckets=BOUNDS_S,
            registry=self._registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count a request; ``seconds`` is None for long polls."""
        self._requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        if SHARED_FOLDER in os.environ:
            shared: Iterable[Metric] = MultiProcessCollector(CollectorRegistry()).collect()  # type: ignore[no-untyped-call]
            return shared
        return self._registry.collect()


class RequestMetrics:
    """Counts requests by the path template of their route, so that no id becomes a label."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                waited = b"wait=" in scope["query_string"]
                self._metrics.count(
                    scope["method"] if scope["method"] in METHODS else "other",
                    _template(scope),
                    message["status"],
                    None if waited else time.monotonic() - started,
                )
            await send(message)

        await self._app(scope, receive, send_counted)


def _template(scope: Scope) -> str:
    """The path template of a request's route.

    A route only knows its own part of the path, without its router's prefix.
    """
    own: str | None = getattr(scope.get("route"), "path", None)
    if own is None:
        return ELSEWHERE
    part = own
    for name, given in scope["path_params"].items():
        part = part.replace(f"{{{name}}}", str(given))
    return f"{scope['path'].removesuffix(part)}{own}" if scope["path"].endswith(part) else own


class Scraper:
    """Answers scrapes; concurrent ones share the queries to Postgres and Redis."""

    def __init__(self, services: Services, http: HttpMetrics) -> None:
        self._http = http
        self._postgres = _shared("postgres", lambda: _service(observe_service(services.database)))
        self._redis = _shared("redis", lambda: _queue(services.queue))
        self._disk = _shared("disk", lambda: _disk(services.settings.storage.temp))

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the form that ``accept`` asks for, and its media type.

        What is unavailable is left out, and reported as down.
        """
        postgres, redis, disk = await asyncio.gather(
            _in_time(self._postgres), _in_time(self._redis), _in_time(self._disk)
        )
        up = {"postgres": postgres is not None, "redis": redis is not None}
        encode, media_type = choose_encoder(accept)
        everything = _Everything(up, self._http, disk, redis, postgres)
        return await asyncio.to_thread(encode, everything), media_type


def _shared(part: str, read: Callable[[], Iterable[Metric]]) -> Part:
    """What ``read`` returns in a thread, once for concurrent scrapes; None where it fails."""

    async def attempt() -> list[Metric] | None:
        try:
            return await asyncio.to_thread(lambda: list(read()))
        except (StenoError, RedisError, OSError) as error:
            logger.warning("metrics of {} are missing: {}", part, type(error).__name__)
            return None

    return SingleFlight(attempt, cached_s=0)


async def _in_time(part: Part) -> list[Metric] | None:
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            return await part.get()
    return None


class _Everything(Collector):
    def __init__(
        self, up: Mapping[str, bool], http: HttpMetrics, *parts: list[Metric] | None
    ) -> None:
        self._up: dict[Labels, float] = {(part,): float(is_up) for part, is_up in up.items()}
        self._http = http
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        yield _gauge("stenopool_build_info", "The running version", ("version",), {(VERSION,): 1})
        yield _gauge("stenopool_up", "Whether a part is available", ("part",), self._up)
        yield from self._http.collect()
        for part in self._parts:
            yield from part or ()


def _disk(folder: Path) -> Iterator[Metric]:
    found = shutil.disk_usage(folder)
    size = "Size of the disk that receives uploads"
    yield Gauge("stenopool_disk_bytes", size, found.total)
    free = "Free space on the disk that receives uploads"
    yield Gauge("stenopool_disk_free_bytes", free, found.free)


def _queue(queue: StepQueue) -> Iterator[Metric]:
    used, limit = queue.memory()
    yield Gauge("stenopool_workers", "Live workers", queue.live_workers())
    yield Gauge("stenopool_dispatchers", "Live dispatchers", queue.live_dispatchers())
    yield Gauge("stenopool_doorbells", "Steps queued in RQ", queue.waiting())
    yield Gauge("stenopool_redis_memory_bytes", "Memory that Redis uses", used)
    most = "Memory limit of Redis; it rejects writes beyond it"
    yield Gauge("stenopool_redis_memory_limit_bytes", most, inf if limit is None else limit)
    full = "Whether a worker recently failed to write for lack of space"
    yield Gauge("stenopool_storage_full", full, queue.storage_is_full())


def _service(service: Observed) -> Iterator[Metric]:
    yield from _gauges(service)
    server = service.server
    yield Gauge("stenopool_database_bytes", "Size of the database", server.database_bytes)
    yield Gauge("stenopool_database_connections", "Connections to Postgres", server.connections)
    limit = "Connection limit of Postgres"
    yield Gauge("stenopool_database_connections_limit", limit, server.connections_limit)
    yield from _tallies(service)


def _gauges(service: Observed) -> Iterator[Metric]:
    jobs: dict[Labels, Waiting] = {
        (status.lower(),): waiting for status, waiting in service.jobs.items()
    }
    what = f"Jobs that are not finished ({MOST}: that many or more)"
    yield from _both("stenopool_jobs", what, ("status",), jobs)
    steps: dict[Labels, Waiting] = {
        (kind, priority.name.lower()): waiting
        for (kind, priority), waiting in service.steps_waiting.items()
    }
    what = f"Steps that wait for a worker ({MOST}: that many or more)"
    yield from _both("stenopool_steps_waiting", what, ("kind", "priority"), steps)
    running: dict[Labels, float] = {(kind,): count for kind, count in service.steps_running.items()}
    yield _gauge("stenopool_steps_running", "Running steps", ("kind",), running)
    due: dict[Labels, Waiting] = {(): service.deliveries_due}
    what = f"Webhook messages to send ({MOST}: that many or more)"
    yield from _both("stenopool_webhook_deliveries_due", what, (), due)
    yield Gauge("stenopool_streams_open", "Open live streams", service.streams_open)


def _both(
    name: str, what: str, labels: tuple[str, ...], values: Mapping[Labels, Waiting]
) -> Iterator[Metric]:
    yield _gauge(name, what, labels, {key: waiting.count for key, waiting in values.items()})
    ages = {key: waiting.oldest_s for key, waiting in values.items()}
    yield _gauge(f"{name}_oldest_seconds", f"{what}: age of the oldest", labels, ages)


def _gauge(name: str, what: str, labels: tuple[str, ...], values: Mapping[Labels, float]) -> Metric:
    family = Gauge(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _zeros(counter: Counted, service: Observed) -> dict[Labels, float]:
    """Zeros for labels that may be counted next: a rate needs a zero before the first count."""
    submitted = service.tallied.of(JOBS_SUBMITTED)
    if counter is JOBS_ENDED:
        return {(status.lower(), *labels): 0 for status in FINISHED for labels in submitted}
    if counter is AUDIO_TRANSCRIBED:
        return dict.fromkeys(submitted, 0)
    if counter is LEASES_EXPIRED:
        return {(kind.value,): 0 for kind in StepKind}
    opened = service.tallied.of(STREAMS_OPENED)
    if counter is STREAMS_ENDED:
        return {(outcome, *labels): 0 for outcome in USUAL_OUTCOMES for labels in opened}
    if counter is STREAM_AUDIO:
        return dict.fromkeys(opened, 0)
    return {}


def _tallies(service: Observed) -> Iterator[Metric]:
    for counter in COUNTERS:
        counted = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
        for labels, value in {**_zeros(counter, service), **service.tallied.of(counter)}.items():
            counted.add_metric(labels, value)
        yield counted
    for histogram in HISTOGRAMS:
        seen = HistogramMetricFamily(histogram.name, histogram.help, labels=histogram.labels)
        bounds = [floatToGoString(bound) for bound in (*histogram.bounds, inf)]  # type: ignore[no-untyped-call]
        for labels, found in service.tallied.distributions(histogram).items():
            buckets = list(zip(bounds, accumulate(found.counts), strict=True))
            seen.add_metric(labels, buckets=buckets, sum_value=found.sum)
        yield seen


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
            "description": "The metrics",
        },
        **documented(401, 403, 503),
    },
    dependencies=[Depends(may_read_metrics)],
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """All metrics, in the text format of Prometheus or, if requested, OpenMetrics.

    Metrics of the service are the same from every gateway; metrics of requests are each gateway's
    own. Requires a key with the scope admin, unless METRICS_OPEN is set.
    """
    content, media_type = await services.get(Scraper).scrape(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)
