"""The promises of jobs as they are made: one for each key, and some before their recording."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from common.db.database import Database
from common.db.jobs import Created, Idempotency, Jobs
from common.db.retention import Retention
from common.db.tables import Job, Recording, Step, Tenant
from common.domain.job import JobStatus
from common.errors import Conflict, IdempotencyConflict, NotFound
from tests.support.factories import (
    TENANT,
    claim_next,
    make_steps,
    new_job,
    new_recording,
    published,
    submit_job,
)

KEY = Idempotency("once", "a" * 64)
PATIENCE_S = 5.0
"""For what might wait for a lock."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url, pool_size=20) as database:
        yield database


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database, TENANT)


def count(database: Database, table: type) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def delete_after_s(database: Database, job_id: UUID) -> int | None:
    with database.transaction() as session:
        return session.get_one(Job, job_id).delete_after_s


def test_twenty_at_once_with_one_key_make_one_job(database: Database, jobs: Jobs) -> None:
    def submit(_: int) -> Created:
        return jobs.submit(new_recording(), new_job(idempotency=KEY))

    with ThreadPoolExecutor(20) as pool:
        created = list(pool.map(submit, range(20)))
    assert len({it.job_id for it in created}) == 1
    assert sum(not it.replayed for it in created) == 1
    assert [count(database, table) for table in (Job, Recording, Step)] == [1, 1, 1]


def test_a_key_that_comes_with_another_request_is_refused(jobs: Jobs) -> None:
    jobs.create(new_job(idempotency=KEY))
    with pytest.raises(IdempotencyConflict, match="once"):
        jobs.create(new_job(idempotency=Idempotency("once", "b" * 64)))


def test_a_replay_tells_where_the_job_stands_now(database: Database, jobs: Jobs) -> None:
    job_id = submit_job(database, idempotency=KEY)
    claim_next(make_steps(database))
    again = jobs.submit(new_recording(), new_job(idempotency=KEY))
    assert again == Created(job_id, JobStatus.PROCESSING, replayed=True)


def test_tenants_do_not_share_keys(database: Database, jobs: Jobs) -> None:
    first = jobs.create(new_job(idempotency=KEY))
    other = Jobs(database, "another").create(new_job(idempotency=Idempotency("once", "b" * 64)))
    assert not other.replayed
    assert other.job_id != first.job_id


def test_a_job_waits_for_its_recording_and_starts_with_it(database: Database, jobs: Jobs) -> None:
    created = jobs.create(new_job())
    assert created.status == JobStatus.PENDING_UPLOAD
    steps = make_steps(database)
    assert published(steps) == []
    jobs.attach(created.job_id, new_recording(30_000))
    snapshot = jobs.snapshot(created.job_id)
    assert (snapshot.status, snapshot.filename, snapshot.duration_ms) == (
        JobStatus.PENDING,
        "talk.mp3",
        30_000,
    )
    assert claim_next(steps).kind == "plan"


def test_a_job_takes_one_recording_of_many_that_come_at_once(
    database: Database, jobs: Jobs
) -> None:
    job_id = jobs.create(new_job()).job_id

    def attach(_: int) -> bool:
        try:
            jobs.attach(job_id, new_recording())
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(attach, range(10))) == 1
    assert [count(database, table) for table in (Recording, Step)] == [1, 1]


def test_a_recording_is_not_taken_by_a_job_that_is_cancelled_or_another_tenants(
    database: Database, jobs: Jobs
) -> None:
    job_id = jobs.create(new_job()).job_id
    for unknown, tenant in ((job_id, "another"), (uuid4(), TENANT)):
        with pytest.raises(NotFound):
            Jobs(database, tenant).attach(unknown, new_recording())
    jobs.cancel(job_id)
    with pytest.raises(Conflict, match="CANCELLED"):
        jobs.attach(job_id, new_recording())
    assert count(database, Recording) == 0


def test_a_job_with_a_url_begins_by_fetching(database: Database, jobs: Jobs) -> None:
    created = jobs.create(new_job(source_url="https://example.org/talk.mp3"))
    assert created.status == JobStatus.PENDING
    assert claim_next(make_steps(database)).kind == "fetch"


def test_what_becomes_of_a_job_is_fixed_when_it_is_made(database: Database) -> None:
    jobs = Jobs(database, TENANT, delete_after_s=3600)
    as_set = jobs.create(new_job()).job_id
    with database.transaction() as session:
        session.add(Tenant(id=TENANT, delete_after_s=120))
    as_the_tenant = jobs.create(new_job()).job_id
    as_asked = jobs.create(new_job(delete_after_s=60)).job_id
    kept = Jobs(database, "another", delete_after_s=0).create(new_job()).job_id
    found = [delete_after_s(database, it) for it in (as_set, as_the_tenant, as_asked, kept)]
    assert found == [3600, 120, 60, None]


def test_a_job_whose_recording_comes_at_the_last_moment_is_not_cancelled(
    database: Database, jobs: Jobs
) -> None:
    job_id = jobs.create(new_job()).job_id
    retention = Retention(database, grace_s=0.0)
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            assert jobs._attach(session, job_id, new_recording())  # and not committed yet
            cancelling = pool.submit(retention.cancel_unsent, 0.0)
            wait([cancelling], PATIENCE_S)
        assert cancelling.result() == []
    assert jobs.snapshot(job_id).status is JobStatus.PENDING
