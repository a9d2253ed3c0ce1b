"""Connections to Postgres, and what their failures mean to the rest of the code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from common.db.tallies import write_tallies
from common.errors import OutcomeUnknown, Unavailable
from common.reach import malformed, postgres_refuses, postgres_trouble

DRIVERS = {"postgresql", "postgresql+psycopg", "postgres"}
"""Names of the one there is."""


class Database:
    """A pool of connections; one per process, made after the process has forked or spawned.

    Raises:
        SetupProblem: the URL is none.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._pool_size = pool_size
        self._engine = create_engine(
            parsed(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_pre_ping=True,
            pool_timeout=10,
            hide_parameters=True,  # they are what was said, and errors go to the log
            # Nobody should wait longer on a database that is gone than on one that says no.
            connect_args={
                "connect_timeout": 5,
                "application_name": "stenopool",
                # PgBouncer in transaction mode cannot keep prepared statements.
                "prepare_threshold": None,
                "options": "-c statement_timeout=60s -c idle_in_transaction_session_timeout=60s",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        What it counted (`common.db.tallies`) is written at its end.

        Raises:
            Unavailable: Postgres cannot be reached, or went away, and nothing was committed.
            OutcomeUnknown: it went away during the commit, which may have taken effect: repeat
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
            if not (isinstance(error, OperationalError) or error.connection_invalidated):
                raise
            raise failure(**lost(error)) from error

    def ping(self) -> None:
        """Raise `Unavailable` unless Postgres answers."""
        with self.transaction() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parsed(url: str) -> URL:
    """The parts of a Postgres URL.

    Raises:
        SetupProblem: it is none.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        found = None
    if found is None or found.drivername not in DRIVERS or "@" in (found.host or ""):
        raise malformed("DATABASE_URL", "postgresql://user:password@host:port/name") from None
    return found.set(drivername="postgresql")


def lost(error: DBAPIError) -> dict[str, Any]:
    """What `Unavailable` is to tell of a broken connection."""
    return {
        "what": "The database",
        "reason": postgres_trouble(error.orig),
        "final": postgres_refuses(error.orig),
    }
