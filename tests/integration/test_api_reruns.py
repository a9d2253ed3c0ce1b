"""What the gateway promises about transcribing a span again."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select, update

from common.db.deletions import Deletions
from common.db.tables import (
    Deletion,
    Job,
    Part,
    Recording,
    Step,
    Transcription,
    TranscriptRevision,
    WebhookDelivery,
)
from common.domain.glossary import Entry, Glossary
from common.domain.models import ModelName
from common.domain.pipeline import StepKind
from common.domain.request import Cutting, Decoding, Options
from common.domain.values import Span
from common.errors import NoSpeech
from tests.support.api import Api
from tests.support.factories import TENANT, stored_segment

OPTIONS = Options(decoding=Decoding(hotwords="Lan", beam_size=3))


@pytest.fixture
def job_id(api: Api) -> UUID:
    """A completed job of 20 s, with a word in each."""
    job_id = api.submit(options=OPTIONS)
    complete(api)
    return job_id


def complete(api: Api) -> None:
    texts = [f" word{at}" for at in range(20)]
    words = [[text, 1_000 * at, 1_000 * (at + 1), 0.9] for at, text in enumerate(texts)]
    api.complete(2, segments=[stored_segment(0, 20_000, "".join(texts), words=words)])


def rerun(api: Api, job_id: object, status: int = 202, **wanted: Any) -> Any:
    body = {"start": 2.0, "end": 8.0} | wanted
    return api.ask("POST", f"jobs/{job_id}/rerun", status, json=body).json()


def test_a_rerun_is_a_job_of_its_own_that_changes_the_transcript_of_another(
    api: Api, job_id: UUID
) -> None:
    made = rerun(api, job_id, hotwords="Minh", language="vi")
    assert (made["kind"], made["source_job_id"], made["status"]) == (
        "rerun",
        str(job_id),
        "PENDING",
    )
    assert (made["language"], made["model"], made["duration_seconds"]) == ("vi", "base", 6.0)
    with api.database.transaction() as session:
        stored = session.get_one(Job, UUID(made["job_id"]))
        options = Options.from_json(stored.options)
        assert stored.recording_id == session.get_one(Job, job_id).recording_id
    assert options.decoding == Decoding(hotwords="Minh", beam_size=3)
    assert options.span == Span(2_000, 8_000)
    listed = {it["job_id"] for it in api.get("jobs")["jobs"]}
    assert str(job_id) in listed
    assert made["job_id"] not in listed
    assert [it["job_id"] for it in api.get("jobs", source_job_id=job_id)["jobs"]] == [
        made["job_id"]
    ]
    assert str(job_id) in api.get(f"result/{made['job_id']}", 409)["detail"]
    api.download(made["job_id"], 409)


def test_the_answer_has_the_whole_words_that_are_transcribed_again(api: Api, job_id: UUID) -> None:
    made = rerun(api, job_id, start=2.5, end=7.2)
    assert (made["span"], made["duration_seconds"]) == ({"start": 2.0, "end": 8.0}, 6.0)
    assert api.get(f"status/{made['job_id']}")["span"] == {"start": 2.0, "end": 8.0}
    assert api.get(f"status/{job_id}")["span"] is None


LANGUAGES = ("en", "vi")
OF_BOTH = {language: (ModelName("faster-whisper", "base"),) for language in LANGUAGES}


@pytest.mark.parametrize(
    ("wanted", "languages", "language", "models"),
    [
        ({"beam_size": 2}, LANGUAGES, "auto", OF_BOTH),
        ({"model": "base"}, LANGUAGES, "auto", {}),
        ({"engine": "faster-whisper"}, LANGUAGES, "auto", {}),
        ({"model": "base", "language": "vi"}, (), "vi", {}),
        ({"language": "vi"}, (), "vi", {}),
        ({"model": "base", "language": "auto"}, (), "auto", {}),
    ],
)
def test_the_languages_stay_unless_one_is_given(
    api: Api,
    wanted: dict[str, Any],
    languages: tuple[str, ...],
    language: str,
    models: dict[str, Any],
) -> None:
    job_id = api.submit(options=Options(languages=LANGUAGES, models=OF_BOTH), language="auto")
    complete(api)
    made = rerun(api, job_id, **wanted)
    options = options_of(api, made)
    assert (options.languages, made["language"], options.models) == (languages, language, models)


NAMES = Glossary("names", (Entry("Hà Nội"), Entry("Stenopool", ("steno pool",))), rewrite=True)
GERMAN = Glossary("german", (Entry("Grüße"),), language="de")


@pytest.mark.parametrize(
    ("wanted", "hotwords", "glossaries"),
    [
        ({}, "Lan, Hà Nội, Stenopool, Grüße", (NAMES, GERMAN)),
        ({"hotwords": "Minh"}, "Minh, Hà Nội, Stenopool, Grüße", (NAMES, GERMAN)),
        ({"hotwords": "Minh", "language": "en"}, "Minh, Hà Nội, Stenopool", (NAMES,)),
    ],
)
def test_hotwords_come_before_those_of_the_glossaries(
    api: Api, wanted: dict[str, Any], hotwords: str, glossaries: tuple[Glossary, ...]
) -> None:
    before = Decoding(hotwords="Lan, Hà Nội, Stenopool, Grüße")
    job_id = api.submit(options=Options(decoding=before, glossaries=(NAMES, GERMAN)))
    complete(api)
    options = options_of(api, rerun(api, job_id, **wanted))
    assert (options.decoding.hotwords, options.glossaries) == (hotwords, glossaries)
    assert not options.glossary_truncated


def test_what_does_not_fit_beside_the_hotwords_is_said(api: Api) -> None:
    job_id = api.submit(options=Options(glossaries=(NAMES,)))
    complete(api)
    assert options_of(api, rerun(api, job_id, hotwords="Minh " * 90)).glossary_truncated


def options_of(api: Api, made: Any) -> Options:
    with api.database.transaction() as session:
        return Options.from_json(session.get_one(Job, UUID(made["job_id"])).options)


def test_a_request_that_is_sent_again_creates_one_rerun(api: Api, job_id: UUID) -> None:
    def send(status: int = 202, **change: Any) -> httpx.Response:
        body = {"start": 2.0, "end": 8.0} | change
        headers = {"Idempotency-Key": "k"}
        return api.ask("POST", f"jobs/{job_id}/rerun", status, json=body, headers=headers)

    first, again = send(), send()
    assert first.json()["job_id"] == again.json()["job_id"]
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert send(409, end=9.0).json()["code"] == "idempotency_conflict"


def test_one_rerun_of_a_job_runs_at_a_time(api: Api, job_id: UUID) -> None:
    first = rerun(api, job_id)["job_id"]
    refused = rerun(api, job_id, 409, start=12.0, end=13.0)
    assert refused["code"] == "conflict"
    assert first in refused["detail"]
    api.ask("POST", f"jobs/{first}/cancel")
    rerun(api, job_id)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"start": 5.0, "end": 20.1}, "end"),
        ({"start": 5.0, "end": 5.05}, "end"),
        ({"start": 5.0, "end": 4.0}, "end"),
        ({"start": -1.0}, "start"),
        ({"start": 1e308, "end": 1.1e308}, "start"),
        ({"model": "no-such-model"}, "model"),
        ({"language": "klingon"}, "language"),
        ({"beam_size": 99}, "beam_size"),
        ({"task": "translate"}, "task"),
    ],
)
def test_an_impossible_rerun_names_its_field(
    api: Api, job_id: UUID, wanted: dict[str, Any], field: str
) -> None:
    assert field in rerun(api, job_id, 422, **wanted)["detail"]
    assert api.count(Job) == 1


def test_whisper_gets_no_longer_windows_than_it_takes(api: Api) -> None:
    options = Options(cutting=Cutting(window_ms=60_000))
    job_id = api.submit(options=options, engine="sherpa-onnx", model="vi-30m", language="vi")
    api.complete(1)
    with api.database.transaction() as session:  # its plan was that of another model
        session.execute(update(Job).values(engine="sherpa-onnx", model="vi-30m"))
    made = rerun(api, job_id, engine="faster-whisper", model="base")
    with api.database.transaction() as session:
        stored = session.get_one(Job, UUID(made["job_id"]))
        assert Options.from_json(stored.options).cutting == Cutting(window_ms=30_000)


def test_the_best_model_may_be_of_another_engine(api: Api) -> None:
    api.submit(engine="sherpa-onnx", model="vi-30m", language="vi")
    api.complete(1)
    with api.database.transaction() as session:
        session.execute(update(Job).values(engine="sherpa-onnx", model="vi-30m"))
        job_id = session.scalars(select(Job.id)).one()
    made = rerun(api, job_id, model="auto")
    assert (made["engine"], made["language"]) == ("faster-whisper", "en")


def test_of_a_job_that_detects_a_language_a_span_is_transcribed(api: Api) -> None:
    job_id = api.submit(options=Options(detect_in=Span(0, 5_000)))
    api.complete(1)
    made = rerun(api, job_id)
    with api.database.transaction() as session:
        stored = session.get_one(Job, UUID(made["job_id"]))
        assert Options.from_json(stored.options).detect_in is None


def test_only_a_transcript_of_ones_own_is_changed(api: Api, job_id: UUID) -> None:
    unfinished = api.submit()
    assert rerun(api, unfinished, 409)["code"] == "not_ready"
    for unknown in (api.submit(tenant="another"), uuid4()):
        rerun(api, unknown, 404)
    nested = rerun(api, job_id)["job_id"]
    for refused in (rerun(api, nested, 409), api.get(f"jobs/{nested}/transcript", 409)):
        assert (refused["code"], str(job_id) in refused["detail"]) == ("conflict", True)


def test_without_speech_the_transcript_stays_and_the_rerun_says_why(api: Api, job_id: UUID) -> None:
    endpoint = {"url": "https://93.184.216.34/hook", "events": ["rerun.failed", "rerun.completed"]}
    api.ask("POST", "webhooks", 201, json=endpoint)
    made = rerun(api, job_id)["job_id"]
    api.fail(NoSpeech(start=2.0, end=8.0))
    status = api.get(f"status/{made}")
    assert (status["status"], status["error_code"]) == ("FAILED", "no_speech")
    assert "2.0 s to 8.0 s" in status["error_message"]
    assert api.count(TranscriptRevision) == 1
    assert api.ask("POST", f"jobs/{made}/retry").json()["status"] == "PENDING"
    with api.database.transaction() as session:
        assert set(session.scalars(select(WebhookDelivery.event))) == {"rerun.failed"}


def test_a_rerun_is_deleted_with_its_source_and_the_recording_once(api: Api, job_id: UUID) -> None:
    made = UUID(rerun(api, job_id)["job_id"])
    api.plan(1)
    Deletions(api.database, TENANT).delete(job_id)
    for table in (Job, Recording, Step, Part, Transcription):
        assert api.count(table) == 0
    with api.database.transaction() as session:
        assert session.get_one(Deletion, job_id).recording_id is not None
        assert session.get_one(Deletion, made).recording_id is None


def test_a_deleted_rerun_leaves_the_recording(api: Api, job_id: UUID) -> None:
    made = rerun(api, job_id)["job_id"]
    api.ask("DELETE", f"jobs/{made}", httpx.codes.NO_CONTENT)
    assert api.count(Recording) == 1
    assert api.get(f"result/{job_id}")["revision"] == 1
    assert all(api.claim().kind == StepKind.PLAN for _ in [rerun(api, job_id)])
