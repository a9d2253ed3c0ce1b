from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.stack.embedded import EmbeddedValkey
from tests.support.gateway import GatewayProcess
from tests.support.service import Service


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, module_database_url: str, valkey: EmbeddedValkey
) -> Iterator[GatewayProcess]:
    """A gateway with a dispatcher and a worker behind it, for the tests of a module."""
    folder = tmp_path_factory.mktemp("gateway")
    with (
        GatewayProcess(folder, module_database_url, valkey.url) as gateway,
        Service(module_database_url, valkey.url, folder) as service,
    ):
        service.start_dispatcher()
        service.start_worker()
        yield gateway
