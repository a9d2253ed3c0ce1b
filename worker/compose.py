"""Builds the services of a worker or the dispatcher from the settings."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from common.db.database import Database
from common.db.retention import Retention
from common.db.steps import RetryPolicy, Steps
from common.db.transcriptions import Transcriptions
from common.db.vault import CHAT_KEYS, VOICES, Cipher
from common.db.version import check_version
from common.errors import SetupProblem
from common.net.reach import wait_for
from common.redis.events import Events
from common.settings import Settings
from common.storage.opening import open_storage
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from worker.context import Context
from worker.diarization import WarmDiarizer
from worker.engines import Engines
from worker.memory import Memory
from worker.models import Models
from worker.moderation import WarmModeration


def wait_for_services(settings: Settings, redis: Redis) -> None:
    """Wait for servers that start at the same time, and for this version's tables.

    Raises:
        SetupProblem: an address is not configured.
        Unavailable: a server does not start, or rejects the connection.
    """
    with Database(database_url(settings), pool_size=1) as database:
        wait_for(lambda: check_version(database))
    wait_for(redis.ping)


def build_steps(settings: Settings, database: Database | None = None) -> Steps:
    """The steps, over ``database`` or, by default, over a new pool of connections."""
    return Steps(
        database or Database(database_url(settings), pool_size=settings.database.pool_size),
        lease_s=settings.worker.lease,
        retry=RetryPolicy(settings.job.max_retries, settings.job.retry_delay),
        reuse=settings.job.reuse_results,
    )


def build_context(
    settings: Settings, redis: Redis, may_continue: Callable[[], bool] = lambda: True
) -> Context:
    """The services that steps use; see `Context.may_continue`."""
    memory = Memory()
    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    models = Models(store, redis, auto_fetch=settings.asr.auto_fetch)
    database = Database(database_url(settings), pool_size=settings.database.pool_size)
    return Context(
        settings=settings,
        steps=build_steps(settings, database),
        transcriptions=Transcriptions(database),
        retention=Retention(database, grace_s=settings.worker.lease),
        storage=open_storage(settings.storage),
        events=Events(redis),
        models=models,
        engines=Engines(models, settings.asr, memory),
        moderation=WarmModeration(settings.moderation, memory),
        diarizer=WarmDiarizer(models, memory),
        memory=memory,
        redis=redis,
        voice_cipher=Cipher(VOICES, settings.key.for_voices),
        chat_cipher=Cipher(CHAT_KEYS, settings.key.for_secrets),
        may_continue=may_continue,
    )


def database_url(settings: Settings) -> str:
    """The URL of Postgres; raises `SetupProblem` where it is not configured."""
    if settings.database.address is None:
        remedy = "Set it, or run `steno up`, which starts a database"
        raise SetupProblem(problem="DATABASE_URL is not set", remedy=remedy)
    return settings.database.address


def redis_url(settings: Settings) -> str:
    """The URL of Redis; raises `SetupProblem` where it is not configured."""
    if settings.redis.address is None:
        remedy = "Set one, or run `steno up`, which starts a Redis"
        raise SetupProblem(problem="Neither REDIS_URL nor REDIS_HOST is set", remedy=remedy)
    return settings.redis.address
