"""The life of a step: claimed with a token and a lease, finished by token, rescued when lost.

Every write is guarded by the state it expects. So it takes effect once, however often and by
however many processes it is tried. The pattern is the transactional outbox
(microservices.io/patterns/data/transactional-outbox.html) with leases and fencing tokens
(Kleppmann, "How to do distributed locking", 2016). `common.db.flow` adds the steps that follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import ColumnElement, Update, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.due_steps import SERVER, DueSteps, Servers, is_known
from common.db.flow import OPEN, Flow, NewPart, end_job, enqueue, locked_job
from common.db.tables import NOW, Job, Outbox, Part, Step, StepFailure
from common.db.tallies import count
from common.domain.job import (
    MAX_LOSSES,
    RETRIES_AT_LIMIT,
    JobStatus,
    Publication,
    StepStatus,
    retry_delay_s,
)
from common.domain.metrics import LEASES_EXPIRED, STEP_RETRIES
from common.domain.pipeline import StepKind, StepType, limited_kinds, pipeline_of
from common.errors import ChunkTimedOut, LeaseExpired, StenoError, Transient, WorkerLost

MAX_BACKOFF_STEP = 10
"""After so many attempts the delay does not grow any more."""

Within = Callable[[Session, Job], object]
"""Stores the data of a pipeline in the transaction of a step; the job's row is locked."""


class StaleClaim(Exception):
    """Another worker has the step, or the job was cancelled or deleted: drop the result."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_retries`` >= 0 after the first try; ``first_delay_s`` doubles with each failure."""

    max_retries: int
    first_delay_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a step until the lease ends; it is renewed during the work.

    ``job``, with its recording and transcription, and ``part`` are as at the time of the claim.
    ``part`` is None if the step is about the whole job. ``previous`` is the result of the step
    before this one in the part; ``known`` that of an equal part that may be reused.
    """

    step_id: UUID
    kind: str
    attempt: int
    token: UUID
    worker: str
    rq_job_id: str | None
    """The RQ job to stop in order to stop this work."""
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


class Steps:
    """The operations of workers and the dispatcher on steps, for all tenants."""

    def __init__(
        self, database: Database, *, lease_s: float, retry: RetryPolicy, reuse: bool = True
    ) -> None:
        """``reuse``: whether the results of equal parts are reused."""
        self._database = database
        self._lease_s = lease_s
        self._retry = retry
        self._reuse = reuse

    # --- a worker's side --------------------------------------------------------------------

    def claim(self, step_id: UUID, worker: str, rq_job_id: str | None = None) -> Claim | None:
        """Claim a pending step; None if it is claimed, done, not due yet or cancelled.

        None also if this version does not know the kind of its job. ``rq_job_id`` is the RQ job
        that ``worker`` runs: stopping that stops the work.
        """
        with self._database.transaction() as session:
            job = _job_of(session, step_id)
            return None if job is None else self._claim(session, job, step_id, worker, rq_job_id)

    def renew(self, claim: Claim) -> bool:
        """Extend the lease; False if the claim is no longer valid."""
        with self._database.transaction() as session:
            extended = (
                update(Step)
                .where(_is_held(claim))
                .values(lease_until=func.clock_timestamp() + timedelta(seconds=self._lease_s))
            )
            return session.scalar(extended.returning(Step.id)) is not None

    def check(self, claim: Claim) -> None:
        """Raise `StaleClaim` unless the claim is valid."""
        self.write(claim, lambda _session, _job: None)

    def write(self, claim: Claim, within: Within) -> None:
        """Let ``within`` store something before the step ends, guarded by the claim.

        Raises:
            StaleClaim: the claim is no longer valid.
        """
        with self._database.transaction() as session:
            job = locked_job(session, claim.job_id)
            held = select(Step.id).where(_is_held(claim)).with_for_update()
            if job is None or session.scalar(held) is None:
                raise StaleClaim
            within(session, job)

    def add_parts(self, claim: Claim, parts: Sequence[NewPart]) -> None:
        """Store parts that the claimed step found, with their first steps.

        Raises:
            StaleClaim: the claim is no longer valid.
        """
        self.write(claim, lambda session, job: Flow(session, job).add_parts(parts))

    def finish(
        self,
        claim: Claim,
        *,
        result: Any | None = None,
        elapsed_ms: int | None = None,
        parts: Sequence[NewPart] = (),
        within: Within | None = None,
        take_next: bool = False,
        back_to: str | None = None,
    ) -> Claim | None:
        """Finish the claimed step, and add the steps that follow it.

        ``parts`` are the last parts that it found. ``back_to``: the job returns with these to an
        earlier phase (`Flow.go_back`). With ``take_next`` the same worker claims the
        step that follows in the same transaction; its claim is returned. That is the step of the
        same part, or the only open step of the job.

        Raises:
            StaleClaim: another worker has the step, or the job was cancelled or deleted.
        """
        with self._database.transaction() as session:
            job = locked_job(session, claim.job_id)
            if job is None:
                raise StaleClaim
            done = (
                update(Step)
                .where(_is_held(claim))
                .values(
                    status=StepStatus.DONE,
                    token=None,
                    lease_until=None,
                    finished_at=func.clock_timestamp(),
                    result=result,
                    elapsed_ms=elapsed_ms,
                    stored_count=Step.stored_count + 1,
                )
            )
            if session.scalar(done.returning(Step.id)) is None:
                raise StaleClaim
            if within is not None:
                within(session, job)
            flow = Flow(session, job)
            if back_to is not None:
                flow.go_back(back_to, parts)
                return None
            added = flow.add_parts(parts)
            added += flow.step_ended(claim.kind, claim.part, done=True)
            following = self._next_step(session, claim, added) if take_next else None
            if following is None:
                return None
            return self._claim(session, job, following, claim.worker, claim.rq_job_id)

    def fail(self, step_id: UUID, attempt: int, error: StenoError) -> bool:
        """Record why an attempt failed, and retry the step or fail its job.

        A transient error is retried ``max_retries`` times with backoff, an exceeded time limit
        `RETRIES_AT_LIMIT` times, a lost worker up to `MAX_LOSSES` times at once, any other error
        never. A full disk or an outage is not the step's fault: it is not counted, and the step is
        retried until it is over. A step whose failure is only a warning fails no job: its part
        lacks the result, and after one such failure the same steps of later parts get one attempt
        each. Returns False if the attempt is not the current one, or the job not `is_known`.
        """
        with self._database.transaction() as session:
            job = _job_of(session, step_id)
            if job is None:
                return False
            lost = isinstance(error, WorkerLost)
            is_outage = isinstance(error, Transient) and not error.counts
            step = session.scalar(
                update(Step)
                .where(
                    Step.id == step_id, Step.attempt == attempt, Step.status == StepStatus.RUNNING
                )
                .values(
                    losses=Step.losses + int(lost),
                    failures=Step.failures + int(not lost and not is_outage),
                )
                .returning(Step)
            )
            if step is None:
                return False
            if not is_outage:
                session.add(
                    StepFailure(
                        job_id=step.job_id,
                        kind=step.kind,
                        part=step.part,
                        attempt=step.attempt,
                        code=error.code,
                        message=error.message,
                        cost=None if error.cost is None else dict(error.cost),
                        worker=step.worker,
                    )
                )
            step_type = pipeline_of(job.kind).step(step.kind)
            delay_s = self._delay_s(session, step, step_type, error)
            if isinstance(error, LeaseExpired):
                count(session, LEASES_EXPIRED, kind=step.kind)
            if delay_s is not None:
                count(session, STEP_RETRIES, kind=step.kind, code=error.code)
                session.execute(_to_pending(delay_s).where(Step.id == step_id))
                enqueue(session, [step_id])
            else:
                step.status, step.token, step.lease_until = StepStatus.FAILED, None, None
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
        """Seconds until the step is retried after this failure; None: never."""
        first_s = self._retry.first_delay_s
        if not isinstance(error, Transient):
            return None
        if not error.counts:
            return retry_delay_s(min(step.attempt, MAX_BACKOFF_STEP), first_s)
        if isinstance(error, WorkerLost):
            return 0.0 if step.losses < MAX_LOSSES else None
        retries = self._retry.max_retries
        if isinstance(error, ChunkTimedOut):
            retries = min(retries, RETRIES_AT_LIMIT)
        alike = (Step.job_id == step.job_id, Step.kind == step.kind)
        failed = select(Step.id).where(*alike, Step.status == StepStatus.FAILED).limit(1)
        has_all_tries = step_type.warning is None or step_type.has_all_tries
        if not has_all_tries and session.scalar(failed):
            retries = 0
        if step.failures > retries:
            return None
        return max(retry_delay_s(step.failures, first_s), error.retry_after_s or 0.0)

    def hand_back(self, worker: str, step_id: UUID | None = None) -> list[UUID]:
        """Make the running steps of ``worker`` pending again at once; returns their jobs.

        Its engine process must have ended, or not know of the claim, so that it cannot write any
        more. This counts neither as a failure nor as a lost worker. ``step_id`` is the step of its
        queue message: it is published again if it was not claimed yet.
        """
        with self._database.transaction() as session:
            mine = and_(Step.worker == worker, Step.status == StepStatus.RUNNING)
            jobs = session.scalars(select(Step.job_id).where(mine)).all()
            for job_id in jobs:
                locked_job(session, job_id)
            back = session.execute(
                _to_pending().where(mine, Step.job_id.in_(jobs)).returning(Step.id, Step.job_id)
            ).all()
            given = [] if step_id is None else [step_id]
            _enqueue_again(session, [*given, *(step.id for step in back)])
            return [step.job_id for step in back]

    # --- the dispatcher's side ----------------------------------------------------------------

    def any_open(self) -> bool:
        """Whether any step is pending or running."""
        with self._database.transaction() as session:
            return session.scalar(select(Step.id).where(Step.status.in_(OPEN)).limit(1)) is not None

    def is_pending(self, step_id: UUID) -> bool:
        """Whether a worker can still claim the step."""
        with self._database.transaction() as session:
            status = session.scalar(select(Step.status).where(Step.id == step_id))
            return status == StepStatus.PENDING

    def handed_out(self) -> int:
        """How many steps run with a valid lease, or are published."""
        with self._database.transaction() as session:
            working = and_(Step.status == StepStatus.RUNNING, Step.lease_until > NOW)
            return _count(session, or_(working, _is_published()))

    def publish(
        self,
        limit: int,
        send: Callable[[Sequence[Publication]], Any],
        *,
        limited: int | None = None,
        at_once: Mapping[str, int] | None = None,
    ) -> int:
        """Hand up to ``limit`` steps to ``send(publications)`` in fair order; returns how many.

        At most ``limited`` steps of limited kinds run at once (None: any number), so that slow or
        hostile servers cannot occupy every worker. ``at_once``: of these kinds of steps of parts,
        at most so many for one server: that of the settings, or a tenant's own.

        `common.domain.fair_order` defines the order. After a crash behind ``send`` the steps are
        sent again under the same id, which is harmless: steps are claimed once. Nothing is
        published while another dispatcher publishes. With ``limit`` 0 new steps are only queued.
        """
        with self._database.transaction() as session:
            due = DueSteps(session)
            if not due.lock():
                return 0
            due.enqueue()
            if limit and limited is not None:
                limited -= _limited_now(session)
            working = _working(session, at_once) if limit and at_once else {}
            publications = [
                Publication(
                    step_id=step.step_id,
                    rq_job_id=f"{step.step_id}-{step.attempt + 1}-{step.outbox_id}",
                    description=f"{step.step_kind} job={step.job_id}"
                    + (f" part={step.part}" if step.part is not None else ""),
                )
                for step in due.dequeue(limit, limited, at_once or {}, working)
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
        """Published steps that are due and not claimed yet, with the ids of their RQ jobs."""
        with self._database.transaction() as session:
            rows = session.execute(
                select(Step.id, Step.rq_job_id).where(_is_published(), Step.run_after <= NOW)
            )
            return [(row.id, row.rq_job_id) for row in rows]

    def publish_again(self, step_ids: Iterable[UUID]) -> None:
        """Put steps whose queue message was lost back into the outbox."""
        with self._database.transaction() as session:
            _enqueue_again(session, step_ids)

    def rescue_expired(self) -> list[UUID]:
        """Rescue steps whose leases have expired; returns their jobs."""
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
                    func.coalesce(Job.resumed_at, Job.started_at)
                    < NOW - timedelta(seconds=limit_s),
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
                lease_until=func.clock_timestamp() + timedelta(seconds=self._lease_s),
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
        step = pipeline_of(job.kind).step(row.kind)
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
        """The step to claim next: the only added one, and without a part the job's only one."""
        if len(added) != 1:
            return None
        if claim.part is None:
            waiting = (Step.job_id == claim.job_id, Step.status == StepStatus.PENDING)
            if _count(session, *waiting) > 1:
                return None
        return added[0]


def _job_of(session: Session, step_id: UUID) -> Job | None:
    """The job of a step, locked; None: it is deleted, or not `is_known`."""
    job_id = session.scalar(select(Step.job_id).where(Step.id == step_id))
    job = None if job_id is None else locked_job(session, job_id)
    return job if job is not None and is_known(job.id, job.kind) else None


def _to_pending(delay_s: float = 0.0) -> Update:
    """Makes steps pending again, due after ``delay_s`` seconds."""
    return update(Step).values(
        status=StepStatus.PENDING,
        token=None,
        lease_until=None,
        run_after=func.clock_timestamp() + timedelta(seconds=delay_s),
        rq_job_id=None,
    )


def _enqueue_again(session: Session, step_ids: Iterable[UUID]) -> None:
    # Locked: otherwise a concurrent claim would not see the outbox row, and leave it.
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
    """The id of the recording that an attempt fetches; other processes can compute it."""
    return uuid5(step_id, str(attempt))


def fetched_ids(session: Session, job_id: UUID) -> list[UUID]:
    """Recordings that running or stopped fetch attempts may have stored; newest first."""
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
    """(worker, RQ job) of each running step of the job, whose row is locked."""
    running = session.execute(
        select(Step.worker, Step.rq_job_id).where(
            Step.job_id == job_id, Step.status == StepStatus.RUNNING
        )
    )
    return [(worker, rq_job_id) for worker, rq_job_id in running if worker and rq_job_id]


def _is_held(claim: Claim) -> ColumnElement[bool]:
    """Whether a step is that of the claim, and the claim is valid."""
    return and_(
        Step.id == claim.step_id, Step.token == claim.token, Step.status == StepStatus.RUNNING
    )


def _is_published() -> ColumnElement[bool]:
    return and_(Step.status == StepStatus.PENDING, Step.rq_job_id.is_not(None))


def _is_working() -> ColumnElement[bool]:
    """Whether a step runs or is published."""
    return or_(Step.status == StepStatus.RUNNING, _is_published())


def _limited_now(session: Session) -> int:
    """How many steps run or are published of which only half of the workers do any."""
    by_server = set(limited_kinds(with_own_server=True)) - set(limited_kinds())
    asks_own = and_(Step.kind.in_(by_server), SERVER.is_not(None))
    limited = or_(Step.kind.in_(limited_kinds()), asks_own)
    found = select(func.count()).select_from(Step).join(Job, Job.id == Step.job_id)
    return session.scalar(found.where(_is_working(), limited)) or 0


def _working(session: Session, kinds: Iterable[str]) -> Servers:
    """How many steps of these kinds run or are published, for each server."""
    found = select(Step.kind, SERVER).join(Job, Job.id == Step.job_id)
    of_kinds = found.where(Step.kind.in_(list(kinds)), _is_working())
    return Counter((kind, server) for kind, server in session.execute(of_kinds))


def _count(session: Session, *where: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(Step).where(*where)) or 0
