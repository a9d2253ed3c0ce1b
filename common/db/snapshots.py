"""The state of a job at one instant, for status documents and lists: one query each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import dropwhile
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    bindparam,
    case,
    exists,
    func,
    select,
)
from sqlalchemy.orm import Session, aliased

from common.db.positions import FARTHEST, FARTHEST_LISTED, positions
from common.db.tables import Job, Recording, Step, Transcription, TranscriptRevision
from common.domain.job import JobStatus, StepStatus, is_final
from common.domain.pipeline import ENHANCEMENT, PIPELINES, Pipeline
from common.domain.request import Options
from common.domain.tracks import Track

PACE_CHUNKS = 2
"""How many chunks must be done before a job's pace is meaningful: the first chunk waits for the
engine to load and for the plan."""
LATELY = 20
"""The number of finished jobs from which the speed is estimated."""
MOST_ENHANCEMENTS = 50
PLANNED_PERCENT = 5
"""The share of ``progress`` before the steps that count, and after them."""


@dataclass(frozen=True, slots=True)
class ClientData:
    """What a client gets back unchanged: its name for the recording, and any JSON."""

    recording_id: str | None = None
    metadata: Any | None = None


NO_CLIENT_DATA = ClientData()


@dataclass(frozen=True, slots=True)
class EnhancementState:
    """A job that has a language model work on another one's transcript."""

    job_id: UUID
    task: str
    status: JobStatus


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a job at one instant.

    ``stage`` is queued, review, done, or that of the step it waits for (`common.domain.pipeline`);
    of a started job of a kind that this version does not know, processing. ``progress`` is in
    [0, 100].
    ``queue_position`` counts the turns of others before it (0: next; see `positions`); None once it
    was started, and for such a kind. ``eta_s`` is the remaining time, from the job's own pace;
    ``estimate_s`` is the whole time, from the pace of recent jobs; None: not known.
    ``chunks_total`` grows until the job is ``planned``. ``filename`` is None until the recording is
    stored. ``delete_at`` is None until the job has ended, and if it is kept. ``has_text``: there is
    a transcript, though a person may have to approve it, or the job be retried for what it lacks.
    ``reviewed_by`` is the API key that approved it; None: none was required, or nobody has.
    ``source_id`` is the job whose transcript this one works on. ``enhancements`` are the first
    `MOST_ENHANCEMENTS` that work on its own.
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
    has_text: bool
    kind: str
    source_id: UUID | None
    reviewed_by: str | None
    enhancements: tuple[EnhancementState, ...]


def snapshot(session: Session, tenant: str, job_id: UUID) -> Snapshot | None:
    """One job; None if the tenant has no such job."""
    row = session.execute(_one(), {"tenant": tenant, "job_id": job_id}).one_or_none()
    return None if row is None else _snapshots(session, [row], FARTHEST)[0]


def snapshots(session: Session, *where: ColumnElement[bool], limit: int) -> list[Snapshot]:
    """At most ``limit`` jobs that match all of ``where``, newest first."""
    asked = _jobs().where(*where).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    return _snapshots(session, session.execute(asked).all(), FARTHEST_LISTED)


@cache
def _one() -> Select[Any]:
    """Cached: it is used for every poll, and building it takes longer than executing it."""
    return _jobs().where(Job.id == bindparam("job_id"), Job.tenant == bindparam("tenant"))


def _jobs() -> Select[Any]:
    under_way = Job.status.in_([JobStatus.PENDING, JobStatus.PROCESSING])
    return (
        select(
            Job,
            Transcription,
            Recording.filename,
            Recording.audio_tracks,
            _ended_steps().label("ended"),
            _enhancements().label("enhancements"),
            exists().where(TranscriptRevision.job_id == Job.id).label("has_transcript"),
            func.extract("epoch", func.clock_timestamp() - Job.started_at).label("elapsed_s"),
            case((under_way, _speed(Job.engine, Job.model))).label("speed"),
        )
        .outerjoin(Transcription, Transcription.job_id == Job.id)
        .outerjoin(Recording, Recording.id == Job.recording_id)
    )


def _ended_steps() -> ScalarSelect[Any]:
    """Counts of the ended steps of the job's parts: an object with keys like ``merge done``."""
    counted = (
        select(func.concat(Step.kind, " ", Step.status).label("key"), func.count().label("number"))
        .where(
            Step.job_id == Job.id,
            Step.part.is_not(None),
            Step.status.in_([StepStatus.DONE, StepStatus.FAILED]),
        )
        .group_by("key")
        .correlate(Job)
        .subquery()
    )
    return select(func.jsonb_object_agg(counted.c.key, counted.c.number)).scalar_subquery()


def _enhancements() -> ScalarSelect[Any]:
    """Id, task and status of the jobs that enhance the job's transcript, in order: an array."""
    other = aliased(Job)
    first = (
        select(other.id, other.options[ENHANCEMENT.kind]["task"].label("task"), other.status)
        .where(other.source_id == Job.id, other.kind == ENHANCEMENT.kind)
        .order_by(other.created_at, other.id)
        .limit(MOST_ENHANCEMENTS)
        .correlate(Job)
        .subquery()
    )
    each = func.jsonb_build_array(first.c.id, first.c.task, first.c.status)
    return select(func.jsonb_agg(each)).scalar_subquery()


def _speed(engine: Any, model: Any) -> ScalarSelect[Any]:
    """Audio time over wall time of the last finished jobs with these weights; NULL: none.

    ``engine`` and ``model`` are values or columns.
    """
    done = aliased(Job)
    took = func.coalesce(done.paused_at, done.completed_at) - done.created_at
    lately = (
        select(done.units_total, (func.extract("epoch", took) * 1000).label("wall_ms"))
        .where(
            done.engine == engine,
            done.model == model,
            done.status == JobStatus.COMPLETED,
            done.retried_at.is_(None),
            done.source_id.is_(None),
        )
        .order_by(done.completed_at.desc())
        .limit(LATELY)
        .correlate(Job)
        .subquery()
    )
    wall_ms = func.nullif(func.sum(lately.c.wall_ms), 0)
    return select(func.sum(lately.c.units_total) / wall_ms).correlate(Job).scalar_subquery()


def _snapshots(session: Session, rows: Sequence[Row[Any]], farthest: int) -> list[Snapshot]:
    queue = positions(session, [row[0] for row in rows], farthest)
    return [_snapshot(row, queue.get(row[0].id)) for row in rows]


def _snapshot(row: Row[Any], position: int | None) -> Snapshot:
    job: Job = row.Job
    transcription: Transcription | None = row.Transcription
    state = _Progress(job, row.ended or {})
    duration_ms = job.units_total
    return Snapshot(
        job_id=job.id,
        status=JobStatus(job.status),
        stage=state.stage,
        progress=state.progress,
        chunks_completed=state.parts_done,
        chunks_total=job.parts_total,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        error_code=job.error_code,
        error_message=job.error_message,
        eta_s=state.eta_s(row.elapsed_s),
        queue_position=position,
        warnings=tuple(state.warnings),
        filename=row.filename,
        engine=job.engine,
        model=job.model,
        language=(transcription and transcription.detected_language) or job.language,
        duration_ms=duration_ms,
        options=Options.from_json(job.options),
        client=ClientData(job.client_recording_id, job.client_metadata),
        delete_at=job.delete_at,
        audio_tracks=tuple(map(Track.from_json, row.audio_tracks or ())),
        audio_track=None if transcription is None else transcription.audio_track,
        estimate_s=duration_ms / 1000 / float(row.speed) if duration_ms and row.speed else None,
        planned=job.parts_known,
        has_text=job.source_id is None
        and (
            job.status == JobStatus.COMPLETED
            or (row.has_transcript and not is_final(JobStatus(job.status)))
        ),
        kind=job.kind,
        source_id=job.source_id,
        reviewed_by=job.reviewed_by,
        enhancements=tuple(
            EnhancementState(UUID(job_id), task, JobStatus(status))
            for job_id, task, status in row.enhancements or ()
        ),
    )


class _Progress:
    """How far a job has come in its pipeline.

    ``ended`` counts the ended steps of its parts, by ``kind status``.
    """

    def __init__(self, job: Job, ended: Mapping[str, int]) -> None:
        self._job = job
        self._ended = ended
        known = PIPELINES.get(job.kind)
        self._pipeline = known or Pipeline(job.kind, phases=())
        self._phase = known.phase(job.phase) if known and job.phase is not None else None
        self._counting = self._pipeline.counting(job.options)

    @property
    def parts_done(self) -> int:
        """Parts in which the first step that counts is done."""
        return self._number(self._counting[0].kind, StepStatus.DONE) if self._counting else 0

    @property
    def stage(self) -> str:
        if self._job.status in (JobStatus.PENDING_UPLOAD, JobStatus.PENDING):
            return "queued"
        if self._job.status == JobStatus.REVIEW:
            return "review"
        if self._job.status != JobStatus.PROCESSING:
            return "done"
        if self._phase is None:  # of a kind that this version does not know
            return "processing"
        whole = self._phase.step_of(self._job.options)
        each = self._phase.each_of(self._job.options)
        if whole is not None and not (each and self._job.parts_total):
            return whole.stage
        # Of a part's steps, the first that has not ended in all of them.
        under_way = (it for it in each if not (self._job.parts_known and self._all_ended(it.kind)))
        return next(under_way, each[-1]).stage if each else "done"

    @property
    def progress(self) -> int:
        if self._has_result:
            return 100
        if not self._job.parts_total and not self._counted:
            return 0
        share = 1.0 if self._counted else self._done
        return PLANNED_PERCENT + int((100 - 2 * PLANNED_PERCENT) * share)

    @property
    def warnings(self) -> list[str]:
        """Those of the last step; until then those of the plan and of failed steps."""
        if self._has_result:
            return self._job.warnings
        failed = (
            step.warning
            for step in self._pipeline.steps
            if step.warning is not None and self._number(step.kind, StepStatus.FAILED)
        )
        of_steps = self._pipeline.warnings  # of an earlier merge, if the job is retried
        return [*(it for it in self._job.warnings if it not in of_steps), *failed]

    def eta_s(self, elapsed_s: Any) -> float | None:
        """The remaining seconds at the job's own pace; None: not known."""
        job = self._job
        if job.status != JobStatus.PROCESSING or elapsed_s is None or not job.units_done:
            return None
        # The work before a retry or a pause is not in the elapsed time.
        if self.parts_done < PACE_CHUNKS or job.retried_at or job.resumed_at:
            return None
        return float(elapsed_s) * (1 / self._done - 1) if self._done else None

    @property
    def _done(self) -> float:
        """The share of the counted work that is done, in [0, 1]."""
        total = (self._job.units_total or 0) * len(self._counting)
        return min(1.0, self._job.units_done / total) if total else 0.0

    @property
    def _counted(self) -> bool:
        """Whether the job has passed its last phase with steps that count."""
        if self._phase is None:
            return False
        remaining = dropwhile(lambda it: it is not self._phase, self._pipeline.phases)
        return not any(step.counts for phase in remaining for step in phase.each)

    @property
    def _has_result(self) -> bool:
        """Whether it is COMPLETED, or only has to be approved."""
        waits = self._job.status == JobStatus.REVIEW
        return self._job.status == JobStatus.COMPLETED or (
            waits and self._pipeline.phases[-1:] == (self._phase,)
        )

    def _all_ended(self, kind: str) -> bool:
        ended = sum(self._number(kind, status) for status in (StepStatus.DONE, StepStatus.FAILED))
        return ended >= self._job.parts_total

    def _number(self, kind: str, status: StepStatus) -> int:
        return self._ended.get(f"{kind} {status}", 0)
