"""What the service asks Postgres over and over, with few rows and with very many.

Run ``scripts/test --system rows``. It starts a Postgres of its own, measures each operation on
tables with some hundred jobs, fills them by SQL, and measures again. Prints for each operation the
best time, the rows that Postgres read for it, and how often as much the worse of the two is, where
time counts half: rows show a table that was read from end to end, whatever the machine does beside.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import click
from sqlalchemy import text
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.listing import JobFilter, JobLists
from common.db.migrate import upgrade
from common.db.monitoring import observe_service
from common.db.retention import Retention
from common.db.steps import RetryPolicy, Steps
from common.db.usage import Quota, Usage
from common.db.vault import Vault
from common.db.webhooks import Deliveries
from common.domain.job import JobStatus
from common.domain.request import Options
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, all_met, show
from scripts.cli.console import make_console
from scripts.stack.embedded import EmbeddedPostgres
from tests.support.factories import new_job, new_recording

LIMIT = 1.5
"""What is promised: how often as much an operation may take."""
SLOWER = 2.0
"""What deeper indexes and colder caches cost at most; a table that is read from end to end takes a
hundred times as long."""
NOISE_MS = 2.0
"""What takes less is taken to take this."""
FEW_ROWS = 10_000
"""The same of rows: counts read up to a thousand each, and those of a list up to two hundred."""
TENANT, KEY, MODEL = "tenant-1", "key-1", "base"
FEW = 300
"""Enough for each tenant to have a full page of them."""


class Counting(Database):
    """Counts the rows that Postgres reads in its transactions."""

    rows = 0

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """As any database's."""
        with super().transaction() as session:
            before = session.execute(_ROWS_READ).scalar_one()
            yield session
            session.flush()
            self.rows += int(session.execute(_ROWS_READ).scalar_one() - before)


# Those of earlier transactions may be in it still.
_ROWS_READ = text(
    "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))"
    " FROM pg_stat_xact_user_tables"
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operation: milliseconds at best, as others only add to them, and rows read."""

    took_ms: float
    rows: float


def times(few: Cost, many: Cost) -> float:
    """How often as much an operation costs with many rows: in rows, or in time beyond `SLOWER`."""
    took = max(many.took_ms, NOISE_MS) / max(few.took_ms, NOISE_MS) / SLOWER
    return max(took, max(many.rows, FEW_ROWS) / max(few.rows, FEW_ROWS))


def fill(database: Database, *, queued: int, finished: int) -> None:
    """Add so many jobs, over ten tenants with a key each, and what belongs to them."""
    with database.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        options = json.dumps(Options().to_json())
        for statement in _FILL:
            given = {"queued": queued, "finished": finished, "options": options}
            session.execute(text(statement), given)
    # As autovacuum would, in its time.
    with database._engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))


def operations(database: Counting) -> dict[str, Callable[[], object]]:
    """What is done per request, per tick of the dispatcher, and per scrape."""
    steps = Steps(database, lease_s=30.0, retry=RetryPolicy(3, 0.0))
    jobs, lists = Jobs(database, TENANT), JobLists(database, TENANT)
    retention = Retention(database, grace_s=30.0)
    deliveries = Deliveries(
        database, lease_s=30, delays_s=[1], at_once_each=4, pause_after=9, vault=Vault()
    )
    quota = Quota(concurrent_jobs=10_000_000, audio_ms_per_day=10**12)
    usage = Usage(database, TENANT, KEY)
    pending, completed = _some(database, JobStatus.PENDING), _some(database, JobStatus.COMPLETED)

    def page(**which: object) -> Callable[[], object]:
        return lambda: lists.page(JobFilter(**which), limit=20, after=None)  # type: ignore[arg-type]

    def claim() -> None:
        handed_out: list[UUID] = []
        steps.publish(1, lambda rows: handed_out.extend(row.step_id for row in rows))
        for step_id in handed_out:
            steps.claim(step_id, "worker")
            steps.hand_back("worker", step_id)

    def submit() -> None:
        job = new_job(key_id=KEY, quota=quota)
        jobs.submit(new_recording(), job)
        jobs.cancel(job.id)

    return {
        "publish a step, claim it, hand it back": claim,
        "publish with no worker free": lambda: steps.publish(0, lambda _: None),
        "any_open": steps.any_open,
        "handed_out": steps.handed_out,
        "published": steps.published,
        "rescue_expired": steps.rescue_expired,
        "fail_overdue_jobs": lambda: steps.fail_overdue_jobs(10**9),
        "status of a job in the queue": lambda: jobs.snapshot(pending),
        "status of a completed job": lambda: jobs.snapshot(completed),
        "submit and cancel": submit,
        "usage check": lambda: usage.check(quota),
        "usage by day": lambda: usage.days(30),
        "jobs": page(),
        "jobs, status=FAILED": page(statuses=[JobStatus.FAILED]),
        "jobs, status=PENDING": page(statuses=[JobStatus.PENDING]),
        "jobs, status=FAILED,CANCELLED": page(statuses=[JobStatus.FAILED, JobStatus.CANCELLED]),
        "jobs, model=": page(model="tiny"),
        "jobs, recording_id=": page(recording_id="recording-7"),
        "history": lambda: lists.finished(limit=20, after=None),
        "metrics": lambda: observe_service(database),
        "next to clean": lambda: retention.next_due_s(3600.0, 3600.0),
        "review": lambda: retention.end_review(3600.0),
        "sweep": lambda: retention.sweep(lambda _: True),
        "expired": lambda: retention.expired(100),
        "deleted": lambda: retention.deleted(100),
        "cancel_unsent": lambda: retention.cancel_unsent(10**9),
        "end_silent_streams": retention.end_silent_streams,
        "claim webhook messages": lambda: deliveries.claim(0) or deliveries.claim(10),
        "next webhook message": deliveries.next_due_s,
        "prune webhook messages": lambda: deliveries.prune(10_000),
    }


def measure(database: Counting, repeat: int) -> dict[str, Cost]:
    """What each operation costs."""
    return {name: _cost(database, run, repeat) for name, run in operations(database).items()}


def _cost(database: Counting, run: Callable[[], object], repeat: int) -> Cost:
    run()
    before, took_ms = database.rows, []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        took_ms.append((time.perf_counter() - start) * 1000)
    return Cost(min(took_ms), (database.rows - before) / repeat)


def _some(database: Database, status: JobStatus) -> UUID:
    found = text("SELECT id FROM jobs WHERE tenant = :tenant AND status = :status LIMIT 1")
    with database.transaction() as session:
        return UUID(str(session.execute(found, {"tenant": TENANT, "status": status}).scalar_one()))


# One of a thousand has failed: who looks for those has to look far.
_FILL = (
    """
    CREATE TEMPORARY TABLE numbers ON COMMIT DROP AS
    SELECT gen_random_uuid() AS id, number, number <= :queued AS queued,
        'tenant-' || number % 10 AS tenant, 'key-' || number % 10 AS key,
        now() - number * interval '1 s' AS at
    FROM generate_series(1, CAST(:queued AS bigint) + CAST(:finished AS bigint)) AS number
    """,
    """
    INSERT INTO recordings (id, tenant, filename, container, codec, size_bytes, sha256, upload_ms)
    SELECT id, tenant, 'a.mp3', 'mp3', 'mp3', 1000000, repeat('0', 64), 10 FROM numbers
    """,
    """
    INSERT INTO jobs (
        id, tenant, key_id, recording_id, status, priority, engine, model, language, options,
        phase, parts_known, units_total, client_recording_id, created_at, started_at, completed_at,
        delete_at
    )
    SELECT id, tenant, key, id,
        CASE WHEN queued THEN 'PENDING' WHEN number % 1000 = 1 THEN 'FAILED' ELSE 'COMPLETED' END,
        1, 'faster-whisper', CASE WHEN number % 1000 < 10 THEN 'tiny' ELSE 'base' END, 'en',
        CAST(:options AS jsonb), CASE WHEN queued THEN 'chunks' ELSE 'merge' END, NOT queued,
        60000 * (1 + number % 60),
        'recording-' || number, at, CASE WHEN NOT queued THEN at END,
        CASE WHEN NOT queued THEN at END, CASE WHEN NOT queued THEN at + interval '1 year' END
    FROM numbers
    """,
    "INSERT INTO transcriptions (job_id) SELECT id FROM numbers",
    """
    INSERT INTO steps (id, job_id, kind, status, attempt, failures, losses)
    SELECT id, id, 'plan', CASE WHEN queued THEN 'pending' ELSE 'done' END, 0, 0, 0 FROM numbers
    """,
    "INSERT INTO outbox (step_id) SELECT id FROM numbers WHERE queued ORDER BY number",
    """
    INSERT INTO transcripts (
        job_id, revision, language, duration_ms, word_count, segments, manifest
    )
    SELECT id, 1, 'en', 60000, 0, '[]', '{}' FROM numbers WHERE NOT queued
    """,
    """
    INSERT INTO job_metrics (
        job_id, audio_ms, speech_ms, upload_ms, waited_ms, plan_ms, engine_ms, merge_ms, wall_ms,
        attempts
    )
    SELECT id, 60000, 50000, 1, 1, 1, 1, 1, 1, 3 FROM numbers WHERE NOT queued
    """,
    """
    INSERT INTO webhook_deliveries (
        tenant, job_id, event, url, payload, status, attempt, due_at, created_at, ended_at
    )
    SELECT tenant, id, 'job.completed', 'https://receiver.example/', '{}', 'delivered', 1, at, at,
        at
    FROM numbers WHERE NOT queued
    """,
    """
    INSERT INTO webhook_deliveries (tenant, job_id, event, url, payload, status, attempt, due_at)
    SELECT tenant, id, 'transcription.failed', 'https://receiver.example/', '{}', 'pending', 1,
        now() + interval '1 day'
    FROM numbers WHERE queued
    """,
    """
    INSERT INTO usage_days (tenant, key_id, day, jobs)
    SELECT DISTINCT tenant, key, CAST(now() AS date) - CAST(number / 10 AS integer), 1
    FROM numbers WHERE number < 30000
    ON CONFLICT DO NOTHING
    """,
)


def report(few: dict[str, Cost], many: dict[str, Cost]) -> BenchPart:
    """What each operation costs."""
    comparison = Comparison(
        (
            Column("few", "ms"),
            Column("many", "ms"),
            Column("rows: few", "", 0),
            Column("many", "", 0),
        )
    )
    for name in few:
        comparison.add(name, few[name].took_ms, many[name].took_ms, few[name].rows, many[name].rows)
    figures = (Figure(name, (times(few[name], many[name]),), "x", 2, Target(LIMIT)) for name in few)
    return BenchPart("rows", "Few rows and many", tuple(figures), comparison)


@click.command()
@click.option("--queued", default=100_000, show_default=True)
@click.option("--finished", default=1_000_000, show_default=True)
@click.option("--repeat", default=30, show_default=True)
def main(queued: int, finished: int, repeat: int) -> None:
    """Fill the tables; exits with 1 where an operation costs more than 1.5 times as much."""
    with (
        tempfile.TemporaryDirectory(prefix="stenopool-rows-") as folder,
        EmbeddedPostgres(Path(folder)) as server,
    ):
        upgrade(server.url)
        with Counting(server.url, pool_size=2) as database:
            fill(database, queued=FEW, finished=FEW * 10)
            few = measure(database, repeat)
            fill(database, queued=queued, finished=finished)
            many = measure(database, repeat)
    part = report(few, many)
    show(part, make_console())
    sys.exit(not all_met([part]))
