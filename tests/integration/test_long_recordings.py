"""Recordings that are too long are rejected, whatever their headers claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.db.jobs import Jobs
from common.errors import TooLarge
from tests.support.factories import TENANT, claim_next, new_job, new_recording
from tests.support.file_server import FileServer, Served
from tests.support.gateway import GatewayProcess
from tests.support.service import write_wav
from tests.support.speech import noise
from worker.context import Context
from worker.steps import fetch, plan

THREE_SECONDS = str(3 / 3600)


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"MAX_AUDIO_HOURS": THREE_SECONDS}


@pytest.fixture
def context(worker_context: Callable[..., Context]) -> Context:
    return worker_context(EGRESS_ALLOW="127.0.0.1", MAX_AUDIO_HOURS=THREE_SECONDS)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


def test_uploads_that_are_too_long_are_rejected(gateway: GatewayProcess, tmp_path: Path) -> None:
    for seconds, status in ((3, 200), (4, 413)):
        wav = write_wav(tmp_path / f"{seconds}.wav", noise(seconds)).read_bytes()
        answer = gateway.http.post("/api/v1/upload", files={"file": ("a.wav", wav)})
        assert answer.status_code == status, answer.text
    assert "hours of audio" in answer.json()["detail"]
    assert gateway.incoming == []


def test_a_fetched_recording_that_is_too_long_is_not_stored(
    context: Context, server: FileServer, tmp_path: Path
) -> None:
    wav = write_wav(tmp_path / "long.wav", noise(4)).read_bytes()
    job = new_job(source_url=server.put("/long.wav", Served(wav)))
    Jobs(context.steps._database, TENANT).create(job)
    with pytest.raises(TooLarge, match="hours of audio"):
        fetch.run(context, claim_next(context.steps))
    assert list(context.settings.storage.temp.glob("*.part")) == []


def test_a_plan_ends_where_a_recording_turns_out_to_be_too_long(
    context: Context, tmp_path: Path, weights_dir: Path
) -> None:
    assert (weights_dir / "faster-whisper-base").is_dir()
    recording = new_recording(duration_ms=1_000)
    write_wav(context.storage.incoming(recording.id), noise(4))
    Jobs(context.steps._database, TENANT).submit(recording, new_job(id=uuid4()))
    with pytest.raises(TooLarge, match="hours of audio"):
        plan.run(context, claim_next(context.steps))
    assert list((tmp_path / "uploads" / "chunks").rglob("*.pcm")) == []
