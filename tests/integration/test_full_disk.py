"""What a full disk costs: time, and no job."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from redis import Redis

from common.domain.job import JobStatus
from common.errors import StorageFull
from common.redis import presence
from common.storage.storage import check_space, storage_errors
from tests.support.audio_files import make_wav
from tests.support.frozen import SENTENCE, failures
from tests.support.gateway import StartGateway
from tests.support.service import Start, engine_process_of, wait_until
from tests.support.speech import silence, speak

LITTLE = 50_000
"""Bytes: more than a log or a transcript has, less than the audio of a chunk."""


@pytest.mark.usefixtures("weights_dir")
def test_jobs_wait_for_a_full_disk_however_long_and_go_on_by_themselves(
    start: Start, alone: StartGateway, redis_url: str
) -> None:
    service = start(MAX_RETRIES="1")
    worker = service.start_worker()
    service.start_dispatcher()
    assert service.ended(service.submit(silence(1))).status == JobStatus.COMPLETED
    engine = engine_process_of(worker)
    # The system refuses it to write further than this, as it does where no space is left.
    engine.rlimit(psutil.RLIMIT_FSIZE, (LITTLE, psutil.RLIM_INFINITY))

    job_id = service.submit(speak(SENTENCE))

    wait_until(lambda: service.log().count("The storage is full") > 3, "many tries")
    assert service.jobs.snapshot(job_id).status == JobStatus.PROCESSING
    gateway = alone()
    assert "full" in gateway.http.get("/readyz").json()["parts"]["storage"]
    assert "stenopool_storage_full 1.0" in gateway.http.get("/metrics").text

    engine.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))

    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == []
    with Redis.from_url(redis_url) as redis:
        wait_until(lambda: not presence.storage_is_full(redis), "the end of the complaint")
    wait_until(lambda: gateway.http.get("/readyz").is_success, "ready")


def test_little_space_is_kept_for_the_jobs_that_were_accepted(alone: StartGateway) -> None:
    gateway = alone(MIN_FREE_MB="1000000000")
    files = {"file": ("a.wav", make_wav(bytes(32_000)))}
    refused = gateway.http.post("/api/v1/upload", files=files)
    assert refused.status_code == 503
    assert refused.json()["code"] == "storage_full"
    assert "retry-after" in refused.headers
    assert gateway.incoming == []
    assert "full" in gateway.http.get("/readyz").json()["parts"]["storage"]


def test_the_systems_error_for_a_full_disk_is_storage_full(tmp_path: Path) -> None:
    with pytest.raises(StorageFull), storage_errors():
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(StorageFull):
        check_space(tmp_path, 10**18)
    check_space(tmp_path, 0)
