"""A job as it stands at one instant, for status documents and lists: one query each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    bindparam,
    case,
    func,
    select,
)
from sqlalchemy.orm import Session, aliased

from common.db.positions import FARTHEST, FARTHEST_LISTED, positions
from common.db.steps import moderation_failed
from common.db.tables import Chunk, Job, Recording
from common.domain.job import MODERATION_FAILED, JobStatus
from common.domain.request import Options
from common.domain.tracks import Track

PACE_CHUNKS = 2
"""Chunks that must be done before a job's pace says something: the first one waits for the engine
to be loaded, and for the plan."""
LATELY = 20
"""How many finished jobs tell how fast jobs are."""
PLANNED_PERCENT = 5
"""What planning and merging count for in ``progress``; the rest is sound transcribed."""


@dataclass(frozen=True, slots=True)
class ClientData:
    """What a client wants back as it came: its name for the recording, and any JSON."""

    recording_id: str | None = None
    metadata: Any | None = None


NO_CLIENT_DATA = ClientData()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job as it stands at one instant.

    ``stage`` is queued, fetching, planning, transcribing, moderating (all is transcribed), merging
    or done; ``progress`` in [0, 100];
    ``queue_position`` counts the turns of others that go before (0: next; see `positions`), None
    once it was started;
    ``eta_s`` comes from the job's own pace, ``estimate_s`` from that of others: the time it would
    take from its start; both are None where nothing is known to reckon from. ``chunks_total`` grows
    until the job is ``planned``. ``filename`` is None until a recording is here; ``delete_at`` is
    None until it has ended, and where it is kept.
    """

    job_id: UUID
    status: JobStatus
    stage: str
    progress: int
    chunks_completed: int
    chunks_total: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error_code: str | None
    error_message: str | None
    eta_s: float | None
    queue_position: int | None
    warnings: tuple[str, ...]
    filename: str | None
    engine: str
    model: str
    language: str
    duration_ms: int | None
    options: Options
    client: ClientData
    delete_at: datetime | None
    estimate_s: float | None
    planned: bool
    audio_tracks: tuple[Track, ...]
    audio_track: int | None


def snapshot(session: Session, tenant: str, job_id: UUID) -> Snapshot | None:
    """One job; None where the tenant has no such job."""
    row = session.execute(_one(), {"tenant": tenant, "job_id": job_id}).one_or_none()
    return None if row is None else _snapshots(session, [row], FARTHEST)[0]


def snapshots(session: Session, *where: ColumnElement[bool], limit: int) -> list[Snapshot]:
    """The jobs that meet all of ``where``, newest first; ``limit`` at most."""
    asked = _jobs().where(*where).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    return _snapshots(session, session.execute(asked).all(), FARTHEST_LISTED)


@cache
def _one() -> Select[Any]:
    """Built once: it is asked for all the time, and building it takes longer than its answer."""
    return _jobs().where(Job.id == bindparam("job_id"), Job.tenant == bindparam("tenant"))


def _jobs() -> Select[Any]:
    heard = (
        select(func.count())
        .where(Chunk.job_id == Job.id, Chunk.result.is_not(None))
        .scalar_subquery()
    )
    under_way = Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING])
    return select(
        Job,
        Recording.filename,
        Recording.audio_tracks,
        heard.label("heard"),
        moderation_failed(Job.id).label("unjudged"),
        func.extract("epoch", func.clock_timestamp() - Job.started_at).label("elapsed_s"),
        case((under_way, _speed(Job.engine, Job.model))).label("speed"),
    ).outerjoin(Recording, Recording.id == Job.recording_id)


def _speed(engine: Any, model: Any) -> ScalarSelect[Any]:
    """Audio time per wall time over the last finished jobs with these weights; NULL without any.

    ``engine`` and ``model`` are values or columns.
    """
    done = aliased(Job)
    took = done.completed_at - func.coalesce(done.retried_at, done.created_at)
    lately = (
        select(done.duration_ms, (func.extract("epoch", took) * 1000).label("wall_ms"))
        .where(done.engine == engine, done.model == model, done.status == JobStatus.COMPLETED)
        .order_by(done.completed_at.desc())
        .limit(LATELY)
        .correlate(Job)
        .subquery()
    )
    wall_ms = func.nullif(func.sum(lately.c.wall_ms), 0)
    return select(func.sum(lately.c.duration_ms) / wall_ms).correlate(Job).scalar_subquery()


def _snapshots(session: Session, rows: Sequence[Row[Any]], farthest: int) -> list[Snapshot]:
    queue = positions(session, [row[0] for row in rows], farthest)
    return [_snapshot(row, queue.get(row[0].id)) for row in rows]


def _snapshot(row: Row[Any], position: int | None) -> Snapshot:
    job: Job = row[0]
    return Snapshot(
        job_id=job.id,
        status=JobStatus(job.status),
        stage=_stage(job, row.heard),
        progress=_progress(job),
        chunks_completed=row.heard,
        chunks_total=job.chunks_total,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        error_code=job.error_code,
        error_message=job.error_message,
        eta_s=_eta_s(job, row.heard, row.elapsed_s),
        queue_position=position,
        warnings=tuple(_warnings(job, unjudged=row.unjudged)),
        filename=row.filename,
        engine=job.engine,
        model=job.model,
        language=job.detected_language or job.language,
        duration_ms=job.duration_ms,
        options=Options.from_json(job.options),
        client=ClientData(job.client_recording_id, job.client_metadata),
        delete_at=job.delete_at,
        audio_tracks=tuple(map(Track.from_json, row.audio_tracks or ())),
        audio_track=job.audio_track,
        estimate_s=_estimate_s(job, row.speed),
        planned=job.planned,
    )


def _warnings(job: Job, *, unjudged: bool) -> list[str]:
    """Those of the merge; until then of the plan, and whether moderation has failed."""
    if unjudged and job.status != JobStatus.COMPLETED:
        return [*job.warnings, MODERATION_FAILED]
    return job.warnings


def _eta_s(job: Job, heard: int, elapsed_s: Any) -> float | None:
    if job.status != JobStatus.PROCESSING or not job.duration_ms or elapsed_s is None:
        return None
    # What was done before a retry took none of the time since its start.
    if heard < PACE_CHUNKS or not job.done_ms or job.retried_at is not None:
        return None
    return float(elapsed_s) * max(0, job.duration_ms - job.done_ms) / job.done_ms


def _estimate_s(job: Job, speed_lately: Any) -> float | None:
    return (
        job.duration_ms / 1000 / float(speed_lately) if job.duration_ms and speed_lately else None
    )


def _stage(job: Job, transcribed: int) -> str:
    if job.status in (JobStatus.PENDING_UPLOAD, JobStatus.PENDING):
        return "queued"
    if job.status != JobStatus.PROCESSING:
        return "done"
    if job.recording_id is None:
        return "fetching"
    if job.chunks_total == 0 and not job.planned:
        return "planning"
    if not job.planned or transcribed < job.chunks_total:
        return "transcribing"
    return "moderating" if job.remaining else "merging"


def _progress(job: Job) -> int:
    if job.status == JobStatus.COMPLETED:
        return 100
    if job.chunks_total == 0:
        return 0
    heard = job.done_ms / job.duration_ms if job.duration_ms else 0.0
    if job.planned and job.remaining == 0:
        heard = 1.0
    return PLANNED_PERCENT + int((100 - 2 * PLANNED_PERCENT) * min(1.0, heard))
