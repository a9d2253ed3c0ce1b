"""The life of a step: claimed with a token and a lease, finished by token, reclaimed when lost.

Every write is guarded by the state it expects, so that it takes effect once however often, and by
however many processes, it is tried. The pattern is the transactional outbox
(microservices.io/patterns/data/transactional-outbox.html) with leases and fencing tokens
(Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from sqlalchemy import (
    ColumnElement,
    Interval,
    Update,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import InstrumentedAttribute, Session

from common.db.counting import count_durations
from common.db.database import Database
from common.db.endings import job_ended
from common.db.tables import (
    NOW,
    Chunk,
    Failure,
    Job,
    JobMetrics,
    Outbox,
    Recording,
    Step,
    Transcript,
)
from common.db.tallies import count
from common.db.turns import Turns
from common.db.usage import charge_decoded, correct
from common.domain.job import (
    MAX_LOSSES,
    RETRIES_AT_LIMIT,
    JobStatus,
    StepKind,
    StepStatus,
    job_sources,
    retry_delay_s,
    step_sources,
)
from common.domain.metrics import LEASES_EXPIRED, STEP_RETRIES
from common.domain.request import Options
from common.domain.tracks import find_track
from common.errors import ChunkTimedOut, LeaseExpired, StenoError, Transient, WorkerLost

if TYPE_CHECKING:
    from common.db.jobs import NewRecording


MANY_TRIES = 10
"""After so many the delay before the next one does not grow any more."""


class StaleClaim(Exception):
    """The claim was taken over, or the job was cancelled: whatever was computed is dropped."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_retries`` >= 0 after the first try; ``first_delay_s`` doubles with each failure."""

    max_retries: int
    first_delay_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a step until the lease ends; renewed while the work goes on."""

    step_id: UUID
    job_id: UUID
    kind: StepKind
    chunk_index: int | None
    attempt: int
    token: UUID
    request_id: str | None = None
    """Of the HTTP request that made the job."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A chunk as the plan stores it."""

    index: int
    windows: list[Any]
    content_hash: str


@dataclass(frozen=True, slots=True)
class Publication:
    """A step the dispatcher hands to RQ under the id ``doorbell``."""

    outbox_id: int
    step_id: UUID
    doorbell: str
    description: str


def seconds(value: float) -> ColumnElement[Any]:
    """An interval, as SQL."""
    return cast(literal(f"{value} seconds"), Interval)


class Steps:
    """All that workers and the dispatcher do with steps. Not bound to a tenant: they serve all."""

    def __init__(self, database: Database, *, lease_s: float, retry: RetryPolicy) -> None:
        self._database = database
        self._lease_s = lease_s
        self._retry = retry

    # --- a worker's side --------------------------------------------------------------------

    def claim(self, step_id: UUID, worker: str, doorbell: str | None = None) -> Claim | None:
        """Take a pending step, or None when it is taken, done, not yet due or cancelled.

        ``doorbell`` is the one that ``worker`` answers by this: how to make it stop.
        """
        with self._database.transaction() as session:
            about = session.execute(
                select(Job.id, Job.request_id)
                .join(Step, Step.job_id == Job.id)
                .where(Step.id == step_id)
            ).one_or_none()
            if about is None:
                return None
            lock_job(session, about.id)
            row = session.execute(
                update(Step)
                .where(
                    Step.id == step_id,
                    Step.status == StepStatus.PENDING,
                    Step.run_after <= func.clock_timestamp(),
                )
                .values(
                    status=StepStatus.RUNNING,
                    attempt=Step.attempt + 1,
                    token=func.gen_random_uuid(),
                    lease_until=func.clock_timestamp() + seconds(self._lease_s),
                    worker=worker,
                    doorbell=doorbell or Step.doorbell,
                    started_at=func.clock_timestamp(),
                )
                .returning(
                    Step.id, Step.job_id, Step.kind, Step.chunk_index, Step.attempt, Step.token
                )
            ).one_or_none()
            if row is None:
                return None
            session.execute(delete(Outbox).where(Outbox.step_id == step_id))
            session.execute(
                update(Job)
                .where(Job.id == row.job_id, Job.status == JobStatus.PENDING)
                .values(
                    status=JobStatus.PROCESSING,
                    started_at=func.coalesce(Job.started_at, func.clock_timestamp()),
                )
            )
            return Claim(
                row.id,
                row.job_id,
                StepKind(row.kind),
                row.chunk_index,
                row.attempt,
                row.token,
                about.request_id,
            )

    def renew(self, claim: Claim) -> bool:
        """Extend the lease; False when the claim is no longer good."""
        with self._database.transaction() as session:
            extended = _held(claim).values(
                lease_until=func.clock_timestamp() + seconds(self._lease_s)
            )
            return session.scalar(extended.returning(Step.id)) is not None

    def check(self, claim: Claim) -> None:
        """Raise `StaleClaim` unless the claim is good."""
        with self._database.transaction() as session:
            _lock(session, claim)

    def job_of(self, claim: Claim) -> tuple[Job, Recording]:
        """The job and the recording a claim is about.

        Raises:
            StaleClaim: the job was deleted.
        """
        with self._database.transaction() as session:
            row = session.execute(
                select(Job, Recording)
                .join(Recording, Job.recording_id == Recording.id)
                .where(Job.id == claim.job_id)
            ).one_or_none()
            if row is None:
                raise StaleClaim
            return row[0], row[1]

    def source_of(self, claim: Claim) -> str:
        """The URL that the claimed job's recording is to be had from.

        Raises:
            StaleClaim: the job was deleted.
        """
        with self._database.transaction() as session:
            url = session.scalar(select(Job.source_url).where(Job.id == claim.job_id))
            if url is None:
                raise StaleClaim
            return url

    def store_recording(self, claim: Claim, recording: NewRecording) -> UUID:
        """Commit the recording that was fetched for a job. Returns the step that plans it.

        Raises:
            StaleClaim: a newer attempt, or a cancellation, has the say now.
            UnknownOption: it has no such audio track as the job asks for.
        """
        with self._database.transaction() as session:
            self._complete(session, claim)
            job = session.get_one(Job, claim.job_id)
            session.add(recording.row(job.tenant))
            session.flush()
            find_track(recording.tracks, Options.from_json(job.options).audio_track)
            job.recording_id, job.duration_ms = recording.id, recording.duration_ms
            # Its query may be a signature, and nobody needs that any more.
            job.source_url = (job.source_url or "").partition("?")[0]
            session.flush()
            planning = add_steps(session, claim.job_id, StepKind.PLAN, [None])[0]
            charge_decoded(session, claim.job_id, recording.duration_ms or 0)
            return planning

    def is_stored(self, recording_id: UUID) -> bool:
        """Whether a recording was committed."""
        with self._database.transaction() as session:
            return session.get(Recording, recording_id) is not None

    def planned(self, job_id: UUID) -> dict[int, tuple[str, bool]]:
        """What an earlier attempt planned: chunk index to (content hash, whether it is done)."""
        with self._database.transaction() as session:
            rows = session.execute(
                select(Chunk.index, Chunk.content_hash, Chunk.result.is_not(None)).where(
                    Chunk.job_id == job_id
                )
            )
            return {index: (content_hash, done) for index, content_hash, done in rows}

    def start_plan(
        self,
        claim: Claim,
        *,
        weights_sha256: str,
        language: str,
        replan: bool,
        audio_track: int | None = None,
    ) -> None:
        """Fix what all chunks of the job share; with ``replan`` forget what was planned before."""
        with self._database.transaction() as session:
            _lock(session, claim)
            values: dict[str, Any] = {
                "weights_sha256": weights_sha256,
                "detected_language": language,
                "audio_track": audio_track,
            }
            if replan:
                session.execute(
                    delete(Step).where(
                        Step.job_id == claim.job_id,
                        Step.kind.in_([StepKind.TRANSCRIBE, StepKind.MODERATE]),
                    )
                )
                session.execute(delete(Chunk).where(Chunk.job_id == claim.job_id))
                values |= {"chunks_total": 0, "remaining": 0, "done_ms": 0}
            session.execute(update(Job).where(Job.id == claim.job_id).values(**values))

    def charge_decoded(self, claim: Claim, decoded_ms: int) -> None:
        """Charge the job at least ``decoded_ms``, which stay charged whatever becomes of it.

        Raises:
            StaleClaim: another worker plans this job now, or nobody does.
        """
        with self._database.transaction() as session:
            _lock(session, claim)
            charge_decoded(session, claim.job_id, decoded_ms)

    def add_chunks(self, claim: Claim, chunks: Sequence[PlannedRow]) -> list[UUID]:
        """Store chunks, with a step and an outbox row each; those already there stay as they are.

        A chunk that is there without a step, as in a job that is retried, is given one. Returns the
        steps that were added.

        Raises:
            StaleClaim: another worker plans this job now.
        """
        with self._database.transaction() as session:
            _lock(session, claim)
            added = session.scalars(
                upsert(Chunk)
                .values(
                    [
                        {
                            "job_id": claim.job_id,
                            "index": chunk.index,
                            "windows": chunk.windows,
                            "content_hash": chunk.content_hash,
                        }
                        for chunk in chunks
                    ]
                )
                .on_conflict_do_nothing()
                .returning(Chunk.index)
            ).all()
            session.execute(
                update(Job)
                .where(Job.id == claim.job_id)
                .values(
                    chunks_total=Job.chunks_total + len(added),
                    remaining=Job.remaining + len(added),
                )
            )
            with_step = session.scalars(
                select(Step.chunk_index).where(
                    Step.job_id == claim.job_id,
                    Step.kind == StepKind.TRANSCRIBE,
                    Step.chunk_index.in_([chunk.index for chunk in chunks]),
                )
            ).all()
            without = [chunk.index for chunk in chunks if chunk.index not in with_step]
            return add_steps(session, claim.job_id, StepKind.TRANSCRIBE, without)

    def finish_plan(
        self,
        claim: Claim,
        *,
        duration_ms: int,
        warnings: Iterable[str],
        elapsed_ms: int,
        languages: Mapping[str, float] | None = None,
    ) -> UUID | None:
        """All chunks are known. Returns the merge step when there is nothing left to wait for.

        ``languages`` are the probabilities of those that were detected.
        """
        with self._database.transaction() as session:
            self._complete(session, claim)
            remaining = session.scalar(
                update(Job)
                .where(Job.id == claim.job_id)
                .values(
                    planned=True,
                    duration_ms=duration_ms,
                    warnings=list(warnings),
                    plan_ms=elapsed_ms,
                    language_probabilities=languages or None,
                )
                .returning(Job.remaining)
            )
            correct(session, claim.job_id, duration_ms)
            return self._merge_if_due(session, claim.job_id, planned=True, remaining=remaining)

    def chunk_of(self, claim: Claim) -> Chunk:
        """The chunk a claim is about.

        Raises:
            StaleClaim: the job was deleted, or is planned anew.
        """
        with self._database.transaction() as session:
            chunk = session.get(Chunk, (claim.job_id, claim.chunk_index))
            if chunk is None:
                raise StaleClaim
            return chunk

    def reusable(self, tenant: str, content_hash: str) -> list[Any] | None:
        """The result of an equal chunk of the same tenant, if there is one."""
        with self._database.transaction() as session:
            return session.scalar(
                select(Chunk.result)
                .join(Job, Job.id == Chunk.job_id)
                .where(
                    Job.tenant == tenant,
                    Chunk.content_hash == content_hash,
                    Chunk.result.is_not(None),
                )
                .limit(1)
            )

    def finish_chunk(
        self, claim: Claim, *, result: list[Any], core_ms: int, engine_ms: int
    ) -> UUID | None:
        """Store a chunk's result. Returns the step that follows from it, if there is one.

        That is the chunk's moderation where the job wants it; else the merge, when this was the
        last chunk.

        Raises:
            StaleClaim: a newer attempt, or a cancellation, has the say now.
        """
        with self._database.transaction() as session:
            self._complete(session, claim)
            session.execute(
                _chunk_of(claim).values(
                    result=result, engine_ms=engine_ms, stored_count=Chunk.stored_count + 1
                )
            )
            options = session.scalar(
                update(Job)
                .where(Job.id == claim.job_id)
                .values(done_ms=Job.done_ms + core_ms)
                .returning(Job.options)
            )
            if options and Options.from_json(options).moderation:
                steps = add_steps(session, claim.job_id, StepKind.MODERATE, [claim.chunk_index])
                return steps[0]
            return self._chunk_is_done(session, claim.job_id)

    def finish_moderation(
        self, claim: Claim, *, moderation: dict[str, Any], elapsed_ms: int
    ) -> UUID | None:
        """Store how a chunk was judged. Returns the merge step when this was the last chunk.

        Raises:
            StaleClaim: a newer attempt, or a cancellation, has the say now.
        """
        with self._database.transaction() as session:
            self._complete(session, claim)
            session.execute(
                _chunk_of(claim).values(moderation=moderation, moderation_ms=elapsed_ms)
            )
            return self._chunk_is_done(session, claim.job_id)

    def chunks(self, job_id: UUID) -> list[Chunk]:
        """All chunks of a job, in order."""
        with self._database.transaction() as session:
            return list(
                session.scalars(select(Chunk).where(Chunk.job_id == job_id).order_by(Chunk.index))
            )

    def finish_merge(
        self, claim: Claim, transcript: Transcript, metrics: JobMetrics, warnings: list[str]
    ) -> None:
        """Store the transcript and complete the job."""
        with self._database.transaction() as session:
            self._complete(session, claim)
            session.add(transcript)
            now = func.clock_timestamp()
            job = session.execute(
                update(Job)
                .where(Job.id == claim.job_id, Job.status.in_(job_sources(JobStatus.COMPLETED)))
                .values(status=JobStatus.COMPLETED, completed_at=now, warnings=warnings)
                .returning(
                    func.coalesce(Job.retried_at, Job.created_at).label("asked_at"),
                    Job.started_at,
                    Job.completed_at,
                )
            ).one_or_none()
            if job is None:
                raise StaleClaim
            job_ended(session, claim.job_id, JobStatus.COMPLETED)
            metrics.waited_ms = _ms(job.asked_at, job.started_at)
            metrics.wall_ms = _ms(job.asked_at, job.completed_at)
            # Those that came to something, good or bad: what was handed back did not.
            came_to = (
                Step.failures + Step.losses + case((Step.status == StepStatus.DONE, 1), else_=0)
            )
            metrics.attempts = (
                session.scalar(select(func.sum(came_to)).where(Step.job_id == claim.job_id)) or 0
            )
            session.add(metrics)
            count_durations(session, metrics)

    def fail(self, step_id: UUID, attempt: int, error: StenoError) -> bool:
        """Record why an attempt failed, and retry the step or fail its job.

        A transient error is retried ``max_retries`` times with backoff, a time limit that was run
        into `RETRIES_AT_LIMIT` times, a lost worker up to `MAX_LOSSES` times at once, anything else
        never. A full disk or an outage is no fault of the step's: it counts as no failure, and the
        step is retried until it has passed. Moderation that fails for good fails no job: its chunk
        goes without, and once that has happened to one chunk, those after it get one try each.
        Returns False when the attempt is not the current one (any more).
        """
        with self._database.transaction() as session:
            job_id = session.scalar(select(Step.job_id).where(Step.id == step_id))
            if job_id is None:
                return False
            lock_job(session, job_id)
            lost = isinstance(error, WorkerLost)
            waits = isinstance(error, Transient) and not error.counts
            step = session.scalar(
                update(Step)
                .where(
                    Step.id == step_id, Step.attempt == attempt, Step.status == StepStatus.RUNNING
                )
                .values(
                    losses=Step.losses + int(lost),
                    failures=Step.failures + int(not lost and not waits),
                )
                .returning(Step)
            )
            if step is None:
                return False
            if not waits:
                session.add(_failure(step, error))
            delay_s = self._delay_s(session, step, error)
            if isinstance(error, LeaseExpired):
                count(session, LEASES_EXPIRED, kind=step.kind)
            if delay_s is not None:
                count(session, STEP_RETRIES, kind=step.kind, code=error.code)
                self._to_pending(session, step_id, attempt, delay_s=delay_s)
                _ask_for(session, [step_id])
            else:
                session.execute(
                    update(Step)
                    .where(Step.id == step_id)
                    .values(status=StepStatus.FAILED, token=None, lease_until=None)
                )
                if step.kind == StepKind.MODERATE:
                    self._chunk_is_done(session, job_id)
                else:
                    end_job(
                        session, job_id, JobStatus.FAILED, code=error.code, message=error.message
                    )
            return True

    def _delay_s(self, session: Session, step: Step, error: StenoError) -> float | None:
        """Seconds until the step is tried again after this failure; None: never."""
        first_s = self._retry.first_delay_s
        if not isinstance(error, Transient):
            return None
        if not error.counts:
            return retry_delay_s(min(step.attempt, MANY_TRIES), first_s)
        if isinstance(error, WorkerLost):
            return 0.0 if step.losses < MAX_LOSSES else None
        retries = self._retry.max_retries
        if isinstance(error, ChunkTimedOut):
            retries = min(retries, RETRIES_AT_LIMIT)
        if step.kind == StepKind.MODERATE and session.scalar(
            select(moderation_failed(step.job_id))
        ):
            retries = 0
        return retry_delay_s(step.failures, first_s) if step.failures <= retries else None

    def hand_back(self, worker: str, rung: UUID) -> list[UUID]:
        """Have others do at once what ``worker`` had in hand; the jobs that it is of.

        Its process that could still write must have ended. Nobody is to blame: it counts as no
        failure and no lost worker. ``rung`` is the step that its doorbell names: it is asked for
        again where it was never claimed.
        """
        with self._database.transaction() as session:
            mine = and_(Step.worker == worker, Step.status == StepStatus.RUNNING)
            jobs = session.scalars(select(Step.job_id).where(mine)).all()
            for job_id in jobs:
                lock_job(session, job_id)
            back = session.execute(
                update(Step)
                .where(mine, Step.job_id.in_(jobs))
                .values(
                    status=StepStatus.PENDING,
                    token=None,
                    lease_until=None,
                    run_after=func.clock_timestamp(),
                    doorbell=None,
                )
                .returning(Step.id, Step.job_id)
            ).all()
            _ask_again(session, [rung, *(step.id for step in back)])
            return [step.job_id for step in back]

    # --- the dispatcher's side ----------------------------------------------------------------

    def any_open(self) -> bool:
        """Whether there is anything to hand out, to wait for or to rescue."""
        with self._database.transaction() as session:
            open_steps = Step.status.in_([StepStatus.PENDING, StepStatus.RUNNING])
            return session.scalar(select(Step.id).where(open_steps).limit(1)) is not None

    def is_pending(self, step_id: UUID) -> bool:
        """Whether a worker can still claim it."""
        with self._database.transaction() as session:
            status = session.scalar(select(Step.status).where(Step.id == step_id))
            return status == StepStatus.PENDING

    def handed_out(self) -> int:
        """How many steps workers have in hand, their leases good, or are about to be given."""
        with self._database.transaction() as session:
            working = and_(Step.status == StepStatus.RUNNING, Step.lease_until > NOW)
            return _count(session, or_(working, _is_published()))

    def publish(self, limit: int, ring: Any, *, fetches: int | None = None) -> int:
        """Hand up to ``limit`` steps to ``ring(publications)``, in fair order; how many it was.

        No more than ``fetches`` recordings are fetched at once, so that servers that are slow, or
        mean to be, cannot hold every worker; None: any number.

        `common.domain.turns` says what is fair. A crash after ``ring`` rings again under the same
        id, which is harmless: steps are claimed once. Nothing is published while another dispatcher
        is at it. With ``limit`` 0 those that are new only join the line.
        """
        with self._database.transaction() as session:
            turns = Turns(session)
            if not turns.lock():
                return 0
            turns.take_in()
            if limit and fetches is not None:
                fetches -= _fetches(session)
            publications = [
                Publication(
                    outbox_id=step.outbox_id,
                    step_id=step.step_id,
                    doorbell=f"{step.step_id}-{step.attempt + 1}-{step.outbox_id}",
                    description=f"{step.kind} job={step.job_id}"
                    + (f" chunk={step.chunk_index}" if step.chunk_index is not None else ""),
                )
                for step in turns.give(limit, fetches)
            ]
            if publications:
                ring(publications)
            for publication in publications:
                session.execute(
                    update(Step)
                    .where(Step.id == publication.step_id)
                    .values(doorbell=publication.doorbell)
                )
            return len(publications)

    def published(self) -> list[tuple[UUID, str]]:
        """Published steps that are due and not claimed yet, each with the id of its RQ job."""
        with self._database.transaction() as session:
            rows = session.execute(
                select(Step.id, Step.doorbell).where(_is_published(), Step.run_after <= NOW)
            )
            return [(row.id, row.doorbell) for row in rows]

    def publish_again(self, step_ids: Iterable[UUID]) -> None:
        """Put steps whose doorbell got lost back into the outbox."""
        with self._database.transaction() as session:
            _ask_again(session, step_ids)

    def reclaim_expired(self) -> list[UUID]:
        """Take back steps whose worker went silent; returns the jobs they belong to."""
        with self._database.transaction() as session:
            expired = session.execute(
                select(Step.id, Step.attempt, Step.job_id).where(
                    Step.status == StepStatus.RUNNING,
                    Step.lease_until <= NOW,
                )
            ).all()
        error = LeaseExpired()
        return [
            job_id for step_id, attempt, job_id in expired if self.fail(step_id, attempt, error)
        ]

    def fail_overdue_jobs(self, limit_s: float) -> list[UUID]:
        """Fail jobs that have been PROCESSING for more than ``limit_s`` seconds."""
        with self._database.transaction() as session:
            jobs = session.scalars(
                select(Job.id).where(
                    Job.status == JobStatus.PROCESSING,
                    Job.started_at < NOW - seconds(limit_s),
                )
            ).all()
            for job_id in jobs:
                end_job(
                    session,
                    job_id,
                    JobStatus.FAILED,
                    code="job_timed_out",
                    message=f"The job ran into JOB_TIMEOUT of {limit_s:g} s",
                )
            return list(jobs)

    # --- inside one transaction ---------------------------------------------------------------

    def _chunk_is_done(self, session: Session, job_id: UUID) -> UUID | None:
        """Count a chunk that needs nothing more; returns the merge step if it was the last."""
        row = session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(remaining=Job.remaining - 1)
            .returning(Job.planned, Job.remaining)
        ).one()
        return self._merge_if_due(session, job_id, planned=row.planned, remaining=row.remaining)

    def _merge_if_due(
        self, session: Session, job_id: UUID, *, planned: bool, remaining: int | None
    ) -> UUID | None:
        if not planned or remaining != 0:
            return None
        return add_steps(session, job_id, StepKind.MERGE, [None])[0]

    def _complete(self, session: Session, claim: Claim) -> None:
        lock_job(session, claim.job_id)
        done = _held(claim).values(
            status=StepStatus.DONE,
            token=None,
            lease_until=None,
            finished_at=func.clock_timestamp(),
        )
        if session.scalar(done.returning(Step.id)) is None:
            raise StaleClaim

    def _to_pending(self, session: Session, step_id: UUID, attempt: int, *, delay_s: float) -> bool:
        pending = (
            update(Step)
            .where(
                Step.id == step_id,
                Step.attempt == attempt,
                Step.status == StepStatus.RUNNING,
            )
            .values(
                status=StepStatus.PENDING,
                token=None,
                lease_until=None,
                run_after=func.clock_timestamp() + seconds(delay_s),
                doorbell=None,
            )
        )
        return session.scalar(pending.returning(Step.id)) is not None


def _failure(step: Step, error: StenoError) -> Failure:
    return Failure(
        job_id=step.job_id,
        kind=step.kind,
        chunk_index=step.chunk_index,
        attempt=step.attempt,
        code=error.code,
        message=error.message,
        worker=step.worker,
    )


def lock_job(session: Session, job_id: UUID) -> None:
    """Lock the job's row. Always before its steps' rows, or two transactions could deadlock."""
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))


def add_steps(
    session: Session, job_id: UUID, kind: StepKind, chunk_indexes: Iterable[int | None]
) -> list[UUID]:
    """Add pending steps, each with its outbox row; returns their ids."""
    rows = [{"job_id": job_id, "kind": kind, "chunk_index": index} for index in chunk_indexes]
    if not rows:
        return []
    step_ids = list(session.scalars(insert(Step).returning(Step.id), rows))
    _ask_for(session, step_ids)
    return step_ids


def _ask_for(session: Session, step_ids: Sequence[UUID]) -> None:
    """Have steps published, whose rows are new or locked; those asked for already stay so."""
    if step_ids:
        steps = select(Step.id, Step.run_after).where(Step.id.in_(step_ids))
        outbox = upsert(Outbox).from_select(["step_id", "due_at"], steps)
        session.execute(outbox.on_conflict_do_nothing())


def _ask_again(session: Session, step_ids: Iterable[UUID]) -> None:
    # Locked, or a claim in the same moment would not see the row and leave it behind.
    pending = session.scalars(
        select(Step.id)
        .where(Step.id.in_(list(step_ids)), Step.status == StepStatus.PENDING)
        .with_for_update(skip_locked=True)
    ).all()
    if pending:
        session.execute(update(Step).where(Step.id.in_(pending)).values(doorbell=None))
    _ask_for(session, pending)


def fetched_id(step_id: UUID, attempt: int) -> UUID:
    """What an attempt at fetching a recording calls it: a name that others can find it by."""
    return uuid5(step_id, str(attempt))


def fetched_ids(session: Session, job_id: UUID) -> list[UUID]:
    """What workers that fetch, or were stopped over it, may have left of it; newest first."""
    fetching = session.execute(
        select(Step.id, Step.attempt).where(
            Step.job_id == job_id, Step.kind == StepKind.FETCH, Step.status != StepStatus.DONE
        )
    )
    return [
        fetched_id(step_id, attempt)
        for step_id, attempts in fetching
        for attempt in range(attempts, 0, -1)
    ]


def doorbells_of(session: Session, job_id: UUID) -> list[tuple[str, str]]:
    """(worker, doorbell) of each step of the job that runs; its row is locked."""
    running = session.execute(
        select(Step.worker, Step.doorbell).where(
            Step.job_id == job_id, Step.status == StepStatus.RUNNING
        )
    )
    return [(worker, doorbell) for worker, doorbell in running if worker and doorbell]


def end_job(
    session: Session,
    job_id: UUID,
    status: JobStatus,
    *,
    code: str | None = None,
    message: str | None = None,
) -> bool:
    """End a job that is not COMPLETED, and every step of it that is not done."""
    ended = session.scalar(  # this locks the job's row before those of its steps
        update(Job)
        .where(Job.id == job_id, Job.status.in_(job_sources(status)))
        .values(
            status=status,
            completed_at=func.clock_timestamp(),
            error_code=code,
            error_message=message,
        )
        .returning(Job.id)
    )
    if ended is None:
        return False
    session.execute(
        update(Step)
        .where(Step.job_id == job_id, Step.status.in_(step_sources(StepStatus.CANCELLED)))
        .values(status=StepStatus.CANCELLED, token=None, lease_until=None)
    )
    # After the steps are locked, when nobody can ask for one of them any more.
    steps = select(Step.id).where(Step.job_id == job_id)
    session.execute(delete(Outbox).where(Outbox.step_id.in_(steps)))
    job_ended(session, job_id, status)
    return True


def moderation_failed(job_id: UUID | InstrumentedAttribute[UUID]) -> ColumnElement[bool]:
    """Whether moderation of one of the job's chunks failed for good."""
    return exists().where(
        Step.job_id == job_id, Step.kind == StepKind.MODERATE, Step.status == StepStatus.FAILED
    )


def _chunk_of(claim: Claim) -> Update:
    return update(Chunk).where(Chunk.job_id == claim.job_id, Chunk.index == claim.chunk_index)


def _held(claim: Claim) -> Update:
    return update(Step).where(
        Step.id == claim.step_id, Step.token == claim.token, Step.status == StepStatus.RUNNING
    )


def _lock(session: Session, claim: Claim) -> None:
    lock_job(session, claim.job_id)
    held = select(Step.id).where(
        Step.id == claim.step_id, Step.token == claim.token, Step.status == StepStatus.RUNNING
    )
    if session.scalar(held.with_for_update()) is None:
        raise StaleClaim


def _is_published() -> ColumnElement[bool]:
    return and_(Step.status == StepStatus.PENDING, Step.doorbell.is_not(None))


def _fetches(session: Session) -> int:
    """How many recordings are being fetched, or are about to be."""
    running = Step.status == StepStatus.RUNNING
    return _count(session, Step.kind == StepKind.FETCH, or_(running, _is_published()))


def _count(session: Session, *where: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(Step).where(*where)) or 0


def _ms(start: datetime, end: datetime) -> int:
    return round((end - start).total_seconds() * 1000)
