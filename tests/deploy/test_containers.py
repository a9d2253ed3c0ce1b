"""The proof of the containers: it finds what is wrong, and names it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import GatewayLost, InUse, RequestRejected, SetupProblem
from common.settings import ROOT
from scripts.bench.service import until
from tests.system.aftermath import patiently
from tests.system.containers.audit import (
    BLOCK_BYTES,
    LOOK_AT_PROCESSES,
    found_in,
    found_in_files,
    found_in_image,
    named,
    needles_of,
    privilege_faults,
    process_faults,
    root_faults,
    user_faults,
)
from tests.system.containers.project import (
    PAGE,
    Container,
    alone,
    commands_of,
    containers_of,
    environment,
    secrets_of,
    with_settings,
)
from tests.system.containers.proofs import BACKUP, chosen, lost
from tests.system.containers.trouble import NO_GROUP, UNREADABLE, said
from tests.system.report import Row, all_ok, faults_row, show

SECRET = "sesame-" * 8
SECRETS = {SECRET: "REDIS_PASSWORD"}


def inspected(**changes: Any) -> dict[str, Any]:
    """A container as `docker inspect` prints it."""
    host = {
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": None,
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": False,
        "PidMode": "",
        "IpcMode": "private",
        "NetworkMode": "stenopool-proof_default",
        "UTSMode": "",
    }
    host.update(changes.pop("host", {}))
    return {
        "Id": "0123456789abcdef" * 4,
        "RestartCount": 0,
        "State": {
            "Running": True,
            "ExitCode": 0,
            "StartedAt": "2026-01-31T09:05:00Z",
            "Pid": 4321,
            "Health": {"Status": "healthy"},
        },
        "Config": {
            "User": "10001:10001",
            "Labels": {
                "com.docker.compose.service": "worker",
                "com.docker.compose.container-number": "2",
            },
        },
        "HostConfig": host,
        "Mounts": [{"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data"}],
        **changes,
    }


def container(**changes: Any) -> Container:
    return Container.read(inspected(**changes))


# --- what Docker shows ---------------------------------------------------------------------------


def test_containers_are_named_by_service_and_number() -> None:
    first = inspected()
    second = inspected(Id="f" * 64)
    label = "com.docker.compose"
    second["Config"]["Labels"] = {f"{label}.service": "api", f"{label}.container-number": "1"}
    del second["State"]["Health"]
    found = containers_of(json.dumps([first, second]))
    assert [each.name for each in found] == ["api-1", "worker-2"]
    assert [each.health for each in found] == ["", "healthy"]
    assert found[1].host == "0123456789ab"


def faults(**changes: Any) -> list[str]:
    found = container(**changes)
    return user_faults(found) + root_faults(found) + privilege_faults(found)


def test_a_container_as_it_should_be_has_no_fault() -> None:
    assert faults() == []


@pytest.mark.parametrize("user", ["", "0", "root", "0:0", "root:steno"])
def test_root_is_found_however_it_is_called(user: str) -> None:
    assert faults(Config={**inspected()["Config"], "User": user})


@pytest.mark.parametrize(
    "changes",
    [
        {"host": {"CapDrop": None}},
        {"host": {"CapDrop": ["NET_RAW"]}},
        {"host": {"CapAdd": ["SYS_ADMIN"]}},
        {"host": {"SecurityOpt": None}},
        {"host": {"SecurityOpt": ["no-new-privileges:false"]}},
        {"host": {"Privileged": True}},
        {"host": {"PidMode": "host"}},
        {"host": {"NetworkMode": "host"}},
        {"host": {"ReadonlyRootfs": False}},
        {"Mounts": [{"Source": "/var/run/docker.sock"}]},  # the engine's socket
    ],
)
def test_privileges_are_found(changes: dict[str, Any]) -> None:
    assert faults(**changes)


# --- processes ------------------------------------------------------------------------------------

WELL = """process 1
Name:	tini
Uid:	10001	10001	10001	10001
CapInh:	0000000000000000
CapPrm:	0000000000000000
CapEff:	0000000000000000
CapBnd:	0000000000000000
CapAmb:	0000000000000000
NoNewPrivs:	1
command tini -- python -m api
environ HOME=/tmp
environ DATA_DIR=/data
"""


def test_processes_as_they_should_be_have_no_fault() -> None:
    assert process_faults(WELL * 3, SECRETS) == []


@pytest.mark.parametrize(
    ("well", "ill"),
    [
        ("Uid:	10001	10001	10001	10001", "Uid:	10001	0	0	0"),
        ("CapBnd:	0000000000000000", "CapBnd:	00000000a80425fb"),
        ("NoNewPrivs:	1", "NoNewPrivs:	0"),
        ("environ HOME=/tmp", f"environ URL=redis://:{SECRET}@redis"),
        ("-m api", f"-m api --password={SECRET}"),
        ("environ HOME=/tmp\nenviron DATA_DIR=/data", "unreadable"),
    ],
)
def test_what_is_wrong_with_a_process_is_seen(well: str, ill: str) -> None:
    assert well in WELL
    (fault,) = process_faults(WELL + WELL.replace(well, ill), SECRETS)
    assert "tini (1)" in fault
    assert SECRET not in fault


def test_seeing_no_process_is_no_proof() -> None:
    assert process_faults("sh: not found\n", SECRETS)


def test_the_look_at_processes_sees_environments_and_commands() -> None:
    env = {**os.environ, "REDIS_PASSWORD": SECRET}
    hidden = subprocess.Popen(["sleep", "60"], env=env)
    shown = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", SECRET])
    try:
        listing = subprocess.run(
            ["sh", "-c", LOOK_AT_PROCESSES], capture_output=True, text=True, check=True
        ).stdout
    finally:
        for process in (hidden, shown):
            process.kill()
            process.wait()
    faults = "\n".join(process_faults(listing, SECRETS))
    assert f"environ of sleep ({hidden.pid}) has REDIS_PASSWORD" in faults
    assert f"({shown.pid}) has REDIS_PASSWORD" in faults


# --- secrets in files -----------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, BLOCK_BYTES - 20, BLOCK_BYTES, 2 * BLOCK_BYTES - 1])
def test_a_secret_is_found_wherever_blocks_end(before: int) -> None:
    stream = io.BytesIO(b"." * before + SECRET.encode() + b"." * 1000)
    assert found_in(stream, needles_of(SECRETS)) == {"REDIS_PASSWORD"}


def test_a_secret_is_found_as_base64_has_it_and_nothing_else_is() -> None:
    encoded = base64.b64encode(SECRET.encode())
    assert found_in(io.BytesIO(encoded), needles_of(SECRETS)) == {"REDIS_PASSWORD"}
    assert found_in(io.BytesIO(SECRET[:-1].encode()), needles_of(SECRETS)) == set()
    assert named(f"password is {SECRET}", SECRETS) == ["REDIS_PASSWORD"]


def tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_secrets_and_env_files_are_found_in_the_layers_of_images(pack: Any) -> None:
    clean = pack(tar_of({"etc/passwd": b"root", "app/.env.example": b"#REDIS_PASSWORD="}))
    leaky = pack(tar_of({"app/.env": b"", "app/notes": b"is " + SECRET.encode()}))
    config = {"config.json": b"{}", "manifest.json": b"[]"}

    def found(files: Mapping[str, bytes]) -> list[str]:
        return found_in_image(io.BytesIO(tar_of(files)), needles_of(SECRETS))

    assert found({"blobs/sha256/a": clean, **config}) == []
    assert found({"blobs/sha256/a": clean, "blobs/sha256/b": leaky, **config}) == [
        "/app/.env",
        "REDIS_PASSWORD in /app/notes",
    ]
    history = json.dumps({"created_by": f"echo {SECRET}"}).encode()
    assert found({"a.json": history}) == ["REDIS_PASSWORD in a.json"]


def test_secrets_in_logs_are_reported_by_file_and_name(tmp_path: Path) -> None:
    (tmp_path / "api.log").write_text("all is well\n")
    (tmp_path / "worker.log").write_text(f"connecting to redis://:{SECRET}@redis\n")
    assert found_in_files(tmp_path.iterdir(), SECRETS) == ["REDIS_PASSWORD in worker.log"]


# --- .env and the environment ---------------------------------------------------------------------


def test_secrets_of_an_env_file_are_its_passwords_and_keys() -> None:
    env = f"REDIS_PASSWORD={SECRET}\nGATEWAY_API_KEY=abc\nSECRETS_GID=0\n#S3_KEY=no\nEMPTY_KEY=\n"
    assert secrets_of(env) == {"REDIS_PASSWORD": SECRET, "GATEWAY_API_KEY": "abc"}


def test_backup_and_restore_are_the_commands_of_the_operators_page() -> None:
    backup, restore = commands_of((ROOT / PAGE).read_text(), "Backup and restore")
    assert "pg_dump" in backup
    assert all(name in backup and name in restore for name in BACKUP)
    assert restore.splitlines()[-1] == "docker compose up -d --wait"


def test_settings_of_an_env_file_are_added_replaced_and_taken_away() -> None:
    env = "A=1\n# B is not set\nB=2\nC=3\n"
    changed = with_settings(env, {"B": "4", "C": None, "D": "5"})
    assert changed.splitlines() == ["A=1", "# B is not set", "B=4", "D=5"]


def test_settings_of_another_stack_in_this_shell_do_not_reach_compose() -> None:
    compose_file = "image: ${IMAGE:-x}\ntest: $${NOT_ASKED}\nurl: ${DATABASE_URL:-y}"
    outside = {
        "PATH": "/bin",
        "DOCKER_HOST": "unix:///run/docker.sock",
        "DATABASE_URL": "postgresql://elsewhere",
        "COMPOSE_PROFILES": "s3",
        "NOT_ASKED": "kept",
    }
    inside = environment(outside, compose_file)
    del outside["DATABASE_URL"], outside["COMPOSE_PROFILES"]
    assert inside == outside


def test_proofs_do_not_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with alone(), pytest.raises(InUse), alone():
        pass
    with alone():
        pass


# --- recordings -----------------------------------------------------------------------------------


def test_the_shortest_are_clips_and_the_longest_is_the_long_one(tmp_path: Path) -> None:
    found = [(float(number), Path(f"{number}.wav")) for number in (1, 2, 40, 700, 4000)]
    clips, long = chosen(found, None, tmp_path)
    assert clips == [Path("1.wav"), Path("2.wav")]
    assert long == Path("4000.wav")
    assert chosen(found, Path("mine.wav"), tmp_path) == (clips, Path("mine.wav"))
    with pytest.raises(SetupProblem):
        chosen(found[2:], None, tmp_path)


# --- clients --------------------------------------------------------------------------------------


def test_only_what_may_pass_is_tried_again() -> None:
    answers: list[GatewayLost | RequestRejected | str] = [
        GatewayLost(address="here", reason="reset"),
        "text",
    ]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, GatewayLost | RequestRejected):
            raise answer
        return answer

    retries: list[None] = []
    assert patiently(ask, again=lost, on_retry=lambda: retries.append(None)) == "text"
    assert len(retries) == 1
    answers[:] = [RequestRejected(detail="unavailable", status=503), "text"]
    with pytest.raises(RequestRejected):
        patiently(ask, again=lost)


# --- the table ------------------------------------------------------------------------------------


def test_the_table_shows_what_is_not_ok_without_a_terminal() -> None:
    rows = {
        "1. One": [Row("size", "900 MB"), Row("text", "5 words", "a text", ok=True)],
        "2. Two": [faults_row("logs", ["KEY in api.log"], "no secret", "none")],
    }
    out = io.StringIO()
    show(rows, Console(file=out, width=110))
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    (observed,) = (line for line in lines if "KEY in api.log" in line)
    assert observed.rstrip().endswith("NOT OK")
    assert lines[-1] == "1 of 2 ok; not ok: logs"
    assert not all_ok(rows)
    assert all_ok({"1. One": rows["1. One"]})
    assert not all_ok({"nothing asked": [Row("size", "900 MB")]})


# --- messages -------------------------------------------------------------------------------------


def test_a_message_is_found_in_a_log() -> None:
    log = (
        "migrate-1  | starting\n"
        "migrate-1  | steno: /app/.env cannot be read by user 10001. Make it readable by the "
        "user or a group of this process; with Compose, run `sh docker/secrets.sh`\n"
    )
    assert (said(log, UNREADABLE) or "").startswith("migrate-1  | steno: /app/.env")
    assert said(log, NO_GROUP) is None


def test_waiting_ends_when_it_is_so_or_patience_does() -> None:
    states = iter([False, False, True])
    assert until(lambda: next(states), 60) is not None
    assert until(lambda: False, 0) is None
