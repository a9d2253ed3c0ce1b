"""Who lives: what workers and dispatchers tell Redis of themselves.

It imports little, since health checks of containers ask twice a minute.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import cast
from uuid import uuid4

from redis import Redis

QUEUE_NAME = "steno"
HEARTBEAT_S = 5
"""A worker tells that it lives at least this often, a dispatcher more often."""
SILENT_S = 3 * HEARTBEAT_S
"""Who was not heard of for so long counts as gone."""

DISPATCHERS = "steno:dispatchers"
"""Sorted by when they were last heard of, in seconds of the epoch."""
FORGOTTEN_S = 3600.0

WEIGHTS = "steno:weights:"
"""With a worker's name: the weights it has, as pairs of engine and model."""


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
    """Seconds since each worker was last heard of, by its name; RQ keeps the record."""
    prefix = "rq:worker:"
    keys = [key.decode() for key in cast("set[bytes]", redis.smembers(f"rq:workers:{QUEUE_NAME}"))]
    pipeline = redis.pipeline(transaction=False)
    for key in keys:
        pipeline.hmget(key, "last_heartbeat", "death")
    now = datetime.now(UTC)
    return {
        key.removeprefix(prefix): (now - datetime.fromisoformat(beat.decode())).total_seconds()
        for key, (beat, death) in zip(keys, pipeline.execute(), strict=True)
        if beat and not death
    }


def dispatchers(redis: Redis) -> dict[str, float]:
    """Seconds since each dispatcher last found all that it needs, by its name."""
    heard = cast("list[tuple[bytes, float]]", redis.zrange(DISPATCHERS, 0, -1, withscores=True))
    return {name.decode(): time.time() - at for name, at in heard}


def tell_of_dispatcher(redis: Redis, name: str) -> None:
    """Say that a dispatcher lives and has all that it needs."""
    now = time.time()
    pipeline = redis.pipeline(transaction=False)
    pipeline.zadd(DISPATCHERS, {name: now})
    pipeline.zremrangebyscore(DISPATCHERS, "-inf", now - FORGOTTEN_S)
    pipeline.execute()


def forget_dispatcher(redis: Redis, name: str) -> None:
    """Say that it ends."""
    redis.zrem(DISPATCHERS, name)


def tell_of_weights(redis: Redis, name: str, weights: Iterable[tuple[str, str]]) -> None:
    """Say which weights a worker has; it holds for `SILENT_S`."""
    redis.set(f"{WEIGHTS}{name}", json.dumps(list(weights)), ex=SILENT_S)


def weights(redis: Redis) -> set[tuple[str, str]] | None:
    """Engine and model of all weights that some living worker has; None: no worker lives."""
    prefix = "rq:worker:"
    keys = [key.decode() for key in cast("set[bytes]", redis.smembers(f"rq:workers:{QUEUE_NAME}"))]
    if not keys:
        return None
    told = cast(
        "list[bytes | None]", redis.mget([f"{WEIGHTS}{key.removeprefix(prefix)}" for key in keys])
    )
    living = [json.loads(each) for each in told if each is not None]
    return {(engine, model) for each in living for engine, model in each} if living else None
