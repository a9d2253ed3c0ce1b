"""The state of the service over all tenants: counters, and what waits now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.tables import NOW, Job, Step, StreamSession, WebhookDelivery, WebhookEndpoint
from common.db.tallies import Tallied
from common.db.usage import is_live
from common.domain.job import JobStatus, Priority, StepStatus
from common.domain.pipeline import kinds_of_steps
from common.domain.webhooks import DeliveryStatus

_SUBMITTED = func.coalesce(Job.retried_at, Job.created_at)
SINCE = {
    JobStatus.PENDING: _SUBMITTED,
    JobStatus.PROCESSING: _SUBMITTED,
    JobStatus.REVIEW: Job.paused_at,
}
"""The jobs that are counted, by status, and when each began to wait."""
MOST = 1_000
"""At most so many of a kind are counted."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many wait (`MOST`: that many or more), and the age of the oldest in seconds, or 0."""

    count: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DatabaseServer:
    """Postgres itself: the size of our database, and all its connections and their limit."""

    database_bytes: int
    connections: int
    connections_limit: int


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything at one instant; a step waits if it is due and no worker runs it."""

    tallied: Tallied
    jobs: Mapping[JobStatus, Waiting]
    """Those of `SINCE`; in REVIEW their age counts from when it began, else from submission."""
    steps_waiting: Mapping[tuple[str, Priority], Waiting]
    steps_running: Mapping[str, int]
    deliveries_due: Waiting
    streams_open: int
    server: DatabaseServer


def observe_service(database: Database) -> Observed:
    """Read everything by a few queries, each over an index.

    Raises:
        Unavailable: Postgres is unavailable.
    """
    with database.transaction() as session:
        return Observed(
            tallied=Tallied(session),
            jobs=_jobs(session),
            steps_waiting=_steps_waiting(session),
            steps_running=_steps_running(session),
            deliveries_due=_deliveries_due(session),
            streams_open=_streams_open(session),
            server=_server(session),
        )


def _jobs(session: Session) -> dict[JobStatus, Waiting]:
    return {
        status: _first(session, select(since.label("since")).where(Job.status == status))
        for status, since in SINCE.items()
    }


def _steps_waiting(session: Session) -> dict[tuple[str, Priority], Waiting]:
    kinds = {"kinds": kinds_of_steps(), "priorities": list(Priority), "most": MOST}
    found = {
        (row.kind, Priority(row.priority)): _value(min(MOST, row.number), row.age)
        for row in session.execute(_STEPS_WAITING, kinds)
    }
    return {
        (kind, priority): found.get((kind, priority), Waiting())
        for kind in kinds_of_steps()
        for priority in Priority
    }


def _steps_running(session: Session) -> dict[str, int]:
    rows = session.execute(
        select(Step.kind, func.count().label("number"))
        .where(Step.status == StepStatus.RUNNING, Step.lease_until > NOW)
        .group_by(Step.kind)
    )
    found = {row.kind: row.number for row in rows}
    return {kind: found.get(kind, 0) for kind in kinds_of_steps()}


def _deliveries_due(session: Session) -> Waiting:
    due = WebhookDelivery.due_at
    return _first(
        session,
        select(due.label("since"))
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.status == DeliveryStatus.PENDING,
            due <= NOW,
            WebhookEndpoint.paused_at.is_(None),
        ),
    )


def _streams_open(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(StreamSession).where(is_live())) or 0


def _server(session: Session) -> DatabaseServer:
    # Any user may read the number of connections, but not what those of others do.
    row = session.execute(
        text(
            "SELECT pg_database_size(current_database()), sum(numbackends),"
            " current_setting('max_connections')::int FROM pg_stat_database"
        )
    ).one()
    return DatabaseServer(*map(int, row))


def _first(session: Session, waiting: Select[Any]) -> Waiting:
    """Count the oldest rows by ``since``, at most `MOST`, in the order of an index."""
    rows = waiting.order_by("since").limit(MOST).subquery()
    age = func.extract("epoch", func.clock_timestamp() - func.min(rows.c.since))
    number, oldest_s = session.execute(select(func.count(), age).select_from(rows)).one()
    return _value(number, oldest_s)


def _value(count: int, age: Decimal | float | None) -> Waiting:
    return Waiting(count, max(0.0, float(age or 0)))


# Queued steps, due steps that are not queued yet, and published steps that are not claimed.
_STEPS_WAITING = text("""
    SELECT kind, priority, count(*) AS number,
        extract(epoch FROM clock_timestamp() - min(since)) AS age
    FROM (
        SELECT kind, priority, since
        FROM unnest(CAST(:kinds AS text[])) AS kind,
        unnest(CAST(:priorities AS smallint[])) AS priority,
        LATERAL (
            SELECT due_at AS since FROM outbox
            WHERE outbox.kind IS NOT NULL AND outbox.priority = priority.priority
            AND outbox.kind = kind.kind ORDER BY due_at LIMIT :most
        ) AS in_line
        UNION ALL (
            SELECT found.kind, found.priority, due_at
            FROM outbox, LATERAL (
                SELECT steps.kind, jobs.priority FROM steps JOIN jobs ON jobs.id = steps.job_id
                WHERE steps.id = step_id OFFSET 0
            ) AS found
            WHERE outbox.job_id IS NULL AND due_at <= statement_timestamp()
            ORDER BY due_at LIMIT :most
        )
        UNION ALL
        SELECT steps.kind, jobs.priority, run_after
        FROM steps JOIN jobs ON jobs.id = steps.job_id
        WHERE steps.status = 'pending' AND rq_job_id IS NOT NULL
        AND run_after <= statement_timestamp()
    ) AS waiting
    GROUP BY kind, priority
""")
