"""What an outage of Postgres or Redis, or a read-only Postgres, may cost: time, and no work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from redis import Redis
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from common.db.database import Database
from common.db.migrate import upgrade
from common.db.tables import Step, StepFailure
from common.domain.job import JobStatus
from common.errors import DatabaseFull, DatabaseReadOnly, Unavailable
from common.redis.presence import QUEUE_NAME, RECORD_S
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from tests.support.frozen import SENTENCE, failures, frozen_worker, is_logged
from tests.support.gateway import GatewayProcess
from tests.support.service import Service, Start, engine_process_of, wait_until, write_wav
from tests.support.speech import silence, speak
from worker.health import check_postgres

LEASE_S = 3


def kill(server: EmbeddedServer) -> None:
    """End it as a crash would, so that only the test starts it again."""
    assert server.process is not None
    server.process.kill()
    server.process.wait()


@pytest.mark.usefixtures("weights_dir")
def test_a_step_survives_an_outage_longer_than_its_lease(tmp_path: Path, redis_url: str) -> None:
    with EmbeddedPostgres(tmp_path / "postgres") as postgres:
        upgrade(postgres.url)
        with Service(postgres.url, redis_url, tmp_path, WORKER_LEASE=str(LEASE_S)) as service:
            (worker,) = service.serve().workers()
            job_id = service.submit(speak(SENTENCE))
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
    time.sleep(2)  # the outage itself
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


# --- a read-only Postgres, as after a failover ----------------------------------------------------


def takes_writes(postgres: EmbeddedPostgres) -> bool:
    with psycopg.connect(postgres.url) as connection:
        return connection.execute("SHOW transaction_read_only").fetchone() == ("off",)


TakeWrites = Callable[[bool], None]


@pytest.fixture
def take_writes(postgres: EmbeddedPostgres, database_url: str) -> Iterator[TakeWrites]:  # noqa: ARG001 - dropped after
    """Has the session's server, whose connections stay, take writes or not."""

    def switch(allowed: bool) -> None:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {not allowed}")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: allowed is takes_writes(postgres), "the server to follow")

    yield switch
    switch(True)


def test_a_gateway_with_a_read_only_postgres_says_so_reads_and_goes_on(
    alone: Callable[..., GatewayProcess], take_writes: TakeWrites, tmp_path: Path
) -> None:
    gateway = alone()
    recording = write_wav(tmp_path / "a.wav", silence(1)).read_bytes()

    def send() -> httpx.Response:
        return gateway.http.post("/api/v1/upload", files={"file": ("a.wav", recording)})

    job_id = send().json()["job_id"]
    assert gateway.http.get("/readyz").status_code == 200

    take_writes(False)
    ready = wait_until(
        lambda: None if (seen := gateway.http.get("/readyz")).is_success else seen, "not ready"
    )
    assert "is read-only" in ready.json()["parts"]["postgres"]
    assert ready.json()["parts"]["migrations"] == "ok"
    assert gateway.http.get("/health").json()["status"] == "degraded"
    for refused in (send(), gateway.http.post(f"/api/v1/jobs/{job_id}/cancel")):
        assert refused.status_code == 503, refused.text
        assert refused.json()["code"] == "unavailable"
        assert "is read-only" in refused.json()["detail"]
        assert "retry-after" in refused.headers
    assert gateway.http.get(f"/api/v1/status/{job_id}").json()["status"] == "PENDING"

    take_writes(True)
    wait_until(lambda: gateway.http.get("/readyz").is_success, "ready")
    assert send().status_code == 200
    assert "Traceback" not in gateway.log_file.read_text()


def register(redis: Redis, worker: str) -> None:
    """Register a worker, with a heartbeat just now."""
    redis.sadd(f"rq:workers:{QUEUE_NAME}", f"rq:worker:{worker}")
    redis.hset(f"rq:worker:{worker}", "name", worker)
    redis.expire(f"rq:worker:{worker}", RECORD_S)


@pytest.mark.usefixtures("weights_dir")
def test_workers_and_the_dispatcher_wait_for_a_read_only_postgres(
    start: Start, take_writes: TakeWrites, redis_url: str
) -> None:
    service = start(WORKER_LEASE="600")
    worker, engine, job_id = frozen_worker(service)
    waiting = service.submit(silence(1))

    take_writes(False)
    engine.send_signal(signal.SIGCONT)
    with Redis.from_url(redis_url) as redis:
        for number in range(5):  # so that there is something to publish
            register(redis, f"another-{number}-abcdef")
    for line in ("retrying in", "waiting for a service"):
        wait_until(lambda: service.log().count(line) > 1, line)  # noqa: B023
    assert "is read-only" in service.log()

    take_writes(True)
    for each in (job_id, waiting):
        assert service.ended(each).status == JobStatus.COMPLETED
        assert failures(service, each) == []
    assert worker.is_running()
    assert engine.is_running()
    assert "Traceback" not in service.log()


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("25006", DatabaseReadOnly),
        ("53100", DatabaseFull),
        *((state, Unavailable) for state in ("08006", "40001", "40P01", "53300", "57P01", "58030")),
        *((state, DBAPIError) for state in ("54000", "42501", "XX001", "23514")),
    ],
)
def test_only_errors_that_may_pass_are_unavailability(
    database: Database, sqlstate: str, kind: type[Exception]
) -> None:
    statement = f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{sqlstate}'; END $$"
    with pytest.raises(kind) as raised, database.transaction() as session:
        session.connection().exec_driver_sql(statement)
    assert type(raised.value) is kind or kind is DBAPIError


def test_the_health_check_of_a_container_fails_with_a_read_only_postgres(
    monkeypatch: pytest.MonkeyPatch, take_writes: TakeWrites, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    check_postgres()
    take_writes(False)
    with pytest.raises(DatabaseReadOnly):
        check_postgres()


def test_trying_to_write_leaves_nothing(database: Database) -> None:
    database.ping()
    with database.transaction() as session:
        rows = session.connection().exec_driver_sql("SELECT count(*) FROM tallies").scalar()
    assert rows == 0


def test_connections_to_a_read_only_server_are_replaced(
    postgres: EmbeddedPostgres, database: Database, database_url: str
) -> None:
    """A name that leads to the new primary helps nobody who keeps connections to the old one."""
    name = database_url.rpartition("/")[2]
    setting = f"ALTER DATABASE {name} {{}} default_transaction_read_only"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"{setting.format('SET')} = on")  # for connections to come
        with pytest.raises(DatabaseReadOnly):
            database.ping()
        connection.execute(setting.format("RESET"))
        database.ping()
