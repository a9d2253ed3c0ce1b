"""What the gateway promises to those who wait for text."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import redis

from api.transcripts.schemas import Result
from common.db.database import Database
from common.db.steps import Steps
from common.domain.formats import MEDIA_TYPES
from common.domain.request import Options
from common.errors import DecodeFailed, ModerationOff
from common.redis.events import JOB_CHANNEL, Events
from scripts.stack.embedded import EmbeddedValkey
from tests.support.factories import (
    BY,
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    finish_plan,
    offensive,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess


def get(gateway: GatewayProcess, path: str, status: int = 200, **query: object) -> httpx.Response:
    answer = gateway.http.get(f"/api/v1/{path}", params=query or None)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    return answer


def merge(steps: Steps) -> None:
    """End the merge of a job whose chunks are all there."""
    finish_merge(
        steps,
        claim_next(steps),
        segments=[
            stored_segment(
                index * 10_000,
                (index + 1) * 10_000,
                f" chunk {index}",
                words=[[f" chunk{index}", index * 10_000, index * 10_000 + 500, 0.9]],
                flags=["repetition"] if index else [],
            )
            for index in range(2)
        ],
        manifest={"engine": "faster-whisper", "model": "base"},
        warnings=["speech without text at 3.0 s"],
    )


def completed(database: Database, steps: Steps) -> UUID:
    job_id = submit_job(database)
    plan_chunks(steps, 2)
    for _ in range(2):
        finish_chunk(steps, claim_next(steps))
    merge(steps)
    return job_id


def test_status_follows_a_job_from_pending_to_completed(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    before = get(gateway, f"status/{job_id}").json()
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    half = get(gateway, f"status/{job_id}").json()
    finish_chunk(steps, claim_next(steps))
    merge(steps)
    after = get(gateway, f"jobs/{job_id}").json()
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


def test_no_time_is_promised_before_two_chunks_are_done(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    completed(gateway_database, steps)  # whose pace says nothing of the next one's
    job_id = submit_job(gateway_database)
    told = [get(gateway, f"status/{job_id}").json()]
    plan = plan_chunks(steps, 3, finish=False)
    for _ in range(2):
        told.append(get(gateway, f"status/{job_id}").json())
        finish_chunk(steps, claim_next(steps))
    told.append(get(gateway, f"status/{job_id}").json())
    finish_plan(steps, plan, 30_000)
    told.append(get(gateway, f"status/{job_id}").json())
    assert [each["eta_seconds"] is None for each in told] == [True, True, True, False, False]
    assert [each["planned"] for each in told] == [False, False, False, False, True]


def waiting(
    gateway: GatewayProcess, pool: ThreadPoolExecutor, job_id: UUID
) -> Future[httpx.Response]:
    """A long poll that the gateway is holding."""
    poll = pool.submit(
        httpx.get,
        f"{gateway.url}/api/v1/status/{job_id}",
        params={"wait": 60},
        timeout=90,
        trust_env=False,
    )
    while f"a long poll waits for job {job_id}" not in gateway.log_file.read_text():
        assert not poll.done()
        time.sleep(0.02)
    return poll


def test_a_long_poll_is_answered_when_the_job_changes(
    gateway: GatewayProcess,
    gateway_database: Database,
    steps: Steps,
    events: Events,
    pool: ThreadPoolExecutor,
) -> None:
    job_id = submit_job(gateway_database)
    poll = waiting(gateway, pool, job_id)
    claim_next(steps)
    events.job_changed(job_id)
    assert poll.result().json()["status"] == "PROCESSING"


def test_a_long_poll_sees_the_change_although_no_wake_up_came(
    tmp_path: Path,
    gateway: GatewayProcess,
    gateway_database: Database,
    steps: Steps,
    pool: ThreadPoolExecutor,
) -> None:
    with (
        EmbeddedValkey(tmp_path / "valkey") as valkey,
        GatewayProcess(tmp_path, gateway.database_url, valkey.url) as deaf,
    ):
        job_id = submit_job(gateway_database)
        valkey.stop()
        poll = waiting(deaf, pool, job_id)
        claim_next(steps)
        assert poll.result().json()["status"] == "PROCESSING"


def test_wake_ups_work_again_after_redis_was_away(
    tmp_path: Path, gateway: GatewayProcess, steps: Steps
) -> None:
    assert steps
    with (
        EmbeddedValkey(tmp_path / "valkey") as valkey,
        GatewayProcess(tmp_path, gateway.database_url, valkey.url),
    ):
        valkey.stop()
        valkey.start()
        with redis.Redis.from_url(valkey.url) as connection:
            while dict(connection.pubsub_numsub(JOB_CHANNEL))[JOB_CHANNEL.encode()] == 0:
                time.sleep(0.05)


@pytest.mark.parametrize("wait", [0, 60])
def test_a_job_that_has_ended_keeps_nobody_waiting(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, wait: int
) -> None:
    job_id = completed(gateway_database, steps)
    # The client's own limit is shorter than the wait it asks for.
    answer = gateway.http.get(f"/api/v1/status/{job_id}", params={"wait": wait}, timeout=30)
    assert answer.json()["status"] == "COMPLETED"


def test_a_gateway_told_to_stop_lets_no_long_poll_hold_it(
    tmp_path: Path,
    gateway: GatewayProcess,
    gateway_database: Database,
    steps: Steps,
    pool: ThreadPoolExecutor,
) -> None:
    assert steps
    with GatewayProcess(tmp_path, gateway.database_url, gateway.redis_url) as leaving:
        job_id = submit_job(gateway_database)
        poll = waiting(leaving, pool, job_id)
        assert leaving.process is not None
        leaving.process.terminate()
        assert poll.result().json()["status"] == "PENDING"
        assert leaving.process.wait(30) is not None


def test_a_result_asked_too_early_is_a_conflict_that_names_the_status(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    assert steps
    job_id = submit_job(gateway_database)
    for path in (f"result/{job_id}", f"download/{job_id}"):
        body = get(gateway, path, 409).json()
        assert body["code"] == "not_ready"
        assert "PENDING" in body["detail"]


def test_a_partial_result_has_what_is_finished_up_to_the_first_hole(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    assert get(gateway, f"result/{job_id}", partial="true").json()["text"] == ""
    plan_chunks(steps, 3)
    first, second, third = (claim_next(steps) for _ in range(3))
    finish_chunk(steps, third)
    finish_chunk(steps, first)
    body = get(gateway, f"result/{job_id}", partial="true").json()
    assert body["status"] == "PROCESSING"
    assert body["text"] == "chunk 0"
    assert [segment["start"] for segment in body["segments"]] == [0.0]
    assert body["download_url"] is None
    assert body["manifest"] is None
    finish_chunk(steps, second)
    text = get(gateway, f"result/{job_id}", partial="true").json()["text"]
    assert text == "chunk 0 chunk 1 chunk 2"


def test_a_result_has_all_that_the_wire_contract_names(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    body = get(gateway, f"result/{job_id}").json()
    assert (body["job_id"], body["status"]) == (str(job_id), "COMPLETED")
    assert (body["text"], body["word_count"]) == ("chunk 0 chunk 1", 4)
    assert (body["duration_seconds"], body["language"]) == (20.0, "en")
    assert body["segments"][1] == {
        "id": 1,
        "start": 10.0,
        "end": 20.0,
        "text": "chunk 1",
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
        "temperature": 0.0,
        "speaker": None,
        "channel": None,
        "flags": ["repetition"],
    }
    assert body["words"][0] == {
        "word": "chunk0",
        "start": 0.0,
        "end": 0.5,
        "probability": 0.9,
        "speaker": None,
    }
    assert body["moderation"] is None
    assert body["warnings"] == ["speech without text at 3.0 s"]
    assert body["manifest"] == {"engine": "faster-whisper", "model": "base"}
    assert body["completed_at"] is not None
    assert gateway.http.get(body["download_url"]).text == "chunk 0\nchunk 1\n"


def test_a_result_downloads_in_every_format_under_the_recordings_name(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    starts = {
        "json": "{",
        "txt": "chunk 0\n",
        "srt": "1\n00:00:00,000 --> 00:00:10,000\n",
        "vtt": "WEBVTT\n\n00:00.000 --> 00:10.000\n",
        "tsv": "start\tend\ttext\n0\t10000\t",
    }
    for ending, start in starts.items():
        answer = get(gateway, f"download/{job_id}", format=ending)
        assert answer.text.startswith(start)
        assert answer.headers["content-disposition"] == (
            f"attachment; filename=\"talk.{ending}\"; filename*=UTF-8''talk.{ending}"
        )
    document = json.loads(get(gateway, f"download/{job_id}", format="json").text)
    result = get(gateway, f"result/{job_id}").json()
    assert document == {name: result[name] for name in document}


def test_an_unknown_format_is_refused_with_those_that_are_known(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    body = get(gateway, f"download/{job_id}", 422, format="docx").json()
    assert (body["field"], body["value"]) == ("format", "docx")
    assert body["allowed"] == "json, txt, srt, vtt, tsv, wav, original"


def test_a_failed_job_says_why_and_keeps_what_was_heard(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="it is scrambled"))
    status = get(gateway, f"status/{job_id}").json()
    assert (status["status"], status["error_code"]) == ("FAILED", "decode_failed")
    assert "it is scrambled" in status["error_message"]
    body = get(gateway, f"result/{job_id}", 409).json()
    assert "it is scrambled" in body["detail"]
    assert get(gateway, f"result/{job_id}", partial="true").json()["text"] == "chunk 0"


@pytest.mark.parametrize("path", ["status", "result", "download", "jobs"])
def test_an_unknown_job_is_404_and_an_id_that_is_no_uuid_422(
    gateway: GatewayProcess, path: str
) -> None:
    body = get(gateway, f"{path}/{uuid4()}", 404).json()
    assert body["code"] == "not_found"
    body = get(gateway, f"{path}/no-uuid", 422).json()
    assert (body["field"], body["limit"], body["value"]) == ("job_id", "a UUID", "no-uuid")


def test_another_tenants_job_is_not_found(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    assert steps
    job_id = submit_job(gateway_database, tenant="acme")
    get(gateway, f"status/{job_id}", 404)
    url, acme = f"/api/v1/status/{job_id}", {"X-Tenant-Id": "acme"}
    assert gateway.http.get(url, headers=acme).status_code == 200
    assert gateway.http.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 404


def test_cancelling_ends_a_job_once_and_for_all(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    plan_chunks(steps, 1)
    claim_next(steps)
    for _ in range(2):
        answer = gateway.http.post(f"/api/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
    assert "cancelled" in get(gateway, f"result/{job_id}", 409).json()["detail"]


def test_a_job_that_has_ended_cannot_be_cancelled(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    answer = gateway.http.post(f"/api/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 409
    assert answer.json()["code"] == "conflict"


# --- moderation -----------------------------------------------------------------------------------


def moderated(database: Database, steps: Steps, options: Options) -> UUID:
    """A completed job in which somebody swears from 10 to 20 s."""
    job_id = submit_job(database, options=options)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    finish_moderation(steps, claim_next(steps))
    finish_merge(
        steps,
        claim_next(steps),
        segments=[
            stored_segment(0, 10_000, " hello"),
            stored_segment(
                10_000,
                20_000,
                " oh shit",
                words=[[" oh", 10_000, 10_500, 0.9], [" shit", 12_340, 12_900, 0.9]],
                finding=offensive(4, 8).to_json(),
            ),
        ],
        manifest={"moderation": [BY.to_json()]},
        warnings=["moderation_failed"],
    )
    return job_id


def test_a_moderated_result_leads_to_the_second(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = moderated(gateway_database, steps, Options(moderation=True))
    body = get(gateway, f"result/{job_id}").json()
    (judged,) = body["moderation"]["results"]
    assert (judged["id"], judged["label"], judged["start"]) == (1, "OFFENSIVE", 10.0)
    (span,) = judged["spans"]
    assert (span["text"], span["start"], span["end"]) == ("shit", 12.34, 12.9)
    assert body["moderation"]["model"] == "a-model"
    assert body["moderation"]["threshold"] == {"OFFENSIVE": 0.5, "HATE": 0.5}
    assert body["warnings"] == ["moderation_failed"]
    document = json.loads(get(gateway, f"download/{job_id}", format="json").text)
    assert document["moderation"] == body["moderation"]


def test_a_result_is_what_its_documentation_says(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = moderated(gateway_database, steps, Options(moderation=True))
    answer = get(gateway, f"result/{job_id}").json()
    documented = Result.model_validate(answer).model_dump(mode="json")
    assert documented.keys() == answer.keys()
    assert documented["moderation"] == answer["moderation"]


@pytest.mark.parametrize("by_default", [False, True])
def test_words_are_masked_by_the_jobs_default_or_as_the_question_says(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, by_default: bool
) -> None:
    options = Options(moderation=True, filter_profanity=by_default)
    job_id = moderated(gateway_database, steps, options)
    for path in (f"result/{job_id}", *(f"download/{job_id}?format={e}" for e in MEDIA_TYPES)):
        told = {}
        for asked in ("", "true", "false"):
            query = f"filter_profanity={asked}" if asked else ""
            told[asked] = gateway.http.get(
                f"/api/v1/{path}{'&' if '?' in path else '?'}{query}"
            ).text
        assert "shit" in told["false"]
        assert "shit" not in told["true"]
        assert "s***" in told["true"]
        assert told[""] == told[str(by_default).lower()]


def test_cues_are_flagged_where_a_player_shows_them(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = moderated(gateway_database, steps, Options(moderation=True))
    srt = get(gateway, f"download/{job_id}", format="srt", flag="true").text
    assert "\n[OFFENSIVE] oh shit\n" in srt
    vtt = get(gateway, f"download/{job_id}", format="vtt", flag="true", filter_profanity="true")
    assert "\n<c.offensive>[OFFENSIVE] oh s***</c>\n" in vtt.text
    assert "[" not in get(gateway, f"download/{job_id}", format="srt").text
    body = get(gateway, f"download/{job_id}", 422, format="txt", flag="true").json()
    assert (body["field"], body["needed"]) == ("flag", "format=srt or format=vtt")


def test_masks_and_flags_of_a_job_that_nobody_judged_are_refused_by_name(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    for path, field in (
        (f"result/{job_id}?filter_profanity=", "filter_profanity"),
        (f"download/{job_id}?filter_profanity=", "filter_profanity"),
        (f"download/{job_id}?format=srt&flag=", "flag"),
    ):
        body = get(gateway, f"{path}true", 422).json()
        assert (body["field"], body["code"]) == (field, "option_conflict")
        get(gateway, f"{path}false")


def test_a_partial_text_with_masks_ends_where_nobody_has_judged_yet(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    options = Options(moderation=True, filter_profanity=True)
    job_id = submit_job(gateway_database, options=options)
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    path = f"result/{job_id}"
    assert get(gateway, path, partial="true").json()["text"] == ""
    told = get(gateway, path, partial="true", filter_profanity="false").json()
    assert (told["text"], told["moderation"]["results"]) == ("chunk 0", [])
    finish_moderation(steps, claim_next(steps), offensive(1, 6))
    body = get(gateway, path, partial="true").json()
    assert body["text"] == "c**** 0"
    assert body["moderation"]["summary"]["label"] == "OFFENSIVE"


def test_moderation_that_has_failed_is_told_while_the_job_still_runs(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database, options=Options(moderation=True))
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, ModerationOff())
    for path in (f"status/{job_id}", f"result/{job_id}?partial=true"):
        assert get(gateway, path).json()["warnings"] == ["moderation_failed"]
