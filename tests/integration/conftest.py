from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from common.db.database import Database
from scripts.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.gateway import GatewayProcess


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: EmbeddedPostgres,
    migrated_template: str,
    valkey: EmbeddedValkey,
) -> Iterator[GatewayProcess]:
    """One gateway for the tests of a module, over a database and a folder of its own."""
    name = f"gateway_{secrets.token_hex(6)}"
    copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(migrated_template)
    )
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(copy)
    url = f"{postgres.url.rpartition('/')[0]}/{name}"
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), url, valkey.url) as running:
        yield running


@pytest.fixture(scope="module")
def gateway_database(gateway: GatewayProcess) -> Iterator[Database]:
    """What the gateway writes to."""
    with Database(gateway.database_url) as database:
        yield database
