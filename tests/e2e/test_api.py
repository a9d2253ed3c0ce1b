"""The whole path over HTTP, with real weights: as the predecessor's clients go it, and beyond."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import GatewayProcess
from tests.support.service import PATIENCE_S, write_wav
from tests.support.speech import silence, speak

SENTENCE = "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background."


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """Poll as the predecessor's clients do: a plain GET, again and again."""
    deadline = time.monotonic() + PATIENCE_S
    progress = 0
    while time.monotonic() < deadline:
        body: dict[str, Any] = http.get(f"/api/v1/status/{job_id}").json()
        assert progress <= body["progress"] <= 100
        progress = body["progress"]
        if body["status"] in {"COMPLETED", "FAILED"}:
            return body
        time.sleep(0.1)
    raise AssertionError(f"the job did not end: {body}")


def test_a_client_of_the_predecessor_works_unchanged(
    serving: GatewayProcess, tmp_path: Path
) -> None:
    talk = write_wav(tmp_path / "talk.wav", speak(SENTENCE))
    with talk.open("rb") as file:
        answer = serving.http.post(
            "/api/v1/upload",
            files={"file": ("talk.wav", file, "audio/wav")},
            data={"language": "vi", "priority": "normal"},
        )
    assert answer.status_code == 200
    job_id = answer.json()["job_id"]
    status = finished(serving.http, job_id)
    assert (status["status"], status["progress"], status["error_message"]) == (
        "COMPLETED",
        100,
        None,
    )
    result = serving.http.get(f"/api/v1/result/{job_id}").json()
    assert result["word_count"] == len(result["text"].split()) > 0
    assert result["duration_seconds"] == pytest.approx(len(speak(SENTENCE)) / 16_000, abs=0.05)


def test_what_is_said_comes_back_by_long_poll_and_in_every_format(
    serving: GatewayProcess, tmp_path: Path
) -> None:
    talk = write_wav(tmp_path / "talk.wav", speak(SENTENCE))
    files = {"file": ("Bài nói.wav", talk.read_bytes())}
    job = serving.http.post("/api/v1/upload", files=files, data={"language": "en"}).json()
    body: dict[str, Any] = {"status": ""}
    seen = []
    while body["status"] != "COMPLETED":
        assert body["status"] != "FAILED", body
        url = f"/api/v1/status/{job['job_id']}"
        body = serving.http.get(url, params={"wait": 60}, timeout=120).json()
        seen.append(body["progress"])
    assert seen == sorted(seen)
    text = serving.http.get(f"/api/v1/result/{job['job_id']}").json()["text"]
    assert "smooth planks" in text.lower()
    for ending in ("json", "txt", "srt", "vtt", "tsv"):
        answer = serving.http.get(f"/api/v1/download/{job['job_id']}", params={"format": ending})
        assert "smooth planks" in answer.text.lower()
        assert (
            f"filename*=UTF-8''B%C3%A0i%20n%C3%B3i.{ending}"
            in answer.headers["content-disposition"]
        )
        stored = serving.folder / "results" / job["job_id"] / f"transcript.{ending}"
        # Postgres keeps the keys of a JSON object in an order of its own.
        read = json.loads if ending == "json" else str
        assert read(stored.read_text("utf-8")) == read(answer.text)


def test_silence_is_completed_with_no_text_and_a_warning(
    serving: GatewayProcess, tmp_path: Path
) -> None:
    quiet = write_wav(tmp_path / "quiet.wav", silence(5))
    job = serving.http.post("/api/v1/upload", files={"file": quiet.read_bytes()}).json()
    assert finished(serving.http, job["job_id"])["status"] == "COMPLETED"
    result = serving.http.get(f"/api/v1/result/{job['job_id']}").json()
    assert (result["text"], result["word_count"]) == ("", 0)
    assert result["warnings"]
