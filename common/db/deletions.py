"""Jobs and streams that are deleted, with all that Postgres has of them, and what proves it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, Delete, case, delete, func, select, update
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.flow import end_job
from common.db.paging import Cursor, Page, beyond, page_of
from common.db.steps import fetched_ids, running_steps
from common.db.tables import (
    Deletion,
    Job,
    JobMetrics,
    Kind,
    Outbox,
    Part,
    Recording,
    Step,
    StepFailure,
    StoredFinal,
    StreamSession,
    Transcription,
    TranscriptRevision,
    WebhookAttempt,
    WebhookDelivery,
)
from common.domain.job import JobStatus
from common.domain.webhooks import DeliveryStatus
from common.errors import NotFound


class Reason(StrEnum):
    """Why a job or stream was deleted."""

    REQUEST = "request"
    RETENTION = "retention"


@dataclass(frozen=True, slots=True)
class Deleted:
    """A job that Postgres has nothing of any more, and what there may be of it elsewhere.

    ``running``: (worker, RQ job) of each step that ran.
    """

    job_id: UUID
    recording_id: UUID | None
    running: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was deleted of a job or stream, and when nothing was left; see `Deletion`.

    ``id`` is the job's, or the stream's.
    """

    id: UUID
    kind: Kind
    reason: Reason
    requested_at: datetime
    erased_at: datetime | None
    rows: int
    files: int
    bytes: int


class Deletions:
    """The deletions of one tenant; another tenant's jobs are not found."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def delete(self, job_id: UUID) -> Deleted | None:
        """Delete a job in any state; None where that was done before.

        Raises:
            NotFound: there is no such job in this tenant, and never was.
        """
        with self._database.transaction() as session:
            job = session.scalar(
                select(Job).where(Job.id == job_id, Job.tenant == self._tenant).with_for_update()
            )
            if job is not None:
                return remove(session, job, Reason.REQUEST)
            if not was_deleted(session, self._tenant, job_id, Kind.JOB):
                raise NotFound(what="job", value=job_id)
            return None

    def erased(self, job_id: UUID, *, files: int, size: int) -> None:
        """Note what was erased of a job that this has just deleted."""
        with self._database.transaction() as session:
            erased(session, job_id, files=files, size=size)

    def page(
        self,
        *,
        job_id: UUID | None = None,
        session_id: UUID | None = None,
        limit: int,
        after: Cursor | None,
    ) -> Page[Receipt]:
        """The newest deletions, or that of one job, or of one job or stream."""
        which: list[ColumnElement[bool]] = []
        if job_id is not None:
            which += [Deletion.job_id == job_id, Deletion.kind == Kind.JOB]
        if session_id is not None:
            which.append(Deletion.job_id == session_id)
        with self._database.transaction() as session:
            rows = session.scalars(
                select(Deletion)
                .where(
                    Deletion.tenant == self._tenant,
                    *which,
                    *beyond(after, Deletion.requested_at, Deletion.job_id),
                )
                .order_by(Deletion.requested_at.desc(), Deletion.job_id.desc())
                .limit(limit + 1)
            ).all()
        receipts = [
            Receipt(
                id=row.job_id,
                kind=Kind(row.kind),
                reason=Reason(row.reason),
                requested_at=row.requested_at,
                erased_at=row.erased_at,
                rows=row.rows,
                files=row.files,
                bytes=row.bytes,
            )
            for row in rows
        ]
        return page_of(receipts, limit, lambda it: Cursor(it.requested_at, it.id))


def erased(session: Session, job_id: UUID, *, files: int, size: int) -> None:
    """Add what was erased in the storage; ``erased_at`` is never before that."""
    session.execute(
        update(Deletion)
        .where(Deletion.job_id == job_id)
        .values(
            files=Deletion.files + files,
            bytes=Deletion.bytes + size,
            erased_at=case((Deletion.erased_at.is_not(None), func.clock_timestamp())),
        )
    )


def remove(session: Session, job: Job, reason: Reason) -> Deleted:
    """Delete ``job``, whose row is locked, and leave a deletion in its place.

    Messages that are still to be sent outlive it (its row leaves them behind without its id), that
    of its being cancelled among them; they are forgotten as soon as they have ended.
    """
    running = running_steps(session, job.id)
    # A worker that is stopped while it fetches leaves a file that has no row.
    recording_id = job.recording_id or next(iter(fetched_ids(session, job.id)), None)
    end_job(session, job.id, JobStatus.CANCELLED)  # where it has not ended by itself
    deleted = [cast("CursorResult[Any]", session.execute(each)) for each in _deletes(job)]
    session.add(
        Deletion(
            job_id=job.id,
            tenant=job.tenant,
            recording_id=recording_id,
            reason=reason,
            rows=sum(result.rowcount for result in deleted),
            requested_at=func.clock_timestamp(),
        )
    )
    return Deleted(job.id, recording_id, tuple(running))


def remove_stream(session: Session, stream: StreamSession, reason: Reason) -> None:
    """Delete ``stream``, whose row is locked, and leave a deletion in its place.

    It has nothing but rows, so that nothing of it is left.
    """
    stream_id, tenant = stream.id, stream.tenant
    deletes = (
        delete(StoredFinal).where(StoredFinal.session_id == stream_id),
        delete(StreamSession).where(StreamSession.id == stream_id),
    )
    deleted = [cast("CursorResult[Any]", session.execute(each)) for each in deletes]
    now = func.statement_timestamp()  # the same in both columns
    session.add(
        Deletion(
            job_id=stream_id,
            kind=Kind.STREAM,
            tenant=tenant,
            reason=reason,
            rows=sum(result.rowcount for result in deleted),
            requested_at=now,
            erased_at=now,
        )
    )


def was_deleted(session: Session, tenant: str, row_id: UUID, kind: Kind) -> bool:
    """Whether the tenant had such a job or stream once."""
    receipt = select(Deletion.job_id).where(
        Deletion.job_id == row_id, Deletion.tenant == tenant, Deletion.kind == kind
    )
    return session.scalar(receipt) is not None


def _deletes(job: Job) -> list[Delete]:
    """What deletes every row about ``job``, in an order that needs no cascade: it counts."""
    steps = select(Step.id).where(Step.job_id == job.id)
    told = (
        WebhookDelivery.job_id == job.id,
        WebhookDelivery.status != DeliveryStatus.PENDING,
    )
    deliveries = select(WebhookDelivery.id).where(*told)
    return [
        delete(Outbox).where(Outbox.step_id.in_(steps)),
        delete(Step).where(Step.job_id == job.id),
        delete(Part).where(Part.job_id == job.id),
        delete(Transcription).where(Transcription.job_id == job.id),
        delete(StepFailure).where(StepFailure.job_id == job.id),
        delete(TranscriptRevision).where(TranscriptRevision.job_id == job.id),
        delete(JobMetrics).where(JobMetrics.job_id == job.id),
        delete(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(deliveries)),
        delete(WebhookDelivery).where(*told),
        delete(Job).where(Job.id == job.id),
        delete(Recording).where(Recording.id == job.recording_id),
    ]
