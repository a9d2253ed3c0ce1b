"""Whatever a pipeline is and in whatever order its steps end, a job comes to one end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from common.db.database import Database
from common.db.flow import NewPart
from common.db.jobs import Jobs
from common.db.steps import Claim, StaleClaim, Steps
from common.db.tables import Job, Outbox, Step
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import PIPELINES, Pause, Phase, Pipeline, StepType, always
from common.errors import DecodeFailed, EngineFailed, WorkerLost
from tests.support.factories import TENANT, make_steps, new_job, published

KIND = "drawn"
OPEN = (StepStatus.PENDING, StepStatus.RUNNING)


@pytest.fixture
def steps(database: Database) -> Iterator[Steps]:
    yield make_steps(database)
    PIPELINES.pop(KIND, None)


def never(_options: Mapping[str, Any]) -> bool:
    """The condition of what no job has."""
    return False


conditions = st.sampled_from([always, always, always, never])


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Up to three phases; the first one adds the parts, if there are any."""
    phases: list[Phase] = []
    for number in range(draw(st.integers(1, 3))):
        each: list[StepType] = []
        for index in range(draw(st.integers(0, 3))):
            earlier = [None, *(step.kind for step in each)]
            each.append(
                StepType(
                    f"each-{number}-{index}",
                    stage=f"stage {number} {index}",
                    after=draw(st.sampled_from(earlier)),
                    when=draw(conditions),
                    warning=draw(st.sampled_from([None, f"warning {number} {index}"])),
                    counts=draw(st.booleans()),
                    reads_files=draw(st.booleans()),
                )
            )
        when = draw(conditions) if number else always
        whole = StepType(f"whole-{number}", stage=f"stage {number}", when=when)
        phases.append(
            Phase(
                f"phase {number}",
                # A phase has something to do; the first one finds the parts.
                whole if number == 0 or not each or draw(st.booleans()) else None,
                tuple(each),
                draw(st.sampled_from([None, Pause(JobStatus.REVIEW)])),
            )
        )
    return Pipeline(KIND, tuple(phases))


def expected(pipeline: Pipeline, parts: int) -> set[tuple[str, int | None]]:
    """Every step of a job in which nothing fails for good."""
    found: set[tuple[str, int | None]] = set()
    for phase in pipeline.phases:
        if phase.step is not None and phase.step.when({}):
            found.add((phase.step.kind, None))
        each = [step for step in phase.each if applies(pipeline, step)]
        found |= {(step.kind, index) for step in each for index in range(parts)}
    return found


def applies(pipeline: Pipeline, step: StepType) -> bool:
    """Whether a job has such a step: it is not left out, nor is what it follows."""
    if step.after is not None and not applies(pipeline, pipeline.step(step.after)):
        return False
    return step.when({})


def check_order(pipeline: Pipeline, done: list[tuple[str, int | None]]) -> None:
    """No step was done before what it follows, nor before the phases ahead of its own."""
    ranks = {
        step.kind: rank
        for rank, phase in enumerate(pipeline.phases)
        for step in [*([phase.step] if phase.step else []), *phase.each]
    }
    assert [ranks[kind] for kind, _ in done] == sorted(ranks[kind] for kind, _ in done)
    for kind, part in done:
        after = pipeline.step(kind).after
        if after is not None:
            assert done.index((after, part)) < done.index((kind, part))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), pipeline=pipelines(), parts=st.integers(0, 4))
def test_every_order_of_finishing_leads_to_one_end(
    database: Database, steps: Steps, data: st.DataObject, pipeline: Pipeline, parts: int
) -> None:
    """With failures that pass, leases that expire, retries and pauses on the way."""
    PIPELINES[KIND] = pipeline
    with database.transaction() as session:  # what an example that failed has left
        session.execute(text("TRUNCATE jobs, outbox, job_turns, tenant_turns CASCADE"))
    jobs = Jobs(database, TENANT)
    job = new_job(kind=KIND, source_url="https://made.up/")
    jobs.create(job)
    run = Run(database, steps, pipeline, job.id, parts)
    for _ in range(400):
        snapshot = jobs.snapshot(run.job_id)
        assert 0 <= snapshot.progress <= 100
        if snapshot.status is JobStatus.COMPLETED:
            break
        if snapshot.status is JobStatus.REVIEW:
            assert run.open() == 0
            jobs.resume(run.job_id)
        elif snapshot.status is JobStatus.FAILED:
            jobs.retry(run.job_id)
        else:
            run.take()
            run.end_one(data)
    run.check_whole()


class Run:
    """A job whose steps are claimed as soon as they may be, and ended in any order."""

    def __init__(
        self, database: Database, steps: Steps, pipeline: Pipeline, job_id: UUID, parts: int
    ) -> None:
        self.job_id = job_id
        self._database = database
        self._steps = steps
        self._pipeline = pipeline
        self._parts = parts
        self._held: list[Claim] = []
        self._done: list[tuple[str, int | None]] = []

    def open(self) -> int:
        with self._database.transaction() as session:
            of_job = (Step.job_id == self.job_id, Step.status.in_(OPEN))
            return session.scalar(select(func.count()).select_from(Step).where(*of_job)) or 0

    def take(self) -> None:
        for step_id in published(self._steps):
            claim = self._steps.claim(step_id, "worker")
            assert claim is not None
            self._held.append(claim)

    def end_one(self, data: st.DataObject) -> None:
        claim = self._held.pop(data.draw(st.integers(0, len(self._held) - 1)))
        end = data.draw(st.sampled_from(["done"] * 5 + ["lost", "passing", "expired", "for good"]))
        if end == "expired":
            with self._database.transaction() as session:
                session.execute(
                    text("UPDATE steps SET lease_until = now() - interval '1 s' WHERE token = :it"),
                    {"it": claim.token},
                )
            self._steps.rescue_expired()
        elif end == "for good" and self._pipeline.step(claim.kind).warning is None:
            self._steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="made up"))
        elif end == "lost":
            self._steps.fail(claim.step_id, claim.attempt, WorkerLost(reason="made up"))
        elif end == "passing" and claim.attempt == 1 and not self._warns(claim):
            self._steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="made up"))
        else:
            self._finish(claim, take_next=data.draw(st.booleans()))

    def _warns(self, claim: Claim) -> bool:
        return self._pipeline.step(claim.kind).warning is not None

    def _finish(self, claim: Claim, *, take_next: bool) -> None:
        parts = [NewPart(index, 1, [], f"part {index}") for index in range(self._parts)]
        first = claim.kind == "whole-0"
        try:
            if first:
                self._steps.add_parts(claim, parts[:2])
            following = self._steps.finish(
                claim,
                result={"kind": claim.kind},
                parts=parts[2:] if first else (),
                within=self._size if first else None,
                take_next=take_next,
            )
        except StaleClaim:
            return
        self._done.append((claim.kind, claim.part_index))
        if following is not None:
            self._held.append(following)

    def _size(self, _session: object, job: Job) -> None:
        job.units_total = self._parts

    def check_whole(self) -> None:
        counting = [it for it in self._pipeline.counting({}) if applies(self._pipeline, it)]
        with self._database.transaction() as session:
            job = session.get_one(Job, self.job_id)
            assert job.status == JobStatus.COMPLETED
            assert (job.parts_total, job.parts_known) == (
                self._parts if self._pipeline.phases[0].each else job.parts_total,
                job.parts_known,
            )
            assert job.units_done == len(counting) * job.parts_total
            rows = session.execute(
                select(Step.kind, Step.part, Step.status, Step.stored_count).where(
                    Step.job_id == self.job_id
                )
            ).all()
            assert session.scalar(select(func.count()).select_from(Outbox)) == 0
        assert {(row.kind, row.part) for row in rows} == expected(self._pipeline, self._parts)
        assert {(row.status, row.stored_count) for row in rows} == {(StepStatus.DONE, 1)}
        # Steps that write files are done again where a part that reads one failed for good.
        again = {kind for (kind, _), times in Counter(self._done).items() if times > 1}
        assert again <= {phase.step.kind for phase in self._pipeline.phases if phase.step}
        check_order(self._pipeline, [it for it in self._done if it[0] not in again])
