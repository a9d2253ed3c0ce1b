"""Deletes jobs, streams and voices with all their rows, and keeps records of the deletions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
    Replacement,
    Step,
    StepFailure,
    StoredEnhancement,
    StoredFinal,
    StoredPassage,
    StreamSession,
    Transcription,
    TranscriptRevision,
    Unindexed,
    Voice,
    WebhookAttempt,
    WebhookDelivery,
)
from common.domain.job import JobStatus
from common.domain.webhooks import DeliveryStatus
from common.errors import NotFound


class Reason(StrEnum):
    """Why a job, stream or voice was deleted."""

    REQUEST = "request"
    RETENTION = "retention"


@dataclass(frozen=True, slots=True)
class Deleted:
    """A job whose rows are deleted, and what has to be stopped and erased elsewhere.

    ``running``: (worker, RQ job) of each step that was running.
    """

    job_id: UUID
    recording_id: UUID | None
    running: tuple[tuple[str, str], ...] = ()


class Deletions:
    """The deletions of one tenant; another tenant's jobs are not found."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def delete(self, job_id: UUID) -> Deleted | None:
        """Delete a job in any state; None if it was deleted before.

        Raises:
            NotFound: the tenant has no such job, and never had one.
        """
        with self._database.transaction() as session:
            job = lock_to_remove(session, Job.id == job_id, Job.tenant == self._tenant)
            if job is not None:
                return remove(session, job, Reason.REQUEST)
            if not was_deleted(session, self._tenant, job_id, Kind.JOB):
                raise NotFound(what="job", value=job_id)
            return None

    def page(
        self,
        *,
        job_id: UUID | None = None,
        session_id: UUID | None = None,
        limit: int,
        after: Cursor | None,
    ) -> Page[Deletion]:
        """The newest deletions, or those of a job (``job_id``) or of anything (``session_id``)."""
        which: list[ColumnElement[bool]] = []
        if job_id is not None:
            which += [Deletion.id == job_id, Deletion.kind == Kind.JOB]
        if session_id is not None:
            which.append(Deletion.id == session_id)
        with self._database.transaction() as session:
            rows = session.scalars(
                select(Deletion)
                .where(
                    Deletion.tenant == self._tenant,
                    *which,
                    *beyond(after, Deletion.requested_at, Deletion.id),
                )
                .order_by(Deletion.requested_at.desc(), Deletion.id.desc())
                .limit(limit + 1)
            ).all()
        return page_of(rows, limit, lambda it: Cursor(it.requested_at, it.id))


def record_erased(database: Database, job_id: UUID, *, files: int, size: int) -> None:
    """Add what was erased of a deleted job in the storage; ``erased_at``, if set, moves to now."""
    with database.transaction() as session:
        session.execute(
            update(Deletion)
            .where(Deletion.id == job_id)
            .values(
                files=Deletion.files + files,
                bytes=Deletion.bytes + size,
                erased_at=case((Deletion.erased_at.is_not(None), func.clock_timestamp())),
            )
        )


def lock_to_remove(session: Session, *where: ColumnElement[bool]) -> Job | None:
    """The job that matches, locked after the jobs that work on its transcript.

    The last step of such a job locks in this order too: otherwise both could deadlock.
    """
    which = select(Job.id).where(*where)
    session.execute(select(Job.id).where(Job.source_id.in_(which)).with_for_update())
    return session.scalar(select(Job).where(*where).with_for_update())


def remove(session: Session, job: Job, reason: Reason) -> Deleted:
    """Delete ``job``, which `lock_to_remove` has locked, and add a deletion.

    Pending webhook messages are kept without the job's id, that of its cancellation among them.
    They are deleted as soon as they have been delivered or have failed. Jobs that work on its
    transcript are deleted with it, and have deletions of their own.
    """
    others = session.scalars(select(Job).where(Job.source_id == job.id).with_for_update()).all()
    running = [step for other in others for step in remove(session, other, reason).running]
    running += running_steps(session, job.id)
    # A worker that is stopped during a fetch leaves a file without a row.
    recording_id = job.recording_id or next(iter(fetched_ids(session, job.id)), None)
    if job.source_id is not None:  # it is that of the source
        recording_id = None
    job.paused_at = None  # so that it does not wait again
    end_job(session, job.id, JobStatus.CANCELLED)  # unless it has ended already
    rows = _executed(session, _deletes(job))
    session.add(
        Deletion(
            id=job.id,
            tenant=job.tenant,
            recording_id=recording_id,
            reason=reason,
            rows=rows,
            requested_at=func.clock_timestamp(),
        )
    )
    return Deleted(job.id, recording_id, tuple(running))


def remove_stream(session: Session, stream: StreamSession, reason: Reason) -> None:
    """Delete ``stream``, whose row is locked, and add a deletion.

    A stream has nothing but rows, so its erasure is complete at once.
    """
    deletes = [
        *_of_search(stream.id),
        delete(StoredFinal).where(StoredFinal.session_id == stream.id),
        delete(StreamSession).where(StreamSession.id == stream.id),
    ]
    _remove_rows(session, stream, Kind.STREAM, reason, deletes)


def remove_voice(session: Session, voice: Voice, reason: Reason) -> None:
    """Delete ``voice``, whose row is locked, with its embedding, and add a deletion."""
    _remove_rows(session, voice, Kind.VOICE, reason, [delete(Voice).where(Voice.id == voice.id)])


def _remove_rows(
    session: Session,
    thing: StreamSession | Voice,
    kind: Kind,
    reason: Reason,
    deletes: Iterable[Delete],
) -> None:
    """Delete something that is nothing but rows, and add a deletion."""
    thing_id, tenant = thing.id, thing.tenant
    rows = _executed(session, deletes)
    now = func.statement_timestamp()  # the same in both columns
    session.add(
        Deletion(
            id=thing_id,
            kind=kind,
            tenant=tenant,
            reason=reason,
            rows=rows,
            requested_at=now,
            erased_at=now,
        )
    )


def was_deleted(session: Session, tenant: str, row_id: UUID, kind: Kind) -> bool:
    """Whether such a job, stream or voice of the tenant was deleted."""
    receipt = select(Deletion.id).where(
        Deletion.id == row_id, Deletion.tenant == tenant, Deletion.kind == kind
    )
    return session.scalar(receipt) is not None


def _executed(session: Session, deletes: Iterable[Delete]) -> int:
    """Execute ``deletes``; returns how many rows they deleted."""
    return sum(cast("CursorResult[Any]", session.execute(each)).rowcount for each in deletes)


def _deletes(job: Job) -> list[Delete]:
    """Statements that delete every row of ``job``. No cascade is used: every row is counted."""
    steps = select(Step.id).where(Step.job_id == job.id)
    finished_messages = (
        WebhookDelivery.job_id == job.id,
        WebhookDelivery.status != DeliveryStatus.PENDING,
    )
    deliveries = select(WebhookDelivery.id).where(*finished_messages)
    # A job that works on another's transcript shares the recording of that one.
    own = Recording.id == (job.recording_id if job.source_id is None else None)
    return [
        *_of_search(job.id),
        delete(Outbox).where(Outbox.step_id.in_(steps)),
        delete(Step).where(Step.job_id == job.id),
        delete(Part).where(Part.job_id == job.id),
        delete(Transcription).where(Transcription.job_id == job.id),
        delete(StepFailure).where(StepFailure.job_id == job.id),
        delete(TranscriptRevision).where(TranscriptRevision.job_id == job.id),
        delete(StoredEnhancement).where(StoredEnhancement.job_id == job.id),
        delete(Replacement).where(Replacement.job_id == job.id),
        delete(JobMetrics).where(JobMetrics.job_id == job.id),
        delete(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(deliveries)),
        delete(WebhookDelivery).where(*finished_messages),
        delete(Job).where(Job.id == job.id),
        delete(Recording).where(own),
    ]


def _of_search(source_id: UUID) -> list[Delete]:
    """Statements that delete what a job or a stream is found by."""
    return [
        # The first, as whoever adds passages later has locked it.
        delete(Unindexed).where(Unindexed.source_id == source_id),
        delete(StoredPassage).where(StoredPassage.source_id == source_id),
    ]
