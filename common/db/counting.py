"""What is counted of jobs and streams, in the transactions that make it so."""

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
"""The tier of tenants without a row, as of those whose row does not say."""


class _About(NamedTuple):
    tier: str
    engine: str
    model: str
    error_code: str | None


def count_submission(session: Session, job_id: UUID) -> None:
    """Its recording is here, or can be fetched: from now on it is to be transcribed."""
    tier, engine, model, _ = _about(session, job_id)
    count(session, metrics.JOBS_SUBMITTED, tier=tier, engine=engine, model=model)


def count_end(session: Session, job_id: UUID, status: JobStatus) -> None:
    """It was completed, failed or cancelled."""
    tier, engine, model, error_code = _about(session, job_id)
    ended = status.lower()
    count(session, metrics.JOBS_ENDED, status=ended, tier=tier, engine=engine, model=model)
    if error_code is not None:
        count(session, metrics.JOB_FAILURES, code=error_code, engine=engine, model=model)


def count_durations(session: Session, measured: JobMetrics) -> None:
    """Where the time of a completed job went."""
    tier, engine, model, _ = _about(session, measured.job_id)
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
        if stage == "moderation" and not stage_ms:  # nobody wanted it
            continue
        stage_s = stage_ms / 1000
        observe(session, metrics.STAGE_SECONDS, stage_s, stage=stage, engine=engine, model=model)
        if measured.audio_ms:
            rtf = stage_ms / measured.audio_ms
            observe(session, metrics.STAGE_RTF, rtf, stage=stage, engine=engine, model=model)


def count_stream(session: Session, engine: str, model: str) -> None:
    """A stream was begun."""
    count(session, metrics.STREAMS_OPENED, engine=engine, model=model)


def count_sound(session: Session, audio_ms: int, engine: str, model: str) -> None:
    """Sound came in on a stream."""
    count(session, metrics.STREAM_AUDIO, audio_ms / 1000, engine=engine, model=model)


def count_final(session: Session, latency_ms: int, engine: str, model: str) -> None:
    """The text of an utterance was saved."""
    seconds = latency_ms / 1000
    observe(session, metrics.STREAM_LATENCY, seconds, engine=engine, model=model)


def count_stream_end(session: Session, outcome: str, engine: str, model: str) -> None:
    """A stream has ended, or is taken to."""
    count(session, metrics.STREAMS_ENDED, outcome=outcome, engine=engine, model=model)


def _about(session: Session, job_id: UUID) -> _About:
    return _About(
        *session.execute(
            select(func.coalesce(Tenant.tier, STANDARD), Job.engine, Job.model, Job.error_code)
            .outerjoin(Tenant, Tenant.id == Job.tenant)
            .where(Job.id == job_id)
        ).one()
    )
