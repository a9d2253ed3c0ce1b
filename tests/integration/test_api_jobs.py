"""What the gateway promises to those who wait for text."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis

from api.transcripts.schemas import Result
from common.domain.formats import MEDIA_TYPES, RTTM
from common.domain.request import Options
from common.errors import DecodeFailed, ModerationOff
from common.redis.events import JOB_CHANNEL
from scripts.stack.embedded import EmbeddedValkey
from tests.support.api import Api
from tests.support.factories import BY, MODERATED, finish_plan, offensive, stored_segment
from tests.support.gateway import GatewayProcess, StartGateway

MERGED = {
    "segments": [
        stored_segment(0, 10_000, " chunk 0", words=[[" chunk0", 0, 500, 0.9]]),
        stored_segment(10_000, 20_000, " chunk 1", flags=["repetition"]),
    ],
    "manifest": {"engine": "faster-whisper", "model": "base"},
    "warnings": ["speech without text at 3.0 s"],
}


@pytest.fixture
def completed(api: Api) -> UUID:
    """A completed job of two chunks."""
    job_id = api.submit()
    api.complete(2, **MERGED)
    return job_id


def test_status_follows_a_job_from_pending_to_completed(api: Api) -> None:
    job_id = api.submit()
    before = api.get(f"status/{job_id}")
    api.plan(2)
    api.transcribe()
    half = api.get(f"status/{job_id}")
    api.transcribe()
    api.merge(2, **MERGED)
    after = api.get(f"jobs/{job_id}")
    seen = [
        (it["status"], it["stage"], it["chunks_completed"], it["chunks_total"])
        for it in (before, half, after)
    ]
    assert seen == [
        ("PENDING", "queued", 0, 0),
        ("PROCESSING", "transcribing", 1, 2),
        ("COMPLETED", "done", 2, 2),
    ]
    assert before["queue_position"] == 0
    assert 0 == before["progress"] < half["progress"] < after["progress"] == 100
    assert after["warnings"] == ["speech without text at 3.0 s"]
    assert after["completed_at"] > after["started_at"] > after["created_at"]
    assert after["error_message"] is None


@pytest.mark.usefixtures("completed")  # whose pace says nothing of the next one's
def test_no_eta_is_given_before_two_chunks_are_done(api: Api) -> None:
    job_id = api.submit()
    answers = [api.get(f"status/{job_id}")]
    plan = api.plan(3, finish=False)
    for _ in range(2):
        answers.append(api.get(f"status/{job_id}"))
        api.transcribe()
    answers.append(api.get(f"status/{job_id}"))
    finish_plan(api.steps, plan, 30_000)
    answers.append(api.get(f"status/{job_id}"))
    assert [each["eta_seconds"] is None for each in answers] == [True, True, True, False, False]
    assert [each["planned"] for each in answers] == [False, False, False, False, True]


# --- long polls -----------------------------------------------------------------------------------


def long_poll(
    gateway: GatewayProcess, pool: ThreadPoolExecutor, job_id: UUID
) -> Future[httpx.Response]:
    """A long poll that the gateway is holding."""
    url = f"{gateway.url}/api/v1/status/{job_id}?wait=60"
    poll = pool.submit(httpx.get, url, timeout=90, trust_env=False)
    while f"a long poll waits for job {job_id}" not in gateway.log_file.read_text():
        assert not poll.done()
        time.sleep(0.02)
    return poll


def test_a_long_poll_is_answered_when_the_job_changes(api: Api, pool: ThreadPoolExecutor) -> None:
    job_id = api.submit()
    poll = long_poll(api.gateway, pool, job_id)
    api.claim()
    assert poll.result().json()["status"] == "PROCESSING"


def test_long_polls_outlast_a_redis_outage_and_end_with_the_gateway(
    own_valkey: EmbeddedValkey, api: Api, pool: ThreadPoolExecutor, alone: StartGateway
) -> None:
    gateway = alone(database_url=api.gateway.database_url, redis_url=own_valkey.url)
    job_id = api.submit()
    own_valkey.stop()
    poll = long_poll(gateway, pool, job_id)
    api.claim()
    assert poll.result().json()["status"] == "PROCESSING"

    own_valkey.start()
    with redis.Redis.from_url(own_valkey.url) as connection:
        while dict(connection.pubsub_numsub(JOB_CHANNEL))[JOB_CHANNEL.encode()] == 0:
            time.sleep(0.05)

    job_id = api.submit()
    poll = long_poll(gateway, pool, job_id)
    gateway.process.terminate()
    assert poll.result().json()["status"] == "PENDING"
    assert gateway.process.wait(30) is not None


@pytest.mark.parametrize("wait", [0, 60])
def test_the_status_of_a_job_that_has_ended_is_answered_at_once(
    api: Api, completed: UUID, wait: int
) -> None:
    # The client's own limit is shorter than the wait it asks for.
    answer = api.ask("GET", f"status/{completed}", params={"wait": wait}, timeout=30)
    assert answer.json()["status"] == "COMPLETED"


# --- results --------------------------------------------------------------------------------------


def test_a_result_asked_too_early_is_a_conflict_that_names_the_status(api: Api) -> None:
    job_id = api.submit()
    for path in (f"result/{job_id}", f"download/{job_id}"):
        body = api.get(path, 409)
        assert body["code"] == "not_ready"
        assert "PENDING" in body["detail"]


def test_a_partial_result_has_what_is_finished_up_to_the_first_missing_chunk(api: Api) -> None:
    job_id = api.submit()
    assert api.get(f"result/{job_id}", partial="true")["text"] == ""
    api.plan(3)
    first, second, third = (api.claim() for _ in range(3))
    api.transcribe(third, first)
    body = api.get(f"result/{job_id}", partial="true")
    assert body["status"] == "PROCESSING"
    assert body["text"] == "chunk 0"
    assert [segment["start"] for segment in body["segments"]] == [0.0]
    assert body["download_url"] is None
    assert body["manifest"] is None
    api.transcribe(second)
    assert api.get(f"result/{job_id}", partial="true")["text"] == "chunk 0 chunk 1 chunk 2"


def test_a_result_has_all_that_the_wire_contract_names(api: Api, completed: UUID) -> None:
    body = api.get(f"result/{completed}")
    assert (body["job_id"], body["status"]) == (str(completed), "COMPLETED")
    assert (body["text"], body["word_count"]) == ("chunk 0 chunk 1", 4)
    assert (body["duration_seconds"], body["language"]) == (20.0, "en")
    assert body["segments"][1] == {
        "id": 1,
        "start": 10.0,
        "end": 20.0,
        "text": "chunk 1",
        "language": "en",
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
        "temperature": 0.0,
        "speaker": None,
        "channel": None,
        "flags": ["repetition"],
    }
    word = {
        "word": "chunk0",
        "start": 0.0,
        "end": 0.5,
        "probability": 0.9,
        "speaker": None,
        "estimated": False,
    }
    assert body["words"] == [word]
    assert body["moderation"] is None
    assert (body["warnings"], body["manifest"]) == (MERGED["warnings"], MERGED["manifest"])
    assert body["completed_at"] is not None
    assert api.http.get(body["download_url"]).text == "chunk 0\nchunk 1\n"


def test_a_result_downloads_in_every_format_under_the_recordings_name(
    api: Api, completed: UUID
) -> None:
    starts = {
        "json": "{",
        "txt": "chunk 0\n",
        "srt": "1\n00:00:00,000 --> 00:00:10,000\n",
        "vtt": "WEBVTT\n\n00:00.000 --> 00:10.000\n",
        "tsv": "start\tend\ttext\n0\t10000\t",
    }
    for ending, start in starts.items():
        answer = api.download(completed, format=ending)
        assert answer.text.startswith(start)
        assert answer.headers["content-disposition"] == (
            f"attachment; filename=\"talk.{ending}\"; filename*=UTF-8''talk.{ending}"
        )
    document = api.download(completed, format="json").json()
    result = api.get(f"result/{completed}")
    assert document == {name: result[name] for name in document}


def test_subtitles_are_laid_out_as_asked(api: Api) -> None:
    job_id = api.submit()
    api.complete(segments=[stored_segment(0, 4_000, " một hai ba bốn, năm sáu bảy tám chín")])
    srt = api.download(job_id, format="srt", max_line_width=20, max_line_count=1).text
    assert [record.split("\n")[-1] for record in srt.strip().split("\n\n")] == [
        "một hai ba bốn,",
        "năm sáu bảy tám chín",
    ]
    vtt = api.download(job_id, format="vtt", max_cue_seconds=3.5, max_line_width=20).text
    assert vtt.count(" --> ") == 2


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"format": "srt", "max_line_width": 9}, "max_line_width"),
        ({"format": "srt", "max_line_width": "wide"}, "max_line_width"),
        ({"format": "srt", "max_cps": "nan"}, "max_cps"),
        ({"format": "vtt", "max_line_count": 2}, "max_line_count"),
        ({"format": "vtt", "min_cue_seconds": 3, "max_cue_seconds": 2}, "min_cue_seconds"),
        ({"format": "txt", "max_cps": 20}, "max_cps"),
        ({"format": "html", "max_line_width": 42}, "max_line_width"),
        ({"format": "original", "min_cue_seconds": 1}, "min_cue_seconds"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_name(
    api: Api, completed: UUID, query: dict[str, Any], field: str
) -> None:
    body = api.download(completed, 422, **query).json()
    assert (body["field"], body["code"] in {"out_of_range", "option_conflict"}) == (field, True)
    assert str(query[field]).rstrip(".0") in str(body["value"])


def test_documents_are_made_on_download_and_run_nothing_of_others(
    api: Api, completed: UUID
) -> None:
    page = api.download(completed, format="html")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-disposition"].startswith("attachment; ")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    word = api.download(completed, format="docx")
    assert word.content.startswith(b"PK")
    assert word.headers["content-type"].endswith("wordprocessingml.document")


def test_an_unknown_format_is_refused_with_those_that_are_known(api: Api, completed: UUID) -> None:
    body = api.download(completed, 422, format="pdf").json()
    assert (body["field"], body["value"]) == ("format", "pdf")
    assert body["allowed"] == "json, txt, srt, vtt, tsv, rttm, docx, html, wav, original"


def test_a_failed_job_says_why_and_keeps_what_was_transcribed(api: Api) -> None:
    job_id = api.submit()
    api.plan(2)
    api.transcribe()
    api.fail(DecodeFailed(reason="it is scrambled"))
    status = api.get(f"status/{job_id}")
    assert (status["status"], status["error_code"]) == ("FAILED", "decode_failed")
    assert "it is scrambled" in status["error_message"]
    assert "it is scrambled" in api.get(f"result/{job_id}", 409)["detail"]
    assert api.get(f"result/{job_id}", partial="true")["text"] == "chunk 0"


@pytest.mark.parametrize("path", ["status", "result", "download", "jobs"])
def test_an_unknown_job_is_404_and_an_id_that_is_no_uuid_422(api: Api, path: str) -> None:
    assert api.get(f"{path}/{uuid4()}", 404)["code"] == "not_found"
    body = api.get(f"{path}/no-uuid", 422)
    assert (body["field"], body["limit"], body["value"]) == ("job_id", "a UUID", "no-uuid")


def test_cancelling_ends_a_job_once_and_for_all(api: Api) -> None:
    job_id = api.submit()
    api.plan(1)
    api.claim()
    for _ in range(2):
        assert api.ask("POST", f"jobs/{job_id}/cancel").json()["status"] == "CANCELLED"
    assert "cancelled" in api.get(f"result/{job_id}", 409)["detail"]


def test_a_job_that_has_ended_cannot_be_cancelled(api: Api, completed: UUID) -> None:
    assert api.ask("POST", f"jobs/{completed}/cancel", 409).json()["code"] == "conflict"


# --- moderation -----------------------------------------------------------------------------------


def moderated(api: Api, options: Options = MODERATED) -> UUID:
    """A completed job in which somebody swears from 10 to 20 s."""
    job_id = api.submit(options=options)
    words = [[" oh", 10_000, 10_500, 0.9], [" shit", 12_340, 12_900, 0.9]]
    finding = offensive(4, 8).to_json()
    api.complete(
        segments=[
            stored_segment(0, 10_000, " hello"),
            stored_segment(10_000, 20_000, " oh shit", words=words, verdict=finding),
        ],
        manifest={"moderation": [BY.to_json()]},
        warnings=["moderation_failed"],
    )
    return job_id


def test_a_moderated_result_has_the_place_and_the_words_of_each_finding(api: Api) -> None:
    job_id = moderated(api)
    body = api.get(f"result/{job_id}")
    (result,) = body["moderation"]["results"]
    assert (result["id"], result["label"], result["start"]) == (1, "OFFENSIVE", 10.0)
    (span,) = result["spans"]
    assert (span["text"], span["start"], span["end"]) == ("shit", 12.34, 12.9)
    assert body["moderation"]["model"] == "a-model"
    assert body["moderation"]["threshold"] == {"OFFENSIVE": 0.5, "HATE": 0.5}
    assert body["warnings"] == ["moderation_failed"]
    assert api.download(job_id, format="json").json()["moderation"] == body["moderation"]
    documented = Result.model_validate(body).model_dump(mode="json")
    assert documented.keys() == body.keys()
    assert documented["moderation"] == body["moderation"]


@pytest.mark.parametrize("by_default", [False, True])
def test_words_are_masked_by_the_jobs_default_or_as_the_request_says(
    api: Api, by_default: bool
) -> None:
    job_id = moderated(api, Options(moderation=True, filter_profanity=by_default))
    endings = {*MEDIA_TYPES, "html"} - {RTTM}  # which has no text
    for path in (f"result/{job_id}?", *(f"download/{job_id}?format={e}&" for e in endings)):
        texts = {
            asked: api.ask("GET", f"{path}filter_profanity={asked}").text
            for asked in ("true", "false")
        }
        assert "shit" in texts["false"]
        assert "shit" not in texts["true"]
        assert "s***" in texts["true"]
        assert api.ask("GET", path).text == texts[str(by_default).lower()]


def test_cues_are_flagged_where_a_player_shows_them(api: Api) -> None:
    job_id = moderated(api)
    srt = api.download(job_id, format="srt", flag="true").text
    assert "\n[OFFENSIVE] oh shit\n" in srt
    vtt = api.download(job_id, format="vtt", flag="true", filter_profanity="true").text
    assert "\n<c.offensive>[OFFENSIVE] oh s***</c>\n" in vtt
    assert "[" not in api.download(job_id, format="srt").text
    body = api.download(job_id, 422, format="txt", flag="true").json()
    assert (body["field"], body["needed"]) == ("flag", "format=srt, vtt, docx or html")


def test_masks_and_flags_of_a_job_without_moderation_are_refused_by_name(
    api: Api, completed: UUID
) -> None:
    for path, field in (
        (f"result/{completed}?filter_profanity=", "filter_profanity"),
        (f"download/{completed}?filter_profanity=", "filter_profanity"),
        (f"download/{completed}?format=srt&flag=", "flag"),
    ):
        body = api.ask("GET", f"{path}true", 422).json()
        assert (body["field"], body["code"]) == (field, "option_conflict")
        api.ask("GET", f"{path}false")


def test_a_partial_text_with_masks_ends_where_moderation_has_not_come_yet(api: Api) -> None:
    job_id = api.submit(options=Options(moderation=True, filter_profanity=True))
    api.plan(2)
    api.transcribe()
    path = f"result/{job_id}"
    assert api.get(path, partial="true")["text"] == ""
    unmasked = api.get(path, partial="true", filter_profanity="false")
    assert (unmasked["text"], unmasked["moderation"]["results"]) == ("chunk 0", [])
    api.moderate(offensive(1, 6))
    body = api.get(path, partial="true")
    assert body["text"] == "c**** 0"
    assert body["moderation"]["summary"]["label"] == "OFFENSIVE"


def test_failed_moderation_is_a_warning_while_the_job_still_runs(api: Api) -> None:
    job_id = api.submit(options=MODERATED)
    api.plan(2)
    api.transcribe()
    api.fail(ModerationOff())
    assert api.get(f"status/{job_id}")["warnings"] == ["moderation_failed"]
    assert api.get(f"result/{job_id}", partial="true")["warnings"] == ["moderation_failed"]
