"""What processes log of what keeps them from starting: a line, the setting, no secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from redis import Redis

from common.db.migrate import upgrade
from common.domain.job import JobStatus
from common.domain.pipeline import StepKind
from common.redis.presence import DISPATCHERS, QUEUE_NAME
from common.settings import ROOT
from scripts.stack.embedded import free_port
from tests.support.frozen import frozen_worker, is_logged
from tests.support.gateway import GatewayProcess
from tests.support.service import Start, have_ended, wait_until, write_wav
from tests.support.speech import speak

SECRET = "wrong-sesame"
MODULES = ["worker", "worker.dispatcher"]
WRONG_PASSWORD = ["password authentication failed", "DATABASE_PASSWORD"]
WRONG_PAIR = ["username-password pair", "REDIS_PASSWORD"]
UNREADABLE = "DATABASE_URL cannot be read"
NO_HOST = "no-such-host.invalid"


@dataclass(frozen=True)
class Servers:
    """Those that run."""

    database: str
    redis: str

    def environment(self, folder: Path, **other: str) -> dict[str, str]:
        return {
            **os.environ,
            "DATABASE_URL": self.database,
            "REDIS_URL": self.redis,
            "DATA_DIR": str(folder),
            "WORKER_NICE": "0",
            **other,
        }


@pytest.fixture
def servers(database_url: str, redis_url: str) -> Servers:
    return Servers(database_url, redis_url)


def changed(url: str, **parts: str) -> str:
    """The URL with another user, password, port or path."""
    was = urlsplit(url)
    user, password = parts.get("user", was.username), parts.get("password", was.password)
    host, port = parts.get("host", was.hostname), parts.get("port", was.port)
    path = parts.get("path", was.path)
    return f"{was.scheme}://{user or ''}:{password}@{host}:{port}{path}"


def last_line(module: str, environment: dict[str, str], *arguments: str) -> str:
    """The one error that a process ends with."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output, output
    assert SECRET not in output, output
    lines = [line for line in output.splitlines() if " INFO " not in line]
    assert len(lines) == 1, output
    return lines[0]


@contextmanager
def running(module: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """A process that is ended with the block, by a signal."""
    command = [sys.executable, "-m", module]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            yield
            process.terminate()
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text()
    assert SECRET not in log.read_text()


def has_line(log: Path, *words: str) -> bool:
    """Whether a line has all of them."""
    return any(all(word in line for word in words) for line in log.read_text().splitlines())


@pytest.mark.parametrize(
    ("command", "setting", "wrong", "words"),
    [
        ("worker", "DATABASE_URL", {"password": SECRET}, WRONG_PASSWORD),
        ("worker.dispatcher", "DATABASE_URL", {"password": SECRET}, WRONG_PASSWORD),
        ("scripts migrate", "DATABASE_URL", {"password": SECRET}, WRONG_PASSWORD),
        ("worker", "DATABASE_URL", {"path": "/nowhere"}, ['"nowhere" does not', "DATABASE_URL"]),
        ("worker", "DATABASE_URL", {"password": SECRET, "port": "x"}, [UNREADABLE]),
        ("api", "DATABASE_URL", {"password": SECRET, "port": "x"}, [UNREADABLE]),
        ("worker", "REDIS_URL", {"password": SECRET}, WRONG_PAIR),
        ("worker.dispatcher", "REDIS_URL", {"password": SECRET}, WRONG_PAIR),
        ("worker.dispatcher", "REDIS_URL", {"password": SECRET, "port": "x"}, ["REDIS_URL cannot"]),
    ],
)
def test_a_server_that_rejects_it_ends_it_with_the_reason(
    servers: Servers,
    tmp_path: Path,
    command: str,
    setting: str,
    wrong: dict[str, str],
    words: list[str],
) -> None:
    url = servers.database if setting == "DATABASE_URL" else servers.redis
    environment = servers.environment(tmp_path, **{setting: changed(url, **wrong)})
    module, *arguments = command.split()
    line = last_line(module, environment, *arguments)
    assert all(word in line for word in words), line


def test_a_missing_redis_password_is_named_by_its_setting(servers: Servers, tmp_path: Path) -> None:
    parts = urlsplit(servers.redis)
    environment = servers.environment(
        tmp_path, REDIS_URL="", REDIS_HOST="127.0.0.1", REDIS_PORT=str(parts.port)
    )
    line = last_line("worker.dispatcher", environment)
    assert "it needs a password (see REDIS_PASSWORD" in line


@pytest.mark.parametrize(
    ("module", "setting", "address", "word"),
    [
        ("worker", "DATABASE_URL", "postgresql://a:{}@127.0.0.1:{}/x", "Connection refused"),
        ("worker", "REDIS_URL", "redis://:{}@127.0.0.1:{}/0", "Connection refused"),
        ("worker.dispatcher", "DATABASE_URL", f"postgresql://a:{{}}@{NO_HOST}:{{}}/x", NO_HOST),
        ("worker.dispatcher", "REDIS_URL", f"redis://:{{}}@{NO_HOST}:{{}}/0", NO_HOST),
    ],
)
def test_a_server_that_is_unavailable_is_waited_for(
    servers: Servers, tmp_path: Path, module: str, setting: str, address: str, word: str
) -> None:
    missing = {setting: address.format(SECRET, free_port())}
    log = tmp_path / "log"
    with running(module, servers.environment(tmp_path, **missing), log):
        wait_until(partial(has_line, log, "waiting: ", setting, word), "a word about it")


@pytest.mark.parametrize(
    ("module", "registered"),
    [("worker", f"rq:workers:{QUEUE_NAME}"), ("worker.dispatcher", DISPATCHERS)],
)
def test_missing_tables_are_waited_for(
    empty_database_url: str, redis_url: str, tmp_path: Path, module: str, registered: str
) -> None:
    log = tmp_path / "log"
    environment = Servers(empty_database_url, redis_url).environment(tmp_path)
    with running(module, environment, log), Redis.from_url(redis_url) as redis:
        wait_until(partial(has_line, log, "at nothing", "run `steno migrate`"), "a word about them")
        upgrade(empty_database_url)
        wait_until(lambda: redis.exists(registered), "its start")


@pytest.mark.parametrize("module", MODULES)
def test_a_newer_database_is_not_changed(servers: Servers, tmp_path: Path, module: str) -> None:
    with psycopg.connect(servers.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    line = last_line(module, servers.environment(tmp_path))
    assert "is at 9999" in line
    assert "a newer version's" in line


@pytest.mark.parametrize("module", ["worker", "api"])
def test_a_folder_that_cannot_be_written_is_named_with_its_owner_and_the_setting(
    servers: Servers, tmp_path: Path, module: str
) -> None:
    line = last_line(module, servers.environment(tmp_path, DATA_DIR="/sys/stenopool"))
    for words in ("/sys cannot be used", "user 0", f"process is {os.geteuid()}", "DATA_DIR"):
        assert words in line


def test_a_wrong_setting_is_named(servers: Servers, tmp_path: Path) -> None:
    line = last_line("worker", servers.environment(tmp_path, WORKER_STOP_PERIOD="-1"))
    assert "WORKER_STOP_PERIOD" in line


def test_only_the_log_says_why_a_gateway_is_not_ready(servers: Servers, tmp_path: Path) -> None:
    wrong_database = changed(servers.database, password=SECRET)
    wrong_redis = changed(servers.redis, password=SECRET)
    with GatewayProcess(tmp_path, wrong_database, wrong_redis) as gateway:
        log = gateway.log_file
        wait_until(
            partial(has_line, log, "password authentication failed", "DATABASE_"), "the reason"
        )
        wait_until(partial(has_line, log, "username-password pair", "REDIS_PASSWORD"), "the reason")
        answers = [gateway.http.get("/readyz"), gateway.http.get("/api/v1/jobs")]
    for answer in answers:
        assert answer.status_code == 503
        assert "is unavailable; try again soon" in answer.text
        assert "127.0.0.1" not in answer.text
        assert "password" not in answer.text
    assert "Traceback" not in log.read_text()
    assert SECRET not in log.read_text()


def test_missing_tables_are_named(empty_database_url: str, redis_url: str, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, empty_database_url, redis_url) as gateway:
        wait_until(partial(has_line, gateway.log_file, "at nothing", "steno migrate"), "the reason")
        ready = gateway.http.get("/readyz")
    assert ready.status_code == 503
    assert "run `steno migrate`" in ready.json()["parts"]["migrations"]


@pytest.mark.usefixtures("weights_dir")
def test_a_job_whose_recording_is_lost_reports_it(start: Start) -> None:
    service = start()
    job_id = service.submit(speak("The quick brown fox."))
    (recording,) = (service.folder / "uploads" / "recordings").iterdir()
    recording.unlink()
    service.serve()

    ended = service.ended(job_id)

    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "recording_lost")
    assert ended.error_message == "The job's recording is missing from the storage"


@pytest.mark.usefixtures("weights_dir")
@pytest.mark.parametrize("another", [False, True])
def test_a_lost_chunk_is_cut_again_only_from_its_recording(start: Start, another: bool) -> None:
    service = start(REUSE_RESULTS="false")
    planner, engine, job_id = frozen_worker(service, [StepKind.PLAN])
    planner.terminate()
    assert is_logged(service, "stopping; the current step")
    engine.send_signal(signal.SIGCONT)
    wait_until(partial(have_ended, [planner]), "a plan, no more")
    for cut in (service.folder / "uploads" / "chunks" / str(job_id)).iterdir():
        cut.unlink()
    if another:
        for recording in (service.folder / "uploads" / "recordings").iterdir():
            write_wav(recording, speak("A slow green snail."))
    service.start_worker()

    ended = service.ended(job_id)

    if another:
        assert (ended.status, ended.error_code) == (JobStatus.FAILED, "sound_lost")
        service.retry(job_id)
        ended = service.ended(job_id)
    assert ended.status == JobStatus.COMPLETED
    assert ("snail" if another else "fox") in service.text(job_id)
