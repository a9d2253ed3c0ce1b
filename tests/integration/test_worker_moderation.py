"""What workers promise about moderation: it is there, and where it cannot be, the text still is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import select

from common.db.jobs import Snapshot
from common.db.tables import Failure, Step
from common.domain.job import JobStatus, StepKind
from tests.factories import MODERATED
from tests.service import Service, horse_of, wait_until
from tests.speech import speak

pytestmark = pytest.mark.usefixtures("weights_dir")

SENTENCE = "The quick brown fox jumps over the lazy dog."
Start = Callable[..., Service]


@pytest.fixture
def start(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    services: list[Service] = []

    def start_service(**env: str) -> Service:
        services.append(Service(database_url, redis_url, tmp_path, **env))
        return services[-1]

    yield start_service
    for service in services:
        service.__exit__()


def missing(folder: Path) -> dict[str, str]:
    return {"PHOBERT_ONNX_DIR": str(folder / "nothing-here")}


def corrupt(folder: Path) -> dict[str, str]:
    labels = {"0": "CLEAN", "1": "OFFENSIVE", "2": "HATE"}
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))
    (folder / "model.onnx").write_bytes(b"\x08\x07this is no graph")
    return {"PHOBERT_ONNX_DIR": str(folder)}


def switched_off(_: Path) -> dict[str, str]:
    return {"AI_LOAD_MODELS": "false"}


def hanging(folder: Path) -> dict[str, str]:
    """A model that nobody comes to the end of reading."""
    os.mkfifo(folder / "config.json")
    return {"PHOBERT_ONNX_DIR": str(folder)}


def failures(service: Service, job_id: UUID) -> list[tuple[str, str]]:
    with service.database.transaction() as session:
        rows = session.execute(select(Failure.kind, Failure.code).where(Failure.job_id == job_id))
        return [(kind, code) for kind, code in rows]


def begun(service: Service, job_id: UUID, attempt: int) -> bool:
    """Whether the worker knows that its horse has begun this attempt at moderation."""
    with service.database.transaction() as session:
        step_id = session.scalar(
            select(Step.id).where(Step.job_id == job_id, Step.kind == StepKind.MODERATE)
        )
    return f"step {step_id} attempt {attempt} may take" in service.log()


def document(service: Service, job_id: UUID) -> dict[str, Any]:
    path = service.folder / "results" / str(job_id) / "transcript.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def is_complete_but_for_moderation(service: Service, snapshot: Snapshot) -> None:
    assert snapshot.status == JobStatus.COMPLETED, snapshot
    assert snapshot.warnings == ("moderation_failed",)
    told = document(service, snapshot.job_id)
    assert "fox" in told["text"]
    assert told["warnings"] == ["moderation_failed"]
    assert told["moderation"]["results"] == []
    assert told["moderation"]["summary"]["label"] is None


@pytest.mark.parametrize("broken", [missing, corrupt, switched_off])
def test_a_model_that_cannot_be_used_costs_a_warning_and_no_retries(
    start: Start, tmp_path: Path, broken: Callable[[Path], dict[str, str]]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    service = start(**broken(model))
    service.start_worker()
    service.start_dispatcher()

    job_id = service.submit(speak(SENTENCE), options=MODERATED)

    is_complete_but_for_moderation(service, service.ended(job_id))
    code = "moderation_off" if broken is switched_off else "moderation_unusable"
    assert failures(service, job_id) == [("moderate", code)]


def cold(service: Service) -> psutil.Process:
    """A worker that lost its horse to a model that hangs, before the horse could begin a step."""
    worker = service.start_worker()
    horse_of(worker).kill()
    service.start_dispatcher()
    return worker


def test_a_model_that_hangs_costs_its_time_limit_and_a_warning(
    start: Start, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    service = start(**hanging(model), CHUNK_TIMEOUT="10", MAX_RETRIES="0", WORKER_LEASE="600")
    worker = cold(service)

    job_id = service.submit(speak(SENTENCE), options=MODERATED)

    is_complete_but_for_moderation(service, service.ended(job_id))
    assert failures(service, job_id) == [("moderate", "timed_out")]
    assert worker.is_running()


def test_a_model_that_crashes_the_process_costs_its_retries_and_a_warning(
    start: Start, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    service = start(**hanging(model), MAX_RETRIES="1", WORKER_LEASE="600")
    worker = cold(service)
    job_id = service.submit(speak(SENTENCE), options=MODERATED)
    for attempt in (1, 2):
        wait_until(partial(begun, service, job_id, attempt), "moderation")
        horse_of(worker).send_signal(signal.SIGSEGV)

    is_complete_but_for_moderation(service, service.ended(job_id))
    assert failures(service, job_id) == [("moderate", "engine_failed")] * 2
