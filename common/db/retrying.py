"""A failed job begins again, and does only what is not done."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from common.db.steps import add_steps
from common.db.tables import Chunk, Job, Step
from common.domain.job import JobStatus, StepKind, StepStatus
from common.domain.request import Options


def begin_again(session: Session, job_id: UUID) -> bool:
    """Have a FAILED job's missing parts done; False where it is not FAILED (any more).

    What was stored stays. Steps that ended without a result are replaced by new ones, so that
    whoever still works on an old one, or tells of it late, finds that it is not there any more.
    The sound of chunks is dropped when a job ends: where some are still to be heard, the recording
    is planned once more, which leaves out what is done.
    """
    job = session.scalar(  # this locks the job's row before those of its steps
        update(Job)
        .where(Job.id == job_id, Job.status == JobStatus.FAILED)
        .values(
            status=JobStatus.PENDING,
            error_code=None,
            error_message=None,
            retried_at=func.clock_timestamp(),
            started_at=None,
            completed_at=None,
            sweep_at=None,
            delete_at=None,
        )
        .returning(Job)
    )
    if job is None:
        return False
    session.execute(delete(Step).where(Step.job_id == job_id, Step.status != StepStatus.DONE))
    if job.recording_id is None:
        add_steps(session, job_id, StepKind.FETCH, [None])
        return True
    unheard, unjudged = _open_chunks(session, job)
    job.remaining = len(unheard) + len(unjudged)
    if unheard or not job.planned:
        job.planned = False
        session.execute(delete(Step).where(Step.job_id == job_id, Step.kind == StepKind.PLAN))
        add_steps(session, job_id, StepKind.PLAN, [None])
    add_steps(session, job_id, StepKind.MODERATE, unjudged)
    if job.planned and job.remaining == 0:
        add_steps(session, job_id, StepKind.MERGE, [None])
    return True


def _open_chunks(session: Session, job: Job) -> tuple[list[int], list[int]]:
    """The indexes of the chunks still to be heard, and of those still to be moderated."""
    moderated = Options.from_json(job.options).moderation
    rows = session.execute(
        select(Chunk.index, Chunk.result.is_not(None), Chunk.moderation.is_not(None))
        .where(Chunk.job_id == job.id)
        .order_by(Chunk.index)
    ).all()
    unheard = [index for index, heard, _ in rows if not heard]
    unjudged = [index for index, heard, judged in rows if heard and moderated and not judged]
    return unheard, unjudged
