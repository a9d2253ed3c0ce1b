"""What workers promise about moderation: where it fails, the text is still complete."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID

import psutil
import psycopg
import pytest
from sqlalchemy import select

from common.db.snapshots import Snapshot
from common.db.tables import Step, StepFailure
from common.db.transcriptions import Transcriptions
from common.domain.job import JobStatus
from common.domain.pipeline import StepKind
from common.domain.request import Options
from tests.support.factories import MODERATED
from tests.support.frozen import SENTENCE
from tests.support.service import Service, Start, engine_process_of, wait_until
from tests.support.speech import speak

pytestmark = pytest.mark.usefixtures("weights_dir")


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
        rows = session.execute(
            select(StepFailure.kind, StepFailure.code).where(StepFailure.job_id == job_id)
        )
        return [(kind, code) for kind, code in rows]


def begun(service: Service, job_id: UUID, attempt: int) -> bool:
    """Whether the worker knows that its engine process has begun this attempt at moderation."""
    with service.database.transaction() as session:
        step_id = session.scalar(
            select(Step.id).where(Step.job_id == job_id, Step.kind == StepKind.MODERATE)
        )
    return f"step {step_id} attempt {attempt} may take" in service.log()


def is_complete_but_for_moderation(service: Service, snapshot: Snapshot) -> None:
    assert snapshot.status == JobStatus.COMPLETED, snapshot
    assert snapshot.warnings == ("moderation_failed",)
    path = service.folder / "results" / str(snapshot.job_id) / "transcript.json"
    document = json.loads(path.read_text())
    assert "fox" in document["text"]
    assert document["warnings"] == ["moderation_failed"]
    assert document["moderation"]["results"] == []
    assert document["moderation"]["summary"]["label"] is None


@pytest.mark.parametrize("broken", [missing, corrupt, switched_off])
def test_a_model_that_cannot_be_used_costs_a_warning_and_no_retries(
    start: Start, tmp_path: Path, broken: Callable[[Path], dict[str, str]]
) -> None:
    service = start(**broken(tmp_path)).serve()

    job_id = service.submit(speak(SENTENCE), options=MODERATED)

    is_complete_but_for_moderation(service, service.ended(job_id))
    code = "moderation_off" if broken is switched_off else "moderation_unusable"
    assert failures(service, job_id) == [("moderate", code)]


def cold(service: Service) -> psutil.Process:
    """A worker whose engine process is lost to a model that hangs before it begins a step."""
    worker = service.start_worker()
    engine_process_of(worker).kill()
    service.start_dispatcher()
    return worker


def test_a_hanging_model_costs_its_time_limit_and_a_warning(start: Start, tmp_path: Path) -> None:
    service = start(**hanging(tmp_path), CHUNK_TIMEOUT="10", MAX_RETRIES="0", WORKER_LEASE="600")
    worker = cold(service)

    job_id = service.submit(speak(SENTENCE), options=MODERATED)

    is_complete_but_for_moderation(service, service.ended(job_id))
    assert failures(service, job_id) == [("moderate", "timed_out")]
    assert worker.is_running()


def test_a_crashing_model_costs_its_retries_and_a_warning(start: Start, tmp_path: Path) -> None:
    service = start(**hanging(tmp_path), MAX_RETRIES="1", WORKER_LEASE="600")
    worker = cold(service)
    job_id = service.submit(speak(SENTENCE), options=MODERATED)
    for attempt in (1, 2):
        wait_until(partial(begun, service, job_id, attempt), "moderation")
        engine_process_of(worker).send_signal(signal.SIGSEGV)

    is_complete_but_for_moderation(service, service.ended(job_id))
    assert failures(service, job_id) == [("moderate", "engine_failed")] * 2


def test_a_reused_chunk_is_moderated_anew_by_a_model_that_is_loaded_once(start: Start) -> None:
    service = start().serve()
    audio = speak(SENTENCE)

    first, again = (service.submit(audio, options=options) for options in (Options(), MODERATED))

    service.ended(first)
    assert service.ended(again).status == JobStatus.COMPLETED
    transcriptions = Transcriptions(service.database)
    (transcribed,), (reused,) = (transcriptions.to_merge(job_id)[0] for job_id in (first, again))
    assert transcribed.moderation is None
    assert reused.moderation is not None
    assert (reused.result, reused.engine_ms) == (transcribed.result, 0)
    assert "moderate" not in [kind for kind, _ in steps_of(service, first)]
    assert service.log().count("loaded the moderation model") == 1


def test_killed_moderation_is_done_again_and_recorded_once(start: Start, database_url: str) -> None:
    service = start(WORKER_LEASE="600").serve()
    (worker,) = service.workers()
    with psycopg.connect(database_url, autocommit=True) as gate:
        gate.execute(WAIT_AT_THE_GATE)
        gate.execute("SELECT pg_advisory_lock(7)")
        job_id = service.submit(speak(SENTENCE), options=MODERATED)
        wait_until(partial(waits_at_the_gate, gate), "a finding about to be stored")
        engine_process_of(worker).kill()
        gate.execute("SELECT pg_advisory_unlock(7)")

    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ())
    assert failures(service, job_id) == [("moderate", "worker_lost")]
    attempts = {"plan": 1, "transcribe": 1, "moderate": 2, "merge": 1}
    assert dict(steps_of(service, job_id)) == attempts


WAIT_AT_THE_GATE = """
CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7);
    RETURN NEW;
END $$;
CREATE TRIGGER gate BEFORE UPDATE OF result ON steps
    FOR EACH ROW WHEN (NEW.kind = 'moderate') EXECUTE FUNCTION wait_at_the_gate();
"""


def waits_at_the_gate(gate: psycopg.Connection) -> bool:
    waiting = gate.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    return bool((waiting.fetchone() or (0,))[0])


def steps_of(service: Service, job_id: UUID) -> list[tuple[str, int]]:
    """Each step's kind and attempts."""
    with service.database.transaction() as session:
        rows = session.execute(select(Step.kind, Step.attempt).where(Step.job_id == job_id))
        return [(kind, attempt) for kind, attempt in rows]
