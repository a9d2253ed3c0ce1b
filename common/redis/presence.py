"""Heartbeats of workers and dispatchers in Redis, and what workers report with them.

It imports little: container health checks import it twice a minute.
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
"""RQ waits for work for 15 s less than this, and sends a heartbeat between two waits."""
RECORD_S = WORKER_TTL_S + 60
"""How long Redis keeps a worker's record after its last heartbeat."""
SILENT_S = 3 * HEARTBEAT_S
"""A process without a heartbeat for this long counts as lost."""

DISPATCHERS = "steno:dispatchers"
"""Scored by the time of the last heartbeat: Unix time by Redis' clock, as hosts' clocks differ."""
FORGOTTEN_S = 3600.0

WORKER = "rq:worker:"
"""Prefix of RQ's record of a worker; the worker's name follows."""
WEIGHTS = "steno:weights:"
"""Prefix of the weights that a worker has, as pairs of engine and model; its name follows."""

FAILED_FETCHES = "steno:failed-fetches"
"""Weights that no source had lately: engine/model, scored by the Unix time by Redis' clock."""
FETCH_AGAIN_S = 600
"""How long after a failure they are not fetched again for a job that can do without."""

STORAGE_FULL = "steno:storage-full"
FULL_S = 90
"""Longer than the longest delay before a step is retried."""


def own_name() -> str:
    """A unique name for this process."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"


def of_this_host(silences: dict[str, float]) -> list[float]:
    """The silences of this host's processes, by their names."""
    host = socket.gethostname()
    return [silence_s for name, silence_s in silences.items() if name.rsplit("-", 2)[0] == host]


def count_alive(silences: dict[str, float]) -> int:
    """The number of processes with a recent heartbeat."""
    return sum(silence_s < SILENT_S for silence_s in silences.values())


def workers(redis: Redis) -> dict[str, float]:
    """Seconds since each worker's last heartbeat, by name.

    RQ keeps the record. Its times are by the worker's clock, so the record's own remaining lifetime
    is used instead.
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
    """Seconds since each dispatcher's last heartbeat, by name."""
    scored = cast("list[tuple[bytes, float]]", redis.zrange(DISPATCHERS, 0, -1, withscores=True))
    now = _now(redis)
    return {name.decode(): now - at for name, at in scored}


def report_dispatcher(redis: Redis, name: str) -> None:
    """Record a dispatcher's heartbeat: it runs, and reaches all that it needs."""
    now = _now(redis)
    pipeline = redis.pipeline(transaction=False)
    pipeline.zadd(DISPATCHERS, {name: now})
    pipeline.zremrangebyscore(DISPATCHERS, "-inf", now - FORGOTTEN_S)
    pipeline.execute()


def remove_dispatcher(redis: Redis, name: str) -> None:
    """Record that it has ended."""
    redis.zrem(DISPATCHERS, name)


def report_weights(redis: Redis, name: str, weights: Iterable[tuple[str, str]]) -> None:
    """Record which weights a worker has, for `SILENT_S`."""
    redis.set(f"{WEIGHTS}{name}", json.dumps(list(weights)), ex=SILENT_S)


def weights(redis: Redis) -> set[tuple[str, str]] | None:
    """Engine and model of all weights that live workers have; None without a live worker."""
    names = _registered(redis)
    if not names:
        return None
    found = cast("list[bytes | None]", redis.mget([f"{WEIGHTS}{name}" for name in names]))
    reports = [pairs for each in found if each and (pairs := _pairs(each)) is not None]
    return set().union(*reports) if reports else None


def report_failed_fetch(redis: Redis, engine: str, model: str) -> None:
    """Record for `FETCH_AGAIN_S` that these weights could not be fetched."""
    redis.zadd(FAILED_FETCHES, {f"{engine}/{model}": _now(redis)})


def failed_fetches(redis: Redis) -> set[tuple[str, str]]:
    """Engine and model of the weights that could not be fetched lately."""
    redis.zremrangebyscore(FAILED_FETCHES, "-inf", _now(redis) - FETCH_AGAIN_S)
    names = cast("list[bytes]", redis.zrange(FAILED_FETCHES, 0, -1))
    pairs = (name.decode().partition("/") for name in names)
    return {(engine, model) for engine, _, model in pairs}


def report_full_storage(redis: Redis) -> None:
    """Record for `FULL_S` that a worker found the storage full."""
    redis.set(STORAGE_FULL, "", ex=FULL_S)


def clear_full_storage(redis: Redis) -> None:
    """Record that a worker can write again."""
    redis.delete(STORAGE_FULL)


def storage_is_full(redis: Redis) -> bool:
    """Whether a worker recently found the storage full."""
    return bool(redis.exists(STORAGE_FULL))


def _pairs(report: bytes) -> set[tuple[str, str]] | None:
    """The weights that a worker reported; None where the report cannot be read."""
    try:
        return {(str(engine), str(model)) for engine, model in json.loads(report)}
    except (ValueError, TypeError):
        return None


def _registered(redis: Redis) -> list[str]:
    """The names of the workers that RQ knows, including those that died recently."""
    keys = cast("set[bytes]", redis.smembers(f"rq:workers:{QUEUE_NAME}"))
    return [key.decode().removeprefix(WORKER) for key in keys]


def _now(redis: Redis) -> float:
    """Unix time in seconds, by Redis' clock."""
    seconds, microseconds = redis.time()
    return seconds + microseconds / 1e6
