from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import GatewayProcess
from tests.service import Service


@pytest.fixture
def gateway(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[GatewayProcess]:
    """A gateway with a dispatcher and a worker behind it."""
    with (
        GatewayProcess(tmp_path, database_url, redis_url) as gateway,
        Service(database_url, redis_url, tmp_path) as service,
    ):
        service.start_dispatcher()
        service.start_worker()
        yield gateway
