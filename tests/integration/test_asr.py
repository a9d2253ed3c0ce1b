"""Clients of whisper-asr-webservice work unchanged: with real weights behind them."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import httpx
import pytest
import requests

from tests.support.audio_files import make_wav
from tests.support.gateway import GatewayProcess
from tests.support.speech import pcm16, speak

SENTENCE = "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background."
FRENCH = (
    "Bonjour à tous, et merci d'être venus. Nous allons parler aujourd'hui de la mer et du vent."
)
KEY = "the-operators-own-key-0123456789"
BASIC = httpx.BasicAuth("anybody", KEY)


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"GATEWAY_API_KEY": KEY, "OPENAI_WAIT": "0.1", "DEFAULT_MODEL": "base"}


@pytest.fixture(scope="module")
def samples() -> bytes:
    """What FFmpeg makes for Bazarr: s16le, 16 kHz, mono, and no header."""
    return pcm16(speak(SENTENCE))


def ask(gateway: GatewayProcess, file: bytes, **params: Any) -> httpx.Response:
    files = {"audio_file": ("talk.wav", file)}
    return gateway.http.post("/asr", params=params, files=files, auth=BASIC)


def job_of(gateway: GatewayProcess, answer: httpx.Response | requests.Response) -> Any:
    path = f"/api/v1/status/{answer.headers['x-job-id']}"
    return gateway.http.get(path, auth=BASIC).json()


# --- as clients ask -----------------------------------------------------------------------------


def test_bazarr_gets_its_subtitles(serving: GatewayProcess, samples: bytes) -> None:
    endpoint = f"http://bazarr:{KEY}@127.0.0.1:{serving.port}"
    session = requests.Session()
    session.trust_env = False
    params = {"task": "transcribe", "language": "en", "output": "srt", "encode": "false"}
    params["video_file"] = "/media/series/Canoes - S01E02.mkv"

    def send(**changed: str) -> requests.Response:
        return session.post(
            f"{endpoint}/asr",
            params=params | changed,
            files={"audio_file": samples},
            timeout=(5, 3600),
        )

    answer = send()
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"1\n00:00:00,")
    assert b"glue the sheet" in answer.content.lower()
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "x-ignored-parameters" not in answer.headers
    job = job_of(serving, answer)
    assert (job["status"], job["language"]) == ("COMPLETED", "en")
    assert job["filename"] == "Canoes - S01E02.mkv"
    assert job["duration_seconds"] == round(len(samples) / 32) / 1_000
    assert job["warnings"] == []
    # It sends episodes again, also when it wants another form of them.
    again = send()
    assert (again.content, again.headers["idempotent-replayed"]) == (answer.content, "true")
    other = send(output="vtt")
    assert other.text.startswith("WEBVTT")
    assert other.headers["x-job-id"] == answer.headers["x-job-id"]
    kept = serving.http.get(f"/api/v1/download/{job['job_id']}?format=original", auth=BASIC).content
    assert (kept[:4], kept[44:]) == (b"RIFF", samples)
    assert session.get(f"{endpoint}/status").json()["version"].startswith("Stenopool ")


def detect(gateway: GatewayProcess, file: bytes, **params: Any) -> httpx.Response:
    files = {"audio_file": ("audio_file", file)}
    return gateway.http.post("/detect-language", params=params, files=files, auth=BASIC)


def test_a_language_is_detected_and_nothing_transcribed(serving: GatewayProcess) -> None:
    english, french = speak(SENTENCE), speak(FRENCH, "fr")
    both = pcm16(english) + bytes(32_000 * 3) + pcm16(french)
    begins_s = len(pcm16(english)) // 32_000 + 3
    answers = [
        detect(serving, pcm16(english), encode="false"),
        detect(serving, both, encode="false", detect_lang_offset=begins_s),
        detect(serving, both, encode="false", detect_lang_length=begins_s - 2),
    ]
    for answer, (name, code) in zip(
        answers, [("english", "en"), ("french", "fr"), ("english", "en")], strict=True
    ):
        document = answer.raise_for_status().json()
        assert (document["detected_language"], document["language_code"]) == (name, code)
        assert 0 < document["confidence"] <= 1
    job = job_of(serving, answers[0])
    assert (job["status"], job["chunks_total"], job["language"]) == ("COMPLETED", 0, "en")
    assert job["delete_at"] is not None
    again = detect(serving, pcm16(english), encode="false")
    assert again.headers["x-job-id"] == job["job_id"]
    other = detect(serving, both, encode="false", detect_lang_offset=begins_s + 1)
    assert other.headers["x-job-id"] != answers[1].headers["x-job-id"]


def test_where_nobody_speaks_the_language_is_undefined(serving: GatewayProcess) -> None:
    answer = detect(serving, bytes(64_000), encode="false", vad_filter="true")
    unknown = {"detected_language": "Unknown", "language_code": "und", "confidence": 0}
    assert answer.json() == unknown
    assert answer.headers["x-ignored-parameters"] == "vad_filter"


def test_bazarr_translates_to_english(serving: GatewayProcess, samples: bytes) -> None:
    answer = ask(serving, samples, task="translate", language="en", output="srt", encode="false")
    assert "glue the sheet" in answer.text.lower()
    path = f"/api/v1/result/{answer.headers['x-job-id']}"
    manifest = serving.http.get(path, auth=BASIC).json()["manifest"]
    assert manifest["options"]["decoding"]["task"] == "translate"


@pytest.mark.usefixtures("diarization_weights")
def test_speakr_gets_its_segments_with_their_speakers(
    serving: GatewayProcess, samples: bytes
) -> None:
    diarizing = {"diarize": True, "enable_diarization": True, "return_speaker_embeddings": True}
    answer = ask(
        serving,
        make_wav(samples),
        encode=True,
        task="transcribe",
        output="json",
        hotwords="canoe",
        model="Systran/faster-whisper-base",
        min_speakers=1,
        max_speakers=2,
        **diarizing,
    )
    document = answer.json()
    assert "glue the sheet" in document["text"].lower()
    assert document["language"] == "en"
    assert all(
        each["start"] <= each["end"] and each["text"] and each["speaker"] == "SPEAKER_00"
        for each in document["segments"]
    )
    assert not any("words" in each for each in document["segments"])
    assert answer.headers["x-ignored-parameters"] == "return_speaker_embeddings"
    path = f"/api/v1/result/{answer.headers['x-job-id']}"
    options = serving.http.get(path, auth=BASIC).json()["manifest"]["options"]
    assert options["diarize"] == {"minimum": 1, "maximum": 2}
    lines = ask(
        serving,
        make_wav(samples),
        output="txt",
        hotwords="canoe",
        model="base",
        min_speakers=1,
        max_speakers=2,
        diarize=True,
    )
    assert lines.text.startswith("SPEAKER_00: ")
    assert answer.headers["content-disposition"].startswith('attachment; filename="talk.json"')
    health = serving.http.get("/health", auth=BASIC)
    models = serving.http.get("/v1/models", auth=BASIC)
    assert (health.status_code, models.status_code) == (200, 200)


def test_numbers_of_speakers_without_diarization_are_ignored(
    serving: GatewayProcess, samples: bytes
) -> None:
    answer = ask(serving, make_wav(samples), output="json", language="en", max_speakers=2)
    assert answer.headers["x-ignored-parameters"] == "max_speakers"
    assert {each["speaker"] for each in answer.json()["segments"]} == {None}


def test_subgens_clients_get_words(serving: GatewayProcess, samples: bytes) -> None:
    answer = ask(
        serving,
        samples,
        encode="false",
        output="json",
        language="english",
        word_timestamps="true",
        initial_prompt="",
        vad_filter="false",
    )
    words = [word for each in answer.json()["segments"] for word in each["words"]]
    assert " ".join(word["word"] for word in words) == answer.json()["text"]
    assert answer.headers["x-ignored-parameters"] == "vad_filter"


def test_a_file_with_a_header_is_read_by_it_whatever_encode_says(
    serving: GatewayProcess, samples: bytes
) -> None:
    answer = ask(serving, make_wav(samples), encode="false", language="en")
    assert "glue the sheet" in answer.text.lower()
    assert job_of(serving, answer)["duration_seconds"] == round(len(samples) / 32) / 1_000
    refused = ask(serving, samples, encode="true")
    assert refused.status_code == 415
    assert "encode=false" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"task": "summarize"}, "task"),
        ({"output": "docx"}, "output"),
        ({"language": "klingon"}, "language"),
        ({"model": "small"}, "model"),
        ({"encode": "perhaps"}, "encode"),
        ({"diarize": "true", "max_speakers": "99"}, "max_speakers"),
        ({"diarize": "true", "min_speakers": "3", "max_speakers": "2"}, "min_speakers"),
    ],
)
def test_a_wrong_parameter_is_rejected_by_name(
    gateway: GatewayProcess, samples: bytes, wrong: dict[str, str], field: str
) -> None:
    answer = ask(gateway, make_wav(samples), **wrong)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert gateway.incoming == []


def test_a_form_without_the_file_is_rejected_by_its_name(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/asr", files={"file": ("a.wav", b"")}, auth=BASIC)
    assert (answer.status_code, answer.json()["field"]) == (422, "audio_file")


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_may_come_as_a_password(gateway: GatewayProcess) -> None:
    def status(user: str, password: str, **headers: str) -> int:
        sent = {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
        return gateway.http.get("/v1/models", headers=sent | headers).status_code

    assert status("anybody", KEY) == status("", KEY) == status(KEY, "") == 200
    assert status("anybody", f"{KEY}x") == status("", "") == 401
    # A browser adds a password that it knows by itself.
    assert status("anybody", KEY, **{"Sec-Fetch-Site": "cross-site"}) == 401
    assert status("anybody", KEY, **{"Sec-Fetch-Site": "same-origin"}) == 200
    broken = gateway.http.get("/v1/models", headers={"Authorization": "Basic %%%"})
    assert (broken.status_code, broken.headers["www-authenticate"]) == (401, "Bearer")
