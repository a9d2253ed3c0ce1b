"""Jobs of a kind that only a newer version knows wait for it, and hold up no others."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest
from loguru import logger
from sqlalchemy import func, select, update

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.listing import JobFilter, JobLists
from common.db.steps import Steps
from common.db.tables import Job, Outbox, Step
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import PIPELINES, Phase, Pipeline, StepType
from common.errors import JobKindUnknown
from tests.support.factories import TENANT, claim_next, make_steps, new_job, published, submit_job

NEWER = Pipeline("newer", phases=(Phase("whole", StepType("work", stage="working")),))


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    written: list[str] = []
    sink = logger.add(written.append, format="{message}", level="WARNING")
    yield written
    logger.remove(sink)


def upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Become the newer version."""
    monkeypatch.setitem(PIPELINES, NEWER.kind, NEWER)


def submit_newer(database: Database) -> UUID:
    """A job as the newer version submits it: with options of its own."""
    job = new_job(kind=NEWER.kind, source_url="https://example.org/")
    with pytest.MonkeyPatch.context() as newer:
        upgrade(newer)
        Jobs(database, TENANT).create(job)
    with database.transaction() as session:
        session.get_one(Job, job.id).options = {"pages": [1, 2]}
    return job.id


def step_of(database: Database, job_id: UUID) -> Step:
    with database.transaction() as session:
        return session.scalars(select(Step).where(Step.job_id == job_id)).one()


def outbox(database: Database) -> list[tuple[object, ...]]:
    """What the outbox has, and whether it is queued."""
    with database.transaction() as session:
        rows = session.execute(select(Outbox.id, Outbox.due_at, Outbox.job_id, Outbox.kind))
        return [tuple(row) for row in rows]


def test_a_job_of_a_newer_kind_waits_untouched_while_others_are_served(
    database: Database, steps: Steps, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.db.due_steps.ENQUEUE_BATCH", 1)
    waiting = [submit_newer(database), submit_newer(database)]
    before = outbox(database)
    other = submit_job(database)

    assert claim_next(steps).job_id == other
    for _ in range(3):
        assert published(steps) == []
    assert outbox(database) == before
    assert len(warnings) == 2
    assert all(str(job_id) in text for job_id, text in zip(waiting, warnings, strict=True))
    assert all("newer" in text for text in warnings)

    upgrade(monkeypatch)
    assert [claim_next(steps).job_id for _ in waiting] == waiting


def test_steps_that_a_newer_version_has_queued_or_begun_are_left_to_it(
    database: Database, steps: Steps, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, handed_out, queued = (submit_newer(database) for _ in range(3))
    with pytest.MonkeyPatch.context() as newer:
        upgrade(newer)
        assert claim_next(steps).job_id == begun
        (message,) = published(steps, 1)
        steps.publish(0, lambda _: None)
    with database.transaction() as session:
        session.execute(update(Step).where(Step.job_id == begun).values(lease_until=func.now()))
    other = submit_job(database)

    assert claim_next(steps).job_id == other
    assert published(steps) == []
    assert steps.rescue_expired() == []
    assert steps.claim(message, "an older worker") is None
    assert step_of(database, begun).status == StepStatus.RUNNING
    assert {step_of(database, job_id).attempt for job_id in (handed_out, queued)} == {0}
    assert len(warnings) == 3

    upgrade(monkeypatch)
    assert steps.rescue_expired() == [begun]
    assert steps.claim(message, "a newer worker") is not None
    assert {claim_next(steps).job_id for _ in range(2)} == {begun, queued}


def test_a_job_of_a_newer_kind_is_shown_without_what_only_that_version_knows(
    database: Database, jobs: Jobs
) -> None:
    job_id, other = submit_newer(database), submit_job(database)

    snapshot = jobs.snapshot(job_id)
    assert (snapshot.status, snapshot.stage) == (JobStatus.PENDING, "queued")
    assert (snapshot.queue_position, snapshot.progress) == (None, 0)
    assert jobs.snapshot(other).queue_position is not None
    listed = JobLists(database, TENANT).page(JobFilter(), limit=10, after=None).items
    assert [each.job_id for each in listed] == [other, job_id]
    assert jobs.text(job_id).chunks == []

    with database.transaction() as session:
        session.get_one(Job, job_id).status = JobStatus.PROCESSING
    assert jobs.snapshot(job_id).stage == "processing"


def test_a_job_of_a_newer_kind_can_be_cancelled_and_deleted(database: Database, jobs: Jobs) -> None:
    cancelled, deleted = submit_newer(database), submit_newer(database)

    jobs.cancel(cancelled)
    assert jobs.snapshot(cancelled).status is JobStatus.CANCELLED
    assert Deletions(database, TENANT).delete(deleted) is not None
    assert outbox(database) == []


def test_an_older_version_refuses_to_retry_a_job_of_a_newer_kind(
    database: Database, jobs: Jobs
) -> None:
    job_id = submit_newer(database)
    with database.transaction() as session:
        session.get_one(Job, job_id).status = JobStatus.FAILED

    with pytest.raises(JobKindUnknown, match="newer"):
        jobs.retry(job_id)
    assert jobs.snapshot(job_id).status is JobStatus.FAILED
