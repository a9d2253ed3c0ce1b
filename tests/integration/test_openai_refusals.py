"""What OpenAI's routes reject, without OpenAI's client."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.support.audio_files import make_wav, tone
from tests.support.gateway import GatewayProcess

KEY = "the-operators-own-key-0123456789"
SHOWN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"GATEWAY_API_KEY": KEY}


def refused(gateway: GatewayProcess, model: str) -> tuple[int, dict[str, Any]]:
    answer = gateway.http.post(
        "/v1/audio/transcriptions",
        data={"model": model},
        files={"file": ("a.wav", make_wav(tone(1.0).tobytes()))},
        headers=SHOWN,
    )
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("model", ["/", "/base", "whisper.cpp/", "whisper.cpp/ ", " ", "a/b/c"])
def test_a_name_that_only_looks_like_a_model_is_not_taken_for_the_default(
    gateway: GatewayProcess, model: str
) -> None:
    status, error = refused(gateway, model)
    assert (status, error["param"]) == (400, "model")


@pytest.mark.parametrize("model", ["vosk/base", "gpt-4o-transcribe-mini", "../base"])
def test_a_model_of_no_engine_here_is_not_found(gateway: GatewayProcess, model: str) -> None:
    status, error = refused(gateway, model)
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")


def test_an_upload_without_a_key_is_rejected_before_it_is_sent(gateway: GatewayProcess) -> None:
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        line.sendall(head.encode() + b"--x\r\n")
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    assert b" 401 " in answer.splitlines()[0]
    assert b"connection: close" in answer.lower()
