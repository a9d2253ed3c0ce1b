"""The migrations make exactly the tables that the code has, and take them away again."""

from __future__ import annotations

import subprocess
import sys

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from common.db.migrate import downgrade, revisions, upgrade
from common.db.tables import Base
from common.settings import ROOT


def test_the_migrations_and_the_tables_agree(database_url: str) -> None:
    with create_engine(database_url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_migration_can_be_taken_back(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    downgrade(empty_database_url, "base")

    engine = create_engine(empty_database_url)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    assert revisions(empty_database_url)[0] is None


def test_processes_that_migrate_at_once_do_not_collide(empty_database_url: str) -> None:
    migrate = f"from common.db.migrate import upgrade; upgrade({empty_database_url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", migrate], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]

    errors = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], errors
    current, newest = revisions(empty_database_url)
    assert current == newest
