"""Repeated requests of whisper-asr-webservice's clients, with nobody but the test at work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from common.errors import DecodeFailed
from tests.support.api import Api
from tests.support.audio_files import make_wav, tone
from tests.support.factories import stored_segment
from tests.support.gateway import StartGateway
from tests.support.service import wait_until

SENT: dict[str, Any] = {
    "params": {"language": "en", "output": "srt"},
    "files": {"audio_file": make_wav(tone(1.0).tobytes())},
}


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"OPENAI_WAIT": "0.1", "AI_LOAD_MODELS": "false"}


def jobs(api: Api, tenant: str = "default") -> list[Any]:
    listed: list[Any] = api.ask("GET", "jobs", headers={"X-Tenant-Id": tenant}).json()["jobs"]
    return listed


def wait_for_repeats(api: Api, job: dict[str, Any], times: int) -> None:
    line = f"job {job['job_id']} was submitted again"
    wait_until(lambda: api.gateway.log_file.read_text().count(line) == times, "the repeats")


def cancel(api: Api, job: dict[str, Any], tenant: str = "default") -> None:
    """End a job, and with it the requests that wait for it."""
    api.ask("POST", f"jobs/{job['job_id']}/cancel", headers={"X-Tenant-Id": tenant})


def test_a_repeat_joins_the_job_that_runs_and_waits_as_long_as_it_takes(
    api: Api, pool: ThreadPoolExecutor
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        api.http.post("/asr", timeout=httpx.Timeout(60, read=2), **SENT)
    (job,) = jobs(api)
    assert job["status"] == "PENDING"

    asking = [pool.submit(api.http.post, "/asr", **SENT) for _ in range(2)]
    wait_for_repeats(api, job, 2)
    api.complete(segments=[stored_segment(0, 10_000, " At last.")])
    for answer in (each.result(timeout=60) for each in asking):
        assert answer.text == "1\n00:00:00,000 --> 00:00:10,000\nAt last.\n\n"
        assert answer.headers["x-job-id"] == job["job_id"]
    assert len(jobs(api)) == 1


def test_a_repeat_of_what_failed_is_another_job(api: Api, pool: ThreadPoolExecutor) -> None:
    for number in (1, 2):
        asking = pool.submit(api.http.post, "/asr", **SENT)
        wait_until(lambda: len(jobs(api)) == number, "the job")  # noqa: B023 - within its turn
        api.fail(DecodeFailed(reason="it is empty"))
        answer = asking.result(timeout=60)
        job_id = jobs(api)[0]["job_id"]
        assert (answer.status_code, answer.headers["x-job-id"]) == (409, job_id)
        assert "it is empty" in answer.json()["detail"]


def test_an_idempotency_key_means_one_request(api: Api, pool: ThreadPoolExecutor) -> None:
    keyed = SENT | {"headers": {"Idempotency-Key": "episode 1"}}
    one = keyed | {"params": {"initial_prompt": "One.", "priority": "low"}}
    asking = pool.submit(api.http.post, "/asr", **one)
    (job,) = wait_until(lambda: jobs(api), "the job")
    again = pool.submit(api.http.post, "/asr", **one)
    wait_for_repeats(api, job, 1)
    another = api.http.post("/asr", **keyed | {"params": {"initial_prompt": "Another."}})
    assert another.status_code == 409
    cancel(api, job)
    assert asking.result().headers["x-job-id"] == again.result().headers["x-job-id"]


def test_another_tenants_recording_is_not_joined(api: Api, pool: ThreadPoolExecutor) -> None:
    found = []
    for tenant in "ab":
        sent = SENT | {"headers": {"X-Tenant-Id": tenant}}
        asking = [pool.submit(api.http.post, "/asr", **sent) for _ in range(2)]
        (job,) = wait_until(lambda: jobs(api, tenant), "the job")  # noqa: B023 - within its turn
        wait_for_repeats(api, job, 1)
        found.append((asking, job, tenant))
    assert found[0][1]["job_id"] != found[1][1]["job_id"]
    for asking, job, tenant in found:
        cancel(api, job, tenant)
        assert {each.result().headers["x-job-id"] for each in asking} == {job["job_id"]}


def test_a_gateway_that_stops_sends_its_clients_elsewhere(
    pool: ThreadPoolExecutor, alone: StartGateway
) -> None:
    gateway = alone()
    asking = pool.submit(gateway.http.post, "/asr", **SENT)
    wait_until(lambda: gateway.http.get("/api/v1/jobs").json()["jobs"], "the job")
    gateway.process.terminate()
    answer = asking.result(timeout=60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
