"""The migrations make exactly the tables that the code has, and take them away again."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.migrate import downgrade, revisions, upgrade
from common.db.streams import Streams
from common.db.tables import Base
from common.errors import NotFound
from common.settings import ROOT
from tests.support.factories import (
    MODERATED,
    TENANT,
    claim_next,
    finish_chunk,
    make_steps,
    new_final,
    open_stream,
    plan_chunks,
    submit_job,
)


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


def test_jobs_that_wait_for_moderation_go_on_when_it_is_taken_back(database_url: str) -> None:
    with Database(database_url) as database:
        steps = make_steps(database)
        cancelled = submit_job(database, options=MODERATED)
        plan_chunks(steps, 1)
        finish_chunk(steps, claim_next(steps))
        Jobs(database, TENANT).cancel(cancelled)
        waiting = submit_job(database, options=MODERATED)
        plan_chunks(steps, 1)
        finish_chunk(steps, claim_next(steps))

        downgrade(database_url, "0001")

        with database.transaction() as session:
            columns = "kind, status, steps.job_id = :waiting AND outbox.id IS NOT NULL AS rings"
            left = session.execute(
                text(
                    f"SELECT {columns} FROM steps LEFT JOIN outbox ON step_id = steps.id"  # noqa: S608
                    " WHERE steps.job_id = :waiting OR kind = 'merge' ORDER BY kind"
                ),
                {"waiting": waiting},
            ).all()
        assert left == [
            ("merge", "pending", True),
            ("plan", "done", False),
            ("transcribe", "done", False),
        ]
        upgrade(database_url)
        assert claim_next(steps).job_id == waiting


def test_streams_go_without_a_trace_when_they_are_taken_back_and_can_come_again(
    database_url: str,
) -> None:
    with Database(database_url) as database:
        streams = Streams(database, TENANT)
        deleted, kept = open_stream(database), open_stream(database)
        streams.add(kept, [new_final(1)])
        streams.delete(deleted)
        job_id = submit_job(database)
        Deletions(database, TENANT).delete(job_id)

        downgrade(database_url, "0003")
        upgrade(database_url)

        receipts = Deletions(database, TENANT).page(limit=10, after=None)
        assert [(it.kind, it.id) for it in receipts.items] == [("job", job_id)]
        with pytest.raises(NotFound):
            streams.get(kept)
        open_stream(database)


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
