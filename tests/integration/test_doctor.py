"""``steno doctor`` and ``steno migrate``: what is wrong is named, with the way to put it right."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from common.db.migrate import revisions
from common.settings import Settings
from scripts.cli.cli import steno
from scripts.stack.embedded import EmbeddedPostgres, free_port
from scripts.stack.running import find_running
from scripts.stack.stack import Stack


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where all is well, and nothing is running."""
    for name in ("DATABASE_URL", "REDIS_URL", "REDIS_HOST", "DEFAULT_MODEL", "DEFAULT_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MODELS_DIR", str(weights_dir))
    monkeypatch.setenv("API_PORT", str(free_port()))


def doctor() -> Result:
    return CliRunner().invoke(steno, ["doctor"])


def test_a_machine_where_all_is_well_passes_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    done = doctor()
    assert done.exit_code == 0, done.output
    assert all(line.startswith("ok") for line in done.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_named_with_the_command_that_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    done = doctor()
    assert done.exit_code == 1
    assert "-> steno models pull base --engine faster-whisper" in done.stdout


def test_a_moderation_model_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOBERT_ONNX_DIR", str(tmp_path / "none"))
    done = doctor()
    assert done.exit_code == 1
    assert f"The moderation model in {tmp_path / 'none'} cannot be used" in done.stdout
    monkeypatch.setenv("AI_LOAD_MODELS", "false")
    assert doctor().exit_code == 0


def test_a_package_that_is_not_as_locked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "rq":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "numpy" else known(name)

    known = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    done = doctor()
    assert done.exit_code == 1
    assert "numpy==" in done.stdout
    assert "rq==" in done.stdout
    assert "alembic" not in done.stdout


def test_servers_out_of_reach_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = free_port()
    monkeypatch.setenv("DATABASE_URL", f"postgresql://steno@127.0.0.1:{nobody}/steno")
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{nobody}/0")
    done = doctor()
    assert done.exit_code == 1
    assert "check DATABASE_URL and that it is up" in done.stdout
    assert "check REDIS_URL and that it is up" in done.stdout


def test_addresses_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "http://127.0.0.1")
    assert "check REDIS_URL" in doctor().stdout


def test_a_database_without_tables_is_sent_to_migrate_and_passes_after_it(
    empty_database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert "-> run: steno migrate" in doctor().stdout
    done = CliRunner().invoke(steno, ["migrate"])
    assert done.exit_code == 0, done.output
    assert doctor().exit_code == 0
    back = CliRunner().invoke(steno, ["migrate", "--downgrade", "base"])
    assert back.exit_code == 0, back.output
    assert "at nothing" in back.stdout
    assert "-> run: steno migrate" in doctor().stdout


def test_migrating_without_a_server_migrates_the_embedded_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(steno, ["migrate"])
    assert done.exit_code == 0, done.output
    with EmbeddedPostgres(tmp_path / "data" / "postgres") as postgres:
        found, newest = revisions(postgres.url)
    assert found == newest is not None


def test_a_data_directory_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "file" / "data"))
    done = doctor()
    assert done.exit_code == 1
    assert "-> choose another folder with DATA_DIR" in done.stdout


def test_a_running_stack_and_its_workers_are_seen(tmp_path: Path) -> None:
    with Stack(Settings(), workers=2):
        while "workers     2 running" not in doctor().stdout:
            continue
        assert doctor().exit_code == 0
        assert find_running(tmp_path / "data") is not None
    assert "not running" in doctor().stdout


def test_a_stack_without_workers_is_not_well() -> None:
    with Stack(Settings(), workers=0):
        done = doctor()
        assert done.exit_code == 1
        assert "-> start one with: steno worker" in done.stdout
