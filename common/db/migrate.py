"""Upgrades and downgrades a database. The migrations are in ``migrations/versions``."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from common.db.database import parsed, unavailable_details
from common.db.version import newest_version
from common.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]


def upgrade(database_url: str, revision: str = "head") -> None:
    """Apply the missing migrations; safe to run from several processes at once.

    Raises:
        SetupProblem: the URL is invalid.
        Unavailable: Postgres is unavailable.
    """
    config = _config(database_url)
    try:
        command.upgrade(config, revision)
    except OperationalError as error:
        raise Unavailable(**unavailable_details(error)) from error


def downgrade(database_url: str, revision: str) -> None:
    """Downgrade to ``revision`` (``base``: to no tables)."""
    command.downgrade(_config(database_url), revision)


def revisions(database_url: str) -> tuple[str | None, str]:
    """The database's revision and this code's newest; equal if the database is up to date.

    Raises:
        SetupProblem: the URL is invalid.
        Unavailable: Postgres is unavailable.
    """
    engine = create_engine(
        parsed(database_url), poolclass=NullPool, connect_args={"connect_timeout": 5}
    )
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision(), newest_version()
    except OperationalError as error:
        raise Unavailable(**unavailable_details(error)) from error


def _config(database_url: str) -> Config:
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["database_url"] = parsed(database_url)
    return config
