"""What workers promise about jobs that are cancelled or deleted while they work on them."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import numpy as np
import psutil
import pytest
from redis import Redis
from sqlalchemy import select

from common.db.deletions import Deletions
from common.db.tables import Step
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import StepKind
from common.redis.events import Events
from tests.support.factories import TENANT
from tests.support.frozen import SENTENCE
from tests.support.service import Service, Start, engine_process_of, have_ended, wait_until
from tests.support.speech import Samples, speak

pytestmark = pytest.mark.usefixtures("weights_dir")


def lecture() -> Samples:
    """Five minutes: far more than two workers transcribe during a test."""
    said = speak(" ".join(f"{SENTENCE} This is part number {number}." for number in range(8)))
    return np.tile(said, 300 * 16_000 // len(said))


def transcribing(service: Service, job_id: UUID, workers: int) -> bool:
    """Whether so many workers transcribe parts of the job."""
    with service.database.transaction() as session:
        at_work = session.scalars(
            select(Step.worker).where(
                Step.job_id == job_id,
                Step.kind == StepKind.TRANSCRIBE,
                Step.status == StepStatus.RUNNING,
            )
        )
        return len(set(at_work)) == workers


def at_work(
    start: Start, workers: int = 1, **settings: str
) -> tuple[Service, list[psutil.Process]]:
    """A service with warm workers."""
    service = start(REUSE_RESULTS="false", **settings).serve(workers)
    return service, [engine_process_of(worker) for worker in service.workers()]


def chunks_left(service: Service) -> list[str]:
    return [path.name for path in (service.folder / "uploads" / "chunks").iterdir()]


@pytest.mark.parametrize(("engine", "model"), [("faster-whisper", "base"), ("whisper.cpp", "tiny")])
def test_cancelling_stops_all_workers_at_once_and_deletes_all_chunk_files(
    start: Start, redis_url: str, engine: str, model: str
) -> None:
    service, engines = at_work(start, workers=2)
    job_id = service.submit(lecture(), engine=engine, model=model)
    wait_until(partial(transcribing, service, job_id, 2), "two workers at it")

    for worker, rq_job in service.jobs.cancel(job_id):
        Events(Redis.from_url(redis_url)).stop(worker, rq_job)

    wait_until(partial(have_ended, engines), "the end of both engines")
    wait_until(lambda: chunks_left(service) == [], "no chunk files")
    assert service.jobs.snapshot(job_id).status == JobStatus.CANCELLED
    other = service.submit(speak(SENTENCE), engine=engine, model=model)
    assert service.ended(other).status == JobStatus.COMPLETED


def test_a_worker_that_misses_the_stop_command_notices_the_cancellation(start: Start) -> None:
    service, engines = at_work(start, WORKER_LEASE="3")
    job_id = service.submit(lecture())
    wait_until(partial(transcribing, service, job_id, 1), "work")

    service.jobs.cancel(job_id)  # no stop command is sent

    wait_until(partial(have_ended, engines), "the end of the engine")
    assert service.ended(service.submit(speak(SENTENCE))).status == JobStatus.COMPLETED


@pytest.mark.parametrize("kind", [StepKind.PLAN, StepKind.TRANSCRIBE])
def test_a_job_that_is_deleted_under_a_worker_ends_quietly_and_without_a_trace(
    start: Start, kind: StepKind
) -> None:
    service, _ = at_work(start, WORKER_LEASE="3")
    job_id = service.submit(lecture())
    wait_until(lambda: kind in running(service, job_id), "work")
    deletions = Deletions(service.database, TENANT)

    deletions.delete(job_id)  # no stop command is sent, and nothing is erased yet

    def proved() -> bool:
        (receipt,) = deletions.page(job_id=job_id, limit=1, after=None).items
        return receipt.erased_at is not None

    wait_until(proved, "the proof")
    left = [path for path in service.folder.rglob("*") if str(job_id) in path.name]
    assert left == []
    assert list((service.folder / "uploads" / "recordings").iterdir()) == []
    assert service.ended(service.submit(speak(SENTENCE))).status == JobStatus.COMPLETED
    assert "Traceback" not in service.log()
    assert "ERROR" not in service.log()


def running(service: Service, job_id: UUID) -> list[str]:
    with service.database.transaction() as session:
        running = select(Step.kind).where(Step.job_id == job_id, Step.status == StepStatus.RUNNING)
        return list(session.scalars(running))
