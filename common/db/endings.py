"""What the end of a job brings about, in the transaction that ends it."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from common.db.counting import count_end
from common.db.tables import Job
from common.db.turns import withdraw
from common.db.webhooks import tell
from common.domain.job import JobStatus
from common.domain.webhooks import EVENT_OF


def job_ended(session: Session, job_id: UUID, status: JobStatus) -> None:
    """Ask for what follows from the job's end; its row is locked."""
    session.flush()
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            sweep_at=func.clock_timestamp(),
            # null where delete_after_s is
            delete_at=Job.completed_at + func.make_interval(0, 0, 0, 0, 0, 0, Job.delete_after_s),
        )
    )
    withdraw(session, job_id)
    count_end(session, job_id, status)
    tell(session, job_id, EVENT_OF[status])
