"""The promises of a retry: what failed is done again, what is done is not, and no one else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.steps import Claim, StaleClaim, Steps
from common.db.tables import Job, Outbox, Recording, Step
from common.db.transcriptions import Transcriptions
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.errors import (
    Conflict,
    DecodeFailed,
    EngineFailed,
    ModerationOff,
    NotFound,
    WeightsMissing,
)
from tests.support.factories import (
    MODERATED,
    TENANT,
    chunk_part,
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    finish_plan,
    make_steps,
    new_job,
    new_recording,
    plan_chunks,
    plan_started,
    published,
    store_plan,
    submit_job,
)

PASSING = EngineFailed(reason="made up")
BROKEN = DecodeFailed(reason="made up")
"""A failure for good."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url, pool_size=20) as database:
        yield database


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database, TENANT)


def work(steps: Steps, *, kinds: list[str] | None = None) -> None:
    """Do all there is to do, noting each step's kind."""
    while ready := published(steps):
        for step_id in ready:
            claim = steps.claim(step_id, "worker")
            assert claim is not None
            if kinds is not None:
                kinds.append(claim.kind)
            do(steps, claim)


def do(steps: Steps, claim: Claim) -> None:
    if claim.kind == StepKind.PLAN:
        replan(steps, claim)
    elif claim.kind == StepKind.TRANSCRIBE:
        finish_chunk(steps, claim)
    elif claim.kind == StepKind.MODERATE:
        finish_moderation(steps, claim)
    else:
        finish_merge(steps, claim)


def replan(steps: Steps, claim: Claim, count: int = 3) -> None:
    """As the worker plans: what is done is left out."""
    known = Transcriptions(steps._database).planned(claim.job_id)
    steps.write(claim, plan_started())
    for index in range(count):
        if not known.get(index, ("", False))[1]:
            steps.add_parts(claim, [chunk_part(index)])
    finish_plan(steps, claim, 10_000 * count)


def fail(steps: Steps, claim: Claim) -> None:
    assert steps.fail(claim.step_id, claim.attempt, BROKEN)


def check_whole(database: Database, job_id: UUID, chunks: int = 3) -> None:
    """Completed, each chunk transcribed once, and nothing left to do."""
    with database.transaction() as session:
        job = session.get_one(Job, job_id)
        assert (job.status, job.parts_known, job.parts_total) == (
            JobStatus.COMPLETED,
            True,
            chunks,
        )
        assert job.units_done == job.units_total == 10_000 * chunks
        transcribed = (Step.job_id == job_id, Step.kind == StepKind.TRANSCRIBE)
        stored = session.scalars(select(Step.stored_count).where(*transcribed)).all()
        assert stored == [1] * chunks
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0
        # moderation that fails for good fails no job
        undone = select(Step.kind).where(Step.job_id == job_id, Step.status != StepStatus.DONE)
        assert set(session.scalars(undone)) <= {StepKind.MODERATE}


def test_transcribed_chunks_are_not_transcribed_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 3)
    finish_chunk(steps, claim_next(steps))
    fail(steps, claim_next(steps))
    failed = jobs.snapshot(job_id)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "decode_failed")

    jobs.retry(job_id)

    again = jobs.snapshot(job_id)
    assert (again.status, again.error_code, again.error_message) == (JobStatus.PENDING, None, None)
    assert (again.completed_at, again.chunks_completed, again.chunks_total) == (None, 1, 3)
    kinds: list[str] = []
    work(steps, kinds=kinds)
    assert kinds == ["plan", "transcribe", "transcribe", "merge"]
    check_whole(database, job_id)


def test_a_plan_that_failed_is_made_again(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    plan = claim_next(steps)
    store_plan(steps, plan, 2, finish=False)
    finish_chunk(steps, claim_next(steps))
    fail(steps, plan)

    jobs.retry(job_id)

    kinds: list[str] = []
    work(steps, kinds=kinds)
    assert kinds == ["plan", "transcribe", "transcribe", "merge"]
    check_whole(database, job_id)


def test_only_the_merge_is_done_again_where_only_that_failed(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 3)
    for _ in range(3):
        finish_chunk(steps, claim_next(steps))
    fail(steps, claim_next(steps))

    jobs.retry(job_id)

    kinds: list[str] = []
    work(steps, kinds=kinds)
    assert kinds == ["merge"]
    check_whole(database, job_id)


def test_moderation_that_failed_is_done_again_where_only_the_merge_ended_the_job(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan_chunks(steps, 3)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind == StepKind.TRANSCRIBE:
            finish_chunk(steps, claim)
        else:
            steps.fail(claim.step_id, claim.attempt, ModerationOff())
    fail(steps, claim)

    jobs.retry(job_id)

    kinds: list[str] = []
    work(steps, kinds=kinds)
    assert kinds == ["moderate"] * 3 + ["merge"]
    check_whole(database, job_id)
    assert jobs.snapshot(job_id).warnings == ()


def test_a_fetch_that_failed_is_done_again(steps: Steps, jobs: Jobs) -> None:
    job_id = jobs.create(new_job(source_url="https://example.org/talk.mp3")).job_id
    fail(steps, claim_next(steps))
    jobs.retry(job_id)
    assert claim_next(steps).kind == "fetch"


def test_moderation_that_was_cut_off_or_failed_is_done_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan_chunks(steps, 3)
    claims = [steps.claim(step_id, "worker") for step_id in published(steps)]
    first, second, third = [claim for claim in claims if claim is not None]
    finish_chunk(steps, first)
    moderation = claim_next(steps)
    assert steps.fail(moderation.step_id, moderation.attempt, ModerationOff())
    finish_chunk(steps, second)
    fail(steps, third)

    jobs.retry(job_id)

    kinds: list[str] = []
    work(steps, kinds=kinds)
    assert sorted(kinds) == ["merge", *["moderate"] * 3, "plan", "transcribe"]
    check_whole(database, job_id)
    assert jobs.snapshot(job_id).warnings == ()


def test_a_retried_job_has_all_its_tries_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    for _ in range(2):
        while jobs.snapshot(job_id).status != JobStatus.FAILED:
            claim = claim_next(steps)
            if claim.kind == StepKind.PLAN:
                replan(steps, claim, 1)
            else:
                steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="made up"))
        jobs.retry(job_id)
    with database.transaction() as session:
        failures = text("SELECT count(*) FROM failures WHERE kind = 'transcribe'")
        assert session.scalar(failures) == 2 * (1 + 3)


def test_a_job_that_ran_out_of_time_has_all_of_it_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET started_at = now() - interval '1 hour'"))
    assert steps.fail_overdue_jobs(60) == [job_id]
    jobs.retry(job_id)
    claim_next(steps)
    assert steps.fail_overdue_jobs(60) == []


def test_a_late_worker_of_the_failed_run_changes_nothing(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    plan = claim_next(steps)
    store_plan(steps, plan, 2, finish=False)
    late, other = claim_next(steps), claim_next(steps)
    fail(steps, other)
    jobs.retry(job_id)

    writes: list[Callable[[], object]] = [
        lambda: steps.add_parts(plan, [chunk_part(2)]),
        lambda: finish_plan(steps, plan, 1),
        lambda: finish_chunk(steps, late),
    ]
    for write in writes:
        with pytest.raises(StaleClaim):
            write()
    for claim in (plan, late, other):
        assert not steps.renew(claim)
        assert not steps.fail(claim.step_id, claim.attempt, WeightsMissing(model="m", engine="e"))
        assert steps.claim(claim.step_id, "worker") is None
    work(steps)
    check_whole(database, job_id)


def test_of_many_retries_at_once_one_counts(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    fail(steps, claim_next(steps))

    def retry(_: int) -> bool:
        try:
            jobs.retry(job_id)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(retry, range(10))) == 1
    work(steps)
    check_whole(database, job_id)


def test_a_job_that_is_deleted_at_the_same_moment_is_not_found(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    def run_call(call: Callable[[UUID], object], job_id: UUID) -> None:
        with suppress(NotFound, Conflict):
            call(job_id)

    deletions = Deletions(database, TENANT)
    for _ in range(10):
        failed, waiting = submit_job(database), jobs.create(new_job()).job_id
        fail(steps, claim_next(steps))
        calls: list[tuple[Callable[[UUID], object], UUID]] = [
            (jobs.retry, failed),
            (jobs.cancel, failed),
            (deletions.delete, failed),
            (partial(jobs.attach, recording=new_recording()), waiting),
            (jobs.cancel, waiting),
            (deletions.delete, waiting),
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            for done in [pool.submit(run_call, *call) for call in calls]:
                done.result()
    with database.transaction() as session:
        left = [
            session.scalar(select(func.count()).select_from(it)) for it in (Job, Recording, Step)
        ]
    assert left == [0, 0, 0]
    assert len(deletions.page(job_id=None, limit=100, after=None).items) == 20


def test_only_a_failed_job_of_the_tenant_is_retried(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    with pytest.raises(NotFound):
        Jobs(database, "another").retry(job_id)
    with pytest.raises(Conflict, match="PENDING"):
        jobs.retry(job_id)
    work(steps)
    with pytest.raises(Conflict, match="COMPLETED"):
        jobs.retry(job_id)
    cancelled = submit_job(database)
    jobs.cancel(cancelled)
    with pytest.raises(Conflict, match="CANCELLED"):
        jobs.retry(cancelled)


def test_changed_weights_make_all_chunks_be_transcribed_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    fail(steps, claim_next(steps))
    jobs.retry(job_id)
    plan = claim_next(steps)
    steps.write(plan, plan_started(replan=True))
    steps.add_parts(plan, [chunk_part(index, "d") for index in range(3)])
    finish_plan(steps, plan, 30_000)
    work(steps)
    check_whole(database, job_id)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), moderated=st.booleans())
def test_whenever_a_job_fails_and_however_often_it_ends_whole(
    database: Database, steps: Steps, jobs: Jobs, data: st.DataObject, moderated: bool
) -> None:
    job_id = submit_job(database, options=Options(moderation=moderated))
    held: list[Claim] = []
    for _ in range(200):
        snapshot = jobs.snapshot(job_id)
        if snapshot.status is JobStatus.COMPLETED:
            break
        if snapshot.status is JobStatus.FAILED:
            jobs.retry(job_id)
            continue
        for step_id in published(steps):
            claim = steps.claim(step_id, "worker")
            assert claim is not None
            held.append(claim)
        claim = held.pop(data.draw(st.integers(0, len(held) - 1)))
        error = data.draw(st.sampled_from([None, None, None, BROKEN, PASSING]))
        if error is not None:
            steps.fail(claim.step_id, claim.attempt, error)
            continue
        try:
            do(steps, claim)
        except StaleClaim:
            continue
    check_whole(database, job_id)
