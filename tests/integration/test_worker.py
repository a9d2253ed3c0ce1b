"""What workers promise when something dies, hangs, grows or is not there."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from redis import Redis
from sqlalchemy import select

from common.db.tables import Step
from common.domain.job import JobStatus, Publication
from common.domain.pipeline import StepKind
from common.redis.events import Events
from common.redis.queue import StepQueue
from tests.support.audio_files import truncate
from tests.support.factories import claim_next, make_steps
from tests.support.frozen import SENTENCE, failures, frozen_worker, has_ended
from tests.support.service import Start, engine_process_of, wait_until, write_wav
from tests.support.speech import Samples, noise, silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir")


def test_a_recording_becomes_text_and_files(start: Start) -> None:
    service = start()
    service.start_worker()
    service.start_dispatcher()

    job_id = service.submit(speak(SENTENCE))

    snapshot = service.ended(job_id)
    assert snapshot.status == JobStatus.COMPLETED, snapshot
    assert "fox" in service.text(job_id)
    results = service.folder / "results" / str(job_id)
    assert {path.suffix for path in results.iterdir()} == {".json", ".txt", ".srt", ".vtt", ".tsv"}
    assert "fox" in (results / "transcript.txt").read_text()
    assert not (service.folder / "uploads" / "chunks" / str(job_id)).exists()


@pytest.mark.parametrize("crash", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_of_the_engine_is_one_failure_and_the_job_completes(
    start: Start, crash: signal.Signals
) -> None:
    service = start()
    worker, engine, job_id = frozen_worker(service)

    engine.send_signal(crash)
    engine.send_signal(signal.SIGCONT)

    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == ["engine_failed"]
    assert worker.is_running()
    assert engine_process_of(worker).pid != engine.pid


def test_a_hung_engine_is_ended_at_its_limit_and_the_job_completes(start: Start) -> None:
    service = start(CHUNK_TIMEOUT="3", WORKER_LEASE="600")
    _, engine, job_id = frozen_worker(service)

    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert "timed_out" in failures(service, job_id)
    assert not psutil.pid_exists(engine.pid)


def test_a_killed_workers_engine_ends_too_and_another_worker_goes_on(
    start: Start,
) -> None:
    service = start(WORKER_LEASE="3")
    worker, engine, job_id = frozen_worker(service)
    service.start_worker()

    worker.kill()

    wait_until(partial(_gone, engine), "the engine process's end")
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == ["worker_lost"]


def test_an_engine_that_crashes_on_a_recording_every_time_fails_the_job_with_the_reason(
    start: Start,
) -> None:
    service = start(MAX_RETRIES="1")
    worker = service.start_worker()
    service.start_dispatcher()
    job_id = service.submit(speak(SENTENCE))
    begun = 0
    while not has_ended(service, job_id):
        if service.log().count("may take") > begun:
            begun += 1
            for engine in worker.children():
                engine.send_signal(signal.SIGSEGV)

    snapshot = service.ended(job_id)
    assert snapshot.status == JobStatus.FAILED
    assert snapshot.error_message is not None
    assert "SIGSEGV" in snapshot.error_message


def test_an_engine_process_that_has_grown_is_replaced_between_steps(start: Start) -> None:
    service = start(WORKER_MAX_GROWTH_MB="0")
    worker = service.start_worker()
    service.start_dispatcher()
    first = engine_process_of(worker)

    for _ in range(2):
        assert service.ended(service.submit(speak(SENTENCE))).status == JobStatus.COMPLETED

    assert engine_process_of(worker).pid != first.pid
    assert worker.is_running()


def test_a_worker_with_nothing_to_do_gives_its_memory_back_and_works_on(start: Start) -> None:
    service = start(ENGINE_IDLE="1")
    worker = service.start_worker()
    service.start_dispatcher()
    assert service.ended(service.submit(speak(SENTENCE))).status == JobStatus.COMPLETED

    wait_until(lambda: not worker.children(), "the end of the engine's process")
    memory = worker.memory_full_info()
    # Pages of libraries are shared with other processes; measuring coverage takes some more.
    assert getattr(memory, "pss", memory.rss) < 120_000_000, memory

    job_id = service.submit(speak(SENTENCE))
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == []


def test_no_engine_is_loaded_for_a_step_that_another_worker_has_begun(
    start: Start, redis_url: str
) -> None:
    service = start(ENGINE_IDLE="0.1")
    worker = service.start_worker()
    wait_until(lambda: "ending the engine process" in service.log(), "the unloading")
    service.submit(speak(SENTENCE))
    claim = claim_next(make_steps(service.database), "another")
    queue = StepQueue(Redis.from_url(redis_url))

    queue.publish([Publication(claim.step_id, "late", "plan")])

    wait_until(lambda: not queue.waiting() and not queue.in_transit(), "the message's end")
    assert worker.children() == []


def test_an_engine_process_that_dies_idle_is_replaced_before_there_is_work(start: Start) -> None:
    worker = start().start_worker()
    first = engine_process_of(worker)

    first.kill()

    wait_until(lambda: first.pid not in [engine.pid for engine in worker.children()], "its burial")
    assert engine_process_of(worker).is_running()


@pytest.mark.parametrize("kind", [StepKind.PLAN, StepKind.TRANSCRIBE])
def test_cancelling_ends_the_running_step_at_once(
    start: Start, redis_url: str, kind: StepKind
) -> None:
    service = start()  # it goes on from the plan to the chunk without another message
    _, engine, job_id = frozen_worker(service, [kind])

    ((name, rq_job),) = service.jobs.cancel(job_id)
    Events(Redis.from_url(redis_url)).stop(name, rq_job)

    wait_until(partial(_gone, engine), "the engine process's end")
    assert service.jobs.snapshot(job_id).status == JobStatus.CANCELLED
    other = service.submit(speak(SENTENCE))
    assert service.ended(other).status == JobStatus.COMPLETED


def test_messages_that_redis_loses_are_published_again(start: Start, redis_url: str) -> None:
    service = start()
    worker, engine, job_id = frozen_worker(service)
    waiting = service.submit(speak("A second recording waits behind the first one."))

    Redis.from_url(redis_url).flushall()
    engine.send_signal(signal.SIGCONT)

    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert service.ended(waiting).status == JobStatus.COMPLETED
    assert worker.is_running()


def test_silence_is_completed_with_no_text_and_a_warning(start: Start) -> None:
    service = start()
    service.start_worker()
    service.start_dispatcher()

    for audio in (silence(3), noise(3, level=0.001)):
        job_id = service.submit(audio)
        snapshot = service.ended(job_id)
        assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ("no_speech",))
        assert service.text(job_id) == ""


def test_a_truncated_recording_is_transcribed_to_its_end_with_a_warning(
    start: Start, tmp_path: Path
) -> None:
    service = start()
    service.start_worker()
    service.start_dispatcher()
    whole = write_wav(tmp_path / "talk.wav", speak(f"{SENTENCE} {SENTENCE} {SENTENCE}"))

    job_id = service.submit(truncate(whole, 0.5))

    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ("truncated",))
    assert "fox" in service.text(job_id)


def test_missing_weights_fail_the_job_and_say_how_to_get_them(start: Start) -> None:
    service = start()
    service.start_worker()
    service.start_dispatcher()

    snapshot = service.ended(service.submit(speak(SENTENCE), model="large-v3"))

    assert snapshot.status == JobStatus.FAILED
    assert snapshot.error_message is not None
    assert "steno models pull large-v3" in snapshot.error_message


def test_one_recording_is_transcribed_by_all_workers_and_its_text_is_that_of_one_worker(
    start: Start,
) -> None:
    # The pauses between the parts are long enough to end a window.
    talk = [speak(f"{SENTENCE} This is part number {number}.") for number in range(6)]
    audio = _joined(talk, pause_s=6.0)
    service = start(REUSE_RESULTS="false")
    service.start_dispatcher()
    service.start_worker()
    alone = service.submit(audio)
    assert service.ended(alone).status == JobStatus.COMPLETED
    service.start_worker()

    together = service.submit(audio)

    assert service.ended(together).status == JobStatus.COMPLETED
    assert service.text(together) == service.text(alone)
    with service.database.transaction() as session:
        workers = session.scalars(
            select(Step.worker).where(Step.job_id == together, Step.kind == "transcribe")
        ).all()
        stored = session.scalars(
            select(Step.stored_count).where(
                Step.job_id == together, Step.kind == StepKind.TRANSCRIBE
            )
        ).all()
    assert len(workers) == 6
    assert set(stored) == {1}


def test_a_run_can_be_repeated_from_its_manifest(start: Start) -> None:
    from common.domain.request import Options

    service = start(REUSE_RESULTS="false")
    service.start_dispatcher()
    service.start_worker()
    audio = speak(SENTENCE)
    first = service.submit(audio)
    service.ended(first)
    manifest = service.jobs.text(first).manifest
    assert manifest is not None

    again = service.submit(
        audio,
        engine=manifest["decoding"]["engine"],
        model=manifest["model"],
        language=manifest["decoding"]["options"]["language"],
        options=Options.from_json(manifest["options"]),
    )

    service.ended(again)
    assert service.text(again) == service.text(first)
    repeated = service.jobs.text(again).manifest
    assert repeated is not None
    assert repeated["chunks"] == manifest["chunks"]


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _joined(parts: Sequence[Samples], pause_s: float) -> Samples:
    pause = silence(pause_s)
    return np.concatenate([piece for part in parts for piece in (part, pause)])
