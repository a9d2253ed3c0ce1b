"""The peaks of a recording are there once its job is planned, or found again, and go with it."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from common.audio.decode import MonoDecoder
from common.audio.peaks import PeakFinder
from common.db.database import Database
from common.db.jobs import Jobs
from common.domain.job import JobStatus
from tests.support.audio_files import KINDS, tone, write, write_channels
from tests.support.factories import TENANT, submit_job
from tests.support.gateway import GatewayProcess, StartGateway, children
from tests.support.service import wait_until
from tests.support.speech import noise

HEADER = struct.Struct("<iIiiI")
MODULE = "api.processes.peaks_process"

pytestmark = pytest.mark.usefixtures("weights_dir")


def peaks_in(path: Path) -> bytes:
    """Those of the mix of a recording."""
    finder = PeakFinder()
    for block in MonoDecoder(path):
        finder.feed(block)
    return finder.finish()


def sent(gateway: GatewayProcess, path: Path, **data: str) -> str:
    answer = gateway.http.post(
        "/api/v1/upload",
        files={"file": path.open("rb")},
        data={"model": "base", "language": "en", **data},
    )
    return str(answer.raise_for_status().json()["job_id"])


def ended(gateway: GatewayProcess, job_id: str) -> None:
    def is_done() -> bool:
        status = gateway.http.get(f"/api/v1/status/{job_id}", params={"wait": 30}).json()
        return bool(status["status"] == "COMPLETED")

    wait_until(is_done, "the job")


def ask(
    gateway: GatewayProcess, job_id: object, status: int = 200, *, accept: str = "*/*", **query: Any
) -> httpx.Response:
    path = f"/api/v1/jobs/{job_id}/peaks"
    answer = gateway.http.get(path, params=query, headers={"Accept": accept})
    assert answer.status_code == status, answer.text[:1_000]
    return answer


def stored(gateway: GatewayProcess, job_id: str) -> Path:
    return gateway.folder / "uploads" / "peaks" / job_id / "peaks.dat"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "tone.mp3"
    write(path, np.concatenate([tone(1.5), tone(1.5, level=0.8)]), KINDS["mp3"])
    return path


@pytest.fixture(scope="module")
def job_id(serving: GatewayProcess, recording: Path) -> str:
    job_id = sent(serving, recording)
    ended(serving, job_id)
    return job_id


def test_they_are_those_of_the_whole_recording(
    serving: GatewayProcess, job_id: str, recording: Path
) -> None:
    found = ask(serving, job_id)
    assert found.content == peaks_in(recording) == stored(serving, job_id).read_bytes()
    assert found.headers["content-type"] == "application/octet-stream"
    version, flags, rate, samples, count = HEADER.unpack_from(found.content)
    assert (version, flags, rate, samples) == (1, 1, 16_000, 320)
    assert len(found.content) == HEADER.size + 2 * count
    assert 3.0 <= count * samples / rate < 3.2
    assert children(MODULE, serving.process.pid) == []


def test_they_are_json_with_as_many_a_second_as_asked(serving: GatewayProcess, job_id: str) -> None:
    found = ask(serving, job_id, accept="application/json", per_second=10)
    assert found.headers["content-type"] == "application/json"
    document = found.json()
    assert (document["samples_per_pixel"], document["sample_rate"]) == (1_600, 16_000)
    assert len(document["data"]) == 2 * document["length"]
    quiet, loud = document["data"][:20], document["data"][40:60]
    assert max(map(abs, quiet)) < max(map(abs, loud))
    binary = ask(serving, job_id, per_second=10).content
    assert list(np.frombuffer(binary, np.int8, offset=HEADER.size)) == document["data"]


def test_they_are_asked_for_once(serving: GatewayProcess, job_id: str) -> None:
    path = f"/api/v1/jobs/{job_id}/peaks"
    first = ask(serving, job_id)
    assert first.headers["cache-control"] == "private, no-cache"
    again = serving.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    for other in (
        ask(serving, job_id, per_second=25),
        ask(serving, job_id, accept="application/json"),
    ):
        assert other.headers["etag"] != first.headers["etag"]
    plain = serving.http.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert first.headers["content-encoding"] == "gzip"
    assert plain.content == first.content
    assert {"Accept", "Accept-Encoding"} <= set(plain.headers["vary"].split(", "))


@pytest.mark.parametrize("wrong", ["0", "51", "-1", "1.5", "many"])
def test_how_many_a_second_is_bounded(serving: GatewayProcess, job_id: str, wrong: str) -> None:
    assert ask(serving, job_id, 422, per_second=wrong).json()["field"] == "per_second"


def test_separate_channels_have_those_of_their_mix(serving: GatewayProcess, tmp_path: Path) -> None:
    path = write_channels(tmp_path / "call.wav", noise(2.0, level=0.5), noise(2.0) * 0)
    job_id = sent(serving, path, channels="separate")
    ended(serving, job_id)
    document = ask(serving, job_id, accept="application/json").json()
    assert document["length"] == 100
    assert 0 < max(document["data"]) < 127


def test_those_that_are_missing_are_found_once_and_stored(
    serving: GatewayProcess, job_id: str, recording: Path
) -> None:
    stored(serving, job_id).unlink()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(serving, job_id), range(4)))
    assert {answer.content for answer in answers} == {peaks_in(recording)}
    assert stored(serving, job_id).read_bytes() == peaks_in(recording)
    wait_until(lambda: children(MODULE, serving.process.pid) == [], "the end of the process")


def test_they_are_deleted_with_the_job_and_counted(
    serving: GatewayProcess, recording: Path
) -> None:
    kept, deleted = (sent(serving, recording) for _ in range(2))
    for each in (kept, deleted):
        ended(serving, each)
    wait_until(lambda: not chunks(serving, deleted).exists(), "the end of the chunks")
    files = 1 + len(list((serving.folder / "results" / deleted).iterdir()))
    assert stored(serving, deleted).exists()
    serving.http.delete(f"/api/v1/jobs/{deleted}").raise_for_status()
    assert not stored(serving, deleted).parent.exists()
    assert stored(serving, kept).exists()
    (receipt,) = serving.http.get("/api/v1/deletions", params={"job_id": deleted}).json()[
        "deletions"
    ]
    assert receipt["files"] == files + 1  # the recording
    ask(serving, deleted, 404)


def chunks(gateway: GatewayProcess, job_id: str) -> Path:
    return gateway.folder / "uploads" / "chunks" / job_id


def test_a_rerun_has_those_of_the_whole_recording(serving: GatewayProcess, job_id: str) -> None:
    rerun = serving.http.post(f"/api/v1/jobs/{job_id}/rerun", json={"start": 0, "end": 1})
    rerun_id = rerun.json()["job_id"]
    assert ask(serving, rerun_id).content == ask(serving, job_id).content


# --- jobs that no worker has planned --------------------------------------------------------------


@pytest.fixture
def idle(alone: StartGateway) -> GatewayProcess:
    """A gateway without a worker."""
    return alone()


def test_a_job_that_waits_has_none_yet(idle: GatewayProcess, recording: Path) -> None:
    job_id = sent(idle, recording)
    answer = ask(idle, job_id, 409)
    assert answer.json()["code"] == "not_ready"
    assert "PENDING" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0
    awaited = idle.http.post("/api/v1/jobs", json={"language": "en", "model": "base"})
    assert "PENDING_UPLOAD" in ask(idle, awaited.json()["job_id"], 409).json()["detail"]
    ask(idle, uuid4(), 404)


def test_one_that_was_cancelled_before_has_those_of_its_recording(
    idle: GatewayProcess, recording: Path
) -> None:
    job_id = sent(idle, recording)
    idle.http.post(f"/api/v1/jobs/{job_id}/cancel").raise_for_status()
    assert ask(idle, job_id).content == peaks_in(recording)


def test_a_recording_that_cannot_be_read_says_so(idle: GatewayProcess, database: Database) -> None:
    job_id = submit_job(database)
    recording_id = Jobs(database, TENANT).recording(job_id).id
    Jobs(database, TENANT).cancel(job_id)
    assert Jobs(database, TENANT).snapshot(job_id).status is JobStatus.CANCELLED
    path = idle.folder / "uploads" / "recordings" / str(recording_id)
    headers = {"X-Tenant-Id": TENANT}
    url = f"/api/v1/jobs/{job_id}/peaks"
    assert idle.http.get(url, headers=headers).status_code == 404
    path.write_bytes(b"no recording" * 100)
    answer = idle.http.get(url, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "cannot be read" in answer.json()["detail"]
    assert json.loads(answer.text)["status"] == 409
