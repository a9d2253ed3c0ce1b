"""Recordings that are too long are refused, whatever their headers say of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.db.jobs import Jobs
from common.errors import TooLarge
from common.redis.queue import connect
from common.settings import Settings
from tests.support.factories import TENANT, claim_next, new_job, new_recording
from tests.support.file_server import FileServer, Served
from tests.support.gateway import GatewayProcess
from tests.support.service import write_wav
from tests.support.speech import noise
from worker.compose import build_context
from worker.context import Context
from worker.steps import fetch, plan

THREE_SECONDS = str(3 / 3600)


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"MAX_AUDIO_HOURS": THREE_SECONDS}


@pytest.fixture
def context(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Context:
    """What a worker has."""
    for name, value in {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DATA_DIR": str(tmp_path),
        "EGRESS_ALLOW": "127.0.0.1",
        "MAX_AUDIO_HOURS": THREE_SECONDS,
    }.items():
        monkeypatch.setenv(name, value)
    return build_context(Settings(), connect(redis_url))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


def test_what_claims_to_be_too_long_is_not_taken_in(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    for seconds, status in ((3, 200), (4, 413)):
        sound = write_wav(tmp_path / f"{seconds}.wav", noise(seconds)).read_bytes()
        answer = gateway.http.post("/api/v1/upload", files={"file": ("a.wav", sound)})
        assert answer.status_code == status, answer.text
    assert "hours of audio" in answer.json()["detail"]
    assert gateway.incoming == []


def test_what_was_fetched_and_is_too_long_is_not_kept(
    context: Context, server: FileServer, tmp_path: Path
) -> None:
    sound = write_wav(tmp_path / "long.wav", noise(4)).read_bytes()
    job = new_job(source_url=server.put("/long.wav", Served(sound)))
    Jobs(context.steps._database, TENANT).create(job)
    with pytest.raises(TooLarge, match="hours of audio"):
        fetch.run(context, claim_next(context.steps))
    assert list(context.settings.storage.temp.glob("*.part")) == []


def test_what_turns_out_to_be_too_long_is_not_cut_to_its_end(
    context: Context, tmp_path: Path, weights_dir: Path
) -> None:
    assert (weights_dir / "faster-whisper-base").is_dir()
    recording = new_recording(duration_ms=1_000)
    write_wav(context.storage.incoming(recording.id), noise(4))
    Jobs(context.steps._database, TENANT).submit(recording, new_job(id=uuid4()))
    with pytest.raises(TooLarge, match="hours of audio"):
        plan.run(context, claim_next(context.steps))
    assert list((tmp_path / "uploads" / "chunks").rglob("*.pcm")) == []
