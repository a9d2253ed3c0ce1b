"""Whether a database has this version's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from psycopg.errors import UndefinedTable
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from common.db.database import Database
from common.errors import NotMigrated
from common.settings import ROOT


@cache
def newest_version() -> str:
    """The version of the tables that this code needs: the last in ``migrations/versions``."""
    return max(path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))[:4]


def check_version(database: Database) -> None:
    """Raise `NotMigrated` unless the database is at this version's revision."""
    with migrated_transaction(database) as session:
        found = session.scalar(text("SELECT version_num FROM alembic_version"))
    if found != newest_version():
        raise _not_migrated(found)


@contextmanager
def migrated_transaction(database: Database) -> Iterator[Session]:
    """A transaction that also raises `NotMigrated`."""
    try:
        with database.transaction() as session:
            yield session
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise _not_migrated(None) from error
        raise


def _not_migrated(found: str | None) -> NotMigrated:
    """The error for a database at revision ``found``; None: without tables."""
    newest = newest_version()
    newer = found is not None and found > newest
    return NotMigrated(
        found=found or "nothing",
        newest=newest,
        remedy="it is a newer version's" if newer else "run `steno migrate`",
        final=newer,
    )
