"""Counts jobs, in the transactions that change them."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Row, case, func, select
from sqlalchemy.orm import Session

from common.db.tables import Job, JobMetrics, Tenant
from common.db.tallies import count, observe
from common.domain import metrics
from common.domain.job import JobStatus
from common.domain.pipeline import CHAT_ENGINE

STANDARD = "standard"
"""The tier of tenants without a row, and the default of the column."""


def count_submission(session: Session, job_id: UUID) -> None:
    """Count a job whose recording is stored or can be fetched."""
    tier, engine, model, _ = _labels(session, job_id)
    count(session, metrics.JOBS_SUBMITTED, tier=tier, engine=engine, model=model)


def count_end(session: Session, job_id: UUID, status: JobStatus) -> None:
    """Count a job that was completed, failed or cancelled."""
    tier, engine, model, error_code = _labels(session, job_id)
    ended = status.lower()
    count(session, metrics.JOBS_ENDED, status=ended, tier=tier, engine=engine, model=model)
    if error_code is not None:
        count(session, metrics.JOB_FAILURES, code=error_code, engine=engine, model=model)


def count_durations(session: Session, measured: JobMetrics) -> None:
    """Count the durations of the stages of a completed job."""
    tier, engine, model, _ = _labels(session, measured.job_id)
    audio_s = measured.audio_ms / 1000
    count(session, metrics.AUDIO_TRANSCRIBED, audio_s, tier=tier, engine=engine, model=model)
    for stage in ("waited", "plan", "engine", "moderation", "diarization", "merge", "wall"):
        stage_ms: int = getattr(measured, f"{stage}_ms")
        if stage in ("moderation", "diarization") and not stage_ms:  # it was not requested
            continue
        stage_s = stage_ms / 1000
        observe(session, metrics.STAGE_SECONDS, stage_s, stage=stage, engine=engine, model=model)
        if measured.audio_ms:
            rtf = stage_ms / measured.audio_ms
            observe(session, metrics.STAGE_RTF, rtf, stage=stage, engine=engine, model=model)


def _labels(session: Session, job_id: UUID) -> Row[str, str, str, str | None]:
    """The tier, engine, model and error code of a job."""
    return session.execute(
        select(
            func.coalesce(Tenant.tier, STANDARD),
            Job.engine,
            # Clients name the model of a language model's server as they like.
            case((Job.engine == CHAT_ENGINE, ""), else_=Job.model),
            Job.error_code,
        )
        .outerjoin(Tenant, Tenant.id == Job.tenant)
        .where(Job.id == job_id)
    ).one()
