"""What has to be cleaned up, for all tenants. Postgres knows it, so no storage is listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import case, func, null, select, update

from common.db.database import Database
from common.db.deletions import Deleted, Reason, lock_to_remove, remove, remove_stream
from common.db.flow import Flow, end_job, locked_job
from common.db.search import index_next
from common.db.steps import fetched_ids
from common.db.streams import end_silent
from common.db.tables import NOW, Deletion, Job, Recording, StreamSession, Unindexed
from common.db.usage import SILENT_S
from common.domain.job import REVIEW_TIMED_OUT, JobStatus, is_final
from common.domain.pipeline import PIPELINES

SWEEP_AGAIN_S = 60.0
"""How soon a failed deletion of chunks is retried."""

_ENDS = [status for status in JobStatus if is_final(status)]
_IN_REVIEW = (Job.status == JobStatus.REVIEW, Job.kind.in_(PIPELINES))


@dataclass(frozen=True, slots=True)
class Retention:
    """Finds due work and records its results.

    ``grace_s`` is how long a worker may write for a job that has ended: the lease. A worker that
    receives the stop command ends at once; any other finds out when it renews its claim.
    """

    database: Database
    grace_s: float

    def sweep(self, drop: Callable[[UUID], bool]) -> bool:
        """Let ``drop`` delete the chunks of one job that has ended, or is in REVIEW.

        It returns whether it succeeded.

        This is due at once, and once more when no worker can write any more. The job's row is
        locked during it, so that the job is not retried at the same time. Returns False if no job
        is due.
        """
        with self.database.transaction() as session:
            job_id = session.scalar(
                select(Job.id)
                .where(Job.sweep_at <= NOW)
                .order_by(Job.sweep_at)
                .limit(1)
                .with_for_update(key_share=True, skip_locked=True)
            )
            if job_id is None:
                return False
            safe_at = func.coalesce(Job.completed_at, Job.paused_at) + timedelta(
                seconds=self.grace_s
            )
            again = (
                case((Job.sweep_at >= safe_at, null()), else_=func.greatest(safe_at, NOW))
                if drop(job_id)
                else NOW + timedelta(seconds=SWEEP_AGAIN_S)
            )
            session.execute(update(Job).where(Job.id == job_id).values(sweep_at=again))
            return True

    def next_due_s(self, upload_wait_s: float, review_s: float) -> float | None:
        """Seconds until the next cleanup, at most 0 if one is due; None: nothing to clean up.

        ``upload_wait_s``, ``review_s``: how long jobs wait for their recording, and in REVIEW (0:
        for ever).
        """
        grace, wait = timedelta(seconds=self.grace_s), timedelta(seconds=upload_wait_s)
        earliest = [
            select(func.min(Job.sweep_at)),
            select(func.min(Job.delete_at)),
            select(func.min(Job.created_at) + wait).where(Job.status == JobStatus.PENDING_UPLOAD),
            select(func.min(Deletion.requested_at) + grace).where(Deletion.erased_at.is_(None)),
            select(func.min(StreamSession.delete_at)),
            select(func.min(StreamSession.seen_at) + timedelta(seconds=SILENT_S)).where(
                StreamSession.ended_at.is_(None)
            ),
            select(Unindexed.created_at).limit(1),
        ]
        if review_s:
            until = func.min(Job.paused_at) + timedelta(seconds=review_s)
            earliest.append(select(until).where(*_IN_REVIEW))
        with self.database.transaction() as session:
            due = func.least(*(query.scalar_subquery() for query in earliest))
            due_s = session.scalar(select(func.extract("epoch", due - func.clock_timestamp())))
            return None if due_s is None else float(due_s)

    def unfetched(self, job_id: UUID) -> list[UUID]:
        """Recordings that stopped workers may have left when they fetched that of the job."""
        with self.database.transaction() as session:
            return fetched_ids(session, job_id)

    def expired(self, limit: int) -> list[UUID]:
        """Jobs whose retention period is over."""
        with self.database.transaction() as session:
            due = select(Job.id).where(Job.delete_at <= NOW)
            return list(session.scalars(due.order_by(Job.delete_at).limit(limit)))

    def expire(self, job_id: UUID) -> Deleted | None:
        """Delete such a job; None if it is deleted already, or no longer has to be."""
        with self.database.transaction() as session:
            job = lock_to_remove(session, Job.id == job_id, Job.delete_at <= NOW)
            return None if job is None else remove(session, job, Reason.RETENTION)

    def expire_stream(self) -> UUID | None:
        """Delete a stream whose retention period is over; None: there is none."""
        with self.database.transaction() as session:
            stream = session.scalar(
                select(StreamSession)
                .where(StreamSession.delete_at <= NOW)
                .order_by(StreamSession.delete_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if stream is None:
                return None
            remove_stream(session, stream, Reason.RETENTION)
            return stream.id

    def index(self) -> UUID | None:
        """Let one text be found that was stored before there was a search; None: all are found."""
        with self.database.transaction() as session:
            return index_next(session)

    def end_silent_streams(self) -> list[UUID]:
        """End streams whose gateway sends no heartbeat; returns their ids."""
        with self.database.transaction() as session:
            return end_silent(session)

    def deleted(self, limit: int) -> list[Deleted]:
        """Deleted jobs that no worker can write for any more, and whose erasure is not verified."""
        with self.database.transaction() as session:
            rows = session.execute(
                select(Deletion.id, Deletion.recording_id)
                .where(
                    Deletion.erased_at.is_(None),
                    Deletion.requested_at <= NOW - timedelta(seconds=self.grace_s),
                )
                .order_by(Deletion.requested_at)
                .limit(limit)
            )
            return [Deleted(job_id, recording_id) for job_id, recording_id in rows]

    def verified(self, job_id: UUID) -> None:
        """Record that the storage has nothing of a deleted job: its erasure is verified."""
        with self.database.transaction() as session:
            session.execute(
                update(Deletion)
                .where(Deletion.id == job_id, Deletion.erased_at.is_(None))
                .values(erased_at=func.clock_timestamp())
            )

    def missing(self, job_ids: Sequence[UUID]) -> list[UUID]:
        """Which of these jobs do not exist; most were deleted."""
        with self.database.transaction() as session:
            existing = set(session.scalars(select(Job.id).where(Job.id.in_(job_ids))))
            return [job_id for job_id in job_ids if job_id not in existing]

    def sweep_again(self, job_ids: Sequence[UUID]) -> None:
        """Let `sweep` drop the chunks of these jobs again, as far as they have ended."""
        with self.database.transaction() as session:
            session.execute(
                update(Job)
                .where(Job.id.in_(job_ids), Job.status.in_(_ENDS), Job.sweep_at.is_(None))
                .values(sweep_at=func.clock_timestamp())
            )

    def cancel_unsent(self, limit_s: float) -> list[UUID]:
        """Cancel jobs that have waited for their recording for more than ``limit_s`` seconds."""
        with self.database.transaction() as session:
            waiting = session.scalars(
                select(Job.id)
                .where(
                    Job.status == JobStatus.PENDING_UPLOAD,
                    Job.created_at < NOW - timedelta(seconds=limit_s),
                )
                # A transaction that has locked one may be committing its recording.
                .with_for_update(key_share=True, skip_locked=True)
            ).all()
            message = f"No recording was sent within {limit_s:g} s (UPLOAD_WAIT)"
            return [
                job_id
                for job_id in waiting
                if end_job(
                    session,
                    job_id,
                    JobStatus.CANCELLED,
                    code="upload_missing",
                    message=message,
                )
            ]

    def end_review(self, limit_s: float) -> UUID | None:
        """Approve a job that has waited in REVIEW for more than ``limit_s`` seconds; None: none.

        It has a warning then.
        """
        with self.database.transaction() as session:
            job_id = session.scalar(
                select(Job.id)
                .where(*_IN_REVIEW, Job.paused_at < NOW - timedelta(seconds=limit_s))
                .order_by(Job.paused_at)
                .limit(1)
                # A transaction that has locked one may be approving it.
                .with_for_update(key_share=True, skip_locked=True)
            )
            job = None if job_id is None else locked_job(session, job_id)
            if job is None:
                return None
            job.warnings = [*job.warnings, REVIEW_TIMED_OUT]
            Flow(session, job).resume()
            return job.id

    def committed_recordings(self, recording_ids: Sequence[UUID]) -> set[UUID]:
        """Which of these recordings are committed."""
        with self.database.transaction() as session:
            return set(session.scalars(select(Recording.id).where(Recording.id.in_(recording_ids))))
