"""The promises of claims, leases, retries and fair order, on a real Postgres."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.steps import RetryPolicy, StaleClaim, Steps
from common.db.tables import Job, JobMetrics, Outbox, Part, Step, StepFailure
from common.db.transcriptions import Transcriptions
from common.domain.job import MAX_LOSSES, JobStatus, Priority, Publication, StepStatus
from common.domain.pipeline import StepKind
from common.errors import (
    ChunkTimedOut,
    DecodeFailed,
    EngineFailed,
    ModerationFailed,
    ModerationOff,
    ModerationUnusable,
    NotFound,
    StenoError,
    WorkerLost,
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
    plan_chunks,
    plan_started,
    published,
    store_plan,
    stored_segment,
    submit_job,
)
from tests.support.service import wait_until


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url, pool_size=20) as database:
        yield database


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def expire_leases(database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE steps SET lease_until = now() - interval '1 second'"))


def count(database: Database, table: type) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def status(database: Database, job_id: UUID) -> str:
    return Jobs(database, TENANT).snapshot(job_id).status


def blocked(database: Database) -> bool:
    """Whether some transaction waits for another one's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with database.transaction() as session:
        return bool(session.scalar(waiting))


def job_of(database: Database, step_id: UUID) -> UUID:
    with database.transaction() as session:
        return session.get_one(Step, step_id).job_id


def test_a_step_is_claimed_by_one_of_many_workers(database: Database, steps: Steps) -> None:
    submit_job(database)
    (step_id,) = published(steps)
    claims = []
    barrier = threading.Barrier(8)

    def work(name: str) -> None:
        barrier.wait()
        claims.append(steps.claim(step_id, name))

    threads = [threading.Thread(target=work, args=(f"worker-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([claim for claim in claims if claim is not None]) == 1


def test_a_step_that_is_handed_back_is_due_at_once_and_counts_no_failure(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    given_up = claim_next(steps, "leaving")

    assert steps.hand_back("leaving", given_up.step_id) == [job_id]

    with pytest.raises(StaleClaim):
        store_plan(steps, given_up, 1)
    assert not steps.renew(given_up)
    assert not steps.fail(given_up.step_id, given_up.attempt, WorkerLost(reason="late"))
    plan_chunks(steps, 0)
    assert count(database, StepFailure) == 0
    with database.transaction() as session:
        step = session.get_one(Step, given_up.step_id)
        assert (step.failures, step.losses) == (0, 0)


def test_only_what_a_worker_still_holds_is_handed_back(database: Database, steps: Steps) -> None:
    submit_job(database)
    plan_chunks(steps, 2)
    done, others = claim_next(steps, "leaving"), claim_next(steps, "staying")
    finish_chunk(steps, done)

    assert steps.hand_back("leaving", done.step_id) == []

    assert steps.renew(others)
    assert published(steps) == []


def test_a_step_whose_message_is_returned_unclaimed_is_published_again(
    database: Database, steps: Steps
) -> None:
    submit_job(database)
    (step_id,) = published(steps)

    assert steps.hand_back("leaving", step_id) == []

    assert published(steps) == [step_id]


def test_a_late_worker_cannot_overwrite_a_newer_attempt(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    late = claim_next(steps, "late")
    expire_leases(database)
    assert steps.reclaim_expired() == [job_id]
    newer = claim_next(steps, "newer")

    with pytest.raises(StaleClaim):
        finish_chunk(steps, late)
    assert not steps.renew(late)
    finish_chunk(steps, newer)

    with database.transaction() as session:
        stored = select(Step.stored_count).where(Step.job_id == job_id, Step.part == 0)
        assert session.scalars(stored).all() == [1]
    assert newer.attempt == late.attempt + 1


def test_a_renewed_lease_is_not_taken_back(database: Database, steps: Steps) -> None:
    submit_job(database)
    claim = claim_next(steps)
    expire_leases(database)

    assert steps.renew(claim)

    assert steps.reclaim_expired() == []


def test_many_workers_finishing_at_once_start_exactly_one_merge(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 40)
    claims = [steps.claim(step_id, "worker") for step_id in published(steps)]
    merges = []

    def work(start: int) -> None:
        for claim in claims[start::8]:
            assert claim is not None
            merges.append(finish_chunk(steps, claim, take_next=True))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(merges) == 40
    assert len([merge for merge in merges if merge is not None]) == 1
    with database.transaction() as session:
        kinds = session.scalars(select(Step.kind).where(Step.job_id == job_id)).all()
    assert kinds.count(StepKind.MERGE) == 1


def test_chunks_finished_while_the_plan_goes_on_do_not_start_the_merge(
    database: Database, steps: Steps
) -> None:
    submit_job(database)
    plan = plan_chunks(steps, 1, finish=False)
    assert finish_chunk(steps, claim_next(steps), take_next=True) is None

    merge = finish_plan(steps, plan, 10_000, take_next=True)

    assert merge is not None
    assert merge.kind == StepKind.MERGE


def test_a_plan_without_chunks_goes_straight_to_the_merge(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 0)

    claim = claim_next(steps)

    assert (claim.kind, claim.job_id) == (StepKind.MERGE, job_id)


def test_a_repeated_plan_keeps_the_chunks_that_are_done(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 2, finish=False)
    finish_chunk(steps, claim_next(steps))
    expire_leases(database)
    steps.reclaim_expired()
    again = next(
        claim
        for step_id in published(steps)
        if (claim := steps.claim(step_id, "again")) and claim.kind == StepKind.PLAN
    )

    assert Transcriptions(database).planned(job_id) == {0: ("c0", True), 1: ("c1", False)}
    steps.add_parts(again, [chunk_part(0), chunk_part(1), chunk_part(2)])
    finish_plan(steps, again, 30_000)

    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert (snapshot.chunks_total, snapshot.chunks_completed) == (3, 1)


def test_a_plan_that_was_taken_over_can_add_nothing(database: Database, steps: Steps) -> None:
    submit_job(database)
    late = plan_chunks(steps, 1, finish=False)
    expire_leases(database)
    steps.reclaim_expired()

    with pytest.raises(StaleClaim):
        steps.add_parts(late, [chunk_part(1)])
    with pytest.raises(StaleClaim):
        finish_plan(steps, late, 1)
    assert count(database, Part) == 1


def test_a_transient_error_is_retried_up_to_the_limit_and_every_reason_is_kept(
    database: Database,
) -> None:
    steps = make_steps(database, max_retries=2)
    job_id = submit_job(database)
    for _ in range(3):
        claim = claim_next(steps)
        assert steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="it broke"))

    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert snapshot.status == JobStatus.FAILED
    assert snapshot.error_code == "engine_failed"
    assert snapshot.error_message == "The engine failed: it broke"
    assert published(steps) == []
    with database.transaction() as session:
        attempts = session.scalars(
            select(StepFailure.attempt).where(StepFailure.job_id == job_id)
        ).all()
    assert sorted(attempts) == [1, 2, 3]


def test_a_step_that_runs_into_its_time_limit_is_retried_once(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    for expected in (JobStatus.PROCESSING, JobStatus.FAILED):
        claim = claim_next(steps)
        assert steps.fail(claim.step_id, claim.attempt, ChunkTimedOut(limit_s=60))
        assert status(database, job_id) == expected
    assert published(steps) == []


def test_a_permanent_error_is_not_retried(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    claim = claim_next(steps)

    steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="nothing in it"))

    assert status(database, job_id) == JobStatus.FAILED
    assert published(steps) == []


def test_a_retry_waits_for_its_delay(database: Database) -> None:
    steps = make_steps(database, delay_s=3600)
    submit_job(database)
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="it broke"))

    assert published(steps) == []
    assert steps.claim(claim.step_id, "eager") is None


def test_losing_workers_costs_no_retries_but_does_not_go_on_for_ever(database: Database) -> None:
    steps = make_steps(database, max_retries=0)
    job_id = submit_job(database)
    for _ in range(MAX_LOSSES - 1):
        claim = claim_next(steps)
        steps.fail(claim.step_id, claim.attempt, WorkerLost(reason="killed"))
    assert status(database, job_id) == JobStatus.PROCESSING

    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, WorkerLost(reason="killed"))

    assert status(database, job_id) == JobStatus.FAILED


def test_a_failure_of_an_old_attempt_says_nothing_about_the_new_one(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    old = claim_next(steps)
    expire_leases(database)
    steps.reclaim_expired()
    claim_next(steps)

    assert not steps.fail(old.step_id, old.attempt, DecodeFailed(reason="late"))

    assert status(database, job_id) == JobStatus.PROCESSING


def test_a_short_recording_goes_before_the_rest_of_a_long_one(
    database: Database, steps: Steps
) -> None:
    submit_job(database)
    plan_chunks(steps, 10)
    under_way = [claim_next(steps), claim_next(steps)]
    short = submit_job(database)

    next_job = job_of(database, published(steps, 1)[0])

    assert next_job == short
    assert all(claim.job_id != short for claim in under_way)


def test_jobs_of_one_priority_take_turns(database: Database, steps: Steps) -> None:
    jobs = [submit_job(database) for _ in range(3)]
    for plan in [claim_next(steps) for _ in jobs]:
        store_plan(steps, plan, 3)

    order = [job_of(database, step_id) for step_id in published(steps)]

    assert order == jobs * 3


def test_priority_goes_before_turns(database: Database, steps: Steps) -> None:
    submit_job(database, priority=Priority.LOW)
    plan_chunks(steps, 2)
    submit_job(database, priority=Priority.NORMAL)
    urgent = submit_job(database, priority=Priority.HIGH)

    assert job_of(database, published(steps, 1)[0]) == urgent


def test_servers_that_are_slow_to_send_recordings_do_not_hold_every_worker(
    database: Database, steps: Steps
) -> None:
    jobs = Jobs(database, TENANT)
    fetched = [jobs.create(new_job(source_url="https://slow.example/")).job_id for _ in range(5)]
    sent = [submit_job(database) for _ in range(2)]

    def publish(limit: int) -> list[UUID]:
        handed_out: list[UUID] = []
        steps.publish(limit, lambda rows: handed_out.extend(it.step_id for it in rows), limited=2)
        with database.transaction() as session:
            return [session.get_one(Step, step_id).job_id for step_id in handed_out]

    assert publish(3) == [*fetched[:2], sent[0]]
    assert publish(9) == [sent[1]]
    assert publish(9) == []
    jobs.cancel(fetched[0])
    assert publish(9) == [fetched[2]]


def test_a_crash_while_publishing_rings_again_under_the_same_name(
    database: Database, steps: Steps
) -> None:
    submit_job(database)
    rung: list[str] = []

    def ring_and_crash(rows: Sequence[Publication]) -> None:
        rung.extend(row.rq_job_id for row in rows)
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        steps.publish(10, ring_and_crash)
    steps.publish(10, lambda rows: rung.extend(row.rq_job_id for row in rows))

    assert len(rung) == 2
    assert rung[0] == rung[1]


def test_a_lost_message_is_published_again_under_another_id(
    database: Database, steps: Steps
) -> None:
    submit_job(database)
    (step_id,) = published(steps)
    ((lost_step, lost_rq_job),) = steps.published()

    steps.publish_again([lost_step])
    steps.publish_again([lost_step])

    assert count(database, Outbox) == 1
    assert published(steps) == [step_id]
    ((_, rq_job),) = steps.published()
    assert rq_job != lost_rq_job


def test_a_message_republished_while_its_step_is_claimed_leaves_nothing_in_the_outbox(
    database: Database, steps: Steps
) -> None:
    submit_job(database)
    (step_id,) = published(steps)
    with database.transaction() as claiming:
        claiming.execute(update(Step).values(status=StepStatus.RUNNING))
        steps.publish_again([step_id])
    assert count(database, Outbox) == 0


def test_a_message_republished_while_its_job_is_cancelled_leaves_nothing_in_the_outbox(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    (step_id,) = published(steps)
    cancelling = threading.Thread(target=Jobs(database, TENANT).cancel, args=(job_id,))
    with database.transaction() as ringing:  # as `publish_again` does
        ringing.execute(select(Step.id).where(Step.id == step_id).with_for_update())
        ringing.add(Outbox(step_id=step_id))
        ringing.flush()
        cancelling.start()
        wait_until(lambda: blocked(database), "the cancellation to wait")
    cancelling.join()
    assert status(database, job_id) == JobStatus.CANCELLED
    assert count(database, Outbox) == 0


def test_a_lost_step_that_is_in_the_outbox_already_is_taken_back(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    claim = claim_next(steps)
    with database.transaction() as session:
        session.add(Outbox(step_id=claim.step_id))
    expire_leases(database)
    assert steps.reclaim_expired() == [job_id]
    assert published(steps) == [claim.step_id]


def test_cancelling_invalidates_every_claim(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 3)
    running = claim_next(steps, "busy")

    stopped = Jobs(database, TENANT).cancel(job_id)

    assert [worker for worker, _ in stopped] == ["busy"]
    assert status(database, job_id) == JobStatus.CANCELLED
    assert published(steps) == []
    with pytest.raises(StaleClaim):
        finish_chunk(steps, running)
    assert Jobs(database, TENANT).cancel(job_id) == []


def test_cancelling_names_the_rq_job_that_runs_a_step(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    (step_id,) = published(steps)
    assert steps.claim(step_id, "worker-1", "that of the plan") is not None
    assert Jobs(database, TENANT).cancel(job_id) == [("worker-1", "that of the plan")]


def test_cancelling_and_finishing_at_the_same_time_never_deadlock(
    database: Database, steps: Steps
) -> None:
    errors: list[Exception] = []
    for _ in range(10):
        job_id = submit_job(database)
        plan_chunks(steps, 6)
        claims = [steps.claim(step_id, "worker") for step_id in published(steps)]
        barrier = threading.Barrier(len(claims) + 1)

        def finish(claim: object, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                finish_chunk(steps, claim)  # type: ignore[arg-type]
            except StaleClaim:
                pass
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=finish, args=(claim,)) for claim in claims]
        for thread in threads:
            thread.start()
        barrier.wait()
        Jobs(database, TENANT).cancel(job_id)
        for thread in threads:
            thread.join()

    assert errors == []


def test_a_completed_job_has_its_transcript_and_its_metrics(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps), warnings=["no_speech"])

    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert (snapshot.status, snapshot.progress) == (JobStatus.COMPLETED, 100)
    assert snapshot.warnings == ("no_speech",)
    with database.transaction() as session:
        metrics = session.get_one(JobMetrics, job_id)
        assert metrics.attempts == 3
        assert metrics.wall_ms >= metrics.waited_ms >= 0


def test_progress_never_falls_and_ends_at_100(database: Database, steps: Steps) -> None:
    job_id = submit_job(database, duration_ms=40_000)
    jobs = Jobs(database, TENANT)
    seen = [jobs.snapshot(job_id).progress]
    plan_chunks(steps, 4)
    for _ in range(4):
        seen.append(jobs.snapshot(job_id).progress)
        finish_chunk(steps, claim_next(steps))
    seen.append(jobs.snapshot(job_id).progress)

    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] < 100


def test_the_text_so_far_ends_before_the_first_chunk_that_is_not_done(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 3)
    claims = [claim_next(steps) for _ in range(3)]

    finish_chunk(steps, claims[0])
    finish_chunk(steps, claims[2])
    assert [chunk.index for chunk in Jobs(database, TENANT).text(job_id).chunks] == [0]
    finish_chunk(steps, claims[1])
    assert [chunk.index for chunk in Jobs(database, TENANT).text(job_id).chunks] == [0, 1, 2]


def test_another_tenants_job_is_not_found(database: Database) -> None:
    job_id = submit_job(database, tenant="one")
    other = Jobs(database, "two")

    for ask in (other.snapshot, other.text, other.cancel):
        with pytest.raises(NotFound):
            ask(job_id)


def test_an_equal_chunk_is_reused_within_the_tenant_only(database: Database, steps: Steps) -> None:
    submit_job(database, tenant="one")
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps))

    def known(steps: Steps, tenant: str) -> list[bool]:
        """Whether the result of each of two chunks is known ahead."""
        job_id = submit_job(database, tenant=tenant)
        plan_chunks(steps, 2)
        claims = [claim_next(steps) for _ in range(2)]
        Jobs(database, tenant).cancel(job_id)
        return [claim.known is not None for claim in claims]

    assert known(steps, "one") == [True, False]
    assert known(steps, "two") == [False, False]
    unlike = Steps(database, lease_s=30, retry=RetryPolicy(0, 0), reuse=False)
    assert known(unlike, "one") == [False, False]


def test_a_job_that_takes_too_long_fails_with_the_limit_named(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database)
    claim = claim_next(steps)
    with database.transaction() as session:
        session.get_one(Job, job_id).started_at = func.now() - text("interval '1 hour'")

    assert steps.fail_overdue_jobs(60) == [job_id]

    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert snapshot.status == JobStatus.FAILED
    assert snapshot.error_message is not None
    assert "JOB_TIMEOUT of 60 s" in snapshot.error_message
    assert not steps.renew(claim)


# --- moderation -----------------------------------------------------------------------------------


def kinds(database: Database, job_id: UUID) -> list[str]:
    with database.transaction() as session:
        return sorted(session.scalars(select(Step.kind).where(Step.job_id == job_id)))


def moderated_chunk(database: Database, steps: Steps, count: int = 1) -> UUID:
    """A job with ``count`` chunks that are transcribed and wait for their moderation."""
    job_id = submit_job(database, options=MODERATED)
    plan_chunks(steps, count)
    for step_id in published(steps):
        claim = steps.claim(step_id, "worker")
        assert claim is not None
        finish_chunk(steps, claim)
    return job_id


def test_a_job_that_wants_no_moderation_gets_no_such_step(database: Database, steps: Steps) -> None:
    job_id = submit_job(database)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))

    assert kinds(database, job_id) == ["merge", "plan", "transcribe"]


def test_each_chunk_is_moderated_once_it_is_transcribed_and_then_they_are_merged(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan_chunks(steps, 2)
    for _ in range(2):
        moderation = finish_chunk(steps, claim_next(steps), take_next=True)
        assert moderation is not None
        assert moderation.kind == StepKind.MODERATE
        assert moderation.previous == [
            [stored_segment(0, 10_000, f" chunk {moderation.part_index}")]
        ]
        merge = finish_moderation(steps, moderation, take_next=True)

    assert merge is not None
    assert merge.kind == StepKind.MERGE
    assert kinds(database, job_id) == sorted(["plan", *["transcribe", "moderate"] * 2, "merge"])
    chunk = Transcriptions(database).to_merge(job_id)[0][1]
    assert chunk.moderation is not None
    assert (chunk.moderation["by"]["model"], chunk.moderation_ms) == ("a-model", 7)


def test_a_chunk_counts_as_transcribed_before_it_is_moderated(
    database: Database, steps: Steps
) -> None:
    job_id = moderated_chunk(database, steps, 2)

    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert (snapshot.stage, snapshot.chunks_completed) == ("moderating", 2)
    assert len(Jobs(database, TENANT).text(job_id).chunks) == 2
    for _ in range(2):
        finish_moderation(steps, claim_next(steps))
    assert Jobs(database, TENANT).snapshot(job_id).stage == "merging"


def test_a_late_workers_moderation_is_refused(database: Database, steps: Steps) -> None:
    job_id = moderated_chunk(database, steps)
    late = claim_next(steps, "late")
    expire_leases(database)
    assert steps.reclaim_expired() == [job_id]
    newer = claim_next(steps, "newer")

    with pytest.raises(StaleClaim):
        finish_moderation(steps, late)
    assert finish_moderation(steps, newer, take_next=True) is not None
    with pytest.raises(StaleClaim):
        finish_moderation(steps, newer)
    assert kinds(database, job_id).count("merge") == 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ModerationUnusable(path="models/x", reason="there is no model.onnx"), 1),
        (ModerationFailed(reason="it broke"), 4),
        (ChunkTimedOut(limit_s=60), 2),
        (WorkerLost(reason="killed"), MAX_LOSSES),
    ],
)
def test_moderation_that_fails_for_good_costs_a_warning_and_not_the_job(
    database: Database, steps: Steps, error: StenoError, attempts: int
) -> None:
    job_id = moderated_chunk(database, steps, 2)
    finish_moderation(steps, claim_next(steps))
    for _ in range(attempts):
        claim = claim_next(steps)
        assert claim.kind == StepKind.MODERATE
        assert steps.fail(claim.step_id, claim.attempt, error)

    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert (snapshot.status, snapshot.stage) == (JobStatus.PROCESSING, "merging")
    assert snapshot.warnings == ("moderation_failed",)
    assert snapshot.error_code is None
    assert not steps.fail(claim.step_id, claim.attempt, error)
    finish_merge(steps, claim_next(steps), warnings=["moderation_failed"])
    ended = Jobs(database, TENANT).snapshot(job_id)
    assert (ended.status, ended.warnings) == (JobStatus.COMPLETED, ("moderation_failed",))


def test_once_a_chunk_cannot_be_moderated_the_others_get_one_try_each(
    database: Database, steps: Steps
) -> None:
    job_id = moderated_chunk(database, steps, 3)
    attempts: Counter[int | None] = Counter()
    while (claim := claim_next(steps)).kind == StepKind.MODERATE:
        attempts[claim.part_index] += 1
        steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="it crashed with SIGSEGV"))

    assert attempts == {0: 4, 1: 1, 2: 1}
    assert kinds(database, job_id).count("merge") == 1


def test_moderation_that_fails_while_the_plan_goes_on_does_not_start_the_merge(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan = plan_chunks(steps, 1, finish=False)
    finish_chunk(steps, claim_next(steps))
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, ModerationOff())
    assert "merge" not in kinds(database, job_id)

    assert finish_plan(steps, plan, 10_000, take_next=True) is not None

    assert Jobs(database, TENANT).snapshot(job_id).warnings == ("moderation_failed",)


def test_many_workers_moderating_at_once_start_exactly_one_merge(
    database: Database, steps: Steps
) -> None:
    job_id = moderated_chunk(database, steps, 24)
    claims = [steps.claim(step_id, "worker") for step_id in published(steps)]
    errors: list[Exception] = []

    def work(start: int) -> None:
        for claim in claims[start::8]:
            assert claim is not None
            try:
                if start % 2:
                    finish_moderation(steps, claim)
                else:
                    steps.fail(claim.step_id, claim.attempt, ModerationOff())
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert kinds(database, job_id).count("merge") == 1


def test_cancelling_also_cancels_moderation(database: Database, steps: Steps) -> None:
    job_id = moderated_chunk(database, steps, 2)
    running = claim_next(steps)

    Jobs(database, TENANT).cancel(job_id)

    assert published(steps) == []
    assert not steps.fail(running.step_id, running.attempt, ModerationOff())
    with pytest.raises(StaleClaim):
        finish_moderation(steps, running)
    assert status(database, job_id) == JobStatus.CANCELLED


def test_a_new_plan_also_deletes_moderation(database: Database, steps: Steps) -> None:
    job_id = submit_job(database, options=MODERATED)
    plan = plan_chunks(steps, 2, finish=False)
    finish_chunk(steps, claim_next(steps))
    moderation = claim_next(steps)

    steps.write(plan, plan_started(replan=True))

    with pytest.raises(StaleClaim):
        finish_moderation(steps, moderation)
    assert not steps.fail(moderation.step_id, moderation.attempt, ModerationOff())
    assert kinds(database, job_id) == ["plan"]
    snapshot = Jobs(database, TENANT).snapshot(job_id)
    assert (snapshot.chunks_total, snapshot.chunks_completed, snapshot.progress) == (0, 0, 0)


def test_an_equal_chunk_is_reused_without_its_moderation(database: Database, steps: Steps) -> None:
    first = moderated_chunk(database, steps)
    finish_moderation(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps))
    (chunk,), _ = Transcriptions(database).to_merge(first)

    submit_job(database, options=MODERATED)
    plan_chunks(steps, 1)
    claim = claim_next(steps)
    assert claim.known == chunk.result
    moderation = steps.finish(claim, result=claim.known, elapsed_ms=0, take_next=True)
    assert moderation is not None
    assert (moderation.kind, moderation.known) == (StepKind.MODERATE, None)


def test_a_job_from_before_there_was_moderation_is_finished_without(
    database: Database, steps: Steps
) -> None:
    job_id = submit_job(database, options=MODERATED)
    with database.transaction() as session:
        old = session.get_one(Job, job_id)
        old.options = {name: old.options[name] for name in ("cutting", "decoding")}
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))

    finish_merge(steps, claim_next(steps))

    assert status(database, job_id) == JobStatus.COMPLETED
    assert not Jobs(database, TENANT).text(job_id).options.moderation
