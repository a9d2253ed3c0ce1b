"""What the gateway promises about the second AI step; workers and the model's server are real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select, update

from common.db.database import Database
from common.db.enhancements import Enhancing
from common.db.tables import Deletion, Job, Step, StoredEnhancement, WebhookDelivery
from common.domain.request import Options
from common.domain.transcript import Origin
from common.errors import NotModerated
from scripts.bench.scripted_chat import ChatScript, Scripted, SeenChat, answer
from tests.support.api import Api
from tests.support.frozen import SENTENCE
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.obedient_chat import obedient
from tests.support.service import Service, wait_until, write_wav
from tests.support.speech import speak
from tests.support.transcripts import completed_job

TEXTS = ["lan gọi minh", "Minh nói vâng", "Hẹn gặp mai"]
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatScript]:
    with ChatScript(obedient) as server:
        yield server


@pytest.fixture(scope="module")
def gateway_settings(chat: ChatScript) -> dict[str, str]:
    return {"ENHANCED_AI_BASE_URL": chat.base_url, "ENHANCED_AI_MODEL": "m", "MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def workers(gateway: GatewayProcess, gateway_settings: dict[str, str]) -> Iterator[Service]:
    """A worker and a dispatcher behind the module's gateway."""
    url, redis_url, folder = gateway.database_url, gateway.redis_url, gateway.folder
    with Service(url, redis_url, folder, **gateway_settings) as service:
        yield service.serve()


@pytest.fixture
def job_id(api: Api) -> UUID:
    return completed_job(api.database, TEXTS, language="vi")


def enhance(api: Api, job_id: object, task: str, status: int = 202, **more: Any) -> Any:
    body = {"job_id": str(job_id), "task": task} | more
    return api.ask("POST", "enhanced-ai", status, json=body).json()


def ended(api: Api, enhanced_job_id: str) -> Any:
    def look() -> Any:
        found = api.get(f"enhanced-ai/{enhanced_job_id}")
        return found if found["status"] in ENDED else None

    return wait_until(look, "the end")


def refined(api: Api, job_id: UUID) -> None:
    """Wait until the worker has done with the new words."""
    wait_until(lambda: api.get(f"jobs/{job_id}/transcript")["refinement"] in {"done", "failed"})


def test_an_upload_asks_for_enhancements_that_begin_when_it_is_completed(api: Api) -> None:
    wav = ("talk.wav", b"RIFF", "audio/wav")
    for value, named in (("poem", "enhance"), ("translate", "enhance")):
        answer = api.ask("POST", "upload", 422, data={"enhance": value}, files={"file": wav})
        assert named in answer.json()["detail"]
    body = {"enhance": ["summary", "chapters"], "metadata": {"a": 1}}
    made = api.ask("POST", "jobs", 201, json=body).json()["job_id"]
    with api.database.transaction() as session:
        options = session.get_one(Job, UUID(made)).options
    assert [it["task"] for it in options["enhance"]] == ["summary", "chapters"]
    with api.database.transaction() as session:  # as another one, which a worker completes
        enhance = options["enhance"]
        session.delete(session.get_one(Job, UUID(made)))
    job_id = api.submit(options=Options(enhance=tuple(enhance)))
    assert api.get(f"status/{job_id}")["enhancements"] == []
    api.complete()
    listed = api.get(f"status/{job_id}")["enhancements"]
    assert [(it["task"], it["status"]) for it in listed] == [
        ("summary", "PENDING"),
        ("chapters", "PENDING"),
    ]


def test_a_request_that_is_sent_again_creates_one_enhancement(api: Api, job_id: UUID) -> None:
    """Without workers: they stay as they are."""
    other = completed_job(api.database, TEXTS)
    wanted = {"job_id": str(job_id), "task": "summary"}

    def send(status: int = 202, **change: Any) -> httpx.Response:
        headers = {"Idempotency-Key": "k"}
        return api.ask("POST", "enhanced-ai", status, json=wanted | change, headers=headers)

    first, again = send(), send()
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    for change in ({"task": "keywords"}, {"job_id": str(other)}):
        assert send(409, **change).json()["code"] == "idempotency_conflict"
    assert len(api.get("enhanced-ai")["enhancements"]) == 1


def test_enhancements_are_listed_filtered_cancelled_retried_and_deleted(
    api: Api, job_id: UUID
) -> None:
    """The first test: there is no worker yet, so they stay as they are."""
    other = completed_job(api.database, TEXTS)
    ids = [
        enhance(api, source, task)["enhanced_job_id"]
        for source, task in [(job_id, "summary"), (job_id, "keywords"), (other, "summary")]
    ]

    def listed(**query: Any) -> list[str]:
        page = api.get("enhanced-ai", **query)
        return [it["enhanced_job_id"] for it in page["enhancements"]]

    assert listed() == ids[::-1]
    assert listed(job_id=job_id) == [ids[1], ids[0]]
    assert listed(task="summary") == [ids[2], ids[0]]
    first = api.get("enhanced-ai", limit=2)
    assert listed(limit=2, cursor=first["next_cursor"]) == [ids[0]]
    cancelled = api.ask("POST", f"enhanced-ai/{ids[0]}/cancel").json()
    assert (cancelled["status"], cancelled["result"]) == ("CANCELLED", None)
    assert listed(status="CANCELLED") == [ids[0]]
    api.ask("POST", f"enhanced-ai/{ids[0]}/retry", 409)
    api.ask("DELETE", f"enhanced-ai/{ids[0]}", httpx.codes.NO_CONTENT)
    api.get(f"enhanced-ai/{ids[0]}", 404)
    api.ask("DELETE", f"jobs/{job_id}", httpx.codes.NO_CONTENT)
    assert listed() == [ids[2]]


@pytest.mark.usefixtures("workers")
def test_a_summary_is_a_job_of_its_own_about_a_revision(api: Api, job_id: UUID) -> None:
    endpoint = {"url": "https://93.184.216.34/hook", "events": ["enhancement.completed"]}
    api.ask("POST", "webhooks", 201, json=endpoint)
    made = enhance(api, job_id, "summary")
    assert made["status"] == "PENDING"
    found = ended(api, made["enhanced_job_id"])
    assert (found["status"], found["progress"], found["stage"]) == ("COMPLETED", 100, "done")
    assert (found["job_id"], found["task"], found["language"]) == (str(job_id), "summary", "vi")
    assert (found["revision"], found["newest"], found["model"]) == (1, True, "m-1")
    assert (found["input_tokens"], found["output_tokens"]) == (7, 3)
    assert (found["requests_completed"], found["requests_total"]) == (1, 1)
    (sentence,) = found["result"]["sentences"]
    assert (sentence["segments"], sentence["start"], sentence["end"]) == ([0, 1, 2], 0.0, 12.0)
    with api.database.transaction() as session:
        events = set(session.scalars(select(WebhookDelivery.event)))
    assert events == {"enhancement.completed"}

    edits = {"edits": [{"op": "replace", "segment": 0, "text": "Lan gọi Minh."}]}
    api.ask("PATCH", f"jobs/{job_id}/transcript", json=edits, headers={"If-Match": '"1"'})
    assert api.get(f"enhanced-ai/{made['enhanced_job_id']}")["newest"] is False
    refined(api, job_id)

    listed = {it["job_id"] for it in api.get("jobs")["jobs"]}
    assert listed == {str(job_id)}
    status = api.get(f"status/{made['enhanced_job_id']}")
    assert (status["kind"], status["source_job_id"]) == ("enhancement", str(job_id))
    assert api.get(f"status/{job_id}")["enhancements"] == [
        {
            "enhanced_job_id": made["enhanced_job_id"],
            "task": "summary",
            "status": "COMPLETED",
        }
    ]
    assert str(job_id) in api.get(f"result/{made['enhanced_job_id']}", 409)["detail"]


@pytest.mark.usefixtures("workers")
def test_a_translation_is_downloaded_as_subtitles_with_the_same_times(
    api: Api, job_id: UUID
) -> None:
    made = ended(api, enhance(api, job_id, "translate", language="en")["enhanced_job_id"])
    path = f"enhanced-ai/{made['enhanced_job_id']}/download"
    downloaded = api.ask("GET", path)
    assert 'filename="talk.en.srt"' in downloaded.headers["Content-Disposition"]
    assert downloaded.text.startswith(
        "1\n00:00:00,000 --> 00:00:04,000\nlan gọi minh\n\n2\n00:00:04,000 --> 00:00:08,000\n"
    )
    assert api.ask("GET", path, params={"format": "vtt"}).text.startswith("WEBVTT")
    assert len(api.ask("GET", path, params={"format": "txt"}).text.splitlines()) == 3
    summary = ended(api, enhance(api, job_id, "chapters")["enhanced_job_id"])
    refused = api.get(f"enhanced-ai/{summary['enhanced_job_id']}/download", 422)
    assert refused["detail"] == "task=chapters needs to be translate or punctuate"


@pytest.mark.usefixtures("workers")
def test_proposals_become_a_revision_when_a_person_applies_them(api: Api, job_id: UUID) -> None:
    made = ended(api, enhance(api, job_id, "correct")["enhanced_job_id"])
    (edit,) = made["result"]["edits"]
    assert (edit["segment"], edit["before"], edit["reason"]) == (0, TEXTS[0], "a name")
    assert api.get(f"result/{job_id}")["revision"] == 1
    path = f"enhanced-ai/{made['enhanced_job_id']}/apply"
    api.ask("POST", path, 428, json={"edits": "all"})
    at_first = {"If-Match": '"1"'}
    bad: list[Any] = ["al", [], {}, None]
    for wrong in bad:
        refused = api.ask("POST", path, 422, json={"edits": wrong}, headers=at_first).json()
        assert refused["detail"].startswith("edits must be all, or a list of indexes; got")
    refused = api.ask("POST", path, 422, json={"edits": [0, "x"]}, headers=at_first).json()
    assert refused["detail"] == "edits[1] must be a whole number; got 'x'"
    assert "below 1" in api.ask("POST", path, 422, json={"edits": [1]}, headers=at_first).text
    ahead = {"If-Match": '"7"'}
    refused = api.ask("POST", path, 412, json={"edits": "all"}, headers=ahead).json()
    assert "is at revision 1, not at 7" in refused["detail"]
    applied = api.ask("POST", path, json={"edits": [0]}, headers=at_first).json()
    assert (applied["revision"], applied["origin"]) == (2, Origin.PROPOSAL)
    transcript = api.get(f"jobs/{job_id}/transcript")
    assert [it["text"] for it in transcript["segments"]] == ["Lân", *TEXTS[1:]]
    for seen in ('"1"', '"2"', "*"):  # the proposals are about revision 1
        headers = {"If-Match": seen}
        refused = api.ask("POST", path, 412, json={"edits": "all"}, headers=headers).json()
        assert "is at revision 2, not at 1" in refused["detail"]
    refined(api, job_id)


@pytest.mark.usefixtures("workers")
def test_proposals_for_a_masked_text_are_applied_to_the_text_itself(
    api: Api, chat: ChatScript
) -> None:
    job_id = completed_job(
        api.database, TEXTS, marks={0: (4, 7)}, moderation=True, filter_profanity=True
    )

    def punctuate(seen: SeenChat) -> Scripted:
        said = json.loads(seen.body["messages"][-1]["content"])["transcript"]
        written = [{"id": it["id"], "text": f"{it['text'].capitalize()}."} for it in said]
        return answer(json.dumps({"segments": written}))

    chat.respond = punctuate
    try:
        made = ended(api, enhance(api, job_id, "punctuate")["enhanced_job_id"])
    finally:
        chat.respond = obedient
    assert made["result"]["segments"][0]["text"] == "Lan g** minh."
    path = f"enhanced-ai/{made['enhanced_job_id']}/apply"
    at_first = {"If-Match": '"1"'}
    api.ask("POST", path, json={"edits": "all"}, headers=at_first)
    texts = [it["text"] for it in api.get(f"jobs/{job_id}/transcript")["segments"]]
    assert texts == ["Lan gọi minh.", "Minh nói vâng.", "Hẹn gặp mai."]
    refined(api, job_id)

    edited = ended(api, enhance(api, job_id, "correct")["enhanced_job_id"])
    assert edited["result"]["edits"] or "g**" not in str(chat.seen[-1].body)


def test_an_edit_that_is_not_moderated_yet_is_not_sent(
    alone: StartGateway, database_url: str, chat: ChatScript
) -> None:
    """Without workers: nothing is moderated."""
    settings = {"ENHANCED_AI_BASE_URL": chat.base_url, "ENHANCED_AI_MODEL": "m"}
    gateway = alone(**settings)
    with Database(database_url) as database:
        job_id = completed_job(database, TEXTS, moderation=True, filter_profanity=True)
        gateway.http.patch(
            f"/api/v1/jobs/{job_id}/transcript",
            json={"edits": [{"op": "replace", "segment": 0, "text": "lan chửi minh"}]},
            headers={"If-Match": '"1"'},
        ).raise_for_status()
        body = {"job_id": str(job_id), "task": "summary"}
        made = gateway.http.post("/api/v1/enhanced-ai", json=body).json()["enhanced_job_id"]
        with database.transaction() as session:
            job = session.get_one(Job, UUID(made))
        with pytest.raises(NotModerated):
            Enhancing(database).material(job)
        with database.transaction() as session:
            session.execute(update(Step).where(Step.job_id == job_id).values(status="done"))
        assert Enhancing(database).material(job).revision == 2


@pytest.mark.usefixtures("workers")
def test_an_answer_meets_the_schema_of_the_caller(api: Api, job_id: UUID) -> None:
    made = enhance(api, job_id, "prompt", prompt="Who calls?")
    assert ended(api, made["enhanced_job_id"])["result"] == {"answer": "An answer."}
    schema = {"type": "object", "properties": {"keywords": {"type": "array", "minItems": 1}}}
    made = enhance(api, job_id, "prompt", prompt="Names?", schema=schema)
    assert ended(api, made["enhanced_job_id"])["result"] == {"answer": {"keywords": ["Lan"]}}


@pytest.mark.usefixtures("workers")
def test_a_result_goes_with_its_source_and_is_counted(api: Api, job_id: UUID) -> None:
    made = ended(api, enhance(api, job_id, "summary")["enhanced_job_id"])["enhanced_job_id"]
    assert api.count(StoredEnhancement) == 1
    api.ask("DELETE", f"jobs/{job_id}", httpx.codes.NO_CONTENT)
    assert api.count(StoredEnhancement) == api.count(Job) == 0
    with api.database.transaction() as session:
        # Job, enhancement, part, and the steps: divide, ask, combine.
        assert session.get_one(Deletion, UUID(made)).rows == 6


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"task": "poem"}, "task"),
        ({"task": "translate"}, "language"),
        ({"language": "klingon"}, "language"),
        ({"task": "prompt"}, "prompt"),
        ({"task": "prompt", "prompt": " "}, "prompt"),
        ({"task": "prompt", "prompt": "x" * 8_001}, "prompt"),
        ({"prompt": "Do it"}, "prompt"),
        ({"schema": {"type": "object"}}, "schema"),
        ({"task": "prompt", "prompt": "x", "schema": {"type": "no type"}}, "schema"),
        ({"task": "prompt", "prompt": "a\0b"}, "prompt"),
        (
            {"task": "prompt", "prompt": "x", "schema": {"type": "object", "title": "a\0"}},
            "schema",
        ),
        ({"model": "x" * 300}, "model"),
        ({"glossaries": "nobody's"}, "glossaries"),
        ({"webhook_url": "http://127.0.0.1/"}, "webhook_url"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_an_impossible_request_names_its_field(
    api: Api, job_id: UUID, wanted: dict[str, Any], field: str
) -> None:
    body = {"job_id": str(job_id), "task": "summary"} | wanted
    assert field in api.ask("POST", "enhanced-ai", 422, json=body).json()["detail"]
    assert api.count(Job) == 1


def test_only_a_transcript_of_ones_own_is_enhanced(api: Api, job_id: UUID) -> None:
    assert enhance(api, api.submit(), "summary", 409)["code"] == "not_ready"
    foreign = completed_job(api.database, TEXTS, tenant="another")
    for unknown in (foreign, uuid4()):
        enhance(api, unknown, "summary", 404)
    made = enhance(api, job_id, "summary")["enhanced_job_id"]
    enhance(api, made, "summary", 409)
    stranger = {"X-Tenant-Id": "another"}
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("GET", "/download"),
    ):
        api.ask(method, f"enhanced-ai/{made}{path}", 404, headers=stranger)
    api.get(f"enhanced-ai/{job_id}", 404)


@pytest.mark.usefixtures("workers", "weights_dir")
def test_an_upload_is_transcribed_and_then_enhanced(
    api: Api, chat: ChatScript, tmp_path: Path
) -> None:
    recording = write_wav(tmp_path / "fox.wav", speak(SENTENCE))
    asked = {"model": "base", "language": "en", "enhance": "summary,chapters"}
    files = {"file": ("fox.wav", recording.read_bytes(), "audio/wav")}
    job_id = api.ask("POST", "upload", 200, data=asked, files=files).json()["job_id"]

    def look() -> Any:
        listed = api.get(f"status/{job_id}")["enhancements"]
        return listed if listed and all(it["status"] in ENDED for it in listed) else None

    listed = wait_until(look, "both enhancements")
    assert [(it["task"], it["status"]) for it in listed] == [
        ("summary", "COMPLETED"),
        ("chapters", "COMPLETED"),
    ]
    summary, chapters = (api.get(f"enhanced-ai/{it['enhanced_job_id']}") for it in listed)
    assert "fox" in api.get(f"result/{job_id}")["text"]
    assert "fox" in summary["result"]["text"]
    assert (summary["revision"], summary["newest"]) == (1, True)
    assert chapters["result"]["chapters"][0]["segment"] == 0
    assert all("fox" in str(seen.body) for seen in chat.seen[-2:])


def test_without_a_server_the_setting_is_named(alone: StartGateway, database_url: str) -> None:
    gateway = alone()
    with Database(database_url) as database:
        job_id = completed_job(database, TEXTS)
    body = {"job_id": str(job_id), "task": "summary"}
    answer = gateway.http.post("/api/v1/enhanced-ai", json=body)
    assert answer.status_code == 422
    assert "ENHANCED_AI_BASE_URL" in answer.json()["detail"]
    answer = gateway.http.post("/api/v1/jobs", json={"enhance": "summary"})
    assert answer.status_code == 422
    assert "ENHANCED_AI_BASE_URL" in answer.json()["detail"]
