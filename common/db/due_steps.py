"""The queue of due steps, in the order of `common.domain.fair_order`, over its own tables.

Only the dispatcher that holds `TURNS_LOCK` writes these tables, so turns are assigned one after
the other while others submit, claim and finish. Each query reads the beginning of an index, so its
time does not depend on the length of the queue. Only steps of unknown kinds are read each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

from loguru import logger
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    case,
    delete,
    exists,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from common.db.tables import NOW, TURNS, TURNS_LOCK, Job, JobTurn, Outbox, Step, TenantTurn
from common.domain.fair_order import (
    next_served,
    passes_allowed,
    serve,
    size_class,
    turns_left,
)
from common.domain.job import StepStatus
from common.domain.pipeline import OWN_SERVER, PIPELINES, own_server, pipeline_of

ENQUEUE_BATCH = 10_000

T = TypeVar("T", JobTurn, TenantTurn)


SERVER = case((Job.options[OWN_SERVER].astext.is_not(None), Job.tenant))
"""Whose server a job's requests go to: a tenant's; null: that of the settings."""
Servers = Mapping[tuple[str, str | None], int]
"""Numbers by kind of step and `SERVER`."""


@dataclass(slots=True)
class DueSteps:
    """The queue, while a transaction holds its lock."""

    session: Session
    _busy_jobs: set[UUID] = field(default_factory=set)
    """Jobs whose steps are all locked by other transactions, that are not `is_known`, or whose
    steps would be too many at once."""
    _busy_tenants: set[tuple[int, str, bool]] = field(default_factory=set)

    def lock(self) -> bool:
        """Try to lock the queue until the transaction ends; False: another dispatcher has it."""
        locked = select(func.pg_try_advisory_xact_lock(TURNS_LOCK))
        return bool(self.session.scalar(locked))

    def enqueue(self) -> None:
        """Queue the due steps of the outbox; those of jobs that are not `is_known` stay there."""
        batch = self._enqueue_batch()
        while len(batch) == ENQUEUE_BATCH:
            batch = self._enqueue_batch(tuple_(Outbox.due_at, Outbox.id) > tuple_(*batch[-1]))

    def dequeue(
        self, limit: int, limited: int | None, at_once: Mapping[str, int], working: Servers
    ) -> Iterator[Row[Any]]:
        """The next steps, locked and removed from the outbox; at most ``limited`` that are limited.

        ``at_once``: of these kinds of steps of parts, at most so many for one server, those that
        are ``working`` included. Each has the columns of `_first_step`.
        """
        room = limit if limited is None else limited
        count = Counter(working)
        for kind, server in working:
            if count[kind, server] >= at_once[kind]:
                self._pass_over(kind, server)
        for _ in range(limit):
            step = self._next([False, True] if room > 0 else [False])
            if step is None:
                return
            room -= pipeline_of(step.kind).step(step.step_kind).is_limited_with(step.options)
            if step.step_kind in at_once:
                server = step.tenant if own_server(step.options) is not None else None
                count[step.step_kind, server] += 1
                if count[step.step_kind, server] >= at_once[step.step_kind]:
                    self._pass_over(step.step_kind, server)
            yield step

    def _pass_over(self, kind: str, server: str | None) -> None:
        """Leave the jobs out that are in a phase with steps of this kind, for this server."""
        phases = [
            (pipeline.kind, phase.name)
            for pipeline in PIPELINES.values()
            for phase in pipeline.phases
            if kind in phase.kinds
        ]
        queued = select(JobTurn.job_id).join(Job, Job.id == JobTurn.job_id)
        in_them = tuple_(Job.kind, Job.phase).in_(phases)
        for_it = SERVER.is_not_distinct_from(server)
        self._busy_jobs |= set(self.session.scalars(queued.where(in_them, for_it)))

    # --- enqueuing ----------------------------------------------------------------------------

    def _enqueue_batch(self, *where: ColumnElement[bool]) -> Sequence[Row[datetime, int]]:
        new = self.session.execute(
            select(Outbox.due_at, Outbox.id)
            .where(Outbox.job_id.is_(None), Outbox.due_at <= NOW, *where)
            .order_by(Outbox.due_at, Outbox.id)
            .limit(ENQUEUE_BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        if not new:
            return new
        ids = [row.id for row in new]
        of_steps = (Outbox.id == func.any(ids), Step.id == Outbox.step_id, Job.id == Step.job_id)
        taken = self.session.execute(
            update(Outbox)
            # The ids are read first: Postgres would expect thousands, and read the whole table.
            .where(*of_steps, Job.kind.in_(PIPELINES))
            .values(
                job_id=Step.job_id,
                priority=Job.priority,
                kind=Step.kind,
                part=Step.part,
            )
            .returning(Outbox.id, Outbox.job_id)
            .execution_options(synchronize_session=False)
        ).all()
        in_order = sorted(taken, key=lambda row: row.id)
        self._join(list(dict.fromkeys(row.job_id for row in in_order)))
        if len(taken) < len(new):
            of_others = (*of_steps, Job.kind.not_in(PIPELINES))
            for job in self.session.execute(select(Job.id, Job.kind).where(*of_others).distinct()):
                is_known(job.id, job.kind)
        return new

    def _join(self, job_ids: Sequence[UUID]) -> None:
        found = self.session.execute(select(*_FACTS).where(Job.id == func.any(job_ids)))
        jobs = {job.id: job for job in found}
        if jobs:
            columns = joining([jobs[job_id] for job_id in job_ids if job_id in jobs])
            self.session.execute(_JOIN_JOBS, columns)
            self.session.execute(_JOIN_TENANTS, columns)

    # --- the next one -------------------------------------------------------------------------

    def _next(self, lanes: Sequence[bool]) -> Row[Any] | None:
        while (tenants := self._tenants(lanes)) is not None:
            tenant = next_served(*tenants)
            jobs = self._jobs(tenant)
            if jobs is None:
                self._without_jobs(tenant)
                continue
            job = next_served(*jobs, passes_allowed(jobs[1].size))
            step = self.session.execute(_first_step(job.job_id)).one_or_none()
            if step is None or not is_known(step.job_id, step.kind):
                self._without_step(job)
                continue
            turn = self.session.scalar(select(TURNS.next_value())) or 0
            serve(job, jobs[0], turn)
            serve(tenant, tenants[0], turn)
            self._served(tenant, job, step)
            return step
        return None

    def _tenants(self, lanes: Sequence[bool]) -> tuple[TenantTurn, TenantTurn] | None:
        """The tenant that has waited the longest, and that with the shortest job; None: none."""
        found = [
            two
            for lane in lanes
            if (
                two := self._first_two(
                    select(TenantTurn).where(TenantTurn.remote == lane, *self._tenant_is_free()),
                    (TenantTurn.priority, TenantTurn.since),
                    (TenantTurn.priority, TenantTurn.size, TenantTurn.since),
                )
            )
        ]
        if not found:
            return None
        return (
            min((one for one, _ in found), key=lambda it: (it.priority, it.since)),
            min((one for _, one in found), key=lambda it: (it.priority, it.size, it.since)),
        )

    def _tenant_is_free(self) -> Iterator[ColumnElement[bool]]:
        if self._busy_tenants:
            key = tuple_(TenantTurn.priority, TenantTurn.tenant, TenantTurn.remote)
            yield key.not_in(self._busy_tenants)

    def _jobs(self, tenant: TenantTurn) -> tuple[JobTurn, JobTurn] | None:
        return self._first_two(
            _jobs_of(tenant).where(JobTurn.job_id.not_in(self._busy_jobs)),
            (JobTurn.since,),
            (JobTurn.size, JobTurn.since),
        )

    def _first_two(
        self,
        rows: Select[T],
        longest: Iterable[InstrumentedAttribute[Any]],
        shortest: Iterable[InstrumentedAttribute[Any]],
    ) -> tuple[T, T] | None:
        # The end of a job deletes its row: rows that are locked for that are skipped.
        first = rows.limit(1).with_for_update(skip_locked=True)
        one = self.session.scalar(first.order_by(*longest))
        other = self.session.scalar(first.order_by(*shortest))
        return None if one is None or other is None else (one, other)

    def _served(self, tenant: TenantTurn, job: JobTurn, step: Row[Any]) -> None:
        self.session.execute(delete(Outbox).where(Outbox.id == step.outbox_id))
        if _has_steps(self.session, job.job_id):
            job.size = _size(step)
        else:
            self.session.delete(job)
        self._resize(tenant)
        other = self.session.get(TenantTurn, (tenant.priority, tenant.tenant, not tenant.remote))
        if other is not None:
            other.since = tenant.since

    def _without_step(self, job: JobTurn) -> None:
        """Skip the job: its steps are claimed, or are being claimed, or are not for us."""
        if _has_steps(self.session, job.job_id):
            self._busy_jobs.add(job.job_id)
        else:
            self.session.delete(job)

    def _without_jobs(self, tenant: TenantTurn) -> None:
        if not self._resize(tenant):
            self._busy_tenants.add((tenant.priority, tenant.tenant, tenant.remote))

    def _resize(self, tenant: TenantTurn) -> bool:
        """Update the size of the tenant's shortest job; True: it had none, and is removed."""
        size = self.session.scalar(
            _jobs_of(tenant).with_only_columns(JobTurn.size).order_by(JobTurn.size).limit(1)
        )
        if size is None:
            self.session.delete(tenant)
            return True
        tenant.size = size
        return False


def is_known(job_id: UUID, kind: str) -> bool:
    """Whether this version can process a job of ``kind``; logs once that it cannot.

    A newer version that is being started may have created the job: it waits for one of its workers.
    """
    known = kind in PIPELINES
    if not known:
        _log_unknown(job_id, kind)
    return known


@lru_cache(maxsize=1000)
def _log_unknown(job_id: UUID, kind: str) -> None:
    message = "job {job_id} waits: it is of the kind {kind}, which this version does not know"
    logger.warning(message, job_id=job_id, kind=kind)


def leave_queue(session: Session, job_id: UUID) -> None:
    """Remove a job that ends from the queue, unless a step that follows its end is queued."""
    turn = select(JobTurn).where(JobTurn.job_id == job_id).with_for_update()
    found = session.scalar(turn)
    # Only now: a dispatcher may have queued such a step until the row was locked.
    if found is not None and not _has_steps(session, job_id):
        session.delete(found)


def _has_steps(session: Session, job_id: UUID) -> bool:
    """Whether any of the job's steps are queued."""
    return bool(session.scalar(select(exists().where(Outbox.job_id == job_id))))


def joining(jobs: Sequence[Any]) -> dict[str, list[Any]]:
    """The columns of jobs to be queued, from their rows or from rows with the columns `_FACTS`."""
    return {
        "job_id": [job.id for job in jobs],
        "priority": [job.priority for job in jobs],
        "tenant": [job.tenant for job in jobs],
        "remote": [_is_limited(job) for job in jobs],
        "size": [_size(job) for job in jobs],
    }


def _is_limited(job: Any) -> bool:
    steps = () if job.phase is None else pipeline_of(job.kind).phase(job.phase).steps
    return any(step.is_limited_with(job.options) for step in steps)


def _size(job: Any) -> int:
    pipeline = pipeline_of(job.kind)
    remaining = turns_left(
        units_total=job.units_total,
        units_done=job.units_done,
        units_a_part=pipeline.units_a_part,
        parts_total=job.parts_total,
        parts_known=job.parts_known,
        rounds=len(pipeline.counting(job.options)),
    )
    return size_class(remaining)


def _jobs_of(tenant: TenantTurn) -> Select[JobTurn]:
    return select(JobTurn).where(
        JobTurn.remote == tenant.remote,
        JobTurn.priority == tenant.priority,
        JobTurn.tenant == tenant.tenant,
    )


_FACTS = (
    Job.id,
    Job.priority,
    Job.tenant,
    Job.kind,
    Job.phase,
    Job.options,
    Job.units_total,
    Job.units_done,
    Job.parts_total,
    Job.parts_known,
)

# A queued job keeps its position.
_JOIN_JOBS = text("""
    INSERT INTO job_turns (job_id, priority, tenant, remote, size, since, passed)
    SELECT job_id, priority, tenant, remote, size, nextval('turns'), 0
    FROM unnest(
        CAST(:job_id AS uuid[]), CAST(:priority AS smallint[]), CAST(:tenant AS text[]),
        CAST(:remote AS boolean[]), CAST(:size AS smallint[])
    ) AS joining (job_id, priority, tenant, remote, size)
    ON CONFLICT (job_id) DO UPDATE SET size = excluded.size, remote = excluded.remote
""")

_JOIN_TENANTS = text("""
    INSERT INTO tenant_turns (priority, tenant, remote, size, since, passed)
    SELECT ordered.*, nextval('turns'), 0
    FROM (
        SELECT priority, tenant, remote, min(size)
        FROM unnest(
            CAST(:priority AS smallint[]), CAST(:tenant AS text[]),
            CAST(:remote AS boolean[]), CAST(:size AS smallint[])
        ) WITH ORDINALITY AS joining (priority, tenant, remote, size, number)
        GROUP BY priority, tenant, remote ORDER BY min(number)
    ) AS ordered
    ON CONFLICT (priority, tenant, remote)
    DO UPDATE SET size = LEAST(tenant_turns.size, excluded.size)
""")


def _first_step(job_id: UUID) -> Select[Any]:
    """The first step of a job that is due and not locked."""
    return (
        select(
            Outbox.id.label("outbox_id"),
            Step.id.label("step_id"),
            Step.attempt,
            Step.kind.label("step_kind"),
            Step.part,
            Step.job_id,
            *_FACTS[2:],
        )
        .join(Step, Step.id == Outbox.step_id)
        .join(Job, Job.id == Step.job_id)
        .where(Outbox.job_id == job_id, Step.status == StepStatus.PENDING, Step.run_after <= NOW)
        .order_by(Outbox.part.nulls_first(), Outbox.id)
        .limit(1)
        .with_for_update(of=[Outbox, Step], skip_locked=True)
    )
