"""How much a key may use, and what is reported of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.keys import Keys
from common.db.steps import StaleClaim
from common.db.tables import DailyUsage
from common.db.transcriptions import audio_decoded, recording_fetched
from common.db.usage import HOUR_MS, NO_QUOTA, Quota, Usage, correct
from common.domain.job import JobStatus
from common.domain.keys import KeyText, Scope
from common.errors import DecodeFailed, OverLimit, TooManyJobs, TooMuchAudio
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import make_wav, tone
from tests.support.factories import (
    claim_next,
    make_steps,
    new_job,
    new_recording,
    store_plan,
    submit_job,
)
from tests.support.gateway import GatewayProcess
from tests.support.service import wait_until

OPERATOR = "the-operators-own-key-0123456789"
NOWHERE = uuid4()

Make = Callable[..., KeyText]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {
        "GATEWAY_API_KEY": OPERATOR,
        "LIMIT_REQUESTS_PER_SECOND": "0",
        "LIMIT_REQUESTS_PER_MINUTE": "0",
        "LIMIT_CONCURRENT_JOBS": "0",
    }


@pytest.fixture
def make(gateway_database: Database) -> Make:
    def make_key(tenant: str = "acme", **limits: float) -> KeyText:
        scopes = (Scope.TRANSCRIBE, Scope.READ)
        return Keys(gateway_database, tenant).create("a test's", scopes, limits=limits)[1]

    return make_key


@pytest.fixture
def clip() -> bytes:
    return make_wav(tone(1.0).tobytes())


def ask(gateway: GatewayProcess, key: KeyText | str, path: str) -> httpx.Response:
    shown = key if isinstance(key, str) else key.reveal()
    return gateway.http.get(f"/api/v1/{path}", headers={"X-API-Key": shown})


def send(gateway: GatewayProcess, key: KeyText, clip: bytes, **headers: str) -> httpx.Response:
    return gateway.http.post(
        "/api/v1/upload",
        files={"file": ("a.wav", clip)},
        headers={"X-API-Key": key.reveal(), **headers},
    )


def refusal(answer: httpx.Response) -> tuple[str, str]:
    """The code and the field of an answer that names a limit."""
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 86_400
    body = answer.json()
    return body["code"], body["field"]


def early_in(window_s: float) -> None:
    """Wait until a window of the clock has begun just now, if it is about to end."""
    left = window_s - time.time() % window_s
    if left < min(10.0, window_s):
        time.sleep(left)


# --- requests ---------------------------------------------------------------------------------


def test_a_limit_holds_until_its_window_ends(gateway: GatewayProcess, make: Make) -> None:
    key = make(requests_per_minute=5)
    early_in(60)
    answers = [ask(gateway, key, f"status/{NOWHERE}") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [404] * 5 + [429] * 2
    assert [answer.headers["ratelimit-remaining"] for answer in answers] == list("4321000")
    for answer in answers:
        assert answer.headers["ratelimit-limit"] == "5"
        assert 0 < int(answer.headers["ratelimit-reset"]) <= 60
    refused = answers[-1]
    assert refused.headers["retry-after"] == refused.headers["ratelimit-reset"]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refusal(refused) == ("rate_limited", "requests_per_minute")
    assert (refused.json()["limit"], refused.json()["value"]) == (5, 7)


def test_a_limit_per_second_ends_with_the_second(gateway: GatewayProcess, make: Make) -> None:
    key = make(requests_per_second=1)

    def status() -> int:
        return ask(gateway, key, f"status/{NOWHERE}").status_code

    for expected in (429, 404, 429, 404):
        wait_until(lambda: status() == expected, f"an answer of {expected}", 10)  # noqa: B023


def test_each_key_has_its_own_limit(gateway: GatewayProcess, make: Make) -> None:
    early_in(60)
    for key in (make(requests_per_minute=1), make(requests_per_minute=1)):
        assert ask(gateway, key, f"status/{NOWHERE}").status_code == 404


def test_the_operators_key_has_no_limit(gateway: GatewayProcess) -> None:
    answer = ask(gateway, OPERATOR, f"status/{NOWHERE}")
    assert "ratelimit-limit" not in answer.headers


def test_a_lost_redis_limits_nothing(tmp_path: Path, database: Database, database_url: str) -> None:
    _, key = Keys(database, "acme").create("x", [Scope.READ], limits={"requests_per_minute": 1})
    with (
        EmbeddedValkey(tmp_path / "valkey") as valkey,
        GatewayProcess(tmp_path, database_url, valkey.url) as gateway,
    ):
        assert "ratelimit-limit" in ask(gateway, key, f"status/{NOWHERE}").headers
        valkey.stop()
        for _ in range(3):
            assert ask(gateway, key, f"status/{NOWHERE}").status_code == 404
        assert gateway.log_file.read_text().count("requests are not counted") == 1


# --- jobs and audio ---------------------------------------------------------------------------


def test_a_key_has_a_limit_of_jobs_at_once(
    gateway: GatewayProcess, gateway_database: Database, make: Make, clip: bytes
) -> None:
    key = make(concurrent_jobs=2)
    jobs = [send(gateway, key, clip) for _ in range(2)]
    assert [job.status_code for job in jobs] == [200, 200], jobs[0].text
    refused = send(gateway, key, clip)
    assert refusal(refused) == ("too_many_jobs", "concurrent_jobs")
    assert (refused.json()["limit"], refused.json()["value"]) == (2, 3)
    assert send(gateway, make(), clip).status_code == 200
    Jobs(gateway_database, "acme").cancel(UUID(jobs[0].json()["job_id"]))
    assert send(gateway, key, clip).status_code == 200


def test_a_repeated_request_and_an_upload_to_a_created_job_count_once(
    gateway: GatewayProcess, make: Make, clip: bytes
) -> None:
    for key in (make(concurrent_jobs=1), make(concurrent_jobs=1)):
        once = {"Idempotency-Key": "once"}
        sent = [send(gateway, key, clip, **once) for _ in range(2)]
        assert [answer.status_code for answer in sent] == [200, 200], sent[1].text
        assert sent[0].json()["job_id"] == sent[1].json()["job_id"]
    shown = {"X-API-Key": make(concurrent_jobs=1).reveal()}
    made = gateway.http.post("/api/v1/jobs", json={}, headers=shown)
    assert made.status_code == 201, made.text
    assert gateway.http.post("/api/v1/jobs", json={}, headers=shown).status_code == 429
    later = gateway.http.post(
        made.json()["upload_url"], files={"file": ("a.wav", clip)}, headers=shown
    )
    assert later.status_code == 200, later.text


def test_uploads_under_way_count_as_jobs(gateway: GatewayProcess, make: Make, clip: bytes) -> None:
    key = make(concurrent_jobs=1)
    head = (
        f"POST /api/v1/upload HTTP/1.1\r\nHost: x\r\nX-API-Key: {key.reveal()}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 3000000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        line.sendall(head.encode() + bytes(2_000_000))
        wait_until(lambda: gateway.incoming, "the upload")
        assert send(gateway, key, clip).status_code == 429
        assert send(gateway, make(concurrent_jobs=1), clip).status_code == 200
    wait_until(lambda: send(gateway, key, clip).status_code == 200, "the end of the upload")


def test_a_key_has_a_limit_of_audio_a_day_and_what_is_rejected_is_not_stored(
    gateway: GatewayProcess, gateway_database: Database, make: Make, clip: bytes
) -> None:
    key = make(audio_hours_per_day=1.5 / 3600)
    assert send(gateway, key, clip).status_code == 200
    before = len(gateway.recordings)
    assert refusal(send(gateway, key, clip)) == ("too_much_audio", "audio_hours_per_day")
    assert (len(gateway.recordings), gateway.incoming) == (before, [])
    assert Usage(gateway_database, "acme", key.id).spent().audio_ms == 1_000


def test_usage_reports_used_and_left(gateway: GatewayProcess, make: Make, clip: bytes) -> None:
    key = make("usage", concurrent_jobs=3, audio_hours_per_day=1, requests_per_minute=1000)
    other = make("usage")
    assert [send(gateway, each, clip).status_code for each in (key, other)] == [200, 200]
    usage = ask(gateway, key, "usage").json()
    (today,) = usage["days"]
    assert (today["jobs"], today["own"]["jobs"]) == (2, 1)
    assert today["audio_hours"] == pytest.approx(2 / 3600, abs=1e-4)
    assert today["own"]["audio_hours"] == pytest.approx(1 / 3600, abs=1e-4)
    assert (usage["tenant"], usage["key_id"]) == ("usage", key.id)
    assert usage["limits"] == {
        "requests_per_second": None,
        "requests_per_minute": 1000,
        "concurrent_jobs": 3,
        "concurrent_streams": 10,
        "audio_hours_per_day": 1,
    }
    assert (usage["left"]["concurrent_jobs"], usage["left"]["concurrent_streams"]) == (2, 10)
    assert usage["left"]["audio_hours"] == pytest.approx(1 - 1 / 3600, abs=1e-3)
    assert ask(gateway, make("nobody"), "usage").json()["days"] == []


# --- in the transaction -----------------------------------------------------------------------


def submit(database: Database, **fields: Any) -> UUID:
    """An hour of audio with a key; ``fields`` are those of `submit_job`."""
    usual: dict[str, Any] = {"tenant": "acme", "key_id": "one", "duration_ms": HOUR_MS}
    return submit_job(database, **usual | fields)


@pytest.mark.parametrize(
    ("quota", "error"),
    [(Quota(concurrent_jobs=7), TooManyJobs), (Quota(audio_ms_per_day=7 * HOUR_MS), TooMuchAudio)],
)
def test_a_limit_holds_however_many_are_sent_at_once(
    database: Database, quota: Quota, error: type[OverLimit]
) -> None:
    def send_one(number: int) -> bool:
        try:
            submit(database, quota=quota, tenant=f"tenant-{number % 3}")
        except error:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(send_one, range(20)))
    assert taken.count(True) == 7
    spent = Usage(database, "tenant-0", "one").spent()
    assert (spent.concurrent_jobs, spent.audio_ms) == (7, 7 * HOUR_MS)


def test_retried_jobs_count_as_any_others(database: Database) -> None:
    quota = Quota(1, HOUR_MS)
    steps, jobs = make_steps(database), Jobs(database, "acme")
    failed = submit(database, quota=quota)
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="a test"))
    other = submit(database)
    with pytest.raises(TooManyJobs):
        jobs.retry(failed, quota)
    assert jobs.snapshot(failed).status is JobStatus.FAILED
    jobs.cancel(other)
    jobs.retry(failed, quota)  # although today's audio is used up: it was charged before


def test_used_up_quotas_can_be_checked_ahead(database: Database) -> None:
    submit(database)
    usage = Usage(database, "acme", "one")
    usage.check(NO_QUOTA)
    usage.check(Quota(2, 2 * HOUR_MS))
    with pytest.raises(TooManyJobs):
        usage.check(Quota(concurrent_jobs=1))
    with pytest.raises(TooMuchAudio):
        usage.check(Quota(audio_ms_per_day=HOUR_MS))
    Usage(database, "acme", None).check(Quota(1, 1))


@pytest.mark.parametrize("claimed_ms", [None, 5_000, 30_000, HOUR_MS])
def test_audio_is_charged_by_decoded_duration(database: Database, claimed_ms: int | None) -> None:
    submit(database, duration_ms=claimed_ms)
    steps = make_steps(database)
    store_plan(steps, claim_next(steps), 3)
    (day,) = Usage(database, "acme", "one").days(1)
    assert (day.jobs, day.audio_ms, day.own_audio_ms) == (1, 30_000, 30_000)


def test_a_used_up_day_accepts_no_job_of_unknown_duration(database: Database) -> None:
    quota = Quota(audio_ms_per_day=HOUR_MS)
    submit(database, quota=quota)
    with pytest.raises(TooMuchAudio):
        submit(database, quota=quota, duration_ms=None)


def test_a_job_that_is_planned_again_is_charged_once(database: Database) -> None:
    job_id = submit(database, duration_ms=None)
    for _ in range(2):
        with database.transaction() as session:
            correct(session, job_id, 30_000)
    assert Usage(database, "acme", "one").spent().audio_ms == 30_000


def test_usage_is_a_tenants_and_within_it_a_keys(database: Database) -> None:
    submit(database)
    submit(database, key_id="another")
    submit(database, key_id=None)
    submit(database, tenant="other")
    (day,) = Usage(database, "acme", "one").days(30)
    assert (day.jobs, day.own_jobs, day.audio_ms, day.own_audio_ms) == (3, 1, 3 * HOUR_MS, HOUR_MS)
    assert Usage(database, "acme", None).days(30)[0].own_jobs == 1
    assert Usage(database, "nobody", "one").days(30) == []


def test_days_are_listed_from_today_back(database: Database) -> None:
    today = datetime.now(UTC).date()
    with database.transaction() as session:
        session.add_all(
            DailyUsage(
                tenant="acme", key_id="", day=today - timedelta(days=ago), jobs=1, audio_ms=1
            )
            for ago in (0, 2, 3)
        )
    listed = [day.day for day in Usage(database, "acme", None).days(3)]
    assert listed == [today, today - timedelta(days=2)]


@pytest.mark.parametrize("end", ["deleted", "cancelled", "failed"])
def test_decoded_audio_is_charged_whatever_becomes_of_its_job(database: Database, end: str) -> None:
    job_id = submit(database, duration_ms=None)
    steps = make_steps(database)
    claim = claim_next(steps)
    for decoded_ms in (1_000, 31_000, 31_000, 20_000):
        steps.write(claim, audio_decoded(decoded_ms))
    if end == "deleted":
        Deletions(database, "acme").delete(job_id)
    elif end == "cancelled":
        Jobs(database, "acme").cancel(job_id)
    else:
        steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="a test"))
        Jobs(database, "acme").retry(job_id, NO_QUOTA)
        steps.write(again := claim_next(steps), audio_decoded(5_000))
        store_plan(steps, again, 4)
    with pytest.raises(StaleClaim):
        steps.write(claim, audio_decoded(HOUR_MS))
    charged_ms = 40_000 if end == "failed" else 31_000
    assert Usage(database, "acme", "one").spent().audio_ms == charged_ms


def test_a_fetched_recording_is_charged_once_it_is_stored(database: Database) -> None:
    job = new_job(key_id="one", source_url="https://example.com/a.wav")
    Jobs(database, "acme").create(job)
    steps = make_steps(database)
    steps.finish(claim_next(steps), within=recording_fetched(new_recording(60_000)))
    Deletions(database, "acme").delete(job.id)
    assert Usage(database, "acme", "one").spent().audio_ms == 60_000
