from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from common.db.database import Database
from common.db.steps import Steps
from common.redis.events import Events
from tests.support.factories import make_steps
from tests.support.gateway import GatewayProcess
from tests.support.service import Service, Start


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
    """Tells the module's gateway of changes."""
    with redis.Redis.from_url(gateway.redis_url) as connection:
        yield Events(connection)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def start(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start workers and dispatchers with settings of their own; they end with the test."""
    services: list[Service] = []

    def start_service(**env: str) -> Service:
        services.append(Service(database_url, redis_url, tmp_path, **env))
        return services[-1]

    yield start_service
    for service in services:
        service.__exit__()


@pytest.fixture
def alone(
    tmp_path: Path, database_url: str, redis_url: str
) -> Iterator[Callable[..., GatewayProcess]]:
    """A gateway of this test's own, with settings and no worker."""
    started: list[GatewayProcess] = []

    def start(**settings: str) -> GatewayProcess:
        started.append(GatewayProcess(tmp_path, database_url, redis_url, **settings))
        return started[-1].__enter__()

    yield start
    for gateway in started:
        gateway.__exit__()
