"""The life of a step: claimed with a token and a lease, finished by token, reclaimed when lost.

Every write is guarded by the state it expects, so that it takes effect once however often, and by
however many processes, it is tried. The pattern is the transactional outbox
(microservices.io/patterns/data/transactional-outbox.html) with leases and fencing tokens
(Kleppmann, "How to do distributed locking", 2016). What follows a step is `common.db.flow`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import (
    ColumnElement,
    Interval,
    Update,
    and_,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.flow import OPEN, Flow, NewPart, end_job, enqueue, locked_job
from common.db.tables import NOW, Job, Outbox, Part, Step, StepFailure
from common.db.tallies import count
from common.db.turns import Turns
from common.domain.job import (
    MAX_LOSSES,
    RETRIES_AT_LIMIT,
    JobStatus,
    StepStatus,
    retry_delay_s,
)
from common.domain.metrics import LEASES_EXPIRED, STEP_RETRIES
from common.domain.pipeline import PIPELINES, StepKind, StepType, limited_kinds
from common.errors import ChunkTimedOut, LeaseExpired, StenoError, Transient, WorkerLost

MANY_TRIES = 10
"""After so many the delay before the next one does not grow any more."""

Within = Callable[[Session, Job], None]
"""What a pipeline stores in the transaction that ends a step; the job's row is locked."""


class StaleClaim(Exception):
    """The claim was taken over, or the job was cancelled: whatever was computed is dropped."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_retries`` >= 0 after the first try; ``first_delay_s`` doubles with each failure."""

    max_retries: int
    first_delay_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a step until the lease ends; renewed while the work goes on.

    ``job`` and ``part`` are as they were when it was claimed: the job with its recording and
    transcription, the part None where the step is about the whole job. ``previous`` is the result
    of the step that this one follows; ``known`` that of an equal part, where there is one and it
    may be used.
    """

    step_id: UUID
    kind: str
    attempt: int
    token: UUID
    worker: str
    rq_job_id: str | None
    """The RQ job to stop, should this work be stopped."""
    job: Job
    part: Part | None
    previous: Any | None = None
    known: Any | None = None

    @property
    def job_id(self) -> UUID:
        return self.job.id

    @property
    def part_index(self) -> int | None:
        return None if self.part is None else self.part.index


@dataclass(frozen=True, slots=True)
class Publication:
    """A step the dispatcher hands to RQ as the job ``rq_job_id``."""

    outbox_id: int
    step_id: UUID
    rq_job_id: str
    description: str


def seconds(value: float) -> ColumnElement[Any]:
    """An interval, as SQL."""
    return cast(literal(f"{value} seconds"), Interval)


class Steps:
    """All that workers and the dispatcher do with steps. Not bound to a tenant: they serve all."""

    def __init__(
        self, database: Database, *, lease_s: float, retry: RetryPolicy, reuse: bool = True
    ) -> None:
        """``reuse``: whether the results of equal parts are used again."""
        self._database = database
        self._lease_s = lease_s
        self._retry = retry
        self._reuse = reuse

    # --- a worker's side --------------------------------------------------------------------

    def claim(self, step_id: UUID, worker: str, rq_job_id: str | None = None) -> Claim | None:
        """Take a pending step, or None when it is taken, done, not yet due or cancelled.

        ``rq_job_id`` is the RQ job in which ``worker`` was given it: stopping that stops the work.
        """
        with self._database.transaction() as session:
            job_id = session.scalar(select(Step.job_id).where(Step.id == step_id))
            job = None if job_id is None else locked_job(session, job_id)
            return None if job is None else self._claim(session, job, step_id, worker, rq_job_id)

    def renew(self, claim: Claim) -> bool:
        """Extend the lease; False when the claim is no longer good."""
        with self._database.transaction() as session:
            extended = _held(claim).values(
                lease_until=func.clock_timestamp() + seconds(self._lease_s)
            )
            return session.scalar(extended.returning(Step.id)) is not None

    def check(self, claim: Claim) -> None:
        """Raise `StaleClaim` unless the claim is good."""
        self.write(claim, lambda _session, _job: None)

    def write(self, claim: Claim, within: Within) -> None:
        """Have ``within`` store something while the claim is good, before the step ends.

        Raises:
            StaleClaim: it is not.
        """
        with self._database.transaction() as session:
            within(session, _held_job(session, claim))

    def add_parts(self, claim: Claim, parts: Sequence[NewPart]) -> None:
        """Store parts that the claimed step has found, with their first steps.

        Raises:
            StaleClaim: another worker has this step now, or nobody does.
        """
        self.write(claim, lambda session, job: _add_parts(session, job, parts))

    def finish(
        self,
        claim: Claim,
        *,
        result: Any | None = None,
        elapsed_ms: int | None = None,
        parts: Sequence[NewPart] = (),
        within: Within | None = None,
        take_next: bool = False,
    ) -> Claim | None:
        """Finish the claimed step, and add the steps that follow it.

        ``parts`` are the last parts that it found. With ``take_next`` the same worker claims the
        step that follows in the same transaction; its claim is returned. That is the step of the
        same part, or the only open step of the job.

        Raises:
            StaleClaim: a newer attempt, a cancellation or a deletion has overtaken it.
        """
        with self._database.transaction() as session:
            job = locked_job(session, claim.job_id)
            if job is None:
                raise StaleClaim
            done = _held(claim).values(
                status=StepStatus.DONE,
                token=None,
                lease_until=None,
                finished_at=func.clock_timestamp(),
                result=result,
                elapsed_ms=elapsed_ms,
                stored_count=Step.stored_count + 1,
            )
            if session.scalar(done.returning(Step.id)) is None:
                raise StaleClaim
            if within is not None:
                within(session, job)
            flow = Flow(session, job)
            added = flow.add_parts(parts)
            added += flow.step_ended(claim.kind, claim.part, done=True)
            following = self._next_step(session, claim, added) if take_next else None
            if following is None:
                return None
            return self._claim(session, job, following, claim.worker, claim.rq_job_id)

    def fail(self, step_id: UUID, attempt: int, error: StenoError) -> bool:
        """Record why an attempt failed, and retry the step or fail its job.

        A transient error is retried ``max_retries`` times with backoff, a time limit that was run
        into `RETRIES_AT_LIMIT` times, a lost worker up to `MAX_LOSSES` times at once, anything else
        never. A full disk or an outage is no fault of the step's: it counts as no failure, and the
        step is retried until it has passed. A step whose failure is only a warning fails no job:
        its part goes without, and once that has happened in one part, those after it get one try
        each. Returns False when the attempt is not the current one (any more).
        """
        with self._database.transaction() as session:
            job_id = session.scalar(select(Step.job_id).where(Step.id == step_id))
            job = None if job_id is None else locked_job(session, job_id)
            if job is None:
                return False
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
            step_type = PIPELINES[job.kind].step(step.kind)
            delay_s = self._delay_s(session, step, step_type, error)
            if isinstance(error, LeaseExpired):
                count(session, LEASES_EXPIRED, kind=step.kind)
            if delay_s is not None:
                count(session, STEP_RETRIES, kind=step.kind, code=error.code)
                self._to_pending(session, step_id, attempt, delay_s=delay_s)
                enqueue(session, [step_id])
            else:
                session.execute(
                    update(Step)
                    .where(Step.id == step_id)
                    .values(status=StepStatus.FAILED, token=None, lease_until=None)
                )
                if step_type.warning is None:
                    end_job(
                        session, job.id, JobStatus.FAILED, code=error.code, message=error.message
                    )
                else:
                    part = session.get(Part, (job.id, step.part)) if step.part is not None else None
                    Flow(session, job).step_ended(step.kind, part, done=False)
            return True

    def _delay_s(
        self, session: Session, step: Step, step_type: StepType, error: StenoError
    ) -> float | None:
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
        if step_type.warning is not None and session.scalar(_failed_already(step)):
            retries = 0
        return retry_delay_s(step.failures, first_s) if step.failures <= retries else None

    def hand_back(self, worker: str, step_id: UUID) -> list[UUID]:
        """Have others do at once what ``worker`` had in hand; the jobs that it is of.

        Its process that could still write must have ended. It counts as no failure and no lost
        worker. ``step_id`` is the step it was given: it is published again where it was not claimed
        yet.
        """
        with self._database.transaction() as session:
            mine = and_(Step.worker == worker, Step.status == StepStatus.RUNNING)
            jobs = session.scalars(select(Step.job_id).where(mine)).all()
            for job_id in jobs:
                locked_job(session, job_id)
            back = session.execute(
                update(Step)
                .where(mine, Step.job_id.in_(jobs))
                .values(
                    status=StepStatus.PENDING,
                    token=None,
                    lease_until=None,
                    run_after=func.clock_timestamp(),
                    rq_job_id=None,
                )
                .returning(Step.id, Step.job_id)
            ).all()
            _enqueue_again(session, [step_id, *(step.id for step in back)])
            return [step.job_id for step in back]

    # --- the dispatcher's side ----------------------------------------------------------------

    def any_open(self) -> bool:
        """Whether there is anything to hand out, to wait for or to rescue."""
        with self._database.transaction() as session:
            return session.scalar(select(Step.id).where(Step.status.in_(OPEN)).limit(1)) is not None

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

    def publish(
        self,
        limit: int,
        send: Callable[[Sequence[Publication]], Any],
        *,
        limited: int | None = None,
    ) -> int:
        """Hand up to ``limit`` steps to ``send(publications)``, in fair order; how many it was.

        No more than ``limited`` steps of the kinds that are so run at once, so that servers that
        are slow, or mean to be, cannot hold every worker; None: any number.

        `common.domain.turns` says what is fair. A crash after ``send`` sends again under the same
        id, which is harmless: steps are claimed once. Nothing is published while another dispatcher
        is at it. With ``limit`` 0 those that are new only join the line.
        """
        with self._database.transaction() as session:
            turns = Turns(session)
            if not turns.lock():
                return 0
            turns.take_in()
            if limit and limited is not None:
                limited -= _limited(session)
            publications = [
                Publication(
                    outbox_id=step.outbox_id,
                    step_id=step.step_id,
                    rq_job_id=f"{step.step_id}-{step.attempt + 1}-{step.outbox_id}",
                    description=f"{step.step_kind} job={step.job_id}"
                    + (f" part={step.part}" if step.part is not None else ""),
                )
                for step in turns.give(limit, limited)
            ]
            if publications:
                send(publications)
            for publication in publications:
                session.execute(
                    update(Step)
                    .where(Step.id == publication.step_id)
                    .values(rq_job_id=publication.rq_job_id)
                )
            return len(publications)

    def published(self) -> list[tuple[UUID, str]]:
        """Published steps that are due and not claimed yet, each with the id of its RQ job."""
        with self._database.transaction() as session:
            rows = session.execute(
                select(Step.id, Step.rq_job_id).where(_is_published(), Step.run_after <= NOW)
            )
            return [(row.id, row.rq_job_id) for row in rows]

    def publish_again(self, step_ids: Iterable[UUID]) -> None:
        """Put steps whose queue message got lost back into the outbox."""
        with self._database.transaction() as session:
            _enqueue_again(session, step_ids)

    def reclaim_expired(self) -> list[UUID]:
        """Take back steps whose leases have expired; returns the jobs they belong to."""
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
                    func.coalesce(Job.resumed_at, Job.started_at) < NOW - seconds(limit_s),
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

    def _claim(
        self, session: Session, job: Job, step_id: UUID, worker: str, rq_job_id: str | None
    ) -> Claim | None:
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
                rq_job_id=rq_job_id or Step.rq_job_id,
                started_at=func.clock_timestamp(),
            )
            .returning(Step.kind, Step.part, Step.attempt, Step.token)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            return None
        session.execute(delete(Outbox).where(Outbox.step_id == step_id))
        if job.status == JobStatus.PENDING:
            job.status = JobStatus.PROCESSING
            job.started_at = job.started_at or session.scalar(select(func.clock_timestamp()))
        part = None if row.part is None else session.get_one(Part, (job.id, row.part))
        step = PIPELINES[job.kind].step(row.kind)
        return Claim(
            step_id=step_id,
            kind=row.kind,
            attempt=row.attempt,
            token=row.token,
            worker=worker,
            rq_job_id=rq_job_id,
            job=job,
            part=part,
            previous=None if step.after is None else _result(session, job.id, step.after, row.part),
            known=_equal_result(session, job.tenant, row.kind, part)
            if step.reuses and self._reuse and part is not None
            else None,
        )

    def _next_step(self, session: Session, claim: Claim, added: Sequence[UUID]) -> UUID | None:
        """Of the steps that follow: the one of the same part, or the job's only one."""
        if len(added) != 1:
            return None
        if claim.part is None:
            waiting = (Step.job_id == claim.job_id, Step.status == StepStatus.PENDING)
            if _count(session, *waiting) > 1:
                return None
        return added[0]

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
                rq_job_id=None,
            )
        )
        return session.scalar(pending.returning(Step.id)) is not None


def _failure(step: Step, error: StenoError) -> StepFailure:
    return StepFailure(
        job_id=step.job_id,
        kind=step.kind,
        part=step.part,
        attempt=step.attempt,
        code=error.code,
        message=error.message,
        worker=step.worker,
    )


def _add_parts(session: Session, job: Job, parts: Sequence[NewPart]) -> None:
    Flow(session, job).add_parts(parts)


def _enqueue_again(session: Session, step_ids: Iterable[UUID]) -> None:
    # Locked, or a claim in the same moment would not see the row and leave it behind.
    pending = session.scalars(
        select(Step.id)
        .where(Step.id.in_(list(step_ids)), Step.status == StepStatus.PENDING)
        .with_for_update(skip_locked=True)
    ).all()
    if pending:
        session.execute(update(Step).where(Step.id.in_(pending)).values(rq_job_id=None))
    enqueue(session, pending)


def _result(session: Session, job_id: UUID, kind: str, part: int) -> Any:
    return session.scalar(
        select(Step.result).where(Step.job_id == job_id, Step.kind == kind, Step.part == part)
    )


def _equal_result(session: Session, tenant: str, kind: str, part: Part) -> Any | None:
    """The result of an equal part of the same tenant, if there is one."""
    return session.scalar(
        select(Step.result)
        .join(Part, (Part.job_id == Step.job_id) & (Part.index == Step.part))
        .join(Job, Job.id == Step.job_id)
        .where(
            Job.tenant == tenant,
            Part.content_hash == part.content_hash,
            Step.kind == kind,
            Step.status == StepStatus.DONE,
        )
        .limit(1)
    )


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


def running_steps(session: Session, job_id: UUID) -> list[tuple[str, str]]:
    """(worker, RQ job) of each step of the job that runs; its row is locked."""
    running = session.execute(
        select(Step.worker, Step.rq_job_id).where(
            Step.job_id == job_id, Step.status == StepStatus.RUNNING
        )
    )
    return [(worker, rq_job_id) for worker, rq_job_id in running if worker and rq_job_id]


def _failed_already(step: Step) -> Any:
    """A step of the job and kind of ``step`` that failed for good."""
    return (
        select(Step.id)
        .where(Step.job_id == step.job_id, Step.kind == step.kind, Step.status == StepStatus.FAILED)
        .limit(1)
    )


def _held(claim: Claim) -> Update:
    return update(Step).where(
        Step.id == claim.step_id, Step.token == claim.token, Step.status == StepStatus.RUNNING
    )


def _held_job(session: Session, claim: Claim) -> Job:
    job = locked_job(session, claim.job_id)
    held = select(Step.id).where(
        Step.id == claim.step_id, Step.token == claim.token, Step.status == StepStatus.RUNNING
    )
    if job is None or session.scalar(held.with_for_update()) is None:
        raise StaleClaim
    return job


def _is_published() -> ColumnElement[bool]:
    return and_(Step.status == StepStatus.PENDING, Step.rq_job_id.is_not(None))


def _limited(session: Session) -> int:
    """How many steps of limited kinds run, or are about to."""
    running = Step.status == StepStatus.RUNNING
    return _count(session, Step.kind.in_(limited_kinds()), or_(running, _is_published()))


def _count(session: Session, *where: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(Step).where(*where)) or 0
