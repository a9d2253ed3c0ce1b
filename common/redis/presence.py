"""Who lives: what workers and dispatchers tell Redis of themselves.

It imports little, since health checks of containers ask twice a minute.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from typing import cast
from uuid import uuid4

from redis import Redis

QUEUE_NAME = "steno"
HEARTBEAT_S = 5
"""Workers and dispatchers send a heartbeat at least this often."""
WORKER_TTL_S = 15 + HEARTBEAT_S
"""RQ waits for work for 15 s less than this, and beats between two waits."""
RECORD_S = WORKER_TTL_S + 60
"""How long Redis keeps a worker's record from its last heartbeat on."""
SILENT_S = 3 * HEARTBEAT_S
"""Who was not heard of for so long counts as gone."""

DISPATCHERS = "steno:dispatchers"
"""Sorted by when they were last heard of, in seconds of the epoch by Redis' own clock: those of
hosts differ."""
FORGOTTEN_S = 3600.0

WORKER = "rq:worker:"
"""With a worker's name: RQ's record of it."""
WEIGHTS = "steno:weights:"
"""With a worker's name: the weights it has, as pairs of engine and model."""

STORAGE_FULL = "steno:storage-full"
FULL_S = 90
"""Longer than a step waits at most before it is tried again."""


def own_name() -> str:
    """A name for this process, never used again."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"


def of_this_host(silences: dict[str, float]) -> list[float]:
    """Those of ``silences`` whose names were made on this host."""
    host = socket.gethostname()
    return [silence_s for name, silence_s in silences.items() if name.rsplit("-", 2)[0] == host]


def living(silences: dict[str, float]) -> int:
    """How many were heard of lately."""
    return sum(silence_s < SILENT_S for silence_s in silences.values())


def workers(redis: Redis) -> dict[str, float]:
    """Seconds since each worker was last heard of, by its name.

    RQ keeps the record. The time in it is by the worker's clock, so what counts is how much of the
    record's own time is over.
    """
    names = _registered(redis)
    pipeline = redis.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(f"{WORKER}{name}")
        pipeline.hget(f"{WORKER}{name}", "death")
    found = iter(pipeline.execute())
    return {
        name: RECORD_S - left_ms / 1000
        for name, left_ms, death in zip(names, found, found, strict=True)
        if left_ms > 0 and not death
    }


def dispatchers(redis: Redis) -> dict[str, float]:
    """Seconds since each dispatcher last found all that it needs, by its name."""
    heard = cast("list[tuple[bytes, float]]", redis.zrange(DISPATCHERS, 0, -1, withscores=True))
    now = _now(redis)
    return {name.decode(): now - at for name, at in heard}


def tell_of_dispatcher(redis: Redis, name: str) -> None:
    """Say that a dispatcher lives and has all that it needs."""
    now = _now(redis)
    pipeline = redis.pipeline(transaction=False)
    pipeline.zadd(DISPATCHERS, {name: now})
    pipeline.zremrangebyscore(DISPATCHERS, "-inf", now - FORGOTTEN_S)
    pipeline.execute()


def forget_dispatcher(redis: Redis, name: str) -> None:
    """Say that it ends."""
    redis.zrem(DISPATCHERS, name)


def announce_weights(redis: Redis, name: str, weights: Iterable[tuple[str, str]]) -> None:
    """Record which weights a worker has, for `SILENT_S`."""
    redis.set(f"{WEIGHTS}{name}", json.dumps(list(weights)), ex=SILENT_S)


def weights(redis: Redis) -> set[tuple[str, str]] | None:
    """Engine and model of all weights that some living worker has; None: no worker lives."""
    names = _registered(redis)
    if not names:
        return None
    found = cast("list[bytes | None]", redis.mget([f"{WEIGHTS}{name}" for name in names]))
    living = [json.loads(each) for each in found if each is not None]
    return {(engine, model) for each in living for engine, model in each} if living else None


def announce_full_storage(redis: Redis) -> None:
    """Record that a worker could not write as there is no space, for `FULL_S`."""
    redis.set(STORAGE_FULL, "", ex=FULL_S)


def forget_full_storage(redis: Redis) -> None:
    """Record that it can again."""
    redis.delete(STORAGE_FULL)


def storage_is_full(redis: Redis) -> bool:
    """Whether a worker could not write lately."""
    return bool(redis.exists(STORAGE_FULL))


def _registered(redis: Redis) -> list[str]:
    """The names of the workers that RQ knows, also of those that have died lately."""
    keys = cast("set[bytes]", redis.smembers(f"rq:workers:{QUEUE_NAME}"))
    return [key.decode().removeprefix(WORKER) for key in keys]


def _now(redis: Redis) -> float:
    """Seconds of the epoch, by Redis' clock."""
    seconds, microseconds = redis.time()
    return seconds + microseconds / 1e6
