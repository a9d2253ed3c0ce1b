"""Puts the services of a worker or the dispatcher together from the settings."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from common.db.cleaning import Cleaning
from common.db.database import Database
from common.db.revision import check_revision
from common.db.steps import RetryPolicy, Steps
from common.db.transcriptions import Transcriptions
from common.errors import SetupProblem
from common.net.reach import wait_for
from common.redis.events import Events
from common.settings import Settings
from common.storage.opening import open_storage
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from worker.announcement import Announcement
from worker.context import Context
from worker.engines import Engines
from worker.memory import Memory
from worker.moderation import WarmModeration


def wait_for_services(settings: Settings, redis: Redis) -> None:
    """Wait for servers that start as this process does, and for this version's tables.

    Raises:
        SetupProblem: nobody said where they are.
        Unavailable: they do not come, or refuse.
    """
    with Database(database_url(settings), pool_size=1) as database:
        wait_for(lambda: check_revision(database))
    wait_for(redis.ping)


def build_steps(settings: Settings, database: Database | None = None) -> Steps:
    """The steps, over ``database``, or a pool of connections of this process's own."""
    return Steps(
        database or Database(database_url(settings), pool_size=settings.database.pool_size),
        lease_s=settings.worker.lease,
        retry=RetryPolicy(settings.job.max_retries, settings.job.retry_delay),
        reuse=settings.job.reuse_results,
    )


def build_announcement(settings: Settings, redis: Redis, name: str) -> Announcement:
    """What the worker of this name says of its weights."""
    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    return Announcement(redis, name, store)


def build_context(
    settings: Settings, redis: Redis, may_go_on: Callable[[], bool] = lambda: True
) -> Context:
    """All that steps work with; see `Context.may_go_on`."""
    memory = Memory()
    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    database = Database(database_url(settings), pool_size=settings.database.pool_size)
    return Context(
        settings=settings,
        steps=build_steps(settings, database),
        transcriptions=Transcriptions(database),
        cleaning=Cleaning(database, grace_s=settings.worker.lease),
        storage=open_storage(settings.storage),
        events=Events(redis),
        engines=Engines(store, settings.asr, memory),
        moderation=WarmModeration(settings.moderation, memory),
        memory=memory,
        redis=redis,
        may_go_on=may_go_on,
    )


def database_url(settings: Settings) -> str:
    """Where Postgres is.

    Raises:
        SetupProblem: nobody said.
    """
    address = settings.database.address
    if address is None:
        raise SetupProblem(
            problem="DATABASE_URL is not set",
            remedy="Set it, or run `steno up`, which brings a database along",
        )
    return address


def redis_url(settings: Settings) -> str:
    """Where Redis is.

    Raises:
        SetupProblem: nobody said.
    """
    address = settings.redis.address
    if address is None:
        raise SetupProblem(
            problem="Neither REDIS_URL nor REDIS_HOST is set",
            remedy="Set one, or run `steno up`, which brings a Redis along",
        )
    return address
