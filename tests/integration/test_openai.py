"""OpenAI's own client, given this gateway's address, works: with real weights behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import openai
import pytest
import redis
from openai import OpenAI

from common.db.database import Database
from common.db.steps import Steps
from common.errors import DecodeFailed
from common.redis.events import Events
from tests.support.factories import claim_next, make_steps
from tests.support.gateway import GatewayProcess
from tests.support.node import install_clients, run_client
from tests.support.service import wait_until, write_wav
from tests.support.speech import silence, speak

SENTENCE = "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background."


@pytest.fixture(scope="module")
def client(serving: GatewayProcess) -> Iterator[OpenAI]:
    with client_of(serving) as client:
        yield client


def client_of(gateway: GatewayProcess, **options: Any) -> OpenAI:
    return OpenAI(api_key="none is needed", base_url=f"{gateway.url}/v1", timeout=120, **options)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("talk") / "talk.wav", speak(SENTENCE))


def test_a_recording_is_answered_with_its_text_and_its_job(
    serving: GatewayProcess, client: OpenAI, talk: Path
) -> None:
    answer = client.audio.transcriptions.with_raw_response.create(
        file=talk, model="whisper-1", language="en"
    )
    transcription = answer.parse()
    assert "glue the sheet" in transcription.text.lower()
    assert transcription.usage is not None
    assert transcription.usage.type == "duration"
    job = serving.http.get(f"/api/v1/status/{answer.headers['x-job-id']}").json()
    assert (job["status"], job["model"], job["language"]) == ("COMPLETED", "base", "en")


def test_the_language_is_detected_where_none_is_given(client: OpenAI, talk: Path) -> None:
    transcription = client.audio.transcriptions.create(
        file=talk, model="base", response_format="verbose_json"
    )
    assert transcription.language == "english"
    assert transcription.duration == pytest.approx(len(speak(SENTENCE)) / 16_000, abs=0.1)
    assert transcription.words is None
    assert transcription.segments is not None
    assert " ".join(segment.text for segment in transcription.segments) == transcription.text
    assert all(segment.avg_logprob < 0 for segment in transcription.segments)


def test_words_have_times_where_they_are_requested(client: OpenAI, talk: Path) -> None:
    transcription = client.audio.transcriptions.create(
        file=talk,
        model="base",
        language="en",
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    assert transcription.segments is None
    assert transcription.words is not None
    assert " ".join(word.word for word in transcription.words) == transcription.text
    assert all(word.start <= word.end for word in transcription.words)


@pytest.mark.parametrize(
    ("name", "start"), [("srt", "1\n00:00:00,"), ("vtt", "WEBVTT\n"), ("text", "")]
)
def test_subtitles_and_text_are_plain(client: OpenAI, talk: Path, name: Any, start: str) -> None:
    text = client.audio.transcriptions.create(
        file=talk, model="base", language="en", response_format=name
    )
    assert isinstance(text, str)
    assert text.startswith(start)
    assert "glue the sheet" in text.lower()


def test_a_stream_makes_up_the_whole_text(client: OpenAI, tmp_path: Path) -> None:
    audio = np.concatenate([speak(SENTENCE), silence(2.0), speak("It is easy to tell the depth.")])
    path = write_wav(tmp_path / "talk.wav", audio)
    with client.audio.transcriptions.create(
        file=path, model="base", language="en", stream=True
    ) as stream:
        events = list(stream)
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text  # type: ignore[union-attr]
    assert "glue the sheet" in done.text.lower()


@pytest.fixture(scope="module")
def dialog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices."""
    said = "The birch canoe slid on the smooth planks."
    pieces = [speak(said), silence(0.8), speak(said, "en+f4"), silence(0.8), speak(said)]
    return write_wav(tmp_path_factory.mktemp("dialog") / "dialog.wav", np.concatenate(pieces))


@pytest.mark.usefixtures("diarization_weights")
def test_a_diarized_answer_says_who_speaks(client: OpenAI, dialog: Path) -> None:
    found = client.audio.transcriptions.create(
        file=dialog,
        model="gpt-4o-transcribe-diarize",
        language="en",
        response_format="diarized_json",
        extra_body={"num_speakers": 2},
    )
    assert [who for who, _ in groupby(it.speaker for it in found.segments)] == ["A", "B", "A"]
    assert " ".join(it.text for it in found.segments) == found.text
    assert all(it.start < it.end <= found.duration for it in found.segments)
    assert found.usage is not None


@pytest.mark.usefixtures("diarization_weights")
def test_a_diarized_stream_ends_with_who_speaks(client: OpenAI, dialog: Path) -> None:
    with client.audio.transcriptions.create(
        file=dialog,
        model="gpt-4o-transcribe-diarize",
        language="en",
        response_format="diarized_json",
        stream=True,
    ) as stream:
        *events, done = list(stream)
    assert done.type == "transcript.text.done"
    segments = [each for each in events if each.type == "transcript.text.segment"]
    assert [who for who, _ in groupby(it.speaker for it in segments)] == ["A", "B", "A"]
    deltas = [each.delta for each in events if each.type == "transcript.text.delta"]
    assert "".join(deltas) == done.text == " ".join(it.text for it in segments)


# OpenAI wants its client to call it no more; those that do are to be answered.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_translation_is_made_by_the_translating_task(
    serving: GatewayProcess, client: OpenAI, talk: Path
) -> None:
    answer = client.audio.translations.with_raw_response.create(file=talk, model="whisper-1")
    assert "glue the sheet" in answer.parse().text.lower()
    job_id = answer.headers["x-job-id"]
    manifest = serving.http.get(f"/api/v1/result/{job_id}").json()["manifest"]
    assert manifest["options"]["decoding"]["task"] == "translate"


def test_the_models_are_listed_by_the_names_that_can_be_requested(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"whisper-1", "base", "whisper.cpp/tiny"} <= set(names)
    assert client.models.retrieve("whisper.cpp/tiny").id == "whisper.cpp/tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-6")


def test_a_model_may_name_its_engine(serving: GatewayProcess, client: OpenAI, talk: Path) -> None:
    answer = client.audio.transcriptions.with_raw_response.create(
        file=talk, model="whisper.cpp/tiny", language="en"
    )
    job = serving.http.get(f"/api/v1/status/{answer.headers['x-job-id']}").json()
    assert (job["engine"], job["model"]) == ("whisper.cpp", "tiny")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"response_format": "docx"}, "response_format"),
        ({"language": "tlh"}, "language"),
        ({"temperature": 2}, "temperature"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"extra_body": {"num_speakers": 2}}, "num_speakers"),
        (
            {"response_format": "diarized_json", "extra_body": {"max_speakers": 99}},
            "max_speakers",
        ),
    ],
)
def test_an_unsupported_option_is_named(
    client: OpenAI, talk: Path, wrong: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.audio.transcriptions.create(file=talk, model="base", **wrong)
    assert refusal.value.param == param
    assert param in refusal.value.message
    assert refusal.value.type == "invalid_request_error"


def test_missing_weights_are_not_found_and_others_are_named(client: OpenAI, talk: Path) -> None:
    for model in ("Systran/faster-whisper-small", "gpt-6"):
        with pytest.raises(openai.NotFoundError, match=r"\bbase\b") as refusal:
            client.audio.transcriptions.create(file=talk, model=model)
        assert refusal.value.code == "model_not_found"
        assert refusal.value.param == "model"


# --- other clients ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node() -> None:
    install_clients()


def test_a_locale_and_a_name_of_openais_are_accepted_for_language_and_model(
    serving: GatewayProcess, client: OpenAI, talk: Path
) -> None:
    answer = client.audio.transcriptions.with_raw_response.create(
        file=talk, model="gpt-4o-mini-transcribe", language="en-US"
    )
    job = serving.http.get(f"/api/v1/status/{answer.headers['x-job-id']}").json()
    assert (job["status"], job["model"], job["language"]) == ("COMPLETED", "base", "en")
    assert client.models.retrieve("openai/whisper-base").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("openai/whisper-small")


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("stream", [False, True])
def test_node_sends_the_file_first(serving: GatewayProcess, talk: Path, stream: bool) -> None:
    options = {"model": "whisper-1", "language": "en", "include": ["logprobs"], "stream": stream}
    answer = run_client("transcribe", f"{serving.url}/v1", str(talk), json.dumps(options))
    last = answer["data"][-1] if stream else answer["data"]
    assert "glue the sheet" in last["text"].lower()
    assert answer["headers"]["x-ignored-parameters"] == "include[]"


FILE = "file"
MODEL, LANGUAGE = ("model", "whisper-1"), ("language", "en")
JSON, VERBOSE = ("response_format", "json"), ("response_format", "verbose_json")
WORDS, SEGMENTS = (("timestamp_granularities[]", it) for it in ("word", "segment"))
HABITS = {
    "Open WebUI": ([MODEL, LANGUAGE, (FILE, "")], ""),
    "Open WebUI, later": ([MODEL, VERBOSE, SEGMENTS, (FILE, "")], ""),
    "n8n": ([MODEL, LANGUAGE, ("temperature", "0"), (FILE, "")], ""),
    "Home Assistant": (
        [
            MODEL,
            ("prompt", "At home."),
            JSON,
            ("stream", "false"),
            ("temperature", "0.0"),
            (FILE, ""),
        ],
        "",
    ),
    "LiveKit": ([("model", "gpt-4o-mini-transcribe"), LANGUAGE, JSON, (FILE, "")], ""),
    "subtitles": (
        [
            (FILE, ""),
            ("temperature", "0"),
            WORDS,
            SEGMENTS,
            ("model", "openai/whisper-base"),
            ("language", "english"),
            ("prompt", ""),
            ("user", "somebody"),
            VERBOSE,
        ],
        "user",
    ),
    "Speakr": (
        [
            ("model", "gpt-4o-transcribe"),
            (FILE, ""),
            ("chunking_strategy", "auto"),
            ("known_speaker_names[]", "Anna"),
            ("known_speaker_references[]", f"data:audio/wav;base64,{'A' * 40_000}"),
        ],
        "chunking_strategy, known_speaker_names[], known_speaker_references[]",
    ),
    "speaches": (
        [
            (FILE, ""),
            ("model", "Systran/faster-whisper-base"),
            ("timestamp_granularities", "segment"),
            ("vad_filter", "true"),
            ("vad_filter", "false"),
            ("Größe, und", "x"),
            VERBOSE,
        ],
        "vad_filter, Gr%C3%B6%C3%9Fe%2C%20und",
    ),
}
"""What clients send, in their order, and what of it is ignored."""


@pytest.mark.parametrize("name", HABITS)
def test_what_clients_send_by_habit_is_accepted_in_any_order(
    serving: GatewayProcess, talk: Path, name: str
) -> None:
    fields, ignored = HABITS[name]
    parts: list[tuple[str, Any]] = [
        (field, ("talk.wav", talk.read_bytes()) if field == FILE else (None, value))
        for field, value in fields
    ]
    assert len(talk.read_bytes()) > 1 << 17  # more than the gateway reads at once
    answer = serving.http.post("/v1/audio/transcriptions", files=parts)
    assert answer.status_code == httpx.codes.OK, answer.text
    assert "glue the sheet" in answer.json()["text"].lower()
    assert answer.headers.get("x-ignored-parameters", "") == ignored


def test_a_file_without_audio_is_rejected(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refusal:
        client.audio.transcriptions.create(file=("a.wav", b"no audio"), model="base")
    assert refusal.value.status_code == 415
    assert refusal.value.body["code"] == "not_audio"  # type: ignore[index]


def test_a_wrong_key_has_its_own_error(alone: Callable[..., GatewayProcess], talk: Path) -> None:
    locked = alone(GATEWAY_API_KEY="k" * 40)
    with pytest.raises(openai.AuthenticationError) as refusal:
        client_of(locked).audio.transcriptions.create(file=talk, model="base")
    assert refusal.value.code == "invalid_api_key"
    with_key = OpenAI(api_key="k" * 40, base_url=f"{locked.url}/v1")
    assert "whisper-1" in [model.id for model in with_key.models.list()]


# --- jobs that do not end well, with nobody but the test at work --------------------------------


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def jobs(gateway: GatewayProcess) -> list[UUID]:
    listed = gateway.http.get("/api/v1/jobs").json()["jobs"]
    return [UUID(job["job_id"]) for job in listed]


def test_a_job_that_takes_too_long_goes_on_by_itself_and_is_named(
    alone: Callable[..., GatewayProcess], talk: Path
) -> None:
    gateway = alone(OPENAI_WAIT="0.3")
    with pytest.raises(openai.InternalServerError) as late:
        client_of(gateway).audio.transcriptions.create(file=talk, model="base")
    assert late.value.status_code == 504
    assert late.value.code == "still_under_way"
    # The client has not sent it again, as it does after other errors of the server's.
    (job_id,) = jobs(gateway)
    assert late.value.response.headers["x-job-id"] == str(job_id)
    assert gateway.http.get(f"/api/v1/status/{job_id}").json()["status"] == "PENDING"


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_fails_says_why(
    alone: Callable[..., GatewayProcess],
    steps: Steps,
    talk: Path,
    pool: ThreadPoolExecutor,
    stream: bool,
) -> None:
    gateway = alone()

    def ask() -> Any:
        with client_of(gateway) as client:
            answer = client.audio.transcriptions.create(file=talk, model="base", stream=stream)
            return list(answer) if stream else answer

    asking = pool.submit(ask)
    wait_until(lambda: jobs(gateway), "the job")
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="it is empty"))
    with redis.Redis.from_url(gateway.redis_url) as connection:
        Events(connection).job_changed(claim.job_id)
    with pytest.raises(openai.APIError, match="it is empty"):
        asking.result(timeout=60)
    assert len(jobs(gateway)) == 1


def test_a_stream_of_a_job_that_is_deleted_ends_with_an_error(
    alone: Callable[..., GatewayProcess], talk: Path
) -> None:
    gateway = alone()
    answer = client_of(gateway).audio.transcriptions.create(file=talk, model="base", stream=True)
    (job_id,) = jobs(gateway)
    gateway.http.delete(f"/api/v1/jobs/{job_id}")
    with pytest.raises(openai.APIError, match=f"There is no job {job_id}"):
        list(answer)


def test_a_client_that_disconnects_loses_no_job_and_frees_its_place(
    alone: Callable[..., GatewayProcess], talk: Path
) -> None:
    gateway = alone(EVENTS_MAX_WATCHERS="1")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{gateway.url}/v1/audio/transcriptions",
            files={"file": talk.read_bytes()},
            data={"model": "base"},
            timeout=httpx.Timeout(60, read=1),
            trust_env=False,
        )
    (job_id,) = jobs(gateway)
    assert gateway.http.get(f"/api/v1/status/{job_id}").json()["status"] == "PENDING"

    def can_watch() -> bool:
        with gateway.http.stream("GET", f"/api/v1/jobs/{job_id}/events") as answer:
            return answer.status_code == httpx.codes.OK

    wait_until(can_watch, "the place of the client that disconnected")
    assert "Traceback" not in gateway.log_file.read_text()


def test_an_unknown_route_answers_an_error_of_openais_form(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/v1/chat/completions", json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
