"""What the routes of one gateway process share: clients of Postgres, Redis, the storage and so on.

`api.app` builds it, and adds what the packages of `api` need, which they get by class:
``services.get(RateLimiter)``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Annotated, ParamSpec, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from fastapi import Depends
from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from api.redis import BackgroundPublisher, GuardedRedis
from common.db.chat_servers import ChatServers
from common.db.database import Database, parsed
from common.db.endpoints import Webhooks
from common.db.glossaries import Glossaries
from common.db.jobs import Jobs
from common.db.search import Search
from common.db.streams import Streams
from common.db.vault import CHAT_KEYS, VOICES, Cipher, Vault
from common.db.voices import Voices
from common.errors import SetupProblem, StorageFull
from common.llm.servers import ServerInUse, server_in_use
from common.net.egress import Egress
from common.net.reach import redis_trouble
from common.redis.events import Events
from common.redis.queue import StepQueue, connect
from common.settings import ROOT, Settings
from common.storage.opening import open_storage
from common.storage.storage import check_space
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

COMMITS_AT_ONCE = 2
"""More gain nothing: they keep the interpreter busy more than the database."""

P = ParamSpec("P")
T = TypeVar("T")


class Services:
    """The clients of one gateway process, and other parts by their class.

    Methods that are not coroutines block: call them `in_thread`.

    Raises:
        SetupProblem: Postgres or Redis is not configured.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database_url, self.redis_url = _addresses(settings)
        self.database = Database(self.database_url, pool_size=settings.database.pool_size)
        self.storage = open_storage(settings.storage)
        self.weights = WeightsStore(settings.asr.models_dir, Manifest.load())
        self.egress = Egress(settings.egress.allow)
        self.redis = GuardedRedis.at(self.redis_url)
        self.queue = StepQueue(self.redis)
        self._publisher = BackgroundPublisher(self.redis)
        self.events = Events(self._publisher)
        # As many threads as connections, so that a thread never waits for one.
        pool_size = settings.database.pool_size
        self._limiter = CapacityLimiter(max(1, pool_size - COMMITS_AT_ONCE))
        self._commits = CapacityLimiter(COMMITS_AT_ONCE)
        self._vault = Vault(settings.key.for_secrets)
        self.voice_cipher = Cipher(VOICES, settings.key.for_voices)
        self._chat_cipher = Cipher(CHAT_KEYS, settings.key.for_secrets)
        self._parts: dict[type, object] = {}

    def close(self) -> None:
        self._publisher.close()
        self.redis.close()
        self.database.close()

    def add(self, part: T) -> T:
        """Keep ``part`` under its class; returns it."""
        self._parts[type(part)] = part
        return part

    def get(self, kind: type[T]) -> T:
        """The part of that class.

        Raises:
            KeyError: `api.app` has not added one.
        """
        return cast("T", self._parts[kind])

    async def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that uses the database or Redis in a thread, where it may block."""
        return await to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._limiter)

    async def in_turn(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the long work of an upload in a thread, few at a time.

        So other requests are answered however many uploads arrive at once.
        """
        return await to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._commits)

    def link(self, path: str) -> str:
        """The URL of ``path``: under API_PUBLIC_URL, or relative to the host of the request."""
        api = self.settings.api
        return f"{api.public_url or api.root_path}{path}"

    def jobs(self, tenant: str) -> Jobs:
        return Jobs(self.database, tenant, delete_after_s=self.settings.job.delete_after)

    def streams(self, tenant: str) -> Streams:
        return Streams(self.database, tenant, delete_after_s=self.settings.job.delete_after)

    def webhooks(self, tenant: str) -> Webhooks:
        return Webhooks(self.database, tenant, self._vault)

    def voices(self, tenant: str) -> Voices:
        return Voices(self.database, tenant, self.voice_cipher)

    def chat_servers(self, tenant: str) -> ChatServers:
        return ChatServers(self.database, tenant, self._chat_cipher)

    def chat_server_in_use(self, tenant: str) -> ServerInUse:
        """The server that language models of a tenant are asked at.

        Raises:
            EnhancementOff: it has none, and nor have the settings; the error names the setting.
            ChatKeyLocked: its key cannot be decrypted.
        """
        own = self.chat_servers(tenant).find()
        return server_in_use(self.settings, own, self._chat_cipher)

    def glossaries(self, tenant: str) -> Glossaries:
        return Glossaries(self.database, tenant)

    def search(self, tenant: str) -> Search:
        return Search(self.database, tenant)

    def stop(self, running: Iterable[tuple[str, str]]) -> None:
        """Stop these running steps at once: (worker, queue message) of each."""
        for worker, message in running:
            self.events.stop(worker, message)

    def weights_of_workers(self) -> set[tuple[str, str]] | None:
        """Engine and model of the weights that running workers have; None where unknown."""
        try:
            return self.queue.weights()
        except (RedisError, OSError):
            return None

    def failed_fetches(self) -> set[tuple[str, str]]:
        """Engine and model of the weights that workers could not fetch lately."""
        try:
            return self.queue.failed_fetches()
        except (RedisError, OSError):
            return set()

    def check_space(self) -> None:
        """Raise `StorageFull` unless there is space for uploads."""
        storage = self.settings.storage
        check_space(storage.temp, storage.min_free_bytes)

    def check_storage(self) -> None:
        """Raise `StorageFull` or `Unavailable` unless this gateway, and every worker, can write."""
        self.check_space()
        self.storage.check()
        with suppress(RedisError):
            if self.queue.storage_is_full():
                raise StorageFull

    def check_queue(self) -> None:
        """Raise `Unavailable` unless Redis answers."""
        try:
            self.queue.ping()
        except (RedisError, OSError) as error:
            raise redis_trouble(error) from error


def check_settings(settings: Settings) -> None:
    """Raise a `StenoError` for settings that would keep every gateway process from starting."""
    database_url, redis_url = _addresses(settings)
    parsed(database_url)
    Vault(settings.key.for_secrets)
    Cipher(VOICES, settings.key.for_voices)
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


async def _services(connection: HTTPConnection) -> Services:
    return cast("Services", connection.state.services)


ServicesDep = Annotated[Services, Depends(_services)]
