"""The command line: quick help, errors in one line, exit codes; its scripts, and its package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from common.errors import NotFound, SetupProblem
from common.settings import ROOT
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.cli import cli
from scripts.cli.cli import OneLineErrors, steno
from scripts.cli.models import _only_engine_of
from tests.support.programs import run_program, run_python
from tests.support.wheels import write_wheel


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
        "from scripts.cli.cli import steno\n"
        "try: steno(['--help'], prog_name='steno')\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'httpx', 'sqlalchemy', 'redis', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    for name in (*cli.LAZY_COMMANDS, "up", "api", "worker", "dispatch", "migrate"):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(cli.LAZY_COMMANDS))
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


@pytest.mark.parametrize("arguments", [[], ["keys"]])
def test_without_a_command_the_help_is_shown(arguments: list[str]) -> None:
    done = CliRunner().invoke(steno, arguments, prog_name="steno")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Usage: {' '.join(['steno', *arguments])} [OPTIONS] COMMAND")
    assert "\nCommands:\n" in done.stderr


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(data_dir: Path) -> None:
    done = CliRunner().invoke(group_that_raises(ValueError("a\nb")), ["go"])
    log = data_dir / "logs" / "steno.log"
    assert done.exit_code == 1
    assert done.stderr == f"steno: ValueError: a b (more in {log}, or with --debug)\n"
    assert "Traceback" in log.read_text()


def test_an_unexpected_error_is_shown_though_no_log_can_be_written(data_dir: Path) -> None:
    (data_dir / "logs").write_text("")
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
def test_a_single_process_without_servers_names_what_to_set(command: str) -> None:
    done = CliRunner().invoke(steno, [command])
    assert done.exit_code == 1
    assert "DATABASE_URL and REDIS_URL not set" in done.stderr
    assert "steno up" in done.stderr


def test_the_shell_command_keeps_the_callers_directory(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    stranger = tmp_path / "scripts"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise SystemExit('not ours')")
    link = tmp_path / "steno"
    link.symlink_to(checkout / "scripts" / "steno")
    done = run_program(link, "a b", "c", cwd=tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path), f"{checkout}", "a b", "c"]


def make_checkout(tmp_path: Path) -> Path:
    """A checkout whose packages are installed, and whose command line prints how it was run."""
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


def link_tools(folder: Path, *names: str) -> Path:
    """The only programs that a script finds."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "cat", "cksum", "readlink", *names):
        (tools / name).symlink_to(shutil.which(name) or name)
    return tools


def test_the_set_up_says_what_it_installs_and_ends_where_that_fails(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with (checkout / "requirements.lock").open("w") as lock:
        for number in range(10):
            wheel = write_wheel(wheels, f"toy{number}", {}).read_bytes()
            lock.write(f"toy{number}==1.0 --hash=sha256:{hashlib.sha256(wheel).hexdigest()}\n")
    shutil.rmtree(checkout / ".venv")
    environment = {
        "PATH": str(link_tools(tmp_path, "rm", "tee", "tail", "grep")),
        "STENO_PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }

    def set_up() -> subprocess.CompletedProcess[str]:
        script = checkout / "scripts" / "setup.sh"
        return run_program("/bin/sh", script, "requirements.lock", env=environment)

    done = set_up()
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == [
        "steno: 10 of 10: toy9-1.0-py3-none-any.whl",
        "steno: unpacking 10 packages (a minute or so) ...",
        "steno: installed",
    ]
    assert set_up().stderr == ""
    faster = write_wheel(wheels, "faster", {}).read_bytes()
    (checkout / "openvino.lock").write_text(
        f"faster==1.0 --hash=sha256:{hashlib.sha256(faster).hexdigest()}\n"
    )
    for flags, is_installed in (("fpu avx512_bf16", False), ("fpu amx_bf16", True)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        environment["STENO_CPUINFO"] = str(tmp_path / "cpuinfo")
        assert set_up().returncode == 0
        assert bool([*checkout.glob(".venv/lib/*/site-packages/faster-1.0*")]) is is_installed
    assert set_up().stderr == ""
    (checkout / "requirements.lock").write_text(f"toy99==1.0 --hash=sha256:{'0' * 64}\n")
    failed = set_up()
    assert failed.returncode == 1
    assert "could not set up .venv" in failed.stderr
    assert set_up().returncode == 1


def test_hints_name_the_command_as_it_was_typed(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    (checkout / "scripts" / "__main__.py").write_text(
        "import os; print(os.environ['STENO_COMMAND'])"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "steno").symlink_to(checkout / "scripts" / "steno")
    typed_env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for typed in ("scripts/steno", "steno"):
        done = run_program("/bin/sh", "-c", typed, cwd=checkout, env=typed_env)
        assert done.stdout == f"{typed}\n"
    done = run_python("-m", "scripts", "jobs", env={**os.environ, "STENO_COMMAND": "scripts/steno"})
    assert done.stderr.startswith("steno: Stenopool is not running in")
    assert "Start it with: scripts/steno up;" in done.stderr


def test_an_installed_copy_is_complete_and_keeps_its_data_elsewhere(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "site-packages"
    (source / "models").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "models/manifest.toml"):
        shutil.copy(ROOT / name, source / name)
    compiled = shutil.ignore_patterns("__pycache__")
    for name in ("api", "common", "migrations", "scripts", "worker", "models/bert-finetuned-onnx"):
        shutil.copytree(ROOT / name, source / name, ignore=compiled)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-build-isolation", "--target", place, source], check=True)
    ours = {"MODELS_DIR", "DATA_DIR", "PYTHONPATH", "STENO_ENV_FILE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"PYTHONPATH": str(place), "XDG_DATA_HOME": str(tmp_path / "home")}

    def steno_there(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_program(place / "bin" / "steno", *arguments, cwd=tmp_path, env=environment)

    migrated = steno_there("migrate")
    assert "The database is at" in migrated.stdout, migrated.stderr
    assert (tmp_path / "home" / "stenopool" / "data" / "postgres" / "cluster").is_dir()
    examined = steno_there("doctor").stdout
    assert "can be used" in next(line for line in examined.splitlines() if "moderation" in line)
    assert f"{tmp_path / 'home' / 'stenopool' / 'data'} can be written" in examined
    assert "whisper.cpp" in steno_there("models", "list").stdout


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    (checkout / "requirements.lock").write_text("changed")
    tools = link_tools(tmp_path)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = {"PATH": str(tools), "HOME": os.environ.get("HOME", "/")}
    done = run_program("/bin/sh", checkout / "scripts" / "steno", env=environment)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize(
    ("model", "engine"),
    [("campplus-zh-en", "diarization"), ("vi-68m", "sherpa-onnx"), ("base", None), ("none", None)],
)
def test_weights_that_one_engine_has_need_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, engine: str | None
) -> None:
    monkeypatch.setenv("DEFAULT_ENGINE", "faster-whisper")
    assert _only_engine_of(WeightsStore(tmp_path, Manifest.load()), model) == engine


def test_weights_that_several_engines_have_need_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_ENGINE", "sherpa-onnx")
    with pytest.raises(SetupProblem, match="of faster-whisper and of whisper"):
        _only_engine_of(WeightsStore(tmp_path, Manifest.load()), "base")
