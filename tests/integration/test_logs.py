"""What the logs contain, and what they must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.frozen import SENTENCE
from tests.support.gateway import GatewayProcess
from tests.support.s3 import SECRET, S3Server
from tests.support.service import Service, wait_until, write_wav
from tests.support.speech import speak

REQUEST_ID = "request-that-is-followed"
KEY = "key-of-the-gateway-in-the-tests-of-the-logs"
QUERY = "hidden-in-the-query"


def lines(*logs: Path) -> list[dict[str, Any]]:
    """Every line of every log is one object."""
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


@pytest.mark.usefixtures("weights_dir")
def test_a_request_is_followed_into_the_workers_and_no_secret_or_text_is_logged(
    tmp_path: Path, database_url: str, redis_url: str, s3_server: S3Server
) -> None:
    settings = {
        **s3_server.settings(),
        "LOG_JSON": "true",
        "LOG_LEVEL": "DEBUG",
        "GATEWAY_API_KEY": KEY,
    }
    folder = tmp_path / "gateway"
    folder.mkdir()
    recording = write_wav(tmp_path / "private-name.wav", speak(SENTENCE))
    with (
        GatewayProcess(folder, database_url, redis_url, **settings) as gateway,
        Service(database_url, redis_url, tmp_path, **settings) as service,
    ):
        gateway.http.headers["Authorization"] = f"Bearer {KEY}"
        (worker,) = service.serve().workers()
        job_id = gateway.http.post(
            f"/api/v1/upload?token={QUERY}",
            files={"file": (recording.name, recording.read_bytes())},
            data={
                "language": "en",
                "model": "base",
                "webhook_url": f"https://receiver.invalid/hook?token={QUERY}",
            },
            headers={"X-Request-Id": REQUEST_ID},
        ).json()["job_id"]

        def document() -> dict[str, Any]:
            found: dict[str, Any] = gateway.http.get(f"/api/v1/result/{job_id}").json()
            return found

        text = wait_until(lambda: document().get("text"), "the text").split()
        original = gateway.http.get(f"/api/v1/download/{job_id}?format=original")
        assert original.is_redirect
        # It logs the job's webhook message at some time.
        wait_until(lambda: '"process": "dispatcher"' in service.log(), "a line of the dispatcher's")
        assert worker.is_running()
    gateway_log, service_log = gateway.log_file, service.folder / "service.log"
    followed = [line for line in lines(gateway_log) if line.get("request_id") == REQUEST_ID]
    assert any(line.get("job_id") == job_id for line in followed)
    worked = [line for line in lines(service_log) if line.get("request_id") == REQUEST_ID]
    assert {line["step"] for line in worked if "step" in line} >= {"plan", "transcribe", "merge"}
    assert {line["job_id"] for line in worked} == {job_id}
    assert {line["process"].split(":")[0] for line in worked} == {"worker", "engine"}
    assert any(line["process"] == "dispatcher" for line in lines(service_log))

    logged = gateway_log.read_text() + service_log.read_text()
    words = {word.strip(".,").lower() for word in text if len(word) > 3}
    assert "quick" in words
    messages = " ".join(line["message"] for line in lines(gateway_log, service_log))
    assert not words & set(messages.lower().split())
    for secret in (KEY, SECRET, QUERY, "X-Amz-Signature", "whsec_", "private-name", SENTENCE):
        assert secret not in logged
