from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.migrate import upgrade
from common.db.steps import Steps
from common.redis.events import Events
from common.redis.queue import connect
from common.settings import Settings
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.support.api import Api
from tests.support.factories import TENANT, make_steps
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.service import Service, Start
from worker.compose import build_context
from worker.context import Context


@pytest.fixture
def jobs(database: Database) -> Jobs:
    """The tenant's jobs in this test's own database."""
    return Jobs(database, TENANT)


@pytest.fixture(scope="module")
def gateway_database(gateway: GatewayProcess) -> Iterator[Database]:
    """What the gateway writes to."""
    with Database(gateway.database_url) as database:
        yield database


@pytest.fixture
def steps(gateway_database: Database) -> Steps:
    """The worker's side of the module's gateway, with nothing of earlier tests to do."""
    with gateway_database.transaction() as session:
        session.connection().exec_driver_sql("TRUNCATE recordings CASCADE")
    return make_steps(gateway_database)


@pytest.fixture
def events(gateway: GatewayProcess) -> Iterator[Events]:
    """Notifies the module's gateway of changes."""
    with redis.Redis.from_url(gateway.redis_url) as connection:
        yield Events(connection)


@pytest.fixture
def api(gateway: GatewayProcess, gateway_database: Database, events: Events) -> Api:
    """The module's gateway, with no job and no file of earlier tests."""
    with gateway_database.transaction() as session:
        session.connection().exec_driver_sql(
            "TRUNCATE jobs, recordings, deletions, passages CASCADE"
        )
    for path in (*gateway.incoming, *gateway.recordings):
        path.unlink()
    return Api(gateway, gateway_database, events)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def start(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start workers and dispatchers with settings of their own; they end with the test."""
    with ExitStack() as services:
        yield lambda **env: services.enter_context(
            Service(database_url, redis_url, tmp_path, **env)
        )


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey of this test's own, which may stop."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of this test's own, which may stop."""
    with EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"}) as server:
        upgrade(server.url)
        yield server


@pytest.fixture
def alone(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[StartGateway]:
    """Start gateways of this test's own, with settings and no worker."""
    usual: dict[str, Any] = {
        "folder": tmp_path,
        "database_url": database_url,
        "redis_url": redis_url,
    }
    with ExitStack() as gateways:
        yield lambda **settings: gateways.enter_context(GatewayProcess(**usual | settings))


@pytest.fixture
def worker_settings() -> dict[str, str]:
    """The settings of `context` beside the usual ones; a module may have its own."""
    return {}


@pytest.fixture
def context(
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    worker_settings: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Context:
    """What a worker has."""
    usual = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "DATA_DIR": str(tmp_path)}
    for name, value in (usual | worker_settings).items():
        monkeypatch.setenv(name, value)
    return build_context(Settings(), connect(redis_url))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """What asynchronous tests run on."""
    return "asyncio"
