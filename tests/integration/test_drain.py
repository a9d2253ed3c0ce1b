"""What workers and dispatchers promise after a signal to stop."""

from __future__ import annotations

import signal
from functools import partial
from uuid import UUID

import numpy as np
import psutil
import pytest
from redis import Redis
from sqlalchemy import func, select

from common.db.tables import JobMetrics, Step
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import StepKind
from common.redis.queue import StepQueue
from scripts.stack.embedded import EmbeddedPostgres
from tests.support.frozen import SENTENCE, failures, frozen_worker, is_logged
from tests.support.service import Service, Start, engine_process_of, shut, wait_until
from tests.support.speech import silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir")

NO_LEASE_HELPS = {"WORKER_LEASE": "600"}
STOPPED_WHILE_IT_REGISTERS = """
import os, signal
from worker.warm import WarmWorker

subscribe = WarmWorker.subscribe

def stopped(worker):
    os.kill(os.getpid(), signal.SIGTERM)
    subscribe(worker)

WarmWorker.subscribe = stopped
"""


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for_end(process: psutil.Process) -> None:
    wait_until(partial(has_ended, process), "the worker's end")


def completed_without_blame(service: Service, job_id: UUID) -> None:
    """Whether the job has all it needs, and what was handed back counts as nothing."""
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert "fox" in service.text(job_id)
    assert failures(service, job_id) == []
    with service.database.transaction() as session:
        steps, blame = session.execute(
            select(func.count(), func.sum(Step.failures + Step.losses)).where(Step.job_id == job_id)
        ).one()
        attempts = session.get_one(JobMetrics, job_id).attempts
    assert (blame, attempts) == (0, steps)


def test_a_step_that_is_done_in_time_is_kept_and_no_other_is_taken(start: Start) -> None:
    service = start(**NO_LEASE_HELPS)
    worker, engine, job_id = frozen_worker(service, [StepKind.PLAN])

    worker.terminate()
    assert is_logged(service, "stopping; the current step")
    engine.send_signal(signal.SIGCONT)

    wait_for_end(worker)
    assert has_ended(engine)
    with service.database.transaction() as session:
        states = dict(
            session.execute(select(Step.kind, Step.status).where(Step.job_id == job_id)).all()
        )
    assert states == {StepKind.PLAN: StepStatus.DONE, StepKind.TRANSCRIBE: StepStatus.PENDING}
    service.start_worker()
    completed_without_blame(service, job_id)


@pytest.mark.parametrize(
    ("stop_period", "signals"),
    [
        ("0.2", [signal.SIGTERM]),
        ("600", [signal.SIGTERM, signal.SIGTERM]),
        ("600", [signal.SIGINT, signal.SIGINT]),
    ],
    ids=["not done in time", "second SIGTERM", "second SIGINT"],
)
def test_a_step_is_handed_back_at_the_end_of_the_stop_period_or_at_a_second_signal(
    start: Start, stop_period: str, signals: list[signal.Signals]
) -> None:
    service = start(WORKER_STOP_PERIOD=stop_period, **NO_LEASE_HELPS)
    worker, _, job_id = frozen_worker(service)
    service.start_worker()

    for number in signals:
        worker.send_signal(number)
        assert is_logged(service, "stopping; the current step")

    completed_without_blame(service, job_id)
    wait_for_end(worker)


def test_a_worker_that_cannot_hand_back_ends_and_its_lease_does_the_rest(
    start: Start, postgres: EmbeddedPostgres, database_url: str
) -> None:
    service = start(WORKER_STOP_PERIOD="0.2", WORKER_LEASE="3")
    worker, _, job_id = frozen_worker(service)

    shut(postgres, database_url, allow=False)
    worker.terminate()
    wait_for_end(worker)
    shut(postgres, database_url, allow=True)

    assert "cannot be handed back" in service.log()
    service.start_worker()
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == ["worker_lost"]


def test_a_signal_to_all_processes_at_once_costs_no_step(start: Start) -> None:
    service = start(**NO_LEASE_HELPS)
    worker, engine, job_id = frozen_worker(service)

    for number in (signal.SIGTERM, signal.SIGINT):
        engine.send_signal(number)
    worker.terminate()
    assert is_logged(service, "stopping; the current step")
    engine.send_signal(signal.SIGCONT)

    wait_for_end(worker)
    assert "handed back" not in service.log()
    service.start_worker()
    completed_without_blame(service, job_id)


def test_a_worker_that_still_loads_its_weights_returns_its_message(
    start: Start, redis_url: str
) -> None:
    service = start(WORKER_STOP_PERIOD="600", **NO_LEASE_HELPS)
    worker = service.start_worker()
    engine_process_of(worker).send_signal(signal.SIGSTOP)
    service.start_dispatcher()
    job_id = service.submit(speak(SENTENCE))
    queue = StepQueue(Redis.from_url(redis_url))
    wait_until(queue.in_transit, "a message in the worker's hands")

    worker.terminate()

    wait_for_end(worker)
    wait_until(lambda: (queue.in_transit(), queue.waiting()) == (set(), 1), "a message that waits")
    service.start_worker()
    completed_without_blame(service, job_id)


def test_an_idle_worker_and_a_dispatcher_end_on_a_signal(start: Start, redis_url: str) -> None:
    service = start()
    dispatcher = service.start_dispatcher()
    worker = service.start_worker()
    assert service.ended(service.submit(silence(1))).status == JobStatus.COMPLETED
    engine = engine_process_of(worker)

    worker.terminate()
    dispatcher.terminate()

    wait_for_end(worker)
    assert has_ended(engine)
    assert Redis.from_url(redis_url).smembers("rq:workers:steno") == set()
    wait_for_end(dispatcher)
    assert "Traceback" not in service.log()


def test_a_worker_that_is_stopped_while_it_registers_does_not_stay_registered(
    start: Start, redis_url: str
) -> None:
    service = start()

    wait_for_end(service.start_worker(STOPPED_WHILE_IT_REGISTERS))

    assert "stopped" in service.log()
    assert Redis.from_url(redis_url).smembers("rq:workers:steno") == set()


def test_all_workers_can_be_replaced_in_the_middle_of_a_job(start: Start) -> None:
    service = start(WORKER_STOP_PERIOD="0.5", REUSE_RESULTS="false", **NO_LEASE_HELPS)
    service.start_dispatcher()
    workers = [service.start_worker(), service.start_worker()]
    loaded = "loaded the moderation model"
    wait_until(lambda: service.log().count(loaded) == len(workers), "their weights")
    parts = [speak(f"{SENTENCE} This is part number {number}.") for number in range(6)]

    job_id = service.submit(np.concatenate([audio for it in parts for audio in (it, silence(6))]))
    for old in workers:
        wait_until(partial(has_a_step, service, job_id, old), "work in its hands")
        service.start_worker()
        old.terminate()
        wait_for_end(old)

    completed_without_blame(service, job_id)
    assert service.text(job_id).count("fox") == len(parts)
    with service.database.transaction() as session:
        stored = session.scalars(
            select(Step.stored_count).where(Step.job_id == job_id, Step.kind == StepKind.TRANSCRIBE)
        ).all()
    assert set(stored) == {1}


def has_a_step(service: Service, job_id: UUID, worker: psutil.Process) -> bool:
    """Whether this worker has a step of the job in its hands."""
    with service.database.transaction() as session:
        at_work = session.scalars(
            select(Step.worker).where(Step.job_id == job_id, Step.status == StepStatus.RUNNING)
        )
        return any(f"-{worker.pid}-" in (name or "") for name in at_work)
