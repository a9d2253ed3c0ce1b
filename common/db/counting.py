"""Counts jobs and streams, in the transactions that change them."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.db.tables import Job, JobMetrics, Tenant
from common.db.tallies import count, observe
from common.domain import metrics
from common.domain.job import JobStatus

STANDARD = "standard"
"""The tier of tenants without a row, and the default of the column."""


class _JobLabels(NamedTuple):
    tier: str
    engine: str
    model: str
    error_code: str | None


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
    stages = {
        "waited": measured.waited_ms,
        "plan": measured.plan_ms,
        "engine": measured.engine_ms,
        "moderation": measured.moderation_ms,
        "merge": measured.merge_ms,
        "wall": measured.wall_ms,
    }
    for stage, stage_ms in stages.items():
        if stage == "moderation" and not stage_ms:  # it was not requested
            continue
        stage_s = stage_ms / 1000
        observe(session, metrics.STAGE_SECONDS, stage_s, stage=stage, engine=engine, model=model)
        if measured.audio_ms:
            rtf = stage_ms / measured.audio_ms
            observe(session, metrics.STAGE_RTF, rtf, stage=stage, engine=engine, model=model)


def count_stream(session: Session, engine: str, model: str) -> None:
    """Count a stream that begins."""
    count(session, metrics.STREAMS_OPENED, engine=engine, model=model)


def count_stream_audio(session: Session, audio_ms: int, engine: str, model: str) -> None:
    """Count audio received on a stream."""
    count(session, metrics.STREAM_AUDIO, audio_ms / 1000, engine=engine, model=model)


def count_final(session: Session, latency_ms: int, engine: str, model: str) -> None:
    """Count a saved final."""
    seconds = latency_ms / 1000
    observe(session, metrics.STREAM_LATENCY, seconds, engine=engine, model=model)


def count_stream_end(session: Session, outcome: str, engine: str, model: str) -> None:
    """Count a stream that has ended, or counts as ended."""
    count(session, metrics.STREAMS_ENDED, outcome=outcome, engine=engine, model=model)


def _labels(session: Session, job_id: UUID) -> _JobLabels:
    return _JobLabels(
        *session.execute(
            select(func.coalesce(Tenant.tier, STANDARD), Job.engine, Job.model, Job.error_code)
            .outerjoin(Tenant, Tenant.id == Job.tenant)
            .where(Job.id == job_id)
        ).one()
    )
