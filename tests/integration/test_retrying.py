"""The promises of a retry: what failed is done again, what is done is not, and no one else's."""

from __future__ import annotations

from collections.abc import Callable
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
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.errors import Conflict, DecodeFailed, EngineFailed, ModerationOff, NotFound
from tests.support.factories import (
    MODERATED,
    TENANT,
    chunk_part,
    claim_next,
    do_all,
    do_step,
    finish_chunk,
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

TRANSIENT = EngineFailed(reason="made up")
PERMANENT = DecodeFailed(reason="made up")


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def fail(steps: Steps, claim: Claim) -> None:
    assert steps.fail(claim.step_id, claim.attempt, PERMANENT)


def check_whole(steps: Steps, job_id: UUID, chunks: int = 3) -> None:
    """Completed, each chunk transcribed once, and nothing left to do."""
    with steps._database.transaction() as session:
        job = session.get_one(Job, job_id)
        assert (job.status, job.parts_known) == (JobStatus.COMPLETED, True)
        assert (job.parts_total, job.units_total) == (chunks, 10_000 * chunks)
        assert job.units_done == job.units_total
        transcribed = (Step.job_id == job_id, Step.kind == StepKind.TRANSCRIBE)
        stored = session.scalars(select(Step.stored_count).where(*transcribed)).all()
        assert stored == [1] * chunks
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0
        # moderation that fails for good fails no job
        undone = select(Step.kind).where(Step.job_id == job_id, Step.status != StepStatus.DONE)
        assert set(session.scalars(undone)) <= {StepKind.MODERATE}


def fail_a_chunk(steps: Steps) -> None:
    plan_chunks(steps, 3)
    finish_chunk(steps, claim_next(steps))
    fail(steps, claim_next(steps))


def fail_the_plan(steps: Steps) -> None:
    plan = claim_next(steps)
    store_plan(steps, plan, 2, finish=False)
    finish_chunk(steps, claim_next(steps))
    fail(steps, plan)


def fail_the_merge(steps: Steps) -> None:
    """The merge, after all moderation where there is any."""
    plan_chunks(steps, 3)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind == StepKind.TRANSCRIBE:
            finish_chunk(steps, claim)
        else:
            steps.fail(claim.step_id, claim.attempt, ModerationOff())
    fail(steps, claim)


def fail_during_moderation(steps: Steps) -> None:
    """A chunk, when one before it could not be moderated and another was to be."""
    plan_chunks(steps, 3)
    claims = [steps.claim(step_id, "worker") for step_id in published(steps)]
    first, second, third = [claim for claim in claims if claim is not None]
    finish_chunk(steps, first)
    moderation = claim_next(steps)
    assert steps.fail(moderation.step_id, moderation.attempt, ModerationOff())
    finish_chunk(steps, second)
    fail(steps, third)


@pytest.mark.parametrize(
    ("fail_at", "options", "done_again"),
    [
        (fail_a_chunk, Options(), ["plan", "transcribe", "transcribe", "merge"]),
        (fail_the_plan, Options(), ["plan", "transcribe", "transcribe", "merge"]),
        (fail_the_merge, Options(), ["merge"]),
        (fail_the_merge, MODERATED, ["moderate", "moderate", "moderate", "merge"]),
        (
            fail_during_moderation,
            MODERATED,
            ["plan", "moderate", "moderate", "transcribe", "moderate", "merge"],
        ),
    ],
)
def test_a_retry_does_again_what_failed_or_is_missing(
    database: Database,
    steps: Steps,
    jobs: Jobs,
    fail_at: Callable[[Steps], None],
    options: Options,
    done_again: list[str],
) -> None:
    job_id = submit_job(database, options=options)
    fail_at(steps)
    failed = jobs.snapshot(job_id)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "decode_failed")

    jobs.retry(job_id)

    again = jobs.snapshot(job_id)
    assert (again.error_code, again.error_message, again.completed_at) == (None, None, None)
    assert again.status == JobStatus.PENDING
    assert again.chunks_completed == failed.chunks_completed
    assert again.chunks_total == failed.chunks_total
    assert sorted(do_all(steps)) == sorted(done_again)
    check_whole(steps, job_id)
    assert jobs.snapshot(job_id).warnings == ()


def test_a_fetch_that_failed_is_done_again(steps: Steps, jobs: Jobs) -> None:
    job_id = jobs.create(new_job(source_url="https://example.org/talk.mp3")).job_id
    fail(steps, claim_next(steps))
    jobs.retry(job_id)
    assert claim_next(steps).kind == "fetch"


def test_a_retried_job_has_all_its_attempts(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    for _ in range(2):
        while jobs.snapshot(job_id).status != JobStatus.FAILED:
            claim = claim_next(steps)
            if claim.kind == StepKind.PLAN:
                do_step(steps, claim, 1)
            else:
                steps.fail(claim.step_id, claim.attempt, TRANSIENT)
        jobs.retry(job_id)
    with database.transaction() as session:
        failures = text("SELECT count(*) FROM failures WHERE kind = 'transcribe'")
        assert session.scalar(failures) == 2 * (1 + 3)


def test_a_retried_job_has_all_its_time(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET started_at = now() - interval '1 hour'"))
    assert steps.fail_overdue_jobs(60) == [job_id]
    jobs.retry(job_id)
    claim_next(steps)
    assert steps.fail_overdue_jobs(60) == []


def test_late_workers_change_nothing(database: Database, steps: Steps, jobs: Jobs) -> None:
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
        assert not steps.fail(claim.step_id, claim.attempt, PERMANENT)
        assert steps.claim(claim.step_id, "worker") is None
    do_all(steps)
    check_whole(steps, job_id)


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
    do_all(steps)
    check_whole(steps, job_id)


def test_a_job_deleted_meanwhile_is_not_found(database: Database, steps: Steps, jobs: Jobs) -> None:
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


def test_only_own_failed_jobs_are_retried(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    with pytest.raises(NotFound):
        Jobs(database, "another").retry(job_id)
    with pytest.raises(Conflict, match="PENDING"):
        jobs.retry(job_id)
    do_all(steps)
    with pytest.raises(Conflict, match="COMPLETED"):
        jobs.retry(job_id)
    cancelled = submit_job(database)
    jobs.cancel(cancelled)
    with pytest.raises(Conflict, match="CANCELLED"):
        jobs.retry(cancelled)


def test_changed_weights_transcribe_all_again(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    fail_a_chunk(steps)
    jobs.retry(job_id)
    plan = claim_next(steps)
    steps.write(plan, plan_started(replan=True))
    steps.add_parts(plan, [chunk_part(index, "d") for index in range(3)])
    finish_plan(steps, plan, 30_000)
    do_all(steps)
    check_whole(steps, job_id)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), moderated=st.booleans())
def test_a_job_ends_whole_whenever_and_however_often_it_fails(
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
        error = data.draw(st.sampled_from([None, None, None, PERMANENT, TRANSIENT]))
        if error is not None:
            steps.fail(claim.step_id, claim.attempt, error)
            continue
        with suppress(StaleClaim):
            do_step(steps, claim)
    check_whole(steps, job_id)
