"""A recording can be downloaded as it was sent."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.gateway import GatewayProcess
from tests.support.service import write_wav
from tests.support.speech import noise


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    return write_wav(path, noise(1.0)).read_bytes()


@pytest.fixture(scope="module")
def job_id(gateway: GatewayProcess, sent: bytes) -> str:
    files = {"file": ("Phỏng vấn.wav", sent)}
    answer = gateway.http.post("/api/v1/upload", files=files, data={"model": "base"})
    accepted: str = answer.raise_for_status().json()["job_id"]
    return accepted


def ask(gateway: GatewayProcess, job_id: str, **headers: str) -> httpx.Response:
    path = f"/api/v1/download/{job_id}?format=original"
    return gateway.http.get(path, headers={name.title(): it for name, it in headers.items()})


def test_it_has_its_name_and_type_before_the_job_has_ended(
    gateway: GatewayProcess, job_id: str, sent: bytes
) -> None:
    answer = ask(gateway, job_id)
    assert answer.content == sent
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"Phong van.wav\"; filename*=UTF-8''Ph%E1%BB%8Fng%20v%E1%BA%A5n.wav"
    )


def test_ranges_of_it_may_be_requested(gateway: GatewayProcess, job_id: str, sent: bytes) -> None:
    part = ask(gateway, job_id, range="bytes=100-199")
    assert part.status_code == HTTPStatus.PARTIAL_CONTENT
    assert part.content == sent[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(sent)}"
    assert ask(gateway, job_id, range="lines=1-2").content == sent
    head = gateway.http.head(f"/api/v1/download/{job_id}?format=original")
    assert (head.headers["content-length"], head.content) == (str(len(sent)), b"")
    beyond = ask(gateway, job_id, range=f"bytes={len(sent)}-")
    assert beyond.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


@pytest.mark.parametrize("option", ["redact", "filter_profanity", "flag"])
def test_changing_options_are_rejected(gateway: GatewayProcess, job_id: str, option: str) -> None:
    answer = gateway.http.get(f"/api/v1/download/{job_id}?format=original&{option}=true")
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert answer.json()["field"] == option


def test_missing_recordings_are_404(gateway: GatewayProcess, job_id: str, tmp_path: Path) -> None:
    assert ask(gateway, str(uuid4())).status_code == HTTPStatus.NOT_FOUND
    (stored,) = gateway.recordings
    hidden = stored.rename(tmp_path / "hidden")
    assert ask(gateway, job_id).status_code == HTTPStatus.NOT_FOUND
    hidden.rename(stored)
