"""The whole path over HTTP, with real weights: as the predecessor's clients go it, and beyond."""

from __future__ import annotations

import io
import json
import time
import wave
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import GatewayProcess
from tests.support.service import PATIENCE_S, write_wav
from tests.support.speech import Samples, speak

SENTENCE = "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background."
RUDE = "The captain walked along the beach. You are a fucking idiot. The sheep sleep in the barn."


def submit(gateway: GatewayProcess, wav: bytes, name: str = "talk.wav", **options: str) -> str:
    files = {"file": (name, wav, "audio/wav")}
    answer = gateway.http.post("/api/v1/upload", files=files, data=options)
    assert answer.status_code == 200
    job_id: str = answer.json()["job_id"]
    return job_id


def result(gateway: GatewayProcess, job_id: str, **query: float) -> dict[str, Any]:
    """Poll as the predecessor's clients do: a plain GET, again and again; ``query`` may wait."""
    deadline = time.monotonic() + PATIENCE_S
    status: dict[str, Any] = {"progress": 0, "status": "PENDING"}
    while status["status"] != "COMPLETED":
        assert status["status"] != "FAILED", status
        assert time.monotonic() < deadline, status
        seen = status["progress"]
        status = gateway.http.get(f"/api/v1/status/{job_id}", params=query, timeout=120).json()
        assert seen <= status["progress"] <= 100
        time.sleep(0 if query else 0.1)
    assert (status["progress"], status["error_message"]) == (100, None)
    found: dict[str, Any] = gateway.http.get(f"/api/v1/result/{job_id}").json()
    return found


def wav(folder: Path, samples: Samples) -> bytes:
    return write_wav(folder / "talk.wav", samples).read_bytes()


def test_the_predecessors_clients_work_unchanged(serving: GatewayProcess, tmp_path: Path) -> None:
    job_id = submit(serving, wav(tmp_path, speak(SENTENCE)), language="vi", priority="normal")
    found = result(serving, job_id)
    assert found["word_count"] == len(found["text"].split()) > 0
    assert found["duration_seconds"] == pytest.approx(len(speak(SENTENCE)) / 16_000, abs=0.05)


def test_long_polling_and_every_format_work(serving: GatewayProcess, tmp_path: Path) -> None:
    job_id = submit(serving, wav(tmp_path, speak(SENTENCE)), "Bài nói.wav", language="en")
    assert "smooth planks" in result(serving, job_id, wait=60)["text"].lower()
    for ending in ("json", "txt", "srt", "vtt", "tsv"):
        answer = serving.http.get(f"/api/v1/download/{job_id}", params={"format": ending})
        assert "smooth planks" in answer.text.lower()
        name = f"filename*=UTF-8''B%C3%A0i%20n%C3%B3i.{ending}"
        assert name in answer.headers["content-disposition"]
        stored = serving.folder / "results" / job_id / f"transcript.{ending}"
        # Postgres keeps the keys of a JSON object in an order of its own.
        read = json.loads if ending == "json" else str
        assert read(stored.read_text("utf-8")) == read(answer.text)


def test_only_redacted_words_are_not_recognized(serving: GatewayProcess, tmp_path: Path) -> None:
    options = {"language": "en", "moderation": "true"}
    original = result(serving, submit(serving, wav(tmp_path, speak(RUDE)), **options))
    assert "fucking" in original["text"].lower()
    assert original["moderation"]["summary"]["label"] != "CLEAN"
    query = {"format": "wav", "redact": "true"}
    audio = serving.http.get(f"/api/v1/download/{original['job_id']}", params=query).content
    with wave.open(io.BytesIO(audio)) as file:
        seconds = file.getnframes() / file.getframerate()
    assert seconds == pytest.approx(original["duration_seconds"], abs=0.001)
    redacted = result(serving, submit(serving, audio, **options))
    assert "fuck" not in redacted["text"].lower()
    for word in ("captain", "beach", "sheep", "barn"):
        assert word in original["text"].lower()
        assert word in redacted["text"].lower()
