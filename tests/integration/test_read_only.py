"""What a Postgres that takes no writes costs, as after a failover: time, and no work."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from redis import Redis
from sqlalchemy.exc import DBAPIError

from common.db.database import Database
from common.domain.job import JobStatus
from common.errors import DatabaseFull, DatabaseReadOnly, Unavailable
from common.redis.presence import QUEUE_NAME, RECORD_S
from scripts.stack.embedded import EmbeddedPostgres
from tests.support.frozen import failures, frozen_worker
from tests.support.gateway import GatewayProcess
from tests.support.service import Service, wait_until, write_wav
from tests.support.speech import silence
from worker.health import check_postgres


def takes_writes(postgres: EmbeddedPostgres) -> bool:
    with psycopg.connect(postgres.url) as connection:
        return connection.execute("SHOW transaction_read_only").fetchone() == ("off",)


TakeWrites = Callable[[bool], None]


@pytest.fixture
def take_writes(postgres: EmbeddedPostgres, database_url: str) -> Iterator[TakeWrites]:  # noqa: ARG001 - dropped after
    """Tells the session's server, whose connections stay, whether to take writes."""

    def tell(allowed: bool) -> None:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {not allowed}")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: allowed is takes_writes(postgres), "the server to follow")

    yield tell
    tell(True)


@pytest.fixture
def gateway(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path, database_url, redis_url) as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Service]:
    with Service(database_url, redis_url, tmp_path, WORKER_LEASE="600") as service:
        yield service


def test_a_gateway_whose_postgres_takes_no_writes_says_so_reads_and_goes_on(
    gateway: GatewayProcess, take_writes: TakeWrites, tmp_path: Path
) -> None:
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
    """Have a worker be heard of once, just now."""
    redis.sadd(f"rq:workers:{QUEUE_NAME}", f"rq:worker:{worker}")
    redis.hset(f"rq:worker:{worker}", "name", worker)
    redis.expire(f"rq:worker:{worker}", RECORD_S)


@pytest.mark.usefixtures("weights_dir")
def test_workers_and_the_dispatcher_wait_for_a_postgres_that_takes_no_writes(
    service: Service, take_writes: TakeWrites, redis_url: str
) -> None:
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
    ],
)
def test_what_may_pass_is_unavailable(
    database_url: str, sqlstate: str, kind: type[Unavailable]
) -> None:
    with Database(database_url) as database, pytest.raises(kind) as raised:
        _raise(database, sqlstate)
    assert type(raised.value) is kind


@pytest.mark.parametrize("sqlstate", ["54000", "42501", "XX001", "23514"])
def test_what_will_not_pass_is_no_outage(database_url: str, sqlstate: str) -> None:
    with Database(database_url) as database, pytest.raises(DBAPIError):
        _raise(database, sqlstate)


def _raise(database: Database, sqlstate: str) -> None:
    """Have the server fail for this reason."""
    with database.transaction() as session:
        session.connection().exec_driver_sql(
            f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{sqlstate}'; END $$"
        )


def test_the_health_check_of_a_container_tells_of_a_postgres_that_takes_no_writes(
    monkeypatch: pytest.MonkeyPatch, take_writes: TakeWrites, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    check_postgres()
    take_writes(False)
    with pytest.raises(DatabaseReadOnly):
        check_postgres()


def test_trying_to_write_leaves_nothing(database_url: str) -> None:
    with Database(database_url) as database:
        database.ping()
        with database.transaction() as session:
            rows = session.connection().exec_driver_sql("SELECT count(*) FROM tallies").scalar()
    assert rows == 0


def test_connections_to_a_server_that_takes_no_writes_are_replaced(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    """A name that leads to the new primary helps nobody who keeps what leads to the old one."""
    name = database_url.rpartition("/")[2]
    setting = f"ALTER DATABASE {name} {{}} default_transaction_read_only"
    with (
        Database(database_url) as database,
        psycopg.connect(postgres.url, autocommit=True) as connection,
    ):
        connection.execute(f"{setting.format('SET')} = on")  # for connections to come
        with pytest.raises(DatabaseReadOnly):
            database.ping()
        connection.execute(setting.format("RESET"))
        database.ping()
