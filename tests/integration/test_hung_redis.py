"""What a Redis that takes connections and answers nothing costs: only what needs it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx
import pytest

from common.db.database import Database
from common.db.keys import Keys
from common.domain.keys import Scope
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import make_wav
from tests.support.factories import TENANT, claim_next, make_steps, submit_job
from tests.support.gateway import StartGateway
from tests.support.service import wait_until

LIMIT_S = 10.0
"""What clients wait for; it is answered within 3 s, or at once, where nothing else runs."""
RECORDING = make_wav(bytes(32_000))


@pytest.fixture
def valkey(own_valkey: EmbeddedValkey) -> Iterator[EmbeddedValkey]:
    """One that may hang."""
    yield own_valkey
    assert own_valkey.process is not None
    own_valkey.process.send_signal(signal.SIGCONT)


def test_a_redis_that_hangs_holds_up_what_needs_it_shortly_and_nothing_else(
    database: Database, alone: StartGateway, valkey: EmbeddedValkey
) -> None:
    gateway = alone(redis_url=valkey.url)
    with httpx.Client(base_url=gateway.url, timeout=LIMIT_S, trust_env=False) as http:
        jobs = [running_job(database) for _ in range(12)]
        _, key = Keys(database, TENANT).create(
            "x", list(Scope), limits={"requests_per_minute": 1000}
        )
        http.headers["X-API-Key"] = key.reveal()

        def upload() -> httpx.Response:
            return http.post("/api/v1/upload", files={"file": ("a.wav", RECORDING)})

        def cancel(job_id: UUID) -> httpx.Response:
            return http.post(f"/api/v1/jobs/{job_id}/cancel")

        def status(job_id: UUID) -> httpx.Response:
            return http.get(f"/api/v1/status/{job_id}")

        assert upload().status_code == 200
        assert valkey.process is not None
        valkey.process.send_signal(signal.SIGSTOP)

        with ThreadPoolExecutor(24) as pool:
            cancelled = pool.map(cancel, jobs)
            asked = pool.map(status, jobs)
            assert {answer.status_code for answer in asked} == {200}
            assert {answer.json()["status"] for answer in cancelled} == {"CANCELLED"}
            for refused in pool.map(lambda _: upload(), range(4)):
                assert refused.status_code == 503, refused.text
                assert "retry-after" in refused.headers
        assert http.get("/readyz").json()["parts"]["redis"] != "ok"
        assert http.get("/health").json()["workers"] is None
        assert gateway.incoming == []

        valkey.process.send_signal(signal.SIGCONT)
        wait_until(lambda: upload().status_code == 200, "an upload that is accepted")


def running_job(database: Database) -> UUID:
    """A job whose first step a worker has in its hands."""
    job_id = submit_job(database)
    claim_next(make_steps(database))
    return job_id
