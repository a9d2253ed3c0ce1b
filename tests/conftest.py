"""The real parts that tests run on: a Postgres, a Valkey, and the weights in ``models/``.

Both servers start once a session, in a temporary directory. Every test that asks for
`database_url` gets a database of its own, copied from one that was migrated once.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psycopg
import pytest
import redis
from psycopg import sql

from common.db.database import Database
from common.domain.models import SPEAKER_NETWORKS
from common.weights.manifest import Manifest
from common.weights.pull import Puller
from common.weights.store import WeightsStore
from scripts.bench.vietnamese_weights import bring, bring_for_recordings
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.support.gateway import GatewayProcess
from tests.support.phobert import PhoBert, make_phobert
from tests.support.service import Service

if TYPE_CHECKING:
    from tests.support.s3 import S3Server
    from worker.context import Context

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Make tests find the same wherever they run.

    Property tests get no time limit per example, and 10,000 examples with
    ``--hypothesis-profile=thorough``. A shell's background job ignores SIGINT, what
    nohup starts ignores SIGHUP, and their children inherit that: both have to reach what the tests
    start.
    """
    # Tests name the models that they have; those of missing ones set this themselves.
    os.environ["AUTO_FETCH"] = "false"
    os.environ["ENCODER"] = "ctranslate2"  # whatever suits the processor
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.register_profile("thorough", deadline=None, max_examples=10_000)
    hypothesis.settings.load_profile("untimed")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""The cluster is deleted after the session: it need not survive a power cut."""


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Where ``steno models pull`` puts weights; ``scripts/test`` pulls those that tests need."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def streaming_weights(weights_dir: Path) -> Path:
    """A Vietnamese streaming model, ``viet-wenet`` for zipformer; fetched when it is missing."""
    return bring(weights_dir)


@pytest.fixture(scope="session")
def vietnamese_weights(weights_dir: Path) -> Path:
    """A Vietnamese model for recordings, ``viet-wenet`` for sherpa-onnx; made when missing."""
    return bring_for_recordings(weights_dir)


@pytest.fixture(scope="session")
def diarization_weights(weights_dir: Path) -> WeightsStore:
    """The store with the networks of speaker diarization; they are fetched when missing."""
    store = WeightsStore(weights_dir, Manifest.load())
    for it in SPEAKER_NETWORKS:
        Puller(store).pull(it.engine, it.model)
    return store


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One Postgres for the session. A test that kills a server starts its own."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), options=THROW_AWAY) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One Valkey for the session. A test that kills a server starts its own."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    from tests.support.s3 import S3Server

    with S3Server(tmp_path_factory.mktemp("s3") / "moto.log") as server:
        yield server


@pytest.fixture
def s3_server(_s3_server: S3Server) -> Iterator[S3Server]:
    """The session's S3 server, with an empty bucket."""
    yield _s3_server
    _s3_server.empty()


@pytest.fixture(scope="session")
def migrated_template(postgres: EmbeddedPostgres) -> str:
    """The name of a database with every migration applied, to copy from."""
    from common.db.migrate import upgrade

    name = "migrated"
    _administer(postgres, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    upgrade(_url(postgres, name))
    return name


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    yield from _database_for_a_test(postgres, template="template0")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """The URL of a migrated database of this test's own."""
    yield from _database_for_a_test(postgres, template=migrated_template)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of this test's own."""
    with Database(database_url, pool_size=20) as database:
        yield database


@pytest.fixture(scope="module")
def module_database_url(postgres: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """The URL of a migrated database that the tests of a module share."""
    yield from _database_for_a_test(postgres, template=migrated_template)


@pytest.fixture
def worker_context(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Context]:
    """Makes what a worker has, with settings."""
    from common.redis.queue import connect
    from common.settings import Settings
    from worker.compose import build_context

    def make(**settings: str) -> Context:
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "DATA_DIR": str(tmp_path)}
        for name, value in (urls | settings).items():
            monkeypatch.setenv(name, value)
        return build_context(Settings(), connect(redis_url))

    return make


@pytest.fixture
def redis_url(valkey: EmbeddedValkey) -> str:
    """The URL of a Valkey with nothing in it."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    """The environment variables of a module's gateway; a module may have its own."""
    return {}


@pytest.fixture(scope="module")
def gateway(
    gateway_settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    module_database_url: str,
    valkey: EmbeddedValkey,
) -> Iterator[GatewayProcess]:
    """One gateway for the tests of a module, over a database and a folder of its own."""
    folder = tmp_path_factory.mktemp("gateway")
    with GatewayProcess(folder, module_database_url, valkey.url, **gateway_settings) as running:
        yield running


@pytest.fixture(scope="module")
def serving(gateway: GatewayProcess) -> Iterator[GatewayProcess]:
    """The module's gateway with a dispatcher and a worker behind it."""
    with Service(gateway.database_url, gateway.redis_url, gateway.folder) as service:
        service.start_dispatcher()
        service.start_worker()
        yield gateway


def _database_for_a_test(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    _administer(
        postgres,
        sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY wal_log").format(
            sql.Identifier(name), sql.Identifier(template)
        ),
    )
    yield _url(postgres, name)
    _administer(postgres, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _url(postgres: EmbeddedPostgres, database: str) -> str:
    return f"{postgres.url.rpartition('/')[0]}/{database}"


def _administer(postgres: EmbeddedPostgres, statement: sql.Composed) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture(scope="session")
def phobert(tmp_path_factory: pytest.TempPathFactory) -> PhoBert:
    """A small model of PhoBERT's shape, trained and exported by the command line."""
    return make_phobert(tmp_path_factory.mktemp("phobert"))
