"""Connections to Postgres, and what their failures mean to the rest of the code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from common.db.tallies import write_tallies
from common.errors import OutcomeUnknown, Unavailable


class Database:
    """A pool of connections; one per process, made after the process has forked or spawned."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._engine = create_engine(
            url,
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
        except (OperationalError, PoolTimeoutError) as error:
            raise failure(what="The database") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise failure(what="The database") from error
            raise

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
