"""Moves a job through its pipeline, within one transaction.

The job's row is locked throughout, and always before its steps' rows: otherwise two transactions
could deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, delete, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, joinedload

from common.db.counting import count_end, count_submission
from common.db.due_steps import leave_queue
from common.db.tables import Job, Outbox, Part, Step
from common.db.webhooks import write_messages
from common.domain.job import JobStatus, StepStatus, job_sources, step_sources
from common.domain.pipeline import Phase, StepType, pipeline_of
from common.domain.webhooks import event_of
from common.errors import Conflict

OPEN = (StepStatus.PENDING, StepStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class NewPart:
    """A part, before the step that found it stores it; see `Part`."""

    index: int
    units: int
    data: list[Any]
    content_hash: str


def locked_job(session: Session, job_id: UUID) -> Job | None:
    """The job, locked, with its recording and transcription; None: it is deleted."""
    return session.scalar(
        select(Job)
        .where(Job.id == job_id)
        .options(joinedload(Job.recording), joinedload(Job.transcription))
        .with_for_update(key_share=True, of=Job)
        .execution_options(populate_existing=True)
    )


class Flow:
    """Moves one job through its pipeline. Its row must be locked.

    Raises:
        JobKindUnknown: the job is of a kind of a newer version.
    """

    def __init__(self, session: Session, job: Job) -> None:
        self._session = session
        self._job = job
        self._pipeline = pipeline_of(job.kind)

    def start(self) -> list[UUID]:
        """Begin the first phase; returns the added steps, as all these methods do."""
        has_input = self._job.recording_id is not None
        return self._begin(self._pipeline.first_phase(has_input=has_input))

    def add_parts(self, parts: Sequence[NewPart]) -> list[UUID]:
        """Store parts with their first steps; existing parts stay as they are.

        A part without its first step, as in a retried job, gets one.
        """
        if not parts:
            return []
        added = self._session.scalars(
            upsert(Part)
            .values([{"job_id": self._job.id, **asdict(part)} for part in parts])
            .on_conflict_do_nothing()
            .returning(Part.index)
        ).all()
        self._job.parts_total += len(added)
        return self._add_due([part.index for part in parts])

    def forget_parts(self) -> None:
        """Delete all parts and their steps."""
        of_job = (Step.job_id == self._job.id, Step.part.is_not(None))
        self._session.execute(delete(Step).where(*of_job))
        self._session.execute(delete(Part).where(Part.job_id == self._job.id))
        self._job.parts_total = self._job.units_done = 0

    def step_ended(self, kind: str, part: Part | None, *, done: bool) -> list[UUID]:
        """Add the steps that follow a step that is done, or that failed with only a warning.

        After a failed step, the later steps of its part are skipped. One that follows a change of
        the result leaves its warning, until there is another one of it.
        """
        step = self._pipeline.step(kind)
        if step in self._pipeline.afterwards:
            if not done:
                self._job.warnings = [*self._job.warnings, step.warning]
            return []
        if part is None:
            if self._phase.each:
                self._job.parts_known = True
            # Also in parts of an earlier phase, and in retried parts.
            return self._add_due() or self._continue()
        if step.counts:
            self._job.units_done += part.units
        if done:
            options = self._job.options
            each = self._phase.each_of(options)
            following = [it.kind for it in each if it.after == kind]
            if following:
                return add_steps(self._session, self._job.id, following, [part.index])
        return self._continue()

    def add_afterwards(self, kind: str) -> list[UUID]:
        """Add a step that follows a change of the job's result.

        One that is there already is replaced: if a worker runs it, it finds that it no longer
        exists, and drops what it made of the earlier result.
        """
        before = (Step.job_id == self._job.id, Step.kind == kind)
        self._session.execute(delete(Step).where(*before))
        warning = self._pipeline.step(kind).warning
        self._job.warnings = [it for it in self._job.warnings if it != warning]
        return add_steps(self._session, self._job.id, [kind], [None])

    def go_back(self, name: str, parts: Sequence[NewPart]) -> list[UUID]:
        """Return to an earlier phase with more parts: what its steps have found is not enough yet.

        The steps of later phases are forgotten, the caller's among them: they are done again.
        """
        later = {kind for it in self._pipeline.phases_after(name) for kind in it.kinds}
        of_job = Step.job_id == self._job.id
        self._session.execute(delete(Step).where(of_job, Step.kind.in_(later)))
        self._job.phase = name
        return self.add_parts(parts)

    def resume(self) -> list[UUID]:
        """Resume a job that waits for a person.

        Raises:
            Conflict: it is not waiting.
        """
        job, phase = self._job, self._phase
        if phase.pause is None or job.status != phase.pause.status:
            raise Conflict(reason=f"The job is {job.status} and cannot be resumed")
        if self._pipeline.phases_after(phase.name):
            job.status, job.paused_at = JobStatus.PROCESSING, None
            job.resumed_at = func.clock_timestamp()
        return self._begin_next()

    def pause_again(self) -> None:
        """Let a job wait again that waited before it was retried; it has no open step."""
        phases = [self._phase, *self._pipeline.phases_after(self._phase.name)]
        phase = next(it for it in phases if it.pauses(self._job.options))
        self._job.phase = phase.name
        self._pause(phase)

    def retry(self) -> None:
        """Add the missing steps of a failed job; steps that are done stay done.

        The job continues in the first phase that lacks a step, but not before the last pause. A
        step that failed with only a warning counts as missing. Steps that are not done are
        replaced by new ones, so that a worker that still runs an old one finds that it no longer
        exists.
        """
        job, options = self._job, self._job.options
        of_job = Step.job_id == job.id
        not_done = (of_job, Step.status != StepStatus.DONE)
        missing = set(self._session.scalars(select(Step.kind).where(*not_done).distinct()))
        phases = self._pipeline.since_pause(self._phase.name, options)
        phase = next((it for it in phases if it.kinds & missing), phases[-1])
        job.phase = phase.name
        later = {kind for it in self._pipeline.phases_after(phase.name) for kind in it.kinds}
        self._session.execute(delete(Step).where(of_job, Step.kind.in_(later)))
        self._session.execute(delete(Step).where(*not_done, Step.kind.in_(phase.kinds)))
        each = phase.each_of(options)
        # The end of the job dropped these files; only the phase's step can write them again.
        whole = phase.step_of(options)
        again = whole is not None and any(step.reads_files and self._due(step) for step in each)
        if whole is not None:
            of_phase = (of_job, Step.kind == whole.kind)
            if again:
                self._session.execute(delete(Step).where(*of_phase))
            if self._session.scalar(select(Step.id).where(*of_phase)) is None:
                job.parts_known = job.parts_known and not each
                add_steps(self._session, job.id, [whole.kind], [None])
        for step in each:
            if not (again and step.reads_files):
                add_steps(self._session, job.id, [step.kind], self._due(step))
        job.units_done = self._units_done()
        self._continue()

    @property
    def _phase(self) -> Phase:
        assert self._job.phase is not None  # noqa: S101 - a job without a phase has no steps
        return self._pipeline.phase(self._job.phase)

    def _begin(self, phase: Phase) -> list[UUID]:
        self._job.phase = phase.name
        step = phase.step_of(self._job.options)
        if step is not None:
            if phase.each:
                self._job.parts_known = False
            return add_steps(self._session, self._job.id, [step.kind], [None])
        return self._add_due() or self._continue()

    def _continue(self) -> list[UUID]:
        """Begin the next phase if no step of this one is open."""
        still_open = select(Step.id).where(
            Step.job_id == self._job.id,
            Step.status.in_(OPEN),
            Step.kind.not_in(self._pipeline.kinds_afterwards),
        )
        if self._session.scalar(still_open.limit(1)) is not None:
            return []
        # One that was COMPLETED before it was retried has been approved.
        if self._phase.pauses(self._job.options) and self._job.completed_at is None:
            self._pause(self._phase)
            return []
        return self._begin_next()

    def _pause(self, phase: Phase) -> None:
        assert phase.pause is not None  # noqa: S101 - the caller has checked it
        self._job.status = phase.pause.status
        self._job.paused_at = func.clock_timestamp()
        if not self._pipeline.phases_after(phase.name):  # no step needs its files any more
            self._job.sweep_at = func.clock_timestamp()
        self._session.flush()
        _write_messages(self._session, self._job, phase.pause.status)

    def _begin_next(self) -> list[UUID]:
        """Begin the phase after this one; after the last one the job is COMPLETED."""
        later = self._pipeline.phases_after(self._phase.name)
        if later:
            return self._begin(later[0])
        is_first = self._job.completed_at is None
        self._job.status = JobStatus.COMPLETED
        self._job.completed_at = func.clock_timestamp()
        _job_ended(self._session, self._job, JobStatus.COMPLETED)
        if is_first:  # not of one that is retried for what it lacks
            self._begin_follow_ups()
        return []

    def _begin_follow_ups(self) -> None:
        before = self._job
        for wanted in self._pipeline.follow_ups(before.options):
            job = Job(
                id=uuid4(),
                tenant=before.tenant,
                kind=wanted.kind,
                source_id=before.id,
                recording_id=before.recording_id,
                key_id=before.key_id,
                priority=before.priority,
                engine=wanted.engine,
                model=wanted.model,
                language=before.language,
                options=dict(wanted.options),
                webhook_url=before.webhook_url,
                client_metadata=before.client_metadata,
                client_recording_id=before.client_recording_id,
                delete_after_s=before.delete_after_s,
                request_id=before.request_id,
                created_at=func.clock_timestamp(),
            )
            self._session.add(job)
            self._session.flush()
            Flow(self._session, job).start()
            count_submission(self._session, job.id)

    def _add_due(self, indexes: Sequence[int] | None = None) -> list[UUID]:
        """Add the steps that these parts (None: all) lack and that can be done now."""
        return [
            added
            for step in self._phase.each_of(self._job.options)
            for added in add_steps(
                self._session, self._job.id, [step.kind], self._due(step, indexes)
            )
        ]

    def _due(self, step: StepType, indexes: Sequence[int] | None = None) -> Sequence[int]:
        """The parts that lack such a step, and in which the step before it is done."""
        due = select(Part.index).where(Part.job_id == self._job.id, ~self._has(step.kind))
        if step.after is not None:
            due = due.where(self._has(step.after, Step.status == StepStatus.DONE))
        if indexes is not None:
            due = due.where(Part.index.in_(indexes))
        return self._session.scalars(due.order_by(Part.index)).all()

    def _has(self, kind: str, *where: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(
            Step.job_id == self._job.id, Step.kind == kind, Step.part == Part.index, *where
        )

    def _units_done(self) -> int:
        counting = [step.kind for step in self._pipeline.counting(self._job.options)]
        done = (
            select(func.coalesce(func.sum(Part.units), 0))
            .join(Step, (Step.job_id == Part.job_id) & (Step.part == Part.index))
            .where(
                Part.job_id == self._job.id,
                Step.kind.in_(counting),
                Step.status == StepStatus.DONE,
            )
        )
        return self._session.scalars(done).one()


def add_steps(
    session: Session, job_id: UUID, kinds: Iterable[str], parts: Iterable[int | None]
) -> list[UUID]:
    """Add pending steps of each kind for each part, with their outbox rows; returns their ids."""
    indexes = list(parts)
    rows = [{"job_id": job_id, "kind": kind, "part": part} for kind in kinds for part in indexes]
    if not rows:
        return []
    step_ids = list(session.scalars(insert(Step).returning(Step.id), rows))
    enqueue(session, step_ids)
    return step_ids


def enqueue(session: Session, step_ids: Sequence[UUID]) -> None:
    """Add steps to the outbox unless they are in it; their rows must be new or locked."""
    if step_ids:
        steps = select(Step.id, Step.run_after).where(Step.id.in_(step_ids))
        outbox = upsert(Outbox).from_select(["step_id", "due_at"], steps)
        session.execute(outbox.on_conflict_do_nothing())


def end_job(
    session: Session,
    job_id: UUID,
    status: JobStatus,
    *,
    code: str | None = None,
    message: str | None = None,
) -> bool:
    """End a job that is not COMPLETED, and all its steps that are not done.

    One that was COMPLETED before it was retried is so again, and one that waited for a person waits
    again: it keeps its result.
    """
    job = locked_job(session, job_id)
    if job is None or job.status not in job_sources(status):
        return False
    if _waited_before_retry(job):
        _cancel_steps(session, job, has_result=True)
        leave_queue(session, job_id)
        Flow(session, job).pause_again()
        return True
    has_result = job.completed_at is not None
    if has_result:
        status, code, message = JobStatus.COMPLETED, None, None
    job.status, job.error_code, job.error_message = status, code, message
    job.completed_at = func.clock_timestamp()
    session.flush()
    _cancel_steps(session, job, has_result=has_result)
    _job_ended(session, job, status)
    return True


def _waited_before_retry(job: Job) -> bool:
    """Whether a job is retried that waited for a person, who has not resumed it yet."""
    under_way = job.status in (JobStatus.PENDING, JobStatus.PROCESSING)
    return under_way and job.paused_at is not None and job.completed_at is None


def _cancel_steps(session: Session, job: Job, *, has_result: bool) -> None:
    """Cancel the steps of a job that are not done; its row is locked.

    ``has_result``: steps that follow a change of its result are not cancelled.
    """
    kept = pipeline_of(job.kind).kinds_afterwards if has_result else []
    cancelled = (Step.job_id == job.id, Step.kind.not_in(kept))
    session.execute(
        update(Step)
        .where(*cancelled, Step.status.in_(step_sources(StepStatus.CANCELLED)))
        .values(status=StepStatus.CANCELLED, token=None, lease_until=None)
    )
    # The steps are locked now: no transaction can add one of them any more.
    steps = select(Step.id).where(*cancelled)
    session.execute(delete(Outbox).where(Outbox.step_id.in_(steps)))


def _job_ended(session: Session, job: Job, status: JobStatus) -> None:
    """Schedule the cleanup, count the end and write messages; the job's row is locked."""
    session.flush()
    session.execute(
        update(Job)
        .where(Job.id == job.id)
        .values(
            sweep_at=func.clock_timestamp(),
            # null where delete_after_s is
            delete_at=Job.completed_at + func.make_interval(0, 0, 0, 0, 0, 0, Job.delete_after_s),
        )
    )
    leave_queue(session, job.id)
    count_end(session, job.id, status)
    _write_messages(session, job, status)


def _write_messages(session: Session, job: Job, status: JobStatus) -> None:
    event = event_of(job.kind, status)
    if event is not None:
        write_messages(session, job.id, event)


def retry_job(session: Session, job: Job) -> bool:
    """Retry a job that is FAILED, or that is COMPLETED or in REVIEW without some results.

    Its row is locked. False if it is neither. A failed step that follows a change of the result is
    done again too; if there is no other, the job's status stays.
    """
    if job.status == JobStatus.FAILED:
        job.completed_at = None
    else:
        if job.status not in (JobStatus.COMPLETED, JobStatus.REVIEW):
            return False
        afterwards = pipeline_of(job.kind).kinds_afterwards
        undone = (Step.job_id == job.id, Step.status != StepStatus.DONE)
        failed = session.scalars(
            select(Step.kind).where(
                *undone, Step.kind.in_(afterwards), Step.status == StepStatus.FAILED
            )
        ).all()
        for kind in failed:
            Flow(session, job).add_afterwards(kind)
        of_phases = select(Step.id).where(*undone, Step.kind.not_in(afterwards))
        if session.scalar(of_phases.limit(1)) is None:
            return bool(failed)
    job.status = JobStatus.PENDING
    job.error_code = job.error_message = None
    job.retried_at = func.clock_timestamp()
    job.started_at = job.resumed_at = job.sweep_at = job.delete_at = None
    Flow(session, job).retry()
    return True
