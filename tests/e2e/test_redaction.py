"""A recording that comes back redacted: nobody, not even the engine, hears the word in it."""

from __future__ import annotations

import io
import time
import wave
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import GatewayProcess
from tests.support.service import PATIENCE_S, write_wav
from tests.support.speech import speak

SENTENCE = (
    "The captain walked along the beach. You are a fucking idiot. The sheep sleep in the barn."
)


def transcribed(gateway: GatewayProcess, recording: bytes) -> dict[str, Any]:
    files = {"file": ("talk.wav", recording)}
    options = {"language": "en", "moderation": "true"}
    job = gateway.http.post("/api/v1/upload", files=files, data=options).json()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        url = f"/api/v1/status/{job['job_id']}"
        status = gateway.http.get(url, params={"wait": 30}).json()
        if status["status"] == "COMPLETED":
            result: dict[str, Any] = gateway.http.get(f"/api/v1/result/{job['job_id']}").json()
            return result
        assert status["status"] != "FAILED", status
    raise AssertionError(f"the job did not end: {status}")


def test_a_covered_word_is_not_heard_and_the_rest_is(
    serving: GatewayProcess, tmp_path: Path
) -> None:
    talk = write_wav(tmp_path / "talk.wav", speak(SENTENCE))
    said = transcribed(serving, talk.read_bytes())
    assert "fucking" in said["text"].lower()
    assert said["moderation"]["summary"]["label"] != "CLEAN"
    query = {"format": "wav", "redact": "true"}
    redacted = serving.http.get(f"/api/v1/download/{said['job_id']}", params=query).content
    with wave.open(io.BytesIO(redacted)) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(
            said["duration_seconds"], abs=0.001
        )
    heard = transcribed(serving, redacted)
    assert "fuck" not in heard["text"].lower()
    for word in ("captain", "beach", "sheep", "barn"):
        assert word in said["text"].lower()
        assert word in heard["text"].lower()
