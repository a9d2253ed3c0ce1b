"""Whether a database has this version's tables."""

from __future__ import annotations

from functools import cache

from psycopg.errors import UndefinedTable
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from common.db.database import Database
from common.errors import NotMigrated
from common.settings import ROOT


@cache
def newest_revision() -> str:
    """The revision that this version needs: the last in ``migrations/versions``, by name."""
    return max(path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))[:4]


def check_revision(database: Database) -> None:
    """Raise `NotMigrated` unless the database is at this version's revision."""
    try:
        with database.transaction() as session:
            found = session.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise not_migrated(None) from error
        raise
    if found != newest_revision():
        raise not_migrated(found)


def not_migrated(found: str | None) -> NotMigrated:
    """The error for a database at revision ``found``; None: without tables."""
    newest = newest_revision()
    newer = found is not None and found > newest
    return NotMigrated(
        found=found or "nothing",
        newest=newest,
        remedy="it is a newer version's" if newer else "run `steno migrate`",
        final=newer,
    )
