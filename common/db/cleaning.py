"""What is to be cleared away, of all tenants: told by Postgres, so that no storage is listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import case, func, null, select, update

from common.db.database import Database
from common.db.deletions import Deleted, Reason, erased, remove, remove_stream
from common.db.flow import end_job
from common.db.steps import fetched_ids, seconds
from common.db.streams import end_silent
from common.db.tables import NOW, Deletion, Job, Recording, StreamSession
from common.db.usage import SILENT_S
from common.domain.job import JobStatus, is_final

SWEEP_AGAIN_S = 60.0
"""How soon sound that could not be deleted is tried again."""

_ENDS = [status for status in JobStatus if is_final(status)]


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Finds and records it; ``grace_s`` is how long a worker may write for a job that has ended.

    That is the lease: one that is stopped ends at once, and one that cannot be told finds out as
    soon as it renews its claim.
    """

    database: Database
    grace_s: float

    def sweep(self, drop: Callable[[UUID], bool]) -> bool:
        """Have one ended job's sound dropped by ``drop``, which says whether it could.

        That is done at once, and once more when nobody can write any more. The job's row is locked
        meanwhile, so that it is not begun again at the same time. False where there is none to do.
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
            safe_at = Job.completed_at + seconds(self.grace_s)
            again = (
                case((Job.sweep_at >= safe_at, null()), else_=func.greatest(safe_at, NOW))
                if drop(job_id)
                else NOW + seconds(SWEEP_AGAIN_S)
            )
            session.execute(update(Job).where(Job.id == job_id).values(sweep_at=again))
            return True

    def next_due_s(self, upload_wait_s: float) -> float | None:
        """Seconds until something is to be cleaned up, at most 0 if it is due; None: nothing is."""
        grace, wait = seconds(self.grace_s), seconds(upload_wait_s)
        earliest = (
            select(func.min(Job.sweep_at)),
            select(func.min(Job.delete_at)),
            select(func.min(Job.created_at) + wait).where(Job.status == JobStatus.PENDING_UPLOAD),
            select(func.min(Deletion.requested_at) + grace).where(Deletion.erased_at.is_(None)),
            select(func.min(StreamSession.delete_at)),
            select(func.min(StreamSession.seen_at) + seconds(SILENT_S)).where(
                StreamSession.ended_at.is_(None)
            ),
        )
        with self.database.transaction() as session:
            due = func.least(*(query.scalar_subquery() for query in earliest))
            left = session.scalar(select(func.extract("epoch", due - func.clock_timestamp())))
            return None if left is None else float(left)

    def unfetched(self, job_id: UUID) -> list[UUID]:
        """What workers that were stopped over fetching the job's recording may have left."""
        with self.database.transaction() as session:
            return fetched_ids(session, job_id)

    def expired(self, limit: int) -> list[UUID]:
        """Jobs whose time to be deleted has come."""
        with self.database.transaction() as session:
            due = select(Job.id).where(Job.delete_at <= NOW)
            return list(session.scalars(due.order_by(Job.delete_at).limit(limit)))

    def expire(self, job_id: UUID) -> Deleted | None:
        """Delete such a job; None where it is gone, or is not to be deleted any more."""
        with self.database.transaction() as session:
            job = session.scalar(
                select(Job).where(Job.id == job_id, Job.delete_at <= NOW).with_for_update()
            )
            return None if job is None else remove(session, job, Reason.RETENTION)

    def expire_stream(self) -> UUID | None:
        """Delete a stream whose time has come; None: there is none."""
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

    def end_silent_streams(self) -> list[UUID]:
        """End streams whose gateway went silent; which it was."""
        with self.database.transaction() as session:
            return end_silent(session)

    def deleted(self, limit: int) -> list[Deleted]:
        """Deleted jobs that nobody can write for any more, and that are not known to be erased."""
        with self.database.transaction() as session:
            rows = session.execute(
                select(Deletion.job_id, Deletion.recording_id)
                .where(
                    Deletion.erased_at.is_(None),
                    Deletion.requested_at <= NOW - seconds(self.grace_s),
                )
                .order_by(Deletion.requested_at)
                .limit(limit)
            )
            return [Deleted(job_id, recording_id) for job_id, recording_id in rows]

    def erased(self, job_id: UUID, *, files: int, size: int) -> None:
        """Note what was erased of a deleted job."""
        with self.database.transaction() as session:
            erased(session, job_id, files=files, size=size)

    def verified(self, job_id: UUID) -> None:
        """Note that the storage was found to have nothing of a deleted job."""
        with self.database.transaction() as session:
            session.execute(
                update(Deletion)
                .where(Deletion.job_id == job_id, Deletion.erased_at.is_(None))
                .values(erased_at=func.clock_timestamp())
            )

    def missing(self, job_ids: Sequence[UUID]) -> list[UUID]:
        """Which of these jobs do not exist, mostly because they were deleted."""
        with self.database.transaction() as session:
            existing = set(session.scalars(select(Job.id).where(Job.id.in_(job_ids))))
            return [job_id for job_id in job_ids if job_id not in existing]

    def sweep_again(self, job_ids: Sequence[UUID]) -> None:
        """Have `sweep` drop the chunks of those of these jobs that have ended."""
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
                    Job.created_at < NOW - seconds(limit_s),
                )
                # Whoever has locked one may be committing its recording.
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

    def committed_recordings(self, recording_ids: Sequence[UUID]) -> set[UUID]:
        """Which of these recordings were promised to a client."""
        with self.database.transaction() as session:
            return set(session.scalars(select(Recording.id).where(Recording.id.in_(recording_ids))))
