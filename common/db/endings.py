"""What the end of a job brings about, in the transaction that ends it."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from common.db.webhooks import tell
from common.domain.job import JobStatus
from common.domain.webhooks import EVENT_OF


def job_ended(session: Session, job_id: UUID, status: JobStatus) -> None:
    """Ask for what follows from the job's end; its row is locked."""
    session.flush()
    tell(session, job_id, EVENT_OF[status])
