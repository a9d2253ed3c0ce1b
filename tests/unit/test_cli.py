"""The command line's manners: quick help, errors in one line, an exit code that tells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from common.errors import NotFound
from scripts import cli
from scripts.cli import OneLineErrors, steno

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory of the test's own, and no stack in it."""
    for name in ("DATABASE_URL", "REDIS_URL", "REDIS_HOST", "STENO_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


def group_that_raises(error: BaseException) -> click.Group:
    @click.group(cls=OneLineErrors)
    def group() -> None: ...

    @group.command()
    def go() -> None:
        raise error

    return group


def test_help_names_every_command_and_imports_none_of_them() -> None:
    program = (
        "import sys\n"
        "from scripts.cli import steno\n"
        "try: steno(['--help'], prog_name='steno')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'httpx', 'sqlalchemy', 'redis', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in (*cli.ELSEWHERE, "up", "api", "worker", "dispatch", "migrate"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(cli.ELSEWHERE))
def test_a_command_that_is_imported_late_is_there(name: str) -> None:
    done = CliRunner().invoke(steno, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert f"steno {name}" in done.stdout


def test_a_known_error_is_its_message_in_one_line() -> None:
    done = CliRunner().invoke(group_that_raises(NotFound(what="job", value="7")), ["go"])
    assert done.exit_code == 1
    assert done.stderr == "steno: There is no job 7\n"


def test_a_wrong_option_is_one_line_with_a_way_to_the_help() -> None:
    done = CliRunner().invoke(steno, ["up", "--wrokers", "2"], prog_name="steno")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--wrokers" in done.stderr
    assert done.stderr.endswith("(see steno up --help)\n")


def test_a_wrong_command_comes_with_the_one_that_may_have_been_meant() -> None:
    done = CliRunner().invoke(steno, ["transcibe", "a.mp3"], prog_name="steno")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "'transcibe'. Did you mean 'transcribe'?" in done.stderr
    assert "'list'" in CliRunner().invoke(steno, ["keys", "lst"], prog_name="steno").stderr


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(data_dir: Path) -> None:
    done = CliRunner().invoke(group_that_raises(ValueError("a\nb")), ["go"])
    log = data_dir / "logs" / "steno.log"
    assert done.exit_code == 1
    assert done.stderr == f"steno: ValueError: a b (more in {log}, or with --debug)\n"
    assert "Traceback" in log.read_text()


def test_an_unexpected_error_is_told_even_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "file"))
    done = CliRunner().invoke(group_that_raises(ValueError("oh")), ["go"])
    assert done.stderr == "steno: ValueError: oh (more with --debug)\n"


def test_debug_shows_the_traceback_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENO_DEBUG", "1")
    done = CliRunner().invoke(group_that_raises(NotFound(what="job", value="7")), ["go"])
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("steno: There is no job 7\n")


def test_ctrl_c_ends_with_the_code_that_shells_expect() -> None:
    done = CliRunner().invoke(group_that_raises(KeyboardInterrupt()), ["go"])
    assert done.exit_code == 130
    assert done.stderr == "\nsteno: stopped\n"  # on a line of its own, after the terminal's ^C


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "eighty")
    done = CliRunner().invoke(steno, ["migrate"])
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "API_PORT" in done.stderr


@pytest.mark.parametrize("command", ["api", "worker", "dispatch"])
def test_a_single_process_without_servers_says_what_to_set(command: str) -> None:
    done = CliRunner().invoke(steno, [command])
    assert done.exit_code == 1
    assert "DATABASE_URL and REDIS_URL not set" in done.stderr
    assert "steno up" in done.stderr


def test_the_shell_command_is_posix_and_keeps_the_callers_directory(tmp_path: Path) -> None:
    for script in ("steno", "setup.sh", "test", "lock"):
        subprocess.run(["sh", "-n", ROOT / "scripts" / script], check=True)
    checkout = make_checkout(tmp_path)
    stranger = tmp_path / "scripts"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise SystemExit('not ours')")
    link = tmp_path / "steno"
    link.symlink_to(checkout / "scripts" / "steno")
    done = subprocess.run(
        [link, "a b", "c"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(tmp_path), f"{checkout}", "a b", "c"]


def make_checkout(tmp_path: Path) -> Path:
    """A checkout whose packages are installed, and whose command line only tells how it was run."""
    checkout = tmp_path / "check out"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("steno", "setup.sh"):
        copy = checkout / "scripts" / name
        copy.write_bytes((ROOT / "scripts" / name).read_bytes())
        copy.chmod(0o755)
    (checkout / "scripts" / "__init__.py").write_text("")
    (checkout / "scripts" / "__main__.py").write_text(
        "import os, sys\n"
        "first = os.environ['PYTHONPATH'].split(os.pathsep)[0]\n"
        "print(os.getcwd(), first, *sys.argv[1:], sep='\\n')"
    )
    for lock in ("requirements.lock", "requirements-dev.lock"):
        (checkout / lock).write_text("")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    cksum = subprocess.run(["cksum"], input=b"", capture_output=True, check=True).stdout.decode()
    (checkout / ".venv" / ".stenopool").write_text(f"requirements.lock {cksum}")
    return checkout


def test_a_machine_without_a_new_enough_python_is_told_so(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    (checkout / "requirements.lock").write_text("changed")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "cat", "cksum", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", checkout / "scripts" / "steno"],
        env={"PATH": str(tools), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
