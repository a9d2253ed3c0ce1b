"""A worker that was paused writes nothing for a job that was deleted in the meantime."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from common.db.deletions import Deletions
from common.db.tables import Deletion, Job
from common.db.usage import Usage
from common.domain.request import Cutting, Options
from tests.support.factories import TENANT
from tests.support.s3 import BUCKET, S3Server
from tests.support.service import Service, Start, engine_process_of, wait_until

LONG_S = 3600
"""Its plan takes long enough to be stopped on the way."""


@pytest.fixture(params=["local", "s3"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[S3Server | None]:
    """The S3 server that has the files, unless a folder has them."""
    if request.param == "local":
        yield None
        return
    with S3Server(tmp_path / "moto.log") as running:
        yield running


def silence(path: Path) -> Path:
    """A long recording that takes no space, and does not state its duration."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8_000)
    with path.open("r+b") as raw:
        raw.seek(40)
        raw.write(b"\xff" * 4)
    os.truncate(path, 44 + LONG_S * 8_000)
    return path


def receipt_of(service: Service) -> Deletion:
    (receipt,) = Deletions(service.database, TENANT).page(limit=1, after=None).items
    return receipt


def planned(service: Service) -> tuple[int, bool]:
    """How many chunks of the only job are planned, and whether these are all."""
    with service.database.transaction() as session:
        chunks, is_over = session.execute(select(Job.parts_total, Job.parts_known)).one()
        return chunks, is_over


def test_a_worker_that_was_paused_while_it_planned_leaves_nothing_of_a_deleted_job(
    start: Start, server: S3Server | None, tmp_path: Path
) -> None:
    service = start(WORKER_LEASE="2", **({} if server is None else server.settings()))
    recording = silence(tmp_path / "silence.wav")
    cutting = Cutting(strategy="fixed")
    job_id = service.submit(recording, key_id="one", options=Options(cutting=cutting))
    if server is not None:
        name = f"steno/recordings/{service.jobs.recording(job_id).id}"
        server.client.upload_file(str(recording), BUCKET, name)

    def files() -> list[str]:
        names = [] if server is None else server.names()
        return [
            each
            for each in (*map(str, (tmp_path / "uploads").rglob("*")), *names)
            if str(job_id) in each
        ]

    worker = service.start_worker()
    engine = engine_process_of(worker)
    dispatcher = service.start_dispatcher()
    while not planned(service)[0]:  # without a pause, as it is soon over
        assert dispatcher.is_running()
    for process in (worker, engine):
        process.suspend()
    assert not planned(service)[1]
    assert files()
    Deletions(service.database, TENANT).delete(job_id)
    wait_until(lambda: receipt_of(service).erased_at, "the proof")
    assert files() == []
    assert Usage(service.database, TENANT, "one").spent().audio_ms > 0, "what was decoded"

    for process in (engine, worker):
        process.resume()
    wait_until(lambda: "claim is stale" in service.log() or not engine.is_running(), "the worker")
    wait_until(lambda: not files(), "the end of what it has written")
