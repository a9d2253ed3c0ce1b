"""The promises of claims, leases and retries, on a real Postgres."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.steps import Claim, RetryPolicy, StaleClaim, Steps
from common.db.tables import Job, JobMetrics, Outbox, Part, Step, StepFailure
from common.db.transcriptions import Transcriptions
from common.domain.job import MAX_LOSSES, JobStatus, Publication, StepStatus
from common.domain.pipeline import StepKind
from common.errors import (
    ChunkTimedOut,
    DecodeFailed,
    EngineFailed,
    ModerationFailed,
    ModerationOff,
    ModerationUnusable,
    StenoError,
    WorkerLost,
)
from tests.support.factories import (
    MODERATED,
    chunk_part,
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    finish_plan,
    make_steps,
    new_job,
    plan_chunks,
    plan_started,
    published,
    store_plan,
    stored_segment,
    submit_job,
)
from tests.support.service import wait_until, waits_for_a_lock

T = TypeVar("T")
LATE = DecodeFailed(reason="late")


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def expire_leases(database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE steps SET lease_until = now() - interval '1 second'"))


def fail(steps: Steps, claim: Claim, error: StenoError) -> bool:
    return steps.fail(claim.step_id, claim.attempt, error)


def count(database: Database, table: type) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def kinds(database: Database, job_id: UUID) -> list[str]:
    with database.transaction() as session:
        return sorted(session.scalars(select(Step.kind).where(Step.job_id == job_id)))


def job_of(database: Database, step_id: UUID) -> UUID:
    with database.transaction() as session:
        return session.get_one(Step, step_id).job_id


def planned(database: Database, steps: Steps, chunks: int = 1, **fields: Any) -> UUID:
    """A job with so many chunks to transcribe; ``fields`` are those of `NewJob`."""
    job_id = submit_job(database, **fields)
    plan_chunks(steps, chunks)
    return job_id


def transcribed(database: Database, steps: Steps, chunks: int = 1) -> UUID:
    """A job with so many chunks that are transcribed and wait for their moderation."""
    job_id = planned(database, steps, chunks, options=MODERATED)
    for claim in claim_all(steps):
        finish_chunk(steps, claim)
    return job_id


OF_A_CHUNK = pytest.mark.parametrize(
    ("prepare", "finish"), [(planned, finish_chunk), (transcribed, finish_moderation)]
)
"""Both steps of a chunk: what makes jobs that wait for it, and what ends it."""
Prepare = Callable[[Database, Steps, int], UUID]
Finish = Callable[..., Claim | None]


def claim_all(steps: Steps) -> list[Claim]:
    claims = [steps.claim(step_id, "worker") for step_id in published(steps)]
    return [claim for claim in claims if claim is not None]


def at_once(count: int, call: Callable[[int], T]) -> list[T]:
    """What calls with each of so many numbers return, begun at the same moment in threads."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_of_many_workers_one_claims_a_step(database: Database, steps: Steps) -> None:
    submit_job(database)
    (step_id,) = published(steps)

    claims = at_once(8, lambda number: steps.claim(step_id, f"worker-{number}"))

    assert len([claim for claim in claims if claim is not None]) == 1


def test_a_step_handed_back_is_due_at_once(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    given_up = claim_next(steps, "stopping")

    assert steps.hand_back("stopping", given_up.step_id) == [job_id]

    with pytest.raises(StaleClaim):
        store_plan(steps, given_up, 1)
    assert not steps.renew(given_up)
    assert not fail(steps, given_up, WorkerLost(reason="late"))
    plan_chunks(steps, 0)
    assert count(database, StepFailure) == 0
    with database.transaction() as session:
        step = session.get_one(Step, given_up.step_id)
        assert (step.failures, step.losses) == (0, 0)


def test_only_what_a_worker_still_holds_is_handed_back(database: Database, steps: Steps) -> None:
    planned(database, steps, 2)
    done, others = claim_next(steps, "stopping"), claim_next(steps, "staying")
    finish_chunk(steps, done)

    assert steps.hand_back("stopping", done.step_id) == []

    assert steps.renew(others)
    assert published(steps) == []


def test_a_message_returned_unclaimed_is_published_again(database: Database, steps: Steps) -> None:
    submit_job(database)
    (step_id,) = published(steps)

    assert steps.hand_back("stopping", step_id) == []

    assert published(steps) == [step_id]


@OF_A_CHUNK
def test_a_late_worker_cannot_overwrite_a_newer_attempt(
    database: Database, steps: Steps, prepare: Prepare, finish: Finish
) -> None:
    job_id = prepare(database, steps, 1)
    late = claim_next(steps, "late")
    expire_leases(database)
    assert steps.rescue_expired() == [job_id]
    newer = claim_next(steps, "newer")

    with pytest.raises(StaleClaim):
        finish(steps, late)
    assert not steps.renew(late)
    assert not fail(steps, late, LATE)
    finish(steps, newer)
    with pytest.raises(StaleClaim):
        finish(steps, newer)

    with database.transaction() as session:
        step = session.get_one(Step, newer.step_id)
        assert (step.status, step.stored_count) == (StepStatus.DONE, 1)
    assert newer.attempt == late.attempt + 1


def test_a_renewed_lease_is_not_taken_back(database: Database, steps: Steps) -> None:
    submit_job(database)
    claim = claim_next(steps)
    expire_leases(database)

    assert steps.renew(claim)

    assert steps.rescue_expired() == []


@OF_A_CHUNK
def test_workers_that_finish_at_once_start_one_merge(
    database: Database, steps: Steps, prepare: Prepare, finish: Finish
) -> None:
    job_id = prepare(database, steps, 24)
    claims = claim_all(steps)

    def work(start: int) -> list[Claim]:
        following = [finish(steps, claim, take_next=True) for claim in claims[start::8]]
        return [claim for claim in following if claim is not None]

    found = [claim for claims in at_once(8, work) for claim in claims]

    assert [claim.kind for claim in found] == [StepKind.MERGE]
    assert kinds(database, job_id).count("merge") == 1


def test_moderation_ending_in_any_way_starts_one_merge(database: Database, steps: Steps) -> None:
    job_id = transcribed(database, steps, 24)
    claims = claim_all(steps)

    def work(start: int) -> None:
        for claim in claims[start::8]:
            if start % 2:
                finish_moderation(steps, claim)
            else:
                fail(steps, claim, ModerationOff())

    at_once(8, work)

    assert kinds(database, job_id).count("merge") == 1


def test_chunks_finished_during_the_plan_start_no_merge(database: Database, steps: Steps) -> None:
    submit_job(database)
    plan = plan_chunks(steps, 1, finish=False)
    assert finish_chunk(steps, claim_next(steps), take_next=True) is None

    merge = finish_plan(steps, plan, 10_000, take_next=True)

    assert merge is not None
    assert merge.kind == StepKind.MERGE


def test_a_plan_without_chunks_goes_straight_to_the_merge(database: Database, steps: Steps) -> None:
    job_id = planned(database, steps, 0)

    claim = claim_next(steps)

    assert (claim.kind, claim.job_id) == (StepKind.MERGE, job_id)


def test_a_repeated_plan_keeps_done_chunks(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 2, finish=False)
    finish_chunk(steps, claim_next(steps))
    expire_leases(database)
    steps.rescue_expired()
    again = next(claim for claim in claim_all(steps) if claim.kind == StepKind.PLAN)

    known = Transcriptions(database).planned(job_id, [StepKind.TRANSCRIBE])
    assert known == {0: ("c0", True), 1: ("c1", False)}
    steps.add_parts(again, [chunk_part(0), chunk_part(1), chunk_part(2)])
    finish_plan(steps, again, 30_000)

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.chunks_total, snapshot.chunks_completed) == (3, 1)


def test_a_plan_that_was_taken_over_can_add_nothing(database: Database, steps: Steps) -> None:
    submit_job(database)
    late = plan_chunks(steps, 1, finish=False)
    expire_leases(database)
    steps.rescue_expired()

    with pytest.raises(StaleClaim):
        steps.add_parts(late, [chunk_part(1)])
    with pytest.raises(StaleClaim):
        finish_plan(steps, late, 1)
    assert count(database, Part) == 1


@pytest.mark.parametrize(
    ("error", "max_retries", "attempts"),
    [
        (EngineFailed(reason="it broke"), 2, 3),
        (ChunkTimedOut(limit_s=60), 3, 2),
        (DecodeFailed(reason="nothing in it"), 3, 1),
        (WorkerLost(reason="killed"), 0, MAX_LOSSES),
    ],
)
def test_a_step_is_retried_up_to_its_limit_and_every_reason_is_kept(
    database: Database, jobs: Jobs, error: StenoError, max_retries: int, attempts: int
) -> None:
    steps = make_steps(database, max_retries=max_retries)
    job_id = submit_job(database)
    for _ in range(attempts):
        assert jobs.snapshot(job_id).status != JobStatus.FAILED
        assert fail(steps, claim_next(steps), error)

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.error_code) == (JobStatus.FAILED, error.code)
    assert snapshot.error_message == error.message
    assert published(steps) == []
    with database.transaction() as session:
        failed = session.scalars(
            select(StepFailure.attempt).where(StepFailure.job_id == job_id)
        ).all()
    assert sorted(failed) == list(range(1, attempts + 1))


def test_a_retry_waits_for_its_delay(database: Database) -> None:
    steps = make_steps(database, delay_s=3600)
    submit_job(database)
    claim = claim_next(steps)
    fail(steps, claim, EngineFailed(reason="it broke"))

    assert published(steps) == []
    assert steps.claim(claim.step_id, "eager") is None


def test_slow_sources_do_not_hold_all_workers(database: Database, steps: Steps, jobs: Jobs) -> None:
    fetched = [jobs.create(new_job(source_url="https://slow.example/")).job_id for _ in range(5)]
    sent = [submit_job(database) for _ in range(2)]

    def publish(limit: int) -> list[UUID]:
        handed_out: list[UUID] = []
        steps.publish(limit, lambda rows: handed_out.extend(it.step_id for it in rows), limited=2)
        return [job_of(database, step_id) for step_id in handed_out]

    assert publish(3) == [*fetched[:2], sent[0]]
    assert publish(9) == [sent[1]]
    assert publish(9) == []
    jobs.cancel(fetched[0])
    assert publish(9) == [fetched[2]]


def test_a_crash_while_publishing_keeps_the_message_id(database: Database, steps: Steps) -> None:
    submit_job(database)
    sent: list[str] = []

    def send_and_crash(rows: Sequence[Publication]) -> None:
        sent.extend(row.rq_job_id for row in rows)
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        steps.publish(10, send_and_crash)
    steps.publish(10, lambda rows: sent.extend(row.rq_job_id for row in rows))

    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_a_lost_message_is_published_again_with_a_new_id(database: Database, steps: Steps) -> None:
    submit_job(database)
    (step_id,) = published(steps)
    ((lost_step, lost_rq_job),) = steps.published()

    steps.publish_again([lost_step])
    steps.publish_again([lost_step])

    assert count(database, Outbox) == 1
    assert published(steps) == [step_id]
    ((_, rq_job),) = steps.published()
    assert rq_job != lost_rq_job


def test_a_claim_during_republishing_empties_the_outbox(database: Database, steps: Steps) -> None:
    submit_job(database)
    (step_id,) = published(steps)
    with database.transaction() as claiming:
        claiming.execute(update(Step).values(status=StepStatus.RUNNING))
        steps.publish_again([step_id])
    assert count(database, Outbox) == 0


def test_a_cancellation_during_republishing_empties_the_outbox(
    database: Database, steps: Steps, jobs: Jobs, pool: ThreadPoolExecutor
) -> None:
    job_id = submit_job(database)
    (step_id,) = published(steps)
    with database.transaction() as republishing:  # as `publish_again` does
        republishing.execute(select(Step.id).where(Step.id == step_id).with_for_update())
        republishing.add(Outbox(step_id=step_id))
        republishing.flush()
        cancelling = pool.submit(jobs.cancel, job_id)
        wait_until(lambda: waits_for_a_lock(database), "the cancellation to wait")
    cancelling.result()
    assert jobs.snapshot(job_id).status == JobStatus.CANCELLED
    assert count(database, Outbox) == 0


def test_a_lost_step_in_the_outbox_already_is_rescued(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    claim = claim_next(steps)
    with database.transaction() as session:
        session.add(Outbox(step_id=claim.step_id))
    expire_leases(database)
    assert steps.rescue_expired() == [job_id]
    assert published(steps) == [claim.step_id]


@OF_A_CHUNK
def test_cancelling_invalidates_every_claim(
    database: Database, steps: Steps, jobs: Jobs, prepare: Prepare, finish: Finish
) -> None:
    job_id = prepare(database, steps, 3)
    running = claim_next(steps, "busy")

    stopped = jobs.cancel(job_id)

    assert [worker for worker, _ in stopped] == ["busy"]
    assert published(steps) == []
    assert not fail(steps, running, LATE)
    with pytest.raises(StaleClaim):
        finish(steps, running)
    assert jobs.cancel(job_id) == []
    assert jobs.snapshot(job_id).status == JobStatus.CANCELLED


def test_cancelling_names_the_running_rq_job(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = planned(database, steps)
    (step_id,) = published(steps)
    assert steps.claim(step_id, "worker-1", "that of the plan") is not None
    assert jobs.cancel(job_id) == [("worker-1", "that of the plan")]


def test_cancels_and_finishes_never_deadlock(database: Database, steps: Steps, jobs: Jobs) -> None:
    for _ in range(10):
        job_id = planned(database, steps, 6)
        claims = claim_all(steps)

        def end(number: int, claims: list[Claim] = claims, job_id: UUID = job_id) -> None:
            if number == len(claims):
                jobs.cancel(job_id)
                return
            with suppress(StaleClaim):
                finish_chunk(steps, claims[number])

        at_once(len(claims) + 1, end)


def test_a_completed_job_has_its_metrics(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = planned(database, steps)
    finish_chunk(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps), warnings=["no_speech"])

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.progress) == (JobStatus.COMPLETED, 100)
    assert snapshot.warnings == ("no_speech",)
    with database.transaction() as session:
        metrics = session.get_one(JobMetrics, job_id)
        assert metrics.attempts == 3
        assert metrics.wall_ms >= metrics.waited_ms >= 0


def test_progress_never_falls(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database, duration_ms=40_000)
    seen = [jobs.snapshot(job_id).progress]
    plan_chunks(steps, 4)
    for _ in range(4):
        seen.append(jobs.snapshot(job_id).progress)
        finish_chunk(steps, claim_next(steps))
    seen.append(jobs.snapshot(job_id).progress)

    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] < 100


def test_the_text_so_far_ends_before_the_first_chunk_that_is_not_done(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = planned(database, steps, 3)
    claims = claim_all(steps)

    finish_chunk(steps, claims[0])
    finish_chunk(steps, claims[2])
    assert [chunk.index for chunk in jobs.text(job_id).chunks] == [0]
    finish_chunk(steps, claims[1])
    assert [chunk.index for chunk in jobs.text(job_id).chunks] == [0, 1, 2]


def test_an_equal_chunk_is_reused_within_the_tenant_only(database: Database, steps: Steps) -> None:
    planned(database, steps, tenant="one")
    finish_chunk(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps))

    def known(steps: Steps, tenant: str) -> list[bool]:
        """Whether the result of each of two chunks is known ahead."""
        job_id = planned(database, steps, 2, tenant=tenant)
        claims = claim_all(steps)
        Jobs(database, tenant).cancel(job_id)
        return [claim.known is not None for claim in claims]

    assert known(steps, "one") == [True, False]
    assert known(steps, "two") == [False, False]
    unlike = Steps(database, lease_s=30, retry=RetryPolicy(0, 0), reuse=False)
    assert known(unlike, "one") == [False, False]


def test_an_overdue_job_fails_with_the_limit(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database)
    claim = claim_next(steps)
    with database.transaction() as session:
        session.get_one(Job, job_id).started_at = func.now() - text("interval '1 hour'")

    assert steps.fail_overdue_jobs(60) == [job_id]

    snapshot = jobs.snapshot(job_id)
    assert snapshot.status == JobStatus.FAILED
    assert snapshot.error_message is not None
    assert "JOB_TIMEOUT of 60 s" in snapshot.error_message
    assert not steps.renew(claim)


# --- moderation -----------------------------------------------------------------------------------


def test_a_job_without_moderation_gets_no_such_step(database: Database, steps: Steps) -> None:
    job_id = planned(database, steps)
    finish_chunk(steps, claim_next(steps))

    assert kinds(database, job_id) == ["merge", "plan", "transcribe"]


def test_each_chunk_is_moderated_after_it_is_transcribed_and_then_they_are_merged(
    database: Database, steps: Steps
) -> None:
    job_id = planned(database, steps, 2, options=MODERATED)
    for _ in range(2):
        moderation = finish_chunk(steps, claim_next(steps), take_next=True)
        assert moderation is not None
        assert moderation.kind == StepKind.MODERATE
        segment = stored_segment(0, 10_000, f" chunk {moderation.part_index}")
        assert moderation.previous == [[segment]]
        merge = finish_moderation(steps, moderation, take_next=True)

    assert merge is not None
    assert merge.kind == StepKind.MERGE
    assert kinds(database, job_id) == sorted(["plan", *["transcribe", "moderate"] * 2, "merge"])
    chunk = Transcriptions(database).to_merge(job_id)[0][1]
    assert chunk.moderation is not None
    assert (chunk.moderation["by"]["model"], chunk.moderation_ms) == ("a-model", 7)


def test_chunks_count_before_moderation(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = transcribed(database, steps, 2)

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.stage, snapshot.chunks_completed) == ("moderating", 2)
    assert len(jobs.text(job_id).chunks) == 2
    for _ in range(2):
        finish_moderation(steps, claim_next(steps))
    assert jobs.snapshot(job_id).stage == "merging"


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ModerationUnusable(path="models/x", reason="there is no model.onnx"), 1),
        (ModerationFailed(reason="it broke"), 4),
        (ChunkTimedOut(limit_s=60), 2),
        (WorkerLost(reason="killed"), MAX_LOSSES),
    ],
)
def test_failed_moderation_costs_a_warning_and_not_the_job(
    database: Database, steps: Steps, jobs: Jobs, error: StenoError, attempts: int
) -> None:
    job_id = transcribed(database, steps, 2)
    finish_moderation(steps, claim_next(steps))
    for _ in range(attempts):
        claim = claim_next(steps)
        assert claim.kind == StepKind.MODERATE
        assert fail(steps, claim, error)

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.stage) == (JobStatus.PROCESSING, "merging")
    assert snapshot.warnings == ("moderation_failed",)
    assert snapshot.error_code is None
    assert not fail(steps, claim, error)
    finish_merge(steps, claim_next(steps), warnings=["moderation_failed"])
    ended = jobs.snapshot(job_id)
    assert (ended.status, ended.warnings) == (JobStatus.COMPLETED, ("moderation_failed",))


def test_after_one_moderation_failed_others_get_one_attempt(
    database: Database, steps: Steps
) -> None:
    job_id = transcribed(database, steps, 3)
    attempts: Counter[int | None] = Counter()
    while (claim := claim_next(steps)).kind == StepKind.MODERATE:
        attempts[claim.part_index] += 1
        fail(steps, claim, EngineFailed(reason="it crashed with SIGSEGV"))

    assert attempts == {0: 4, 1: 1, 2: 1}
    assert kinds(database, job_id).count("merge") == 1


def test_moderation_that_fails_during_the_plan_starts_no_merge(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan = plan_chunks(steps, 1, finish=False)
    finish_chunk(steps, claim_next(steps))
    fail(steps, claim_next(steps), ModerationOff())
    assert "merge" not in kinds(database, job_id)

    assert finish_plan(steps, plan, 10_000, take_next=True) is not None

    assert jobs.snapshot(job_id).warnings == ("moderation_failed",)


def test_a_new_plan_also_deletes_moderation(database: Database, steps: Steps, jobs: Jobs) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan = plan_chunks(steps, 2, finish=False)
    finish_chunk(steps, claim_next(steps))
    moderation = claim_next(steps)

    steps.write(plan, plan_started(replan=True))

    with pytest.raises(StaleClaim):
        finish_moderation(steps, moderation)
    assert not fail(steps, moderation, ModerationOff())
    assert kinds(database, job_id) == ["plan"]
    snapshot = jobs.snapshot(job_id)
    assert (snapshot.chunks_total, snapshot.chunks_completed, snapshot.progress) == (0, 0, 0)


def test_an_equal_chunk_is_reused_without_its_moderation(database: Database, steps: Steps) -> None:
    first = transcribed(database, steps)
    finish_moderation(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps))
    (chunk,), _ = Transcriptions(database).to_merge(first)

    planned(database, steps, options=MODERATED)
    claim = claim_next(steps)
    assert claim.known == chunk.result
    moderation = steps.finish(claim, result=claim.known, elapsed_ms=0, take_next=True)
    assert moderation is not None
    assert (moderation.kind, moderation.known) == (StepKind.MODERATE, None)


def test_a_job_from_before_there_was_moderation_is_finished_without(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = submit_job(database, options=MODERATED)
    with database.transaction() as session:
        old = session.get_one(Job, job_id)
        old.options = {name: old.options[name] for name in ("cutting", "decoding")}
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))

    finish_merge(steps, claim_next(steps))

    assert jobs.snapshot(job_id).status == JobStatus.COMPLETED
    assert not jobs.text(job_id).options.moderation
