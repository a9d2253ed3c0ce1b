"""The migrations make exactly the tables that the code has, and take them away again."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from uuid import UUID

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
    do_all,
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


def test_streams_can_be_removed_without_a_trace_and_added_again(database_url: str) -> None:
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


FILLED = ROOT / "tests" / "support" / "filled_0008.json"
"""Rows that the code of revision 0008 has left of jobs in every state, most of them in mid-job when
it was killed (``tables``), and what it said of each of these jobs (``jobs``)."""


def fill(database_url: str) -> dict[str, Any]:
    """Make the tables of revision 0008 and fill them; returns what is in `FILLED`."""
    upgrade(database_url, "0008")
    filled: dict[str, Any] = json.loads(FILLED.read_text())
    with create_engine(database_url).begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))  # in any order
        for table, rows in filled["tables"].items():
            columns = ", ".join(rows[0])
            connection.execute(
                text(
                    f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns}"  # noqa: S608
                    f" FROM jsonb_populate_recordset(NULL::{table}, CAST(:rows AS jsonb))"
                ),
                {"rows": json.dumps(rows)},
            )
        for table in ("failures", "outbox"):
            sequence = f"pg_get_serial_sequence('{table}', 'id')"
            connection.execute(text(f"SELECT setval({sequence}, max(id)) FROM {table}"))  # noqa: S608
        connection.execute(text("SELECT setval('turns', max(since)) FROM job_turns"))
    return filled


def rows_of(database_url: str, table: str) -> list[Any]:
    rows = text(f"SELECT to_jsonb(it) FROM {table} AS it ORDER BY to_jsonb(it)::text")  # noqa: S608
    with create_engine(database_url).connect() as connection:
        return list(connection.scalars(rows))


def test_an_upgrade_keeps_the_state_of_every_job(empty_database_url: str) -> None:
    filled = fill(empty_database_url)

    upgrade(empty_database_url)

    with Database(empty_database_url) as database:
        jobs = Jobs(database, TENANT)
        for name, before in filled["jobs"].items():
            snapshot = jobs.snapshot(UUID(before.pop("job_id")))
            after = {key: getattr(snapshot, key) for key in before}
            # A recording without speech has no progress to make: it is at its end before the merge.
            before["progress"] = 95 if name == "silent" else before["progress"]
            assert after | {"warnings": list(snapshot.warnings)} == before, name


def test_jobs_that_were_in_mid_way_are_done_after_it(empty_database_url: str) -> None:
    filled = fill(empty_database_url)
    upgrade(empty_database_url)
    with Database(empty_database_url) as database:
        steps, jobs = make_steps(database), Jobs(database, TENANT)
        for name in ("failed", "failed_merge"):
            jobs.retry(UUID(filled["jobs"][name]["job_id"]))
        with database.transaction() as session:  # whoever had them is killed
            session.execute(text("UPDATE steps SET lease_until = now(), run_after = now()"))
            session.execute(text("UPDATE outbox SET due_at = now()"))
        steps.rescue_expired()
        steps.publish_again(step_id for step_id, _ in steps.published())

        do_all(steps)

        for name, before in filled["jobs"].items():
            ended = jobs.snapshot(UUID(before["job_id"])).status
            was_left = name.startswith(("awaited", "failed_fetch", "cancelled"))
            assert ended == (before["status"] if was_left else "COMPLETED"), name
        done = text("SELECT DISTINCT stored_count FROM steps WHERE status = 'done'")
        with database.transaction() as session:
            assert session.scalars(done).all() == [1]


def test_it_can_be_taken_back_and_everything_is_as_it_was(empty_database_url: str) -> None:
    filled = fill(empty_database_url)
    upgrade(empty_database_url)

    downgrade(empty_database_url, "0008")

    for table, before in filled["tables"].items():
        after = rows_of(empty_database_url, table)
        for row in after:
            row.pop("lane", None)

        def by_content(row: Any) -> str:
            return json.dumps(row, sort_keys=True)

        for row, was in zip(
            sorted(after, key=by_content), sorted(before, key=by_content), strict=True
        ):
            assert row == was, table


def test_processes_that_migrate_at_once_do_not_collide(empty_database_url: str) -> None:
    migrate = f"from common.db.migrate import upgrade; upgrade({empty_database_url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", migrate], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]

    errors = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], errors
    current, newest = revisions(empty_database_url)
    assert current == newest
