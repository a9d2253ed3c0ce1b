"""How much may be asked for with a key, and what is told of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs, NewJob
from common.db.keys import Keys
from common.db.steps import StaleClaim
from common.db.tables import DailyUsage
from common.db.transcriptions import NewRecording, audio_decoded, recording_fetched
from common.db.usage import HOUR_MS, NO_QUOTA, Quota, Usage, correct
from common.domain.job import JobStatus, Priority
from common.domain.keys import KeyText, Scope
from common.domain.request import Options
from common.errors import DecodeFailed, OverLimit, TooManyJobs, TooMuchAudio
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import make_wav, tone
from tests.support.factories import claim_next, make_steps, new_job, new_recording, store_plan
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


def send(gateway: GatewayProcess, key: KeyText | str, clip: bytes) -> httpx.Response:
    shown = key if isinstance(key, str) else key.reveal()
    return gateway.http.post(
        "/api/v1/upload", files={"file": ("a.wav", clip)}, headers={"X-API-Key": shown}
    )


def early_in(window_s: float) -> None:
    """Wait until a window of the clock has begun just now, if it is about to end."""
    left = window_s - time.time() % window_s
    if left < min(10.0, window_s):
        time.sleep(left)


# --- requests ---------------------------------------------------------------------------------


def test_requests_beyond_a_limit_are_refused_until_the_window_ends(
    gateway: GatewayProcess, make: Make
) -> None:
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
    body = refused.json()
    assert (body["code"], body["field"]) == ("rate_limited", "requests_per_minute")
    assert (body["limit"], body["value"]) == (5, 7)


def test_a_limit_a_second_lets_go_on_in_the_next(gateway: GatewayProcess, make: Make) -> None:
    key = make(requests_per_second=1)

    def refused() -> bool:
        return ask(gateway, key, f"status/{NOWHERE}").status_code == 429

    seen: set[bool] = set()
    deadline = time.monotonic() + 30
    while seen != {False, True} and time.monotonic() < deadline:
        seen.add(refused())
    assert seen == {False, True}
    while refused() and time.monotonic() < deadline:
        continue
    assert time.monotonic() < deadline


def test_one_keys_requests_are_none_of_anothers(gateway: GatewayProcess, make: Make) -> None:
    early_in(60)
    for key in (make(requests_per_minute=1), make(requests_per_minute=1)):
        assert ask(gateway, key, f"status/{NOWHERE}").status_code == 404


def test_the_operators_key_is_held_to_nothing(gateway: GatewayProcess) -> None:
    answer = ask(gateway, OPERATOR, f"status/{NOWHERE}")
    assert "ratelimit-limit" not in answer.headers


def test_without_redis_reading_goes_on(tmp_path: Path, database_url: str) -> None:
    with Database(database_url) as database, EmbeddedValkey(tmp_path / "valkey") as valkey:
        _, key = Keys(database, "acme").create("x", [Scope.READ], limits={"requests_per_minute": 1})
        with GatewayProcess(tmp_path, database_url, valkey.url) as gateway:
            assert "ratelimit-limit" in ask(gateway, key, f"status/{NOWHERE}").headers
            valkey.stop()
            for _ in range(3):
                assert ask(gateway, key, f"status/{NOWHERE}").status_code == 404
            warned = gateway.log_file.read_text().count("requests are not counted")
            assert warned == 1


# --- jobs and audio ---------------------------------------------------------------------------


def test_a_key_has_no_more_jobs_at_once_than_it_may(
    gateway: GatewayProcess, gateway_database: Database, make: Make, clip: bytes
) -> None:
    key = make(concurrent_jobs=2)
    jobs = [send(gateway, key, clip) for _ in range(2)]
    assert [job.status_code for job in jobs] == [200, 200], jobs[0].text
    refused = send(gateway, key, clip)
    assert refused.status_code == 429
    body = refused.json()
    assert (body["code"], body["field"]) == ("too_many_jobs", "concurrent_jobs")
    assert (body["limit"], body["value"]) == (2, 3)
    assert int(refused.headers["retry-after"]) > 0
    assert send(gateway, make(), clip).status_code == 200
    Jobs(gateway_database, "acme").cancel(UUID(jobs[0].json()["job_id"]))
    assert send(gateway, key, clip).status_code == 200


def test_who_may_have_one_job_may_ask_for_it_twice_and_send_its_recording_later(
    gateway: GatewayProcess, make: Make, clip: bytes
) -> None:
    for key in (make(concurrent_jobs=1), make(concurrent_jobs=1)):
        shown = {"X-API-Key": key.reveal(), "Idempotency-Key": "once"}
        sent = [
            gateway.http.post("/api/v1/upload", files={"file": ("a.wav", clip)}, headers=shown)
            for _ in range(2)
        ]
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


def test_a_key_has_no_more_uploads_under_way_than_it_may_have_jobs(
    gateway: GatewayProcess, make: Make, clip: bytes
) -> None:
    """They are no jobs yet, and fill the disk all the same."""
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


def test_a_key_sends_no_more_audio_a_day_than_it_may(
    gateway: GatewayProcess, make: Make, clip: bytes
) -> None:
    key = make(audio_hours_per_day=1.5 / 3600)
    assert send(gateway, key, clip).status_code == 200
    refused = send(gateway, key, clip)
    assert refused.status_code == 429
    body = refused.json()
    assert (body["code"], body["field"]) == ("too_much_audio", "audio_hours_per_day")
    assert 0 < int(refused.headers["retry-after"]) <= 86_400


def test_what_is_refused_leaves_nothing_behind(
    gateway: GatewayProcess, gateway_database: Database, make: Make, clip: bytes
) -> None:
    key = make(audio_hours_per_day=0.5 / 3600)
    before = len(gateway.recordings)
    assert send(gateway, key, clip).status_code == 429
    assert (len(gateway.recordings), gateway.incoming) == (before, [])
    assert Usage(gateway_database, "acme", key.id).spent().audio_ms == 0


def test_usage_tells_what_was_sent_and_what_is_left(
    gateway: GatewayProcess, make: Make, clip: bytes
) -> None:
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


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url, pool_size=20) as database:
        yield database


def submit(
    database: Database,
    quota: Quota = NO_QUOTA,
    *,
    tenant: str = "acme",
    key_id: str | None = "one",
    duration_ms: int | None = HOUR_MS,
) -> UUID:
    recording = NewRecording(uuid4(), "a.wav", "wav", "pcm", 1, "0" * 64, duration_ms, 1)
    job = NewJob(
        uuid4(),
        "faster-whisper",
        "base",
        "en",
        Priority.NORMAL,
        Options(),
        key_id=key_id,
        quota=quota,
    )
    Jobs(database, tenant).submit(recording, job)
    return job.id


@pytest.mark.parametrize(
    ("quota", "error"),
    [(Quota(concurrent_jobs=7), TooManyJobs), (Quota(audio_ms_per_day=7 * HOUR_MS), TooMuchAudio)],
)
def test_however_many_are_sent_at_once_a_limit_holds(
    database: Database, quota: Quota, error: type[OverLimit]
) -> None:
    def send_one(number: int) -> bool:
        try:
            submit(database, quota, tenant=f"tenant-{number % 3}")
        except error:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        taken = list(pool.map(send_one, range(20)))
    assert taken.count(True) == 7
    spent = Usage(database, "tenant-0", "one").spent()
    assert (spent.concurrent_jobs, spent.audio_ms) == (7, 7 * HOUR_MS)


def test_jobs_that_are_retried_count_as_any_others(database: Database) -> None:
    quota = Quota(1, HOUR_MS)
    steps, jobs = make_steps(database), Jobs(database, "acme")
    failed = submit(database, quota)
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="a test"))
    other = submit(database)
    with pytest.raises(TooManyJobs):
        jobs.retry(failed, quota)
    assert jobs.snapshot(failed).status is JobStatus.FAILED
    jobs.cancel(other)
    jobs.retry(failed, quota)  # although today's audio is used up: it was charged before


def test_what_is_used_up_is_told_before_anything_is_sent(database: Database) -> None:
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
def test_audio_counts_as_long_as_it_turns_out_to_be(
    database: Database, claimed_ms: int | None
) -> None:
    submit(database, duration_ms=claimed_ms)
    steps = make_steps(database)
    store_plan(steps, claim_next(steps), 3)
    (day,) = Usage(database, "acme", "one").days(1)
    assert (day.jobs, day.audio_ms, day.own_audio_ms) == (1, 30_000, 30_000)


def test_a_day_that_is_used_up_takes_no_job_of_unknown_length_either(database: Database) -> None:
    quota = Quota(audio_ms_per_day=HOUR_MS)
    submit(database, quota)
    with pytest.raises(TooMuchAudio):
        submit(database, quota, duration_ms=None)


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


def test_days_are_told_from_today_on(database: Database) -> None:
    today = datetime.now(UTC).date()
    with database.transaction() as session:
        session.add_all(
            DailyUsage(
                tenant="acme", key_id="", day=today - timedelta(days=ago), jobs=1, audio_ms=1
            )
            for ago in (0, 2, 3)
        )
    told = [day.day for day in Usage(database, "acme", None).days(3)]
    assert told == [today, today - timedelta(days=2)]


@pytest.mark.parametrize("end", ["deleted", "cancelled", "failed"])
def test_what_was_decoded_is_charged_whatever_becomes_of_its_job(
    database: Database, end: str
) -> None:
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


def test_a_recording_that_was_fetched_is_charged_once_it_is_here(database: Database) -> None:
    job = new_job(key_id="one", source_url="https://example.com/a.wav")
    Jobs(database, "acme").create(job)
    steps = make_steps(database)
    steps.finish(claim_next(steps), within=recording_fetched(new_recording(60_000)))
    Deletions(database, "acme").delete(job.id)
    assert Usage(database, "acme", "one").spent().audio_ms == 60_000
