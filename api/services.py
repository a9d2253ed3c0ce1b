"""What the routes work with: the services of one gateway process, built once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Annotated, ParamSpec, Self, TypeVar, cast
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from redis.exceptions import RedisError

from api.auth.exposure import is_loopback
from api.auth.keyring import KeyRing
from api.auth.rate_limits import Limiter
from api.jobs.changes import Changes
from api.jobs.feeds import Feed, Feeds
from api.jobs.resolving import Resolver
from api.processes.moderator import Judge
from api.processes.prober import Prober
from api.processes.recognizers import Recognizers
from api.processes.wav import WavFiles
from api.redis import BackgroundPublisher, GuardedRedis
from api.streams.lives import Lives
from api.streams.options import StreamResolver
from common.db.database import Database, parsed
from common.db.endpoints import Webhooks
from common.db.jobs import Jobs
from common.db.keys import AllKeys
from common.db.streams import Streams
from common.db.vault import Vault
from common.egress import Egress
from common.errors import SetupProblem, StorageFull
from common.events import Events
from common.queue import Doorbell, connect
from common.reach import redis_trouble
from common.settings import Settings
from common.storage.opening import open_storage
from common.storage.storage import check_space
from common.transcripts import GrowingTranscript
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore

COMMITS_AT_ONCE = 2
"""More would gain nothing: they are the interpreter's work more than the database's."""

P = ParamSpec("P")
T = TypeVar("T")


class Gateway:
    """One process's connections. Its methods that are not coroutines block: call them `in_thread`.

    Raises:
        SetupProblem: Postgres or Redis is not configured.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database_url, redis_url = _addresses(settings)
        self.database = Database(self.database_url, pool_size=settings.database.pool_size)
        self.storage = open_storage(settings.storage)
        self.weights = WeightsStore(settings.asr.models_dir, Manifest.load())
        self.egress = Egress(settings.egress.allow)
        self.redis = GuardedRedis.at(redis_url)
        self.doorbell = Doorbell(self.redis)
        self.resolver = Resolver(settings, self.weights, self.egress, self._weights_of_workers)
        self._publisher = BackgroundPublisher(self.redis)
        self.events = Events(self._publisher)
        self.changes = Changes(redis_url)
        watching = settings.events
        self.feeds = Feeds(
            self.changes, limit=watching.max_watchers, limit_each=watching.max_watchers_each
        )
        self.prober = Prober()
        self.judge = Judge(settings.moderation)
        self.recognizers = Recognizers(settings.asr, settings.stream, self.weights)
        self.stream_resolver = StreamResolver(settings, self.weights)
        self.lives = Lives()
        self.wav_files = WavFiles()
        # As many threads as connections, so that a thread never waits for one.
        pool_size = settings.database.pool_size
        self._limiter = CapacityLimiter(max(1, pool_size - COMMITS_AT_ONCE))
        self._commits = CapacityLimiter(COMMITS_AT_ONCE)
        self.uploading: Counter[str] = Counter()
        """How many recordings come in, by the key that sends them."""
        own = settings.key.gateway_api_key
        self._vault = Vault(settings.key.for_secrets)
        self.limiter = Limiter(redis_url, self.redis.breaker)
        self.keys = KeyRing(
            AllKeys(self.database),
            self.in_thread,
            own=None if own is None else own.get_secret_value(),
            loopback=is_loopback(settings.api.host),
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:
        """A gateway that is ready to serve, for as long as the block lasts."""
        gateway = cls(settings)
        async with AsyncExitStack() as stack:
            stack.callback(gateway.database.close)
            stack.callback(gateway.redis.close)
            stack.callback(gateway._publisher.close)
            stack.push_async_callback(gateway.prober.close)
            stack.push_async_callback(gateway.judge.close)
            stack.push_async_callback(gateway.recognizers.close)
            stack.push_async_callback(gateway.changes.close)
            stack.push_async_callback(gateway.keys.close)
            stack.push_async_callback(gateway.limiter.close)
            await asyncio.gather(gateway.prober.start(), gateway.changes.start())
            gateway.judge.start()
            if settings.stream.preload:
                gateway.recognizers.load(settings.stream.engine, settings.stream.model)
            gateway.keys.start()
            yield gateway

    async def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what uses the database or Redis where it may block."""
        return await to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._limiter)

    async def in_turn(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for the long work of uploads, few at a time.

        However many come in at once, who only asks for something is answered meanwhile.
        """
        return await to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._commits)

    def link(self, path: str) -> str:
        """Where a client finds ``path``: under API_PUBLIC_URL, or on the host that it has asked."""
        api = self.settings.api
        return f"{api.public_url or api.root_path}{path}"

    def jobs(self, tenant: str) -> Jobs:
        return Jobs(self.database, tenant, delete_after_s=self.settings.job.delete_after)

    def streams(self, tenant: str) -> Streams:
        return Streams(self.database, tenant, delete_after_s=self.settings.job.delete_after)

    def webhooks(self, tenant: str) -> Webhooks:
        return Webhooks(self.database, tenant, self._vault)

    def watch(self, tenant: str, job_id: UUID) -> AbstractAsyncContextManager[Feed]:
        """The job's feed; see `Feeds.watch`."""
        transcript = GrowingTranscript(self.jobs(tenant), job_id)
        return self.feeds.watch(tenant, job_id, lambda: self.in_thread(transcript.read))

    def stop(self, running: Iterable[tuple[str, str]]) -> None:
        """End these steps at once: (worker, doorbell) of each."""
        for worker, doorbell in running:
            self.events.stop(worker, doorbell)

    def check_services(self) -> None:
        """Raise `Unavailable` unless Postgres and Redis answer."""
        self.database.ping()
        self.check_queue()

    def _weights_of_workers(self) -> set[tuple[str, str]] | None:
        """What running workers have; None where that is not known."""
        try:
            return self.doorbell.weights()
        except (RedisError, OSError):
            return None

    def check_space(self) -> None:
        """Raise `StorageFull` unless there is space for uploads."""
        storage = self.settings.storage
        check_space(storage.temp, storage.min_free_bytes)

    def check_storage(self) -> None:
        """Raise `StorageFull` or `Unavailable` unless this gateway, and every worker, can write."""
        self.check_space()
        self.storage.check()
        with suppress(RedisError):
            if self.doorbell.storage_is_full():
                raise StorageFull

    def check_queue(self) -> None:
        """Raise `Unavailable` unless Redis answers."""
        try:
            self.doorbell.ping()
        except (RedisError, OSError) as error:
            raise redis_trouble(error) from error


def check_settings(settings: Settings) -> None:
    """Raise one of our errors for what would keep every gateway from starting, servers aside."""
    database_url, redis_url = _addresses(settings)
    parsed(database_url)
    Vault(settings.key.for_secrets)
    connect(redis_url).close()
    open_storage(settings.storage)


def _addresses(settings: Settings) -> tuple[str, str]:
    database, queue = settings.database.address, settings.redis.address
    if database is None or queue is None:
        name = "DATABASE_URL" if database is None else "REDIS_URL"
        raise SetupProblem(
            problem=f"{name} is not set",
            remedy="Set it, or use `steno up`, which brings its own servers",
        )
    return database, queue


async def _gateway(request: Request) -> Gateway:
    return cast("Gateway", request.state.gateway)


GatewayDep = Annotated[Gateway, Depends(_gateway)]
