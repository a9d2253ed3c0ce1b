"""What workers promise when something dies, hangs, grows or is missing."""

from __future__ import annotations

import signal
from functools import partial

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
from tests.support.factories import claim_next, make_steps
from tests.support.frozen import SENTENCE, failures, frozen_worker, has_ended
from tests.support.service import Start, engine_process_of, have_ended, wait_until
from tests.support.speech import silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir")


@pytest.mark.parametrize("crash", [signal.SIGSEGV, signal.SIGABRT])
def test_a_job_survives_a_crash_of_its_engine(start: Start, crash: signal.Signals) -> None:
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


def test_a_killed_workers_engine_ends_too_and_another_worker_goes_on(start: Start) -> None:
    service = start(WORKER_LEASE="3")
    worker, engine, job_id = frozen_worker(service)
    service.start_worker()

    worker.kill()

    wait_until(partial(have_ended, [engine]), "the engine process's end")
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == ["worker_lost"]


def test_an_engine_that_crashes_every_time_fails_the_job_with_the_reason(start: Start) -> None:
    service = start(MAX_RETRIES="1").serve()
    (worker,) = service.workers()
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
    service = start(WORKER_MAX_GROWTH_MB="0").serve()
    (worker,) = service.workers()
    first = engine_process_of(worker)

    for _ in range(2):
        assert service.ended(service.submit(speak(SENTENCE))).status == JobStatus.COMPLETED

    assert engine_process_of(worker).pid != first.pid
    assert worker.is_running()


def test_a_worker_with_nothing_to_do_gives_its_memory_back_and_works_on(start: Start) -> None:
    service = start(ENGINE_IDLE="1").serve()
    (worker,) = service.workers()
    assert service.ended(service.submit(speak(SENTENCE))).status == JobStatus.COMPLETED

    wait_until(lambda: not worker.children(), "the end of the engine's process")
    memory = worker.memory_full_info()
    # Pages of libraries are shared with other processes; measuring coverage takes some more.
    assert getattr(memory, "pss", memory.rss) < 120_000_000, memory

    job_id = service.submit(speak(SENTENCE))
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert failures(service, job_id) == []


def test_no_engine_is_loaded_for_a_step_of_another_worker(start: Start, redis_url: str) -> None:
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

    wait_until(lambda: first.pid not in [engine.pid for engine in worker.children()], "its end")
    assert engine_process_of(worker).is_running()


def test_cancelling_ends_the_plan_at_once(start: Start, redis_url: str) -> None:
    service = start()
    _, engine, job_id = frozen_worker(service, [StepKind.PLAN])

    ((name, rq_job),) = service.jobs.cancel(job_id)
    Events(Redis.from_url(redis_url)).stop(name, rq_job)

    wait_until(partial(have_ended, [engine]), "the engine process's end")
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


def test_a_manifest_names_the_encoders_that_ran_also_those_of_reused_text(start: Start) -> None:
    service = start().serve()
    first = service.submit(speak(SENTENCE))
    service.ended(first)
    with service.database.transaction() as session:
        session.connection().exec_driver_sql(
            "UPDATE steps SET result = jsonb_set(result, '{0,0,encoder}', '\"another\"')"
            " WHERE kind = 'transcribe'"
        )

    again = service.submit(speak(SENTENCE))

    service.ended(again)
    manifests = [service.jobs.text(job_id).manifest for job_id in (first, again)]
    own, reused = [manifest["encoders"] for manifest in manifests if manifest is not None]
    assert [name.split()[0] for name in own] in (["ctranslate2"], ["openvino"])
    assert reused == ["another"]


def test_several_workers_give_the_same_text_as_one(start: Start) -> None:
    # The pauses between the parts are long enough to end a window.
    parts = [speak(f"{SENTENCE} This is part number {number}.") for number in range(3)]
    audio = np.concatenate([piece for part in parts for piece in (part, silence(6))])
    service = start(REUSE_RESULTS="false").serve()
    alone = service.submit(audio)
    assert service.ended(alone).status == JobStatus.COMPLETED
    service.start_worker()

    together = service.submit(audio)

    assert service.ended(together).status == JobStatus.COMPLETED
    assert service.text(together) == service.text(alone)
    transcribed = (Step.job_id == together, Step.kind == StepKind.TRANSCRIBE)
    with service.database.transaction() as session:
        stored = session.scalars(select(Step.stored_count).where(*transcribed)).all()
    assert stored == [1] * len(parts)
