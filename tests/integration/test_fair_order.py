"""The dispatcher gives turns as `common.domain.fair_order` says, over the real tables."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import func, select

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.steps import Claim, Steps
from common.db.tables import Job, JobTurn, Outbox, Step, TenantTurn
from common.domain.fair_order import turns_left
from common.domain.job import JobStatus, Priority, Publication, StepStatus
from common.domain.pipeline import StepKind
from common.domain.values import MAX_WINDOW_MS, SAMPLE_RATE
from common.errors import EngineFailed
from tests.support.factories import (
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    new_job,
    plan_chunks,
    published,
    store_plan,
    submit_job,
)
from tests.support.frozen import SENTENCE
from tests.support.lines import Lines
from tests.support.service import PATIENCE_S, Start, wait_until
from tests.support.speech import speak


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def long_jobs(database: Database, steps: Steps, count: int) -> list[UUID]:
    """So many jobs of ten chunks each, planned."""
    jobs = [submit_job(database) for _ in range(count)]
    for plan in [claim_next(steps) for _ in jobs]:
        store_plan(steps, plan, 10)
    return jobs


def place(database: Database, job_id: UUID, tenant: str = TENANT) -> int | None:
    return Jobs(database, tenant).snapshot(job_id).queue_position


@dataclass
class Known:
    """What a test knows of a job without looking."""

    tenant: str
    priority: Priority
    chunks: int
    to_publish: int = 1
    remaining: int = 0
    planned: bool = False

    def left(self) -> int:
        chunk_ms = 10_000 if self.planned else 30_000
        return turns_left(
            units_total=chunk_ms * self.chunks,
            units_done=chunk_ms * (self.chunks - self.remaining) if self.planned else 0,
            units_a_part=MAX_WINDOW_MS,
            parts_total=self.chunks if self.planned else 0,
            parts_known=self.planned,
            rounds=1,
        )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_tables_and_the_rule_agree_whatever_comes_in(
    database: Database, steps: Steps, seed: int
) -> None:
    luck = random.Random(seed)  # noqa: S311 - it is to be the same in every run
    lines = Lines()
    jobs: dict[UUID, Known] = {}
    busy: list[Claim] = []
    for _ in range(120):
        if luck.random() < 0.35:
            known = Known(luck.choice("abc"), luck.choice(list(Priority)), luck.choice([1, 2, 7]))
            job_id = submit_job(
                database,
                tenant=known.tenant,
                priority=known.priority,
                duration_ms=30_000 * known.chunks,
            )
            jobs[job_id] = known
            join(lines, job_id, known)
        elif busy and luck.random() < 0.5:
            work(steps, busy.pop(luck.randrange(len(busy))), jobs, lines)
        else:
            expected = lines.next()
            assert [job_of(database, step_id) for step_id in published(steps, 0)] == []
            handed_out = published(steps, 1)
            assert [job_of(database, step_id) for step_id in handed_out] == [
                *([expected] if expected else [])
            ]
            for step_id in handed_out:
                claim = steps.claim(step_id, "worker")
                assert claim is not None
                busy.append(claim)
                known = jobs[claim.job_id]
                known.to_publish -= 1
                if known.to_publish:
                    lines.stay(claim.job_id, known.left())
                else:
                    lines.leave(claim.job_id)


def join(lines: Lines, job_id: UUID, known: Known) -> None:
    lines.join(job_id, known.tenant, known.priority, known.left())


def work(steps: Steps, claim: Claim, jobs: dict[UUID, Known], lines: Lines) -> None:
    """Do what was claimed, and take up the merge at once as workers do."""
    known = jobs[claim.job_id]
    if claim.kind == StepKind.PLAN:
        store_plan(steps, claim, known.chunks)
        known.planned, known.remaining, known.to_publish = True, known.chunks, known.chunks
        join(lines, claim.job_id, known)
    else:
        known.remaining -= 1
        if merge := finish_chunk(steps, claim, take_next=True):
            finish_merge(steps, merge)
    # The dispatcher looks whenever something has changed.
    steps.publish(0, lambda _: None)


def job_of(database: Database, step_id: UUID) -> UUID:
    with database.transaction() as session:
        return session.get_one(Step, step_id).job_id


def test_dispatchers_at_once_publish_each_step_once_and_in_order(
    database: Database, steps: Steps
) -> None:
    long = long_jobs(database, steps, 4)
    handed_out: list[UUID] = []
    barrier = threading.Barrier(4)

    def dispatch() -> None:
        barrier.wait()
        for _ in range(10):
            steps.publish(1, lambda rows: handed_out.extend(row.step_id for row in rows))

    threads = [threading.Thread(target=dispatch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handed_out += published(steps)

    assert len(handed_out) == len(set(handed_out)) == 40
    assert [job_of(database, step_id) for step_id in handed_out] == long * 10


def test_a_crash_while_publishing_takes_no_turn_from_anybody(
    database: Database, steps: Steps
) -> None:
    long = long_jobs(database, steps, 3)

    def crash(_: Sequence[Publication]) -> None:
        raise RuntimeError("the power went out")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="power"):
            steps.publish(2, crash)

    assert [job_of(database, step_id) for step_id in published(steps, 3)] == long


def test_a_step_that_is_handed_back_or_retried_has_its_turn_within_a_round(
    database: Database, steps: Steps
) -> None:
    long = long_jobs(database, steps, 3)
    handed_back = claim_next(steps, "stopping")
    steps.hand_back("stopping", handed_back.step_id)
    failed = claim_next(steps)
    steps.fail(failed.step_id, failed.attempt, EngineFailed(reason="it broke"))

    order = published(steps, 4)

    assert [job_of(database, step_id) for step_id in order] == [long[2], long[0], long[1], long[2]]
    assert {handed_back.step_id, failed.step_id} <= set(order)


def test_jobs_that_end_or_are_deleted_leave_the_queue(database: Database, steps: Steps) -> None:
    cancelled, deleted, left = long_jobs(database, steps, 3)
    published(steps, 0)
    Jobs(database, TENANT).cancel(cancelled)
    Deletions(database, TENANT).delete(deleted)

    assert {job_of(database, step_id) for step_id in published(steps, 5)} == {left}
    Jobs(database, TENANT).cancel(left)

    assert published(steps) == []
    with database.transaction() as session:
        for table in (JobTurn, TenantTurn, Outbox):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_a_locked_step_delays_no_other(database: Database, steps: Steps) -> None:
    first, second = long_jobs(database, steps, 2)
    published(steps, 0)
    with database.transaction() as locking:
        locking.execute(select(Step.id).where(Step.job_id == first).with_for_update())
        assert {job_of(database, step_id) for step_id in published(steps, 3)} == {second}
    assert job_of(database, published(steps, 1)[0]) == first


def test_fetches_of_one_tenant_do_not_go_before_another_tenants(
    database: Database, steps: Steps
) -> None:
    many = Jobs(database, "many")
    for _ in range(5):
        many.create(new_job(source_url="https://slow.example/"))
    one = Jobs(database, "one").create(new_job(source_url="https://slow.example/")).job_id
    handed_out: list[UUID] = []

    steps.publish(9, lambda rows: handed_out.extend(row.step_id for row in rows), limited=2)

    assert len(handed_out) == 2
    assert one in {job_of(database, step_id) for step_id in handed_out}


# --- places in the queue --------------------------------------------------------------------------


def test_a_waiting_job_reports_its_queue_position(database: Database, steps: Steps) -> None:
    for joined in (False, True):
        jobs = [submit_job(database, duration_ms=600_000) for _ in range(3)]
        if joined:
            published(steps, 0)
        assert [place(database, job_id) for job_id in jobs] == [0, 1, 2]
        urgent = submit_job(database, priority=Priority.HIGH)
        later = submit_job(database, priority=Priority.LOW)
        published(steps, 0)
        assert place(database, urgent) == 0
        assert [place(database, job_id) for job_id in jobs] == [1, 2, 3]
        assert place(database, later) == 4
        for job_id in (*jobs, urgent, later):
            Jobs(database, TENANT).cancel(job_id)


def test_a_queue_position_counts_running_jobs_that_go_first(
    database: Database, steps: Steps
) -> None:
    """The jobs before it are not PENDING any more, and still go first."""
    long_jobs(database, steps, 3)
    newest = submit_job(database, duration_ms=300_000)
    published(steps, 0)

    waits = place(database, newest)

    assert waits == 3
    served = [claim_next(steps).job_id for _ in range(3)]
    assert newest not in served
    assert place(database, newest) == 0
    assert job_of(database, published(steps, 1)[0]) == newest
    assert place(database, newest) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_queue_position_0_is_the_next_job(database: Database, steps: Steps, seed: int) -> None:
    luck = random.Random(seed)  # noqa: S311 - it is to be the same in every run
    for _ in range(12):
        submit_job(
            database,
            tenant=luck.choice("ab"),
            priority=luck.choice([Priority.HIGH, Priority.NORMAL]),
            duration_ms=luck.choice([6_000, 60_000, 600_000]),
        )
    while True:
        published(steps, 0)
        with database.transaction() as session:
            waiting = session.execute(
                select(Job.id, Job.tenant).join(JobTurn, JobTurn.job_id == Job.id)
            ).all()
        if not waiting:
            break
        places = {job_id: place(database, job_id, tenant) for job_id, tenant in waiting}
        following = claim_next(steps).job_id
        assert [job_id for job_id, at in places.items() if at == 0] == [following]


def test_the_queue_position_of_a_clip_is_before_longer_jobs(
    database: Database, steps: Steps
) -> None:
    jobs = [submit_job(database, duration_ms=3_600_000) for _ in range(4)]
    clip = submit_job(database, duration_ms=6_000)
    published(steps, 0)
    assert [place(database, job_id) for job_id in (*jobs, clip)] == [1, 2, 3, 4, 0]
    plan_chunks(steps, 1)
    published(steps, 0)
    assert [place(database, job_id) for job_id in jobs] == [1, 2, 3, 4]


# --- with real workers ----------------------------------------------------------------------------


@pytest.mark.usefixtures("weights_dir")
def test_real_workers_take_up_a_clip_before_any_more_of_the_long_recordings(start: Start) -> None:
    service = start(WORKER_STOP_PERIOD="0.2", REUSE_RESULTS="false")
    for _ in range(2):
        service.start_worker()
    service.start_dispatcher()
    said = speak(SENTENCE)
    lecture = np.tile(said, 180 * SAMPLE_RATE // len(said))
    long = [service.submit(lecture) for _ in range(3)]
    chunks = select(func.count()).where(
        Step.job_id.in_(long), Step.kind == StepKind.TRANSCRIBE, Step.status == StepStatus.RUNNING
    )

    def both_busy() -> bool:
        with service.database.transaction() as session:
            return session.scalar(chunks) == 2

    wait_until(both_busy, "both workers at work on them", 2 * PATIENCE_S)
    clip = service.submit(said)

    assert service.ended(clip, 2 * PATIENCE_S).status == JobStatus.COMPLETED
    with service.database.transaction() as session:
        begun = select(Step.started_at).where(Step.job_id == clip, Step.kind == StepKind.PLAN)
        sent = select(Job.created_at).where(Job.id == clip)
        went_before = session.scalars(
            select(Step.id).where(
                Step.job_id.in_(long),
                Step.started_at > sent.scalar_subquery(),
                Step.started_at < begun.scalar_subquery(),
            )
        ).all()
        unfinished = session.scalars(select(Job.status).where(Job.id.in_(long))).all()
    # One that was just handed out may begin after the clip was sent.
    assert len(went_before) <= 1
    assert unfinished == [JobStatus.PROCESSING] * 3
    for job_id in long:
        service.jobs.cancel(job_id)
