"""A tenant's jobs as lists, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal, select
from sqlalchemy.dialects.postgresql import JSONPATH
from sqlalchemy.orm import aliased

from common.db.database import Database
from common.db.jobs import Text
from common.db.paging import Cursor, Page, beyond, page_of
from common.db.snapshots import ClientData, Snapshot, snapshots
from common.db.tables import Job, JobMetrics, Transcript
from common.domain.job import JobStatus
from common.domain.request import Options

_BEGINNING = "$[0 to 39]"
"""Of a transcript's segments: far more than a few lines."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; what is None does not matter. Both times are exclusive."""

    statuses: Sequence[JobStatus] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    recording_id: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that is COMPLETED, and how its text begins; ``wall_ms`` from creation to completion."""

    job_id: UUID
    engine: str
    model: str
    created_at: datetime
    completed_at: datetime
    wall_ms: int
    beginning: Text
    client: ClientData


class JobLists:
    """The lists of one tenant's jobs."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def page(self, which: JobFilter, *, limit: int, after: Cursor | None) -> Page[Snapshot]:
        """Jobs in any state."""
        with self._database.transaction() as session:
            found = snapshots(
                session,
                Job.tenant == self._tenant,
                *_conditions(which),
                *beyond(after, Job.created_at, Job.id),
                limit=limit + 1,
            )
        return page_of(found, limit, lambda it: Cursor(it.created_at, it.job_id))

    def finished(self, *, limit: int, after: Cursor | None) -> Page[Finished]:
        """Jobs that are COMPLETED."""
        jobs = (
            select(Job)
            .where(
                Job.tenant == self._tenant,
                Job.status == JobStatus.COMPLETED,
                *beyond(after, Job.created_at, Job.id),
            )
            .order_by(Job.created_at.desc(), Job.id.desc())
            .limit(limit + 1)
            .subquery()
        )
        revision = aliased(Transcript)
        newest = select(func.max(revision.revision)).where(revision.job_id == jobs.c.id)
        beginning = func.jsonb_path_query_array(Transcript.segments, literal(_BEGINNING, JSONPATH))
        with self._database.transaction() as session:
            rows = session.execute(
                select(
                    jobs,
                    JobMetrics.wall_ms,
                    beginning.label("beginning"),
                    Transcript.language.label("heard"),
                    Transcript.duration_ms.label("lasts"),
                )
                .join(JobMetrics, JobMetrics.job_id == jobs.c.id)
                .join(
                    Transcript,
                    (Transcript.job_id == jobs.c.id)
                    & (Transcript.revision == newest.scalar_subquery()),
                )
                .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
            ).all()
        return page_of([_finished(row) for row in rows], limit, _place)


def _conditions(which: JobFilter) -> Iterator[ColumnElement[bool]]:
    if which.statuses:
        yield Job.status.in_(which.statuses)
    if which.created_after is not None:
        yield Job.created_at > which.created_after
    if which.created_before is not None:
        yield Job.created_at < which.created_before
    if which.recording_id is not None:
        yield Job.client_recording_id == which.recording_id
    if which.model is not None:
        yield Job.model == which.model


def _finished(row: Any) -> Finished:
    return Finished(
        job_id=row.id,
        engine=row.engine,
        model=row.model,
        created_at=row.created_at,
        completed_at=row.completed_at,
        wall_ms=row.wall_ms,
        beginning=Text(
            segments=row.beginning,
            chunks=[],
            language=row.heard,
            duration_ms=row.lasts,
            options=Options.from_json(row.options),
            complete=True,
            manifest=None,
        ),
        client=ClientData(row.client_recording_id, row.metadata),
    )


def _place(finished: Finished) -> Cursor:
    return Cursor(finished.created_at, finished.job_id)
