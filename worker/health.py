"""Checks this host's worker or dispatcher: `python -m worker.health worker`.

For a container's health check: it exits with 0, or with 1 and one line that names the problem.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from common.errors import DatabaseReadOnly, StenoError, Unavailable
from common.net.reach import malformed, postgres_rejects, postgres_trouble, redis_trouble
from common.redis import presence
from common.settings import DatabaseSettings, RedisSettings

TIMEOUT_S = 5


def check_worker() -> None:
    """Raise unless a worker of this host sends heartbeats and Postgres takes writes."""
    age_s = _age_s(presence.workers)
    if age_s is None:
        raise _Unhealthy(reason="no worker of this host is registered in Redis")
    if age_s >= presence.SILENT_S:
        raise _Unhealthy(reason=f"the worker's last heartbeat is {age_s:.0f} s old")
    check_postgres()


def check_dispatcher() -> None:
    """Raise unless a dispatcher of this host reached all its services a moment ago."""
    age_s = _age_s(presence.dispatchers)
    if age_s is not None and age_s < presence.SILENT_S:
        return
    check_postgres()  # the likely cause
    if age_s is None:
        raise _Unhealthy(reason="no dispatcher of this host is registered in Redis")
    raise _Unhealthy(reason=f"the dispatcher last reached all its services {age_s:.0f} s ago")


def _age_s(read: Callable[[Redis], dict[str, float]]) -> float | None:
    """Seconds since the last heartbeat from this host; None: there was none."""
    address = RedisSettings().address
    if address is None:
        raise _Unhealthy(reason="neither REDIS_URL nor REDIS_HOST is set")
    try:
        with Redis.from_url(
            address, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as redis:
            return min(presence.of_this_host(read(redis)), default=None)
    except ValueError:
        raise malformed("REDIS_URL", "redis://[:password@]host:port/db") from None
    except RedisError as error:
        raise redis_trouble(error) from error


def check_postgres() -> None:
    """Raise unless Postgres takes writes."""
    import psycopg

    address = DatabaseSettings().address
    if address is None:
        raise _Unhealthy(reason="DATABASE_URL is not set")
    scheme, _, rest = address.partition("://")
    try:
        # the scheme without the driver that SQLAlchemy accepts
        with psycopg.connect(
            f"{scheme.partition('+')[0]}://{rest}", connect_timeout=TIMEOUT_S
        ) as connection:
            (read_only,) = connection.execute("SHOW transaction_read_only").fetchone() or ("",)
    except psycopg.Error as error:
        raise Unavailable(
            what="The database", reason=postgres_trouble(error), final=postgres_rejects(error)
        ) from error
    if read_only == "on":
        raise DatabaseReadOnly(what="The database", reason="it is read-only (see DATABASE_URL)")


class _Unhealthy(StenoError):
    """Unhealthy: {reason}."""


CHECKS = {"worker": check_worker, "dispatcher": check_dispatcher}


def main(arguments: list[str]) -> int:
    """Run one check; returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        sys.stderr.write(f"usage: python -m worker.health {'|'.join(CHECKS)}\n")
        return 2
    try:
        CHECKS[arguments[0]]()
    except StenoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
