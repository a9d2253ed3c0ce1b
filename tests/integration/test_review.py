"""Jobs with review=true: they wait with their text until a person approves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update

from common.audio.wav import wav_header
from common.db.database import Database
from common.db.deletions import Deletions
from common.db.due_steps import DueSteps
from common.db.flow import OPEN
from common.db.jobs import Jobs
from common.db.keys import Tenants
from common.db.monitoring import observe_service
from common.db.retention import Retention
from common.db.revisions import Author, Revisions
from common.db.steps import Claim, StaleClaim, Steps
from common.db.tables import Job, Step, Tenant, WebhookDelivery
from common.db.usage import Quota
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.domain.speakers import Diarization, SpeakerCount, Turn
from common.domain.transcript import Origin
from common.domain.values import Span
from common.errors import Conflict, DecodeFailed, ModerationOff, NotFound, TooManyJobs
from scripts.cli.cli import steno
from tests.support.api import Api
from tests.support.factories import (
    TENANT,
    claim_next,
    do_all,
    do_step,
    finish_chunk,
    finish_merge,
    finish_moderation,
    make_steps,
    new_job,
    new_recording,
    plan_chunks,
    published,
    stored_segment,
    submit_job,
)
from tests.support.service import Start, wait_until, waits_for_a_lock

RECORDING = wav_header(16_000, 1, 16_000) + bytes(32_000)
REVIEWED = Options(review=True)
OTHER = {"X-Tenant-Id": "another"}


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


@pytest.fixture
def retention(database: Database) -> Retention:
    return Retention(database, grace_s=30.0)


def in_review(database: Database, steps: Steps, **fields: Any) -> UUID:
    """A job that waits for its review."""
    job_id = submit_job(database, options=REVIEWED, **fields)
    do_all(steps)
    return job_id


def in_review_without_labels(database: Database, steps: Steps) -> UUID:
    """One whose first chunk of two could not be moderated."""
    job_id = submit_job(database, options=replace(REVIEWED, moderation=True))
    plan_chunks(steps, 2)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind == StepKind.TRANSCRIBE:
            finish_chunk(steps, claim)
        elif claim.part_index == 0:
            assert steps.fail(claim.step_id, claim.attempt, ModerationOff())
        else:
            finish_moderation(steps, claim)
    segments = [stored_segment(0, 10_000, " chunk 0")]
    finish_merge(steps, claim, segments=segments, warnings=["moderation_failed"])
    return job_id


def row(database: Database, job_id: UUID) -> Job:
    with database.transaction() as session:
        return session.get_one(Job, job_id)


def waiting_since(database: Database, job_id: UUID, seconds: float) -> None:
    """Let a job have waited for its review for so long."""
    since = func.now() - timedelta(seconds=seconds)
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(paused_at=since))


def messages(database: Database, job_id: UUID | None = None) -> list[str]:
    """The events of the webhook messages, in the order in which they were written."""
    of_job = [] if job_id is None else [WebhookDelivery.job_id == job_id]
    with database.transaction() as session:
        asked = select(WebhookDelivery.event).where(*of_job).order_by(WebhookDelivery.created_at)
        return list(session.scalars(asked))


# --- over HTTP ------------------------------------------------------------------------------------


def test_a_job_waits_with_its_text_until_somebody_approves_it(api: Api) -> None:
    job_id = api.submit(options=REVIEWED, webhook_url="https://receiver.example.org/")
    conflict = api.ask("POST", f"jobs/{job_id}/approve", 409).json()
    assert "PENDING" in conflict["detail"]
    api.complete()

    status = api.get(f"status/{job_id}")
    assert (status["status"], status["stage"], status["progress"]) == ("REVIEW", "review", 100)
    assert (status["completed_at"], status["delete_at"], status["eta_seconds"]) == (None,) * 3
    result = api.get(f"result/{job_id}")
    assert (result["status"], result["text"], result["completed_at"]) == ("REVIEW", "chunk 0", None)
    assert result["download_url"]
    assert "chunk 0" in api.download(job_id, format="srt").text
    assert api.get("history")["history"] == []
    assert [it["job_id"] for it in api.get("jobs", status="REVIEW")["jobs"]] == [str(job_id)]
    assert messages(api.database, job_id) == ["transcription.review"]
    api.ask("POST", f"jobs/{job_id}/approve", 404, headers=OTHER)

    approved = api.ask("POST", f"jobs/{job_id}/approve").json()

    assert (approved["status"], approved["stage"], approved["progress"]) == (
        "COMPLETED",
        "done",
        100,
    )
    assert approved["completed_at"]
    assert [it["job_id"] for it in api.get("history")["history"]] == [str(job_id)]
    assert messages(api.database, job_id) == ["transcription.review", "transcription.completed"]
    again = api.ask("POST", f"jobs/{job_id}/approve", 409).json()
    assert again["code"] == "conflict"
    assert "COMPLETED" in again["detail"]


def test_its_speakers_can_be_named_before_it_is_approved(api: Api) -> None:
    diarization = Diarization((Turn(Span(0, 10_000), "SPEAKER_00"),))
    job_id = api.submit(options=REVIEWED)
    segment = stored_segment(0, 10_000, " chunk 0", speaker="SPEAKER_00")
    api.complete(segments=[segment], diarization=diarization)
    assert api.get(f"jobs/{job_id}/speakers")["speakers"][0]["name"] is None

    api.ask("PATCH", f"jobs/{job_id}/speakers", json={"SPEAKER_00": "Lan"})

    assert api.get(f"result/{job_id}")["speakers"][0]["name"] == "Lan"
    api.ask("POST", f"jobs/{job_id}/approve")
    assert api.get(f"result/{job_id}")["speakers"][0]["name"] == "Lan"


def test_a_long_poll_is_answered_at_the_review_and_at_the_approval(
    api: Api, pool: ThreadPoolExecutor
) -> None:
    job_id = api.submit(options=REVIEWED)
    api.plan(1)
    api.transcribe()
    poll = pool.submit(api.get, f"status/{job_id}", wait=60)
    api.merge(1)
    while poll.result()["status"] != "REVIEW":
        poll = pool.submit(api.get, f"status/{job_id}", wait=60)
    poll = pool.submit(api.get, f"status/{job_id}", wait=60)
    api.ask("POST", f"jobs/{job_id}/approve")
    assert poll.result()["status"] == "COMPLETED"


def test_a_request_decides_else_its_tenant(api: Api) -> None:
    def review(**options: Any) -> bool:
        files = {"file": ("a.wav", RECORDING)}
        job_id = api.ask("POST", "upload", data=options, files=files).json()["job_id"]
        created = api.ask("POST", "jobs", 201, json=options).json()["job_id"]
        (found,) = {row(api.database, UUID(it)).options["review"] for it in (job_id, created)}
        return bool(found)

    assert not review()
    assert review(review=True)
    Tenants(api.database).put(TENANT, review=True)
    try:
        assert review()
        assert not review(review=False)
    finally:
        Tenants(api.database).put(TENANT, review=False)


@pytest.mark.parametrize("path", ["v1/audio/transcriptions", "asr?output=json"])
def test_calls_that_wait_for_the_text_never_wait_for_a_person(
    api: Api, pool: ThreadPoolExecutor, path: str
) -> None:
    Tenants(api.database).put(TENANT, review=True)
    name = "file" if path.startswith("v1") else "audio_file"
    files = {name: ("a.wav", RECORDING)}
    try:
        answer = pool.submit(api.http.post, f"/{path}", data={"model": "whisper-1"}, files=files)
        wait_until(lambda: api.count(Step) == 1, "its job")
        api.complete(segments=[stored_segment(0, 10_000, " hello")])
        assert answer.result().json()["text"].strip() == "hello"
        assert api.get("jobs")["jobs"][0]["status"] == "COMPLETED"
    finally:
        Tenants(api.database).put(TENANT, review=False)


def test_the_command_line_approves(api: Api) -> None:
    job_id = api.submit(options=REVIEWED)
    api.complete()
    command = ["approve", str(job_id), "--server", api.gateway.url]
    assert CliRunner().invoke(steno, command).stdout == f"{job_id} COMPLETED\n"
    again = CliRunner().invoke(steno, command)
    assert (again.exit_code, len(again.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("value", ["maybe", 2, "tru"])
def test_what_is_neither_true_nor_false_is_rejected_by_name(api: Api, value: object) -> None:
    answer = api.ask("POST", "jobs", 422, json={"review": value}).json()
    assert answer["field"] == "review"


# --- what may happen to a job in review -----------------------------------------------------------


@pytest.mark.parametrize("retried", [False, True])
def test_its_chunks_are_deleted_before_it_is_approved(
    database: Database, steps: Steps, jobs: Jobs, retried: bool
) -> None:
    job_id = in_review_without_labels(database, steps)
    if retried:
        jobs.retry(job_id)
        assert row(database, job_id).sweep_at is None
        jobs.cancel(job_id)
    dropped: list[UUID] = []

    def drop(it: UUID) -> bool:
        dropped.append(it)
        return True

    retention = Retention(database, grace_s=0.0)
    while retention.sweep(drop):
        assert len(dropped) <= 2
    assert set(dropped) == {job_id}


def test_its_retention_and_its_end_count_from_the_approval(
    database: Database, steps: Steps, jobs: Jobs, retention: Retention
) -> None:
    job_id = in_review(database, steps, delete_after_s=60)
    assert row(database, job_id).delete_at is None
    assert retention.expired(10) == []
    jobs.approve(job_id, "a-key")
    approved = row(database, job_id)
    assert approved.completed_at is not None
    assert approved.delete_at == approved.completed_at + timedelta(seconds=60)
    assert (approved.reviewed_by, jobs.snapshot(job_id).reviewed_by) == ("a-key", "a-key")


def test_the_wait_for_a_person_counts_in_no_limit_and_no_estimate(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = in_review(database, steps, key_id="key")
    with database.transaction() as session:
        long_ago = text(
            "UPDATE jobs SET created_at = now() - interval '5 hours',"
            " started_at = now() - interval '5 hours', paused_at = now() - interval '4 hours'"
        )
        session.execute(long_ago)
    assert steps.fail_overdue_jobs(1) == []
    jobs.submit(new_recording(), new_job(key_id="key", quota=Quota(concurrent_jobs=1)))
    with pytest.raises(TooManyJobs):
        jobs.submit(new_recording(), new_job(key_id="key", quota=Quota(concurrent_jobs=1)))
    jobs.approve(job_id)
    # 30 s of audio took an hour, so that is what the next job is expected to take.
    following = jobs.snapshot(submit_job(database, duration_ms=30_000))
    assert following.estimate_s == pytest.approx(3600, rel=0.01)


def test_metrics_say_how_many_wait_and_for_how_long(database: Database, steps: Steps) -> None:
    first, second = in_review(database, steps), in_review(database, steps)
    waiting_since(database, first, 600)
    waiting_since(database, second, 60)
    found = observe_service(database).jobs[JobStatus.REVIEW]
    assert (found.count, int(found.oldest_s // 60)) == (2, 10)


def test_the_text_of_a_cancelled_one_is_neither_given_out_nor_changed(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = in_review(database, steps)
    jobs.cancel(job_id)
    revisions = Revisions(database, TENANT)
    for refused in (
        partial(revisions.get, job_id),
        partial(revisions.page, job_id, limit=1, before=None),
        partial(revisions.restore, job_id, 1, author=Author()),
        partial(jobs.source, job_id),
    ):
        with pytest.raises(Conflict, match="cancelled"):
            refused()


def test_it_can_be_cancelled_and_deleted(database: Database, steps: Steps, jobs: Jobs) -> None:
    cancelled, deleted = in_review(database, steps), in_review(database, steps)
    jobs.cancel(cancelled)
    jobs.cancel(cancelled)
    snapshot = jobs.snapshot(cancelled)
    assert (snapshot.status, snapshot.has_text) == (JobStatus.CANCELLED, False)
    with pytest.raises(Conflict, match="CANCELLED"):
        jobs.approve(cancelled)
    Deletions(database, TENANT).delete(deleted)
    with pytest.raises(NotFound):
        jobs.approve(deleted)
    with pytest.raises(Conflict, match="REVIEW"):
        jobs.retry(in_review(database, steps))


def test_what_it_lacks_is_done_again_and_it_waits_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = in_review_without_labels(database, steps)
    assert jobs.snapshot(job_id).warnings == ("moderation_failed",)

    jobs.retry(job_id)

    assert jobs.snapshot(job_id).has_text
    with pytest.raises(Conflict, match="PENDING"):
        jobs.approve(job_id)
    claim = claim_next(steps)
    with pytest.raises(Conflict, match="PROCESSING"):
        jobs.approve(job_id)
    finish_moderation(steps, claim)
    do_all(steps)
    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.REVIEW, ())
    jobs.approve(job_id)
    assert jobs.snapshot(job_id).status == JobStatus.COMPLETED


def cancel(jobs: Jobs, steps: Steps, job_id: UUID) -> None:  # noqa: ARG001
    jobs.cancel(job_id)


def fail_the_merge(jobs: Jobs, steps: Steps, job_id: UUID) -> None:  # noqa: ARG001
    finish_moderation(steps, claim_next(steps))
    merge = claim_next(steps)
    assert steps.fail(merge.step_id, merge.attempt, DecodeFailed(reason="made up"))


@pytest.mark.parametrize("end", [cancel, fail_the_merge])
def test_a_retry_that_comes_to_nothing_leaves_it_in_review(
    database: Database, steps: Steps, jobs: Jobs, end: Callable[[Jobs, Steps, UUID], None]
) -> None:
    job_id = in_review_without_labels(database, steps)
    jobs.retry(job_id)

    end(jobs, steps, job_id)

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.has_text) == (JobStatus.REVIEW, True)
    assert (snapshot.warnings, snapshot.error_code) == (("moderation_failed",), None)
    assert published(steps) == []
    jobs.retry(job_id)
    do_all(steps)
    assert jobs.snapshot(job_id).status == JobStatus.REVIEW
    jobs.approve(job_id)
    assert jobs.snapshot(job_id).warnings == ()
    with database.transaction() as session:
        undone = select(Step.id).where(Step.status != StepStatus.DONE)
        assert session.scalars(undone).all() == []


def test_one_that_was_approved_is_not_reviewed_again(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = in_review_without_labels(database, steps)
    jobs.approve(job_id, "a-key")
    jobs.retry(job_id)
    assert jobs.snapshot(job_id).has_text
    do_all(steps)
    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ())
    assert snapshot.reviewed_by == "a-key"


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_text_that_was_there_stays_and_is_approved_once(
    database: Database, steps: Steps, jobs: Jobs, data: st.DataObject
) -> None:
    """Whatever fails, in whatever order, and however often it is retried or the retry cancelled."""
    with database.transaction() as session:  # what an example that failed has left
        session.execute(text("TRUNCATE jobs, outbox, job_turns, tenant_turns CASCADE"))
    options = replace(REVIEWED, moderation=True, diarize=SpeakerCount())
    job_id = submit_job(database, options=options)
    had_text = approved = False
    held: list[Claim] = []
    for _ in range(40):
        snapshot = jobs.snapshot(job_id)
        assert snapshot.has_text or not had_text
        had_text = snapshot.has_text
        held += [claim for it in published(steps) if (claim := steps.claim(it, "worker"))]
        if snapshot.status is JobStatus.REVIEW:
            assert (had_text, approved) == (True, False)
            assert is_open(database, held) == []
            if data.draw(st.booleans()):
                jobs.approve(job_id)
                approved = True
            else:
                with suppress(Conflict):
                    jobs.retry(job_id)
        elif snapshot.status is JobStatus.COMPLETED:
            assert approved
            with suppress(Conflict):
                jobs.retry(job_id)
        elif snapshot.status is JobStatus.FAILED:
            assert not had_text
            jobs.retry(job_id)
        elif had_text and data.draw(st.integers(0, 5)) == 0:
            jobs.cancel(job_id)
            expected = JobStatus.COMPLETED if approved else JobStatus.REVIEW
            assert jobs.snapshot(job_id).status == expected
        elif held:
            claim = held.pop(data.draw(st.integers(0, len(held) - 1)))
            if data.draw(st.integers(0, 3)) == 0:
                steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="made up"))
            else:
                with suppress(StaleClaim):
                    do_step(steps, claim, 2)


def is_open(database: Database, claims: Sequence[Claim]) -> list[UUID]:
    """Those of these steps that are pending or running."""
    with database.transaction() as session:
        of_claims = Step.id.in_([claim.step_id for claim in claims])
        return list(session.scalars(select(Step.id).where(of_claims, Step.status.in_(OPEN))))


def test_a_deleted_one_that_is_retried_is_reported_as_cancelled(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = in_review_without_labels(database, steps)
    with database.transaction() as session:
        session.get_one(Job, job_id).webhook_url = "https://receiver.example.org/"
    jobs.retry(job_id)
    Deletions(database, TENANT).delete(job_id)
    assert messages(database) == ["transcription.cancelled"]


# --- the time limit -------------------------------------------------------------------------------


def test_nobody_has_to_approve_what_has_waited_too_long(
    database: Database, steps: Steps, jobs: Jobs, retention: Retention
) -> None:
    fresh, overdue = in_review(database, steps), in_review(database, steps)
    waiting_since(database, overdue, 7200)
    due_s = retention.next_due_s(60, 3600)
    assert due_s is not None
    assert due_s <= 0

    assert retention.end_review(3600) == overdue

    assert retention.end_review(3600) is None
    snapshot = jobs.snapshot(overdue)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ("review_timed_out",))
    assert snapshot.reviewed_by is None
    assert jobs.snapshot(fresh).status == JobStatus.REVIEW
    with pytest.raises(Conflict, match="COMPLETED"):
        jobs.approve(overdue)
    with database.transaction() as session:
        session.execute(update(Job).values(sweep_at=None))
    due_s = retention.next_due_s(60, 3600)
    assert due_s is not None
    assert due_s > 0
    assert retention.next_due_s(60, 0) is None


def test_a_retry_begins_the_wait_anew(
    database: Database, steps: Steps, jobs: Jobs, retention: Retention
) -> None:
    job_id = in_review_without_labels(database, steps)
    waiting_since(database, job_id, 7200)
    jobs.retry(job_id)
    assert retention.end_review(3600) is None
    do_all(steps)
    assert retention.end_review(3600) is None
    assert jobs.snapshot(job_id).status == JobStatus.REVIEW


def test_jobs_of_a_kind_of_a_newer_version_wait_for_it(
    database: Database, steps: Steps, retention: Retention
) -> None:
    job_id = in_review(database, steps)
    waiting_since(database, job_id, 7200)
    with database.transaction() as session:
        session.execute(update(Job).values(kind="newer", sweep_at=None))
    assert retention.end_review(3600) is None
    assert retention.next_due_s(60, 3600) is None


def test_a_dispatcher_ends_reviews_in_time(
    database: Database, steps: Steps, jobs: Jobs, start: Start
) -> None:
    job_id = in_review(database, steps)
    kept = in_review(database, steps)
    waiting_since(database, job_id, 7200)
    service = start(REVIEW_TIMEOUT="3600")
    service.start_dispatcher()
    service.start_dispatcher()
    wait_until(lambda: jobs.snapshot(job_id).status == JobStatus.COMPLETED, "its end")
    assert jobs.snapshot(kept).status == JobStatus.REVIEW
    assert jobs.snapshot(job_id).warnings == ("review_timed_out",)


# --- several at once ------------------------------------------------------------------------------


def approved(jobs: Jobs, job_id: UUID, key_id: str) -> UUID:
    jobs.approve(job_id, key_id)
    return job_id


def test_of_all_who_decide_about_it_at_once_one_wins(
    database: Database, steps: Steps, jobs: Jobs, retention: Retention
) -> None:
    """Each ending is reported once, and the job is as the winner left it."""
    deletions = Deletions(database, TENANT)

    def attempt(act: Callable[[], object]) -> bool:
        with suppress(Conflict, NotFound):
            return act() is not None
        return False

    for number in range(20):
        job_id = in_review(database, steps, webhook_url="https://receiver.example.org/")
        waiting_since(database, job_id, 7200)
        is_deleted = number % 4 == 3
        acts: list[Callable[[], object]] = [
            partial(approved, jobs, job_id, "one"),
            partial(approved, jobs, job_id, "another"),
            partial(retention.end_review, 3600),
            partial(retention.end_review, 3600),
            partial(jobs.cancel, job_id),
        ]
        with ThreadPoolExecutor(len(acts) + 1) as pool:
            ends = [pool.submit(attempt, act) for act in acts]
            if is_deleted:
                pool.submit(deletions.delete, job_id).result()
            won = sum(it.result() for it in ends)
        with database.transaction() as session:
            written = session.scalars(select(WebhookDelivery.event)).all()
            session.execute(text("TRUNCATE webhook_deliveries CASCADE"))
        assert written.count("transcription.review") == 1
        ended = [it for it in written if it != "transcription.review"]
        assert len(ended) == 1
        if is_deleted:
            assert won <= 1
            continue
        assert won == 1
        job = row(database, job_id)
        assert ended == [f"transcription.{job.status.lower()}"]
        timed_out, cancelled = "review_timed_out" in job.warnings, job.status == "CANCELLED"
        assert [job.reviewed_by is not None, timed_out, cancelled].count(True) == 1


def test_an_edit_that_is_queued_as_the_job_is_approved_is_refined(
    database: Database, steps: Steps, jobs: Jobs
) -> None:
    job_id = in_review(database, steps)

    def edit() -> None:
        author = Author()
        Revisions(database, TENANT).change(job_id, lambda it: it, origin=Origin.EDIT, author=author)

    edit()
    assert steps.publish(0, lambda _: None) == 0  # the job is queued
    edit()
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as dispatching:
            due = DueSteps(dispatching)
            assert due.lock()
            due.enqueue()
            approving = pool.submit(jobs.approve, job_id)
            wait_until(lambda: waits_for_a_lock(database), "the approval to wait")
        approving.result()
    assert claim_next(steps).kind == StepKind.REFINE


def test_a_tenant_that_is_not_set_reviews_nothing(database: Database) -> None:
    with database.transaction() as session:
        session.add(Tenant(id=TENANT, delete_after_s=120))
    job_id = submit_job(database)
    assert row(database, job_id).options["review"] is False
