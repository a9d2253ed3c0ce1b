"""What an outage of Postgres or Redis may cost: time, and no work."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from common.db.migrate import upgrade
from common.db.tables import Step, StepFailure
from common.domain.job import JobStatus
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from tests.support.frozen import failures, frozen_worker, is_logged
from tests.support.service import Service, engine_process_of, wait_until
from tests.support.speech import silence, speak

LEASE_S = 4


def kill(server: EmbeddedServer) -> None:
    """End it as a crash would, so that only the test starts it again."""
    assert server.process is not None
    server.process.kill()
    server.process.wait()


@pytest.mark.usefixtures("weights_dir")
def test_work_in_hand_outlives_an_outage_that_is_longer_than_its_lease(
    tmp_path: Path, redis_url: str
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres") as postgres:
        upgrade(postgres.url)
        with Service(postgres.url, redis_url, tmp_path, WORKER_LEASE=str(LEASE_S)) as service:
            worker = service.start_worker()
            service.start_dispatcher()
            job_id = service.submit(speak("The quick brown fox jumps over the lazy dog."))
            wait_until(lambda: "may take" in service.log(), "a step under way")
            engine = engine_process_of(worker)
            engine.send_signal(signal.SIGSTOP)
            kill(postgres)
            engine.send_signal(signal.SIGCONT)
            time.sleep(LEASE_S + 1)  # the outage itself
            postgres.start()

            assert service.ended(job_id).status == JobStatus.COMPLETED
            with service.database.transaction() as session:
                assert session.scalars(select(StepFailure.code)).all() == []
                attempts = session.scalars(select(Step.attempt)).all()
            assert attempts == [1, 1, 1]


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """One that may be killed: no other test uses it."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def service(tmp_path: Path, database_url: str, own_valkey: EmbeddedValkey) -> Iterator[Service]:
    with Service(database_url, own_valkey.url, tmp_path, WORKER_LEASE="600") as service:
        yield service


@pytest.mark.usefixtures("weights_dir")
def test_a_worker_whose_step_ends_while_redis_is_unavailable_waits_for_it(
    service: Service, own_valkey: EmbeddedValkey
) -> None:
    worker, engine, job_id = frozen_worker(service)
    kill(own_valkey)
    engine.send_signal(signal.SIGCONT)
    wait_until(lambda: "Redis is unavailable" in service.log(), "the end of its step")
    time.sleep(3)  # the outage itself
    own_valkey.start()

    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert service.ended(service.submit(silence(1))).status == JobStatus.COMPLETED
    assert worker.status() != psutil.STATUS_ZOMBIE
    assert failures(service, job_id) == []
    assert "Traceback" not in service.log()


@pytest.mark.usefixtures("weights_dir")
def test_a_worker_that_is_stopped_while_redis_is_unavailable_ends_without_an_error(
    service: Service, own_valkey: EmbeddedValkey
) -> None:
    worker, engine, _ = frozen_worker(service)
    kill(own_valkey)
    worker.terminate()
    assert is_logged(service, "stopping; the current step")
    engine.send_signal(signal.SIGCONT)

    wait_until(lambda: "stopped" in service.log(), "its end")
    assert "Traceback" not in service.log()
