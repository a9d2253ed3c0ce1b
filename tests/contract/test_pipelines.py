"""The engine of jobs keeps its promises to any pipeline: here to one that is made up.

It fans out over 50 parts, may fail in one of them with no more than a warning, waits for a person,
and fans out once more; through the real dispatcher, RQ and workers, with processes killed.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

import psutil
import pytest
from sqlalchemy import func, select

from common.db.deletions import Deletions
from common.db.snapshots import Snapshot
from common.db.tables import Job, Outbox, Part, Step, StepFailure
from common.domain.job import JobStatus, StepStatus
from common.errors import Conflict
from scripts.stack.embedded import EmbeddedValkey
from tests.support import made_up
from tests.support.factories import TENANT
from tests.support.made_up import PARTS, RATING_FAILED, Behaviour
from tests.support.service import Service, wait_until

REGISTER = "from tests.support import made_up; made_up.register()"


@pytest.fixture(autouse=True)
def registered() -> None:
    made_up.register()


@pytest.fixture(scope="module")
def service(
    module_database_url: str, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A dispatcher and two workers that know the pipeline."""
    folder = tmp_path_factory.mktemp("service")
    settings = {"WORKER_LEASE": "3", "MAX_RETRIES": "1"}
    with Service(module_database_url, valkey.url, folder, **settings) as service:
        service.start_dispatcher(REGISTER)
        for _ in range(2):
            service.start_worker(REGISTER)
        yield service


def submit(service: Service, behaviour: Behaviour | None = None) -> UUID:
    job_id = made_up.submit(service.database, behaviour)
    service.notify()
    return job_id


def reaches(service: Service, job_id: UUID, status: JobStatus) -> Snapshot:
    """The job once it has this status."""
    wait_until(lambda: service.jobs.snapshot(job_id).status == status, f"{status} of {job_id}")
    return service.jobs.snapshot(job_id)


def resume(service: Service, job_id: UUID) -> None:
    service.jobs.resume(job_id)
    service.notify()


def steps(service: Service, job_id: UUID, *where: object) -> list[Step]:
    with service.database.transaction() as session:
        return list(session.scalars(select(Step).where(Step.job_id == job_id, *where)))  # type: ignore[arg-type]


def count(service: Service, table: type, *where: object) -> int:
    with service.database.transaction() as session:
        return session.scalar(select(func.count()).select_from(table).where(*where)) or 0  # type: ignore[arg-type]


def check_whole(service: Service, job_id: UUID, unrated: int = 0) -> None:
    """All of it is done once, but for ``unrated`` parts."""
    done = steps(service, job_id, Step.status == StepStatus.DONE)
    assert Counter(step.kind for step in done) == {
        "lay_out": 1,
        "look": PARTS,
        **({"rate": PARTS - unrated} if unrated < PARTS else {}),
        "write": PARTS,
        "bind": 1,
    }
    assert {step.stored_count for step in done} == {1}
    assert count(service, Step, Step.job_id == job_id) == 3 * PARTS + 2
    assert count(service, Outbox) == 0
    with service.database.transaction() as session:
        job = session.get_one(Job, job_id)
        assert (job.units_total, job.units_done, job.parts_total) == (PARTS, 2 * PARTS, PARTS)


def started(service: Service, job_id: UUID, kind: str) -> Callable[[], bool]:
    """Whether some of these steps are done, and more are to come."""
    return lambda: (
        0 < len(steps(service, job_id, Step.kind == kind, Step.status == StepStatus.DONE)) < PARTS
    )


def test_it_fans_out_pauses_and_fans_out_again_while_processes_die(service: Service) -> None:
    job_id = submit(
        service,
        Behaviour(
            killed={"lay_out": [20], "look": [3, 44], "rate": [7], "write": [0, 49]},
            failing={"rate": [5, 30, 31]},
            slow_s=0.02,
        ),
    )
    seen: list[Snapshot] = []

    def note(kind: str) -> bool:
        seen.append(service.jobs.snapshot(job_id))
        return started(service, job_id, kind)()

    wait_until(lambda: note("look"), "the first parts")
    kill_a_worker(service)
    service.start_worker(REGISTER)
    paused = reaches(service, job_id, JobStatus.REVIEW)
    assert (paused.chunks_completed, paused.chunks_total, paused.planned) == (PARTS, PARTS, True)
    assert paused.warnings == (RATING_FAILED,)
    assert count(service, Step, Step.status.in_([StepStatus.PENDING, StepStatus.RUNNING])) == 0
    resume(service, job_id)
    wait_until(lambda: note("write"), "parts of the second kind")
    assert service.jobs.snapshot(job_id).stage == "writing"
    kill_a_worker(service)
    service.start_worker(REGISTER)

    ended = reaches(service, job_id, JobStatus.COMPLETED)

    assert ended.progress == 100
    check_whole(service, job_id, unrated=3)
    progress = [snapshot.progress for snapshot in [*seen, paused, ended]]
    assert progress == sorted(progress)
    with pytest.raises(Conflict, match="COMPLETED"):
        service.jobs.resume(job_id)
    # The results of one kind are what the next one is given.
    rated = steps(service, job_id, Step.kind == "rate", Step.status == StepStatus.DONE)
    assert {step.result["previous"]["kind"] for step in rated if step.result} == {"look"}


def kill_a_worker(service: Service) -> None:
    """One of them, with its engine process, as an operator's host may die."""
    worker = random.choice(service.workers())  # noqa: S311 - whichever
    for process in [*worker.children(recursive=True), worker]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_cancelled_job_stops_while_it_runs_or_waits_for_a_person(service: Service) -> None:
    job_id = submit(service, Behaviour(slow_s=0.05))
    wait_until(started(service, job_id, "look"), "the first parts")

    service.jobs.cancel(job_id)

    open_steps = Step.status.in_([StepStatus.PENDING, StepStatus.RUNNING])
    assert steps(service, job_id, open_steps) == []
    other = submit(service)
    reaches(service, other, JobStatus.REVIEW)
    assert service.jobs.snapshot(job_id).status == JobStatus.CANCELLED
    assert count(service, Outbox) == 0
    service.jobs.cancel(other)
    with pytest.raises(Conflict, match="CANCELLED"):
        service.jobs.resume(other)


@pytest.mark.parametrize("kind", ["look", "write"])
def test_a_retry_does_what_is_missing_and_nothing_again(service: Service, kind: str) -> None:
    job_id = submit(service, Behaviour(failing={kind: [17]}, slow_s=0.01))
    if kind == "write":
        reaches(service, job_id, JobStatus.REVIEW)
        resume(service, job_id)
    reaches(service, job_id, JobStatus.FAILED)
    before = {step.id for step in steps(service, job_id, Step.status == StepStatus.DONE)}
    failures = (StepFailure.job_id == job_id, StepFailure.kind == kind)
    assert count(service, StepFailure, *failures) == 1
    with service.database.transaction() as session:
        session.get_one(Job, job_id).client_metadata = {}

    service.retry(job_id)
    if kind == "look":
        reaches(service, job_id, JobStatus.REVIEW)
        resume(service, job_id)
    reaches(service, job_id, JobStatus.COMPLETED)

    check_whole(service, job_id)
    after = {step.id: step.kind for step in steps(service, job_id)}
    # Files that parts read are written anew by the step that wrote them.
    assert {kind for step_id, kind in after.items() if step_id in before} >= {"look"}
    assert len(before - set(after)) == (1 if kind == "look" else 0)


def test_a_job_that_waits_for_a_person_is_retried_and_waits_again(service: Service) -> None:
    job_id = submit(service, Behaviour(failing={"rate": [5]}))
    assert reaches(service, job_id, JobStatus.REVIEW).warnings == (RATING_FAILED,)
    with service.database.transaction() as session:
        session.get_one(Job, job_id).client_metadata = {}

    service.retry(job_id)

    assert reaches(service, job_id, JobStatus.REVIEW).warnings == ()
    resume(service, job_id)
    reaches(service, job_id, JobStatus.COMPLETED)
    check_whole(service, job_id)


def test_a_deleted_job_leaves_nothing_and_others_go_on(service: Service) -> None:
    logged = len(service.log())
    job_id = submit(service, Behaviour(slow_s=0.05))
    other = submit(service)
    wait_until(started(service, job_id, "look"), "the first parts")

    Deletions(service.database, TENANT).delete(job_id)

    reaches(service, other, JobStatus.REVIEW)
    resume(service, other)
    reaches(service, other, JobStatus.COMPLETED)
    check_whole(service, other)
    for table in (Step, Part, StepFailure):
        assert count(service, table, table.job_id == job_id) == 0
    assert "Traceback" not in service.log()[logged:]
