"""What is fixed when a job is made, and what may come at the last moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from uuid import UUID

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.retention import Retention
from common.db.tables import Job, Tenant
from common.domain.job import JobStatus
from tests.support.factories import TENANT, new_job, new_recording

LOCK_WAIT_S = 5.0
"""For what might wait for a lock."""


def test_the_time_of_deletion_is_fixed_when_a_job_is_made(database: Database) -> None:
    def delete_after_s(job_id: UUID) -> int | None:
        with database.transaction() as session:
            return session.get_one(Job, job_id).delete_after_s

    jobs = Jobs(database, TENANT, delete_after_s=3600)
    as_set = jobs.create(new_job()).job_id
    with database.transaction() as session:
        session.add(Tenant(id=TENANT, delete_after_s=120))
    as_the_tenant = jobs.create(new_job()).job_id
    as_asked = jobs.create(new_job(delete_after_s=60)).job_id
    kept = Jobs(database, "another", delete_after_s=0).create(new_job()).job_id
    found = [delete_after_s(it) for it in (as_set, as_the_tenant, as_asked, kept)]
    assert found == [3600, 120, 60, None]


def test_a_job_whose_recording_comes_at_the_last_moment_is_not_cancelled(
    database: Database,
) -> None:
    jobs = Jobs(database, TENANT)
    job_id = jobs.create(new_job()).job_id
    retention = Retention(database, grace_s=0.0)
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            assert jobs._attach(session, job_id, new_recording())  # and not committed yet
            cancelling = pool.submit(retention.cancel_unsent, 0.0)
            wait([cancelling], LOCK_WAIT_S)
        assert cancelling.result() == []
    assert jobs.snapshot(job_id).status is JobStatus.PENDING
