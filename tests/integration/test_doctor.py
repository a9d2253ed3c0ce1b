"""``steno doctor`` and ``steno migrate``: what is wrong is named, with the way to put it right."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner

from common.db.database import Database
from common.db.migrate import revisions
from common.db.vault import VOICES, Cipher
from common.db.voices import NewVoice, Voices
from common.settings import Settings
from scripts.bench.scripted_chat import ChatScript, answer
from scripts.cli.cli import steno
from scripts.stack.embedded import EmbeddedPostgres, free_port
from scripts.stack.running import find_running
from scripts.stack.stack import Stack
from tests.support.service import wait_until


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where all is well, and nothing is running."""
    for name in ("DATABASE_URL", "REDIS_URL", "REDIS_HOST", "DEFAULT_MODEL", "DEFAULT_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MODELS_DIR", str(weights_dir))
    monkeypatch.setenv("API_PORT", str(free_port()))


def run(*arguments: str, fails: bool = False) -> str:
    """What the command prints."""
    done = CliRunner().invoke(steno, arguments)
    assert done.exit_code == fails, done.output
    return done.stdout


def test_a_machine_where_all_is_well_passes_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    assert all(line.startswith("ok") for line in run("doctor").splitlines())
    assert list(tmp_path.iterdir()) == []


def test_a_language_model_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatScript.of(answer("Yes.")) as server:
        monkeypatch.setenv("ENHANCED_AI_BASE_URL", server.base_url)
        monkeypatch.setenv("ENHANCED_AI_MODEL", "m")
        assert "m-1 answers" in run("doctor")
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"MODELS_DIR": "{tmp}"}, ["-> steno models pull vi-68m --engine sherpa-onnx"]),
        (
            {"PHOBERT_ONNX_DIR": "{tmp}/none"},
            ["The moderation model in {tmp}/none cannot be used"],
        ),
        (
            {
                "DATABASE_URL": "postgresql://steno@127.0.0.1:9/steno",
                "REDIS_URL": "redis://127.0.0.1:9/0",
            },
            ["check DATABASE_URL and that it is up", "check REDIS_URL and that it is up"],
        ),
        ({"REDIS_URL": "http://127.0.0.1"}, ["check REDIS_URL"]),
        (
            {"ENHANCED_AI_BASE_URL": "http://127.0.0.1:9/v1", "ENHANCED_AI_MODEL": "m"},
            ["it cannot be reached", "-> check ENHANCED_AI_BASE_URL"],
        ),
        (
            {"ENHANCED_AI_BASE_URL": "http://127.0.0.1:9/v1"},
            ["set ENHANCED_AI_MODEL"],
        ),
        ({"DATA_DIR": "{tmp}/file/data"}, ["-> choose another folder with DATA_DIR"]),
    ],
    ids=[
        *("weights", "moderation model", "servers", "address", "language model"),
        *("no language model", "data directory"),
    ],
)
def test_a_fault_is_named_with_the_way_to_put_it_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], named: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    output = run("doctor", fails=True)
    for each in named:
        assert each.format(tmp=tmp_path) in output


def test_a_gateway_without_moderation_needs_no_moderation_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOBERT_ONNX_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("AI_LOAD_MODELS", "false")
    run("doctor")


@pytest.mark.parametrize(
    ("fetches", "found"),
    [
        ("true", "campplus-zh-en will be fetched for the first job with diarize"),
        ("false", "run: steno models pull pyannote-segmentation-3.0 --engine diarization && steno"),
    ],
)
def test_the_networks_of_speakers_are_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetches: str, found: str
) -> None:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("AUTO_FETCH", fetches)
    (line,) = (it for it in run("doctor", fails=True).splitlines() if it[4:].startswith("speakers"))
    assert line.startswith("ok")
    assert found in line


def test_voices_that_the_key_does_not_open_are_counted(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("VOICE_KEY", "k" * 32)
    assert "voices      0 enrolled" in run("doctor")
    lost = Cipher(VOICES, ["l" * 32])
    with Database(database_url, pool_size=1) as database:
        Voices(database, "default", lost).enrol(
            NewVoice(
                name="Lan",
                embedding=b"voice",
                sampled_ms=10_000,
                network="campplus-zh-en",
                narrow=False,
                consent_by="Lan",
                consent_note=None,
                key_id=None,
                job_id=uuid4(),
                speaker="SPEAKER_00",
            )
        )
    output = run("doctor", fails=True)
    assert "1 enrolled, of which 1 cannot be decrypted: VOICE_KEY lacks the key" in output
    assert "-> set VOICE_KEY to the key that encrypted them" in output
    monkeypatch.delenv("VOICE_KEY")
    assert "cannot be decrypted: VOICE_KEY is not set" in run("doctor", fails=True)


def test_a_package_that_is_not_as_locked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "rq":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "numpy" else known(name)

    known = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    output = run("doctor", fails=True)
    assert "numpy==" in output
    assert "rq==" in output
    assert "alembic" not in output


def test_a_database_without_tables_is_sent_to_migrate_and_passes_after_it(
    empty_database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert "-> run: steno migrate" in run("doctor", fails=True)
    run("migrate")
    run("doctor")
    assert "at nothing" in run("migrate", "--downgrade", "base")
    assert "-> run: steno migrate" in run("doctor", fails=True)


def test_migrating_without_a_server_migrates_the_embedded_one(tmp_path: Path) -> None:
    run("migrate")
    with EmbeddedPostgres(tmp_path / "data" / "postgres") as postgres:
        found, newest = revisions(postgres.url)
    assert found == newest is not None


def test_a_running_stack_and_its_workers_are_seen(tmp_path: Path) -> None:
    with Stack(Settings(), workers=0):
        assert "-> start one with: steno worker" in run("doctor", fails=True)
    with Stack(Settings(), workers=2):
        running = "workers     2 running"
        wait_until(lambda: running in CliRunner().invoke(steno, ["doctor"]).stdout, running)
        run("doctor")
        assert find_running(tmp_path / "data") is not None
    assert "not running" in run("doctor")
