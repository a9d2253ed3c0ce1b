"""The supervisor: everything starts, is restarted, and is stopped again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from common.db.migrate import revisions
from common.errors import SetupProblem
from common.settings import (
    ApiSettings,
    DatabaseSettings,
    RedisSettings,
    Settings,
    StorageSettings,
    import_from_checkout,
)
from common.weights.manifest import HubFiles, Manifest
from scripts.cli.cli import INTERRUPTED, steno
from scripts.stack import stack as stack_module
from scripts.stack.running import RunningStack, find_running
from scripts.stack.stack import Stack, StackProcess
from tests.support.audio_files import make_wav, tone
from tests.support.file_server import FileServer, Served
from tests.support.service import wait_until

ROLES = ("postgres", "valkey", "gateway", "dispatcher", "worker")


@pytest.fixture(autouse=True)
def no_servers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has set must not reach a stack under test."""
    for name in ("DATABASE_URL", "REDIS_URL", "REDIS_HOST", "DATA_DIR", "API_HOST", "API_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def reported() -> list[str]:
    """What `running` has reported."""
    return []


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, reported: list[str]) -> Iterator[Stack]:
    """A stack that is up, and is to listen everywhere."""
    settings = settings_for(tmp_path_factory.mktemp("running"))
    settings.api.host = "0.0.0.0"  # noqa: S104 - it must not be listened on
    with Stack(settings, workers=0, report=reported.append) as stack:
        yield stack


def settings_for(data_dir: Path, port: int = 0) -> Settings:
    return Settings(
        api=ApiSettings(port=port),
        storage=StorageSettings(data_dir=data_dir),
        database=DatabaseSettings(),
        redis=RedisSettings(),
    )


def test_nobody_else_can_read_what_a_stack_writes(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = os.umask(0)
    try:
        with Stack(settings_for(data_dir), workers=1) as stack:
            sent = httpx.post(
                f"{stack.address}/api/v1/upload",
                files={"file": ("a.wav", make_wav(tone(2.0).tobytes()))},
                data={"language": "en", "moderation": "false"},
                trust_env=False,
            )
            status = f"{stack.address}/api/v1/status/{sent.json()['job_id']}"
            wait_until(
                lambda: httpx.get(status, trust_env=False).json()["status"] == "COMPLETED",
                patience_s=120,
            )
            written = list(data_dir.rglob("*"))
            open_to_others = [
                str(path) for path in written if path.exists() and path.stat().st_mode & 0o077
            ]
    finally:
        os.umask(before)
    names = {path.name for path in written}
    assert {"transcript.srt", "gateway.log", "stack.json", "valkey.conf", "PG_VERSION"} <= names
    assert open_to_others == []
    assert stat.S_IMODE(data_dir.stat().st_mode) & ~stat.S_IXOTH == 0o700


def has_ended(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@contextmanager
def steno_up(data_dir: Path, *options: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """``steno up`` in a process of its own, with its output in a pipe; killed in the end.

    It is called in a folder that holds packages of our names but not ours.
    """
    for name in ("api", "common", "scripts", "worker"):
        stranger = data_dir / name / "__init__.py"
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_text("raise SystemExit('not ours')")
    up = subprocess.Popen(
        [sys.executable, "-m", "scripts", "up", "--port", "0", "--workers", "1", *options],
        cwd=data_dir,
        env={**os.environ, **import_from_checkout(), "DATA_DIR": str(data_dir), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield up
    finally:
        up.kill()
        up.communicate()


def address_of(up: subprocess.Popen[str]) -> str:
    assert up.stdout is not None
    for line in up.stdout:
        if found := re.search(r"is up at (http://\S+)", line):
            return found[1]
    raise AssertionError("steno up ended without an address")


def test_what_is_up_is_ready_and_what_dies_is_restarted(tmp_path: Path) -> None:
    reported: list[str] = []
    with Stack(settings_for(tmp_path), workers=2, report=reported.append) as stack:
        assert httpx.get(f"{stack.address}/readyz").is_success
        counts = {role: len(pids) for role, pids in stack.processes.items()}
        assert counts == dict.fromkeys(ROLES, 1) | {"worker": 2}
        before = stack.processes
        for role in ROLES:
            os.kill(before[role][0], signal.SIGKILL)

        def all_are_back() -> bool:
            now = stack.processes
            return all(
                len(now[role]) == len(before[role]) and before[role][0] not in now[role]
                for role in ROLES
            )

        wait_until(all_are_back)
        wait_until(lambda: is_ready(stack.address))
        living = family(os.getpid())
    assert any("gateway was killed by SIGKILL" in line for line in reported)
    assert all(has_ended(pid) for pid in living if pid not in family(os.getpid()))
    assert stack.processes == {}


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").is_success
    except httpx.TransportError:
        return False


def test_a_held_role_stays_down_until_it_is_released(tmp_path: Path) -> None:
    with Stack(settings_for(tmp_path), workers=1) as stack:
        with stack.hold("worker"):
            worker = stack.processes["worker"][0]
            os.kill(worker, signal.SIGKILL)
            gateway = stack.processes["gateway"][0]
            os.kill(gateway, signal.SIGKILL)
            wait_until(lambda: stack.processes["gateway"] not in ([], [gateway]))
            assert stack.processes["worker"] == []
        wait_until(lambda: stack.processes["worker"] not in ([], [worker]))


def test_servers_that_are_named_are_used_and_migrated(
    tmp_path: Path, empty_database_url: str, redis_url: str
) -> None:
    settings = settings_for(tmp_path)
    settings.database.url = SecretStr(empty_database_url)
    settings.redis.url = SecretStr(redis_url)
    with Stack(settings, workers=0) as stack:
        assert set(stack.processes) == {"gateway", "dispatcher"}
        found, newest = revisions(empty_database_url)
        assert found == newest


def test_a_running_stack_is_found_and_keeps_its_data_directory(running: Stack) -> None:
    data_dir = running.data_dir
    found = find_running(data_dir)
    assert found is not None
    assert (found.address, found.pid) == (running.address, os.getpid())
    with pytest.raises(SetupProblem, match=f"in use by another stack .process {os.getpid()}"):
        Stack(settings_for(data_dir)).start()
    assert find_running(data_dir) == found


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["jobs"], "recording"),
        (["doctor"], "up at http"),
        (["keys", "list"], "scopes"),
        (["tenants", "list"], "tier"),
        (["migrate"], "The database is at"),
    ],
)
def test_every_command_finds_the_stack_of_a_data_directory(
    running: Stack, tmp_path: Path, command: list[str], shown: str
) -> None:
    elsewhere = {"DATA_DIR": str(tmp_path)}
    where = ["--data-dir", str(running.data_dir)]
    done = CliRunner().invoke(steno, [*command, *where], env=elsewhere)
    assert shown in done.stdout, done.output
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_finds_no_stack_says_where_it_looked(tmp_path: Path) -> None:
    done = CliRunner().invoke(steno, ["jobs", "--data-dir", str(tmp_path)], env={"DATA_DIR": ""})
    assert done.exit_code == 1
    assert f"not running in {tmp_path}" in done.stderr
    assert "--data-dir" in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupProblem, match=f"port {port}: .*--port"):
            Stack(settings_for(tmp_path, port)).start()


def test_a_part_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    stack = Stack(settings_for(tmp_path), workers=0, env={"API_WORKERS": "many"})
    with pytest.raises(SetupProblem, match=r"did not start: .*API_WORKERS is wrong"):
        stack.start()
    assert find_running(tmp_path) is None
    assert stack.processes == {}


def test_a_stack_over_ipv6_is_found_and_ctrl_c_stops_everything(tmp_path: Path) -> None:
    with steno_up(tmp_path, "--host", "[::1]") as up:
        address = address_of(up)
        assert re.fullmatch(r"http://\[::1\]:\d+", address)
        assert is_ready(address)
        running = find_running(tmp_path)
        assert running is not None
        assert running.address == address
        done = CliRunner().invoke(steno, ["jobs"], env={"DATA_DIR": str(tmp_path)})
        assert (done.exit_code, done.stderr) == (0, "steno: there are no jobs\n")
        living = family(up.pid)
        up.send_signal(signal.SIGINT)
        output, _ = up.communicate(timeout=60)
        assert up.returncode == 0
        assert "Stopping" in output
        assert "Traceback" not in output
    assert all(has_ended(pid) for pid in living)
    assert find_running(tmp_path) is None


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with steno_up(tmp_path) as up:
        address_of(up)
        living = family(up.pid)
        for child in psutil.Process(up.pid).children():  # none can end by itself any more
            child.suspend()
        up.send_signal(signal.SIGINT)
        assert up.stdout is not None
        wait_until(lambda: "Stopping" in str(up.stdout and up.stdout.readline()))
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=20)
        assert up.returncode == 130
    wait_until(lambda: all(has_ended(pid) for pid in living))


def test_the_default_weights_are_fetched_before_it_is_up(tmp_path: Path, weights_dir: Path) -> None:
    spec = Manifest.load().find("whisper.cpp", "tiny")
    (source, *_), (file,) = spec.sources, spec.files
    assert isinstance(source, HubFiles)
    content = (weights_dir / file.name).read_bytes()
    path = f"/{source.repo}/resolve/{source.revision}/{file.name}"
    models = tmp_path / "models"
    part = models / ".staging" / file.name / f"{file.name}.part"
    env = {
        "DEFAULT_ENGINE": spec.engine,
        "DEFAULT_MODEL": spec.model,
        "MODELS_DIR": str(models),
        "HF_HUB_OFFLINE": "0",
    }
    with FileServer() as hub:
        env["HF_ENDPOINT"] = hub.url
        killed = RunningStack("http://127.0.0.1:9", 1, "", "")
        (tmp_path / "stack.json").write_text(json.dumps(asdict(killed)))
        hub.put(path, Served(content, stall_after=len(content) // 2))
        with steno_up(tmp_path, **env) as up:
            wait_until(lambda: part.exists() and part.stat().st_size > len(content) // 3)
            assert find_running(tmp_path) is None
            assert family(up.pid) == []
            here = {**env, "DATA_DIR": str(tmp_path)}
            listed = CliRunner().invoke(steno, ["jobs"], env=here)
            starting = f"Stenopool is starting or stopping in {tmp_path} (process {up.pid})"
            assert starting in listed.stderr
            examined = CliRunner().invoke(steno, ["doctor"], env=here)
            assert "-> steno models pull tiny --engine whisper.cpp" in examined.stdout
            assert f"starting or stopping (process {up.pid})" in examined.stdout
            up.send_signal(signal.SIGINT)
            output, _ = up.communicate(timeout=30)
            assert up.returncode == INTERRUPTED
        assert "Fetching tiny for whisper.cpp (78 MB)" in output
        assert "is up" not in output

        hub.put(path, Served(content))
        with steno_up(tmp_path, **env) as up:
            address = address_of(up)
            assert is_ready(address)
            parts = httpx.get(f"{address}/readyz").json()["parts"]
        assert parts["weights"] == "ok"
        assert "range" in hub.asked[-1].headers, "it went on where it was"


def test_a_stack_whose_default_weights_cannot_be_fetched_does_not_come_up(tmp_path: Path) -> None:
    env = {"DEFAULT_MODEL": "no-such-model", "MODELS_DIR": str(tmp_path / "models")}
    with steno_up(tmp_path, **env) as up:
        output, _ = up.communicate(timeout=60)
        assert up.returncode == 1
    assert "DEFAULT_MODEL no-such-model for faster-whisper is not in" in output
    (tmp_path / "file").write_text("")
    with steno_up(tmp_path, MODELS_DIR=str(tmp_path / "file" / "models")) as up:
        output, _ = up.communicate(timeout=60)
    assert f"cannot be written to {tmp_path / 'file' / 'models'}: Not a directory" in output
    assert not (tmp_path / "postgres").exists()


def test_a_killed_supervisor_leaves_no_process_and_usable_data(tmp_path: Path) -> None:
    with steno_up(tmp_path) as up:
        address_of(up)
        living = family(up.pid)
        assert len(living) >= len(ROLES)
        up.kill()
        wait_until(lambda: all(has_ended(pid) for pid in living))
    assert find_running(tmp_path) is None
    with steno_up(tmp_path) as again:
        assert is_ready(address_of(again))


def test_without_a_key_only_this_machine_is_served(running: Stack, reported: list[str]) -> None:
    assert running.address == f"http://127.0.0.1:{running.port}"
    listening = psutil.Process(running.processes["gateway"][0]).net_connections("inet")
    addresses = {each.laddr.ip for each in listening if each.laddr.port == running.port}
    assert addresses == {"127.0.0.1"}
    assert any("steno keys create" in line for line in reported)


def test_a_stack_in_the_background_of_a_script_ends_on_sigint(tmp_path: Path) -> None:
    script = f"{shlex.quote(sys.executable)} -m scripts up --port 0 --workers 1 & echo $!; wait"
    shell = subprocess.Popen(
        ["sh", "-c", script],
        env={**os.environ, **import_from_checkout(), "DATA_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        wait_until(lambda: find_running(tmp_path))
        living = family(pid)
        os.kill(pid, signal.SIGINT)
        wait_until(lambda: has_ended(pid))
        assert all(has_ended(each) for each in living)
    finally:
        for process in psutil.Process(shell.pid).children():
            process.kill()
        shell.kill()
        shell.communicate()


def test_errors_in_a_log_are_shown_and_the_rest_is_not(tmp_path: Path) -> None:
    program = "print('INFO fine'); print('ERROR  broken'); print('half a line ERROR', end='')"
    child = StackProcess(
        "worker", "worker-1", [sys.executable, "-c", program], tmp_path / "logs" / "w.log"
    )
    child.start(os.environ)
    wait_until(lambda: not child.running)
    assert list(child.new_errors()) == ["ERROR  broken"]
    assert list(child.new_errors()) == []
    assert child.last_words() == "half a line ERROR"


def test_a_log_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "LOG_LIMIT_BYTES", 1000)
    log = tmp_path / "w.log"
    program = "import sys; print('x' * 2000, flush=True); sys.stdin.read(); print('ERROR later')"
    child = StackProcess("worker", "worker-1", [sys.executable, "-c", program], log)
    child.start(os.environ)
    wait_until(lambda: not child.running)
    assert list(child.new_errors()) == ["ERROR later"]
    assert log.stat().st_size == 0
    assert log.with_suffix(".log.1").stat().st_size > 2000


def test_a_crash_loop_is_slowed_down_and_a_single_death_is_not(tmp_path: Path) -> None:
    child = StackProcess("worker", "worker-1", [sys.executable, "-c", ""], tmp_path / "w.log")
    waits = []
    for _ in range(9):
        child.start(os.environ)
        waits.append(round(child.due_at - time.monotonic(), 1))
    assert waits[0] <= stack_module.FIRST_DELAY_S
    assert waits == sorted(waits)
    assert waits[-1] == stack_module.LONGEST_DELAY_S
