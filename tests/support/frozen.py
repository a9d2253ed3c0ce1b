"""Workers that are stopped in the middle of a step."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from uuid import UUID

import psutil
from sqlalchemy import select, text

from common.db.tables import Step, StepFailure
from common.domain.job import StepStatus
from common.domain.pipeline import StepKind
from tests.support.service import ENDED, Service, engine_process_of, wait_until
from tests.support.speech import speak

SENTENCE = "The quick brown fox jumps over the lazy dog."
ANY_KIND = tuple(StepKind)


def running_step(
    service: Service, job_id: UUID, kinds: Sequence[StepKind] = ANY_KIND
) -> UUID | None:
    with service.database.transaction() as session:
        return session.scalar(
            select(Step.id).where(
                Step.job_id == job_id, Step.status == StepStatus.RUNNING, Step.kind.in_(kinds)
            )
        )


def failures(service: Service, job_id: UUID) -> list[str]:
    with service.database.transaction() as session:
        return list(session.scalars(select(StepFailure.code).where(StepFailure.job_id == job_id)))


def frozen_worker(
    service: Service, kinds: Sequence[StepKind] = ANY_KIND
) -> tuple[psutil.Process, psutil.Process, UUID]:
    """A worker whose engine is stopped with a step in its hands that the worker knows of."""
    worker = service.start_worker()
    service.start_dispatcher()
    while True:
        job_id = service.submit(speak(SENTENCE))
        wait_until(partial(under_way, service, job_id, kinds), "work")
        engine = engine_process_of(worker)
        engine.send_signal(signal.SIGSTOP)
        step_id = running_step(service, job_id, kinds)
        if (
            step_id is not None
            and is_logged(service, f"step {step_id} attempt")
            and not holds_locks(service)
        ):
            return worker, engine, job_id
        # It was between two steps, or in a transaction that others would wait for: once more.
        engine.send_signal(signal.SIGCONT)
        service.ended(job_id)


def under_way(service: Service, job_id: UUID, kinds: Sequence[StepKind]) -> bool:
    return running_step(service, job_id, kinds) is not None or has_ended(service, job_id)


def has_ended(service: Service, job_id: UUID) -> bool:
    return service.jobs.snapshot(job_id).status in ENDED


def holds_locks(service: Service) -> bool:
    """Whether a connection is idle in a transaction."""
    stopped = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
        " AND pid <> pg_backend_pid()"
    )
    with service.database.transaction() as session:
        return bool(session.scalar(stopped))


def is_logged(service: Service, line: str) -> bool:
    """Whether the log has it, soon."""
    try:
        return wait_until(lambda: line in service.log(), line, patience_s=2)
    except AssertionError:
        return False
