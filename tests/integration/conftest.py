from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import GatewayProcess


@pytest.fixture
def gateway(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[GatewayProcess]:
    """A gateway over a database and a folder of this test's own."""
    with GatewayProcess(tmp_path, database_url, redis_url) as running:
        yield running
