"""How the service is doing, over all tenants: what was counted, and what waits at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.tables import Job, Step, StreamSession, WebhookDelivery, WebhookEndpoint
from common.db.tallies import Tallied
from common.db.usage import is_live
from common.domain.job import JobStatus, Priority, StepKind, StepStatus
from common.domain.webhooks import DeliveryStatus

UNFINISHED = (JobStatus.PENDING, JobStatus.PROCESSING)


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many wait, and for how many seconds the oldest of them has (0: there is none)."""

    count: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Server:
    """Postgres itself: the size of our database, and connections to any, of so many at most."""

    database_bytes: int
    connections: int
    connections_limit: int


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything at one instant; steps wait when they are due and nobody works on them."""

    tallied: Tallied
    jobs: Mapping[JobStatus, Waiting]
    """The unfinished ones, by status; their age is the time since they were submitted."""
    steps_waiting: Mapping[tuple[StepKind, Priority], Waiting]
    steps_running: Mapping[StepKind, int]
    deliveries_due: Waiting
    streams_open: int
    server: Server


def observe_service(database: Database) -> Observed:
    """Look once, by few queries, which find what they want by indexes.

    Raises:
        Unavailable: Postgres cannot be asked.
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
    rows = session.execute(
        select(Job.status, *_waiting(func.coalesce(Job.retried_at, Job.created_at)))
        .where(Job.status.in_(UNFINISHED))
        .group_by(Job.status)
    )
    found = {JobStatus(status): _value(count, age) for status, count, age in rows}
    return {status: found.get(status, Waiting()) for status in UNFINISHED}


def _steps_waiting(session: Session) -> dict[tuple[StepKind, Priority], Waiting]:
    rows = session.execute(
        select(Step.kind, Job.priority, *_waiting(Step.run_after))
        .join(Job, Job.id == Step.job_id)
        .where(Step.status == StepStatus.PENDING, Step.run_after <= func.clock_timestamp())
        .group_by(Step.kind, Job.priority)
    )
    found = {
        (StepKind(kind), Priority(priority)): _value(count, age)
        for kind, priority, count, age in rows
    }
    return {
        (kind, priority): found.get((kind, priority), Waiting())
        for kind in StepKind
        for priority in Priority
    }


def _steps_running(session: Session) -> dict[StepKind, int]:
    rows = session.execute(
        select(Step.kind, func.count())
        .where(Step.status == StepStatus.RUNNING, Step.lease_until > func.clock_timestamp())
        .group_by(Step.kind)
    )
    found = {StepKind(kind): count for kind, count in rows}
    return {kind: found.get(kind, 0) for kind in StepKind}


def _deliveries_due(session: Session) -> Waiting:
    due = WebhookDelivery.due_at
    count, age = session.execute(
        select(*_waiting(due))
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.status == DeliveryStatus.PENDING,
            due <= func.clock_timestamp(),
            WebhookEndpoint.paused_at.is_(None),
        )
    ).one()
    return _value(count, age)


def _streams_open(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(StreamSession).where(is_live())) or 0


def _server(session: Session) -> Server:
    # Any user is told the number of connections, but not what those of others do.
    row = session.execute(
        text(
            "SELECT pg_database_size(current_database()), sum(numbackends),"
            " current_setting('max_connections')::int FROM pg_stat_database"
        )
    ).one()
    return Server(*map(int, row))


def _waiting(since: Any) -> tuple[ColumnElement[int], ColumnElement[Any]]:
    """How many, and the age of the oldest (s), as SQL."""
    age: ColumnElement[Any] = func.extract("epoch", func.clock_timestamp() - func.min(since))
    return func.count(), age


def _value(count: int, age: Decimal | None) -> Waiting:
    return Waiting(count, max(0.0, float(age or 0)))
