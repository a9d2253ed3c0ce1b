"""Whether this host's worker or dispatcher does its work: `python -m worker.health worker`.

For a container's health check: it ends with 0, or with 1 and a line that says what is wrong.
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

PATIENCE_S = 5


def check_worker() -> None:
    """Raise unless a worker of this host tells that it lives, and Postgres answers."""
    silence_s = _silence_s(presence.workers)
    if silence_s is None:
        raise _Ill(reason="no worker of this host is registered in Redis")
    if silence_s >= presence.SILENT_S:
        raise _Ill(reason=f"the worker's last heartbeat is {silence_s:.0f} s old")
    check_postgres()


def check_dispatcher() -> None:
    """Raise unless a dispatcher of this host had all that it needs a moment ago."""
    silence_s = _silence_s(presence.dispatchers)
    if silence_s is not None and silence_s < presence.SILENT_S:
        return
    check_postgres()  # which would be why
    if silence_s is None:
        raise _Ill(reason="no dispatcher of this host has told Redis that it lives")
    raise _Ill(reason=f"the dispatcher last had all that it needs {silence_s:.0f} s ago")


def _silence_s(look: Callable[[Redis], dict[str, float]]) -> float | None:
    """Since one of this host was last heard of; None: none was."""
    address = RedisSettings().address
    if address is None:
        raise _Ill(reason="neither REDIS_URL nor REDIS_HOST is set")
    try:
        with Redis.from_url(
            address, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S
        ) as redis:
            return min(presence.of_this_host(look(redis)), default=None)
    except ValueError:
        raise malformed("REDIS_URL", "redis://[:password@]host:port/db") from None
    except RedisError as error:
        raise redis_trouble(error) from error


def check_postgres() -> None:
    """Raise unless Postgres takes writes."""
    import psycopg

    address = DatabaseSettings().address
    if address is None:
        raise _Ill(reason="DATABASE_URL is not set")
    scheme, _, rest = address.partition("://")
    try:
        # without the driver that SQLAlchemy may be told of
        with psycopg.connect(
            f"{scheme.partition('+')[0]}://{rest}", connect_timeout=PATIENCE_S
        ) as connection:
            (read_only,) = connection.execute("SHOW transaction_read_only").fetchone() or ("",)
    except psycopg.Error as error:
        raise Unavailable(
            what="The database", reason=postgres_trouble(error), final=postgres_rejects(error)
        ) from error
    if read_only == "on":
        raise DatabaseReadOnly(what="The database", reason="it is read-only (see DATABASE_URL)")


class _Ill(StenoError):
    """Not well: {reason}."""


CHECKS = {"worker": check_worker, "dispatcher": check_dispatcher}


def main(arguments: list[str]) -> int:
    """The exit status."""
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
