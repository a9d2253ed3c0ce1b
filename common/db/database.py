"""Connections to Postgres, and the mapping of their failures to this service's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from psycopg.errors import UndefinedTable
from sqlalchemy import URL, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from common.db.tallies import write_tallies
from common.errors import DatabaseFull, DatabaseReadOnly, OutcomeUnknown, Unavailable
from common.net.reach import malformed, postgres_rejects, postgres_trouble

DRIVERS = {"postgresql", "postgresql+psycopg", "postgres"}
"""Names of the one supported driver."""

READ_ONLY, DISK_FULL = "25006", "53100"
TRANSIENT = ("08", "25P03", "40", "53", "55P03", "57", "58", READ_ONLY)
"""Prefixes of the SQLSTATEs of transient errors: connections, conflicts with other transactions,
resources, an operator's or a server's intervention, the system below, a failover
(www.postgresql.org/docs/current/errcodes-appendix.html)."""

ATTEMPT = text("INSERT INTO tallies (name, labels) VALUES ('attempt', gen_random_uuid()::text)")


class Database:
    """A pool of connections; one per process, made after the process has forked or spawned.

    Raises:
        SetupProblem: the URL is invalid.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._pool_size = pool_size
        self._engine = create_engine(
            parsed(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_pre_ping=True,
            pool_timeout=10,
            hide_parameters=True,  # they contain texts, and errors are logged
            # A lost database should not block longer than one that rejects.
            connect_args={
                "connect_timeout": 5,
                "application_name": "stenopool",
                # PgBouncer in transaction mode cannot keep prepared statements.
                "prepare_threshold": None,
                # In UTC a day has 24 hours, whatever the server's time zone.
                "options": "-c timezone=UTC -c statement_timeout=60s"
                " -c idle_in_transaction_session_timeout=60s",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            },
        )
        event.listen(self._engine, "handle_error", _disconnect_from_standby)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Its counts (`common.db.tallies`) are written at its end.

        Raises:
            Unavailable: Postgres is unavailable, was lost, or failed with a transient error;
                nothing was committed.
            OutcomeUnknown: Postgres was lost during the commit, which may have taken effect: retry
                only what is guarded by a token or a key.
        """
        failure: type[Unavailable] = Unavailable
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
                write_tallies(session)
                failure = OutcomeUnknown
        except PoolTimeoutError as error:
            reason = f"all {self._pool_size} connections are in use (see DATABASE_POOL_SIZE)"
            raise failure(what="The database", reason=reason) from error
        except DBAPIError as error:
            if not _is_transient(error):
                raise
            raise _KINDS.get(_sqlstate(error), failure)(**unavailable_details(error)) from error

    def ping(self) -> None:
        """Raise `Unavailable` unless Postgres takes writes; tries one and rolls it back."""
        try:
            with self.transaction() as session:
                session.execute(ATTEMPT)
                session.rollback()
        except ProgrammingError as error:
            # A database without tables answers too: see `check_version`.
            if not isinstance(error.orig, UndefinedTable):
                raise

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parsed(url: str) -> URL:
    """The parts of a Postgres URL.

    Raises:
        SetupProblem: it is invalid.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        found = None
    if found is None or found.drivername not in DRIVERS or "@" in (found.host or ""):
        raise malformed("DATABASE_URL", "postgresql://user:password@host:port/name") from None
    return found.set(drivername="postgresql")


_KINDS: dict[str | None, type[Unavailable]] = {
    READ_ONLY: DatabaseReadOnly,
    DISK_FULL: DatabaseFull,
}


def _sqlstate(error: DBAPIError) -> str | None:
    """The server's error code; None: the connection was lost or never made."""
    return getattr(error.orig, "sqlstate", None)


def _is_transient(error: DBAPIError) -> bool:
    sqlstate = _sqlstate(error)
    if error.connection_invalidated or sqlstate is None:
        return error.connection_invalidated or isinstance(error, OperationalError)
    return sqlstate.startswith(TRANSIENT)


def _disconnect_from_standby(context: ExceptionContext) -> None:
    """Reconnect when a server takes no writes: after a failover another one does."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def unavailable_details(error: DBAPIError) -> dict[str, Any]:
    """The arguments of `Unavailable` for a lost connection."""
    return {
        "what": "The database",
        "reason": postgres_trouble(error.orig),
        "final": postgres_rejects(error.orig),
    }
