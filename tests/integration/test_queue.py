"""What the queue of steps promises over a Redis that loses data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Callback, Queue, Worker
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from common.domain.job import JobStatus, Publication
from common.redis import presence
from common.redis.presence import QUEUE_NAME
from common.redis.queue import STEP_FUNCTION, StepMessage, StepQueue, connect, queue_of
from tests.support.service import Start, wait_until
from tests.support.speech import silence
from worker.engine_process import EngineWorker, StepJob


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with connect(redis_url) as connection:
        yield connection


def published(queue: StepQueue) -> str:
    name = str(uuid4())
    queue.publish([Publication(step_id=uuid4(), rq_job_id=name, description="plan")])
    return name


def test_a_message_is_lost_once_redis_is_flushed(redis: Redis) -> None:
    queue = StepQueue(redis)
    name = published(queue)
    assert queue.lost([name]) == set()
    redis.flushall()
    assert queue.lost([name]) == {name}


def test_a_message_whose_worker_died_before_it_claimed_the_step_is_lost(redis: Redis) -> None:
    queue = StepQueue(redis)
    name = published(queue)
    rq_queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
    worker = Worker([rq_queue], connection=redis, serializer=JSONSerializer)
    found = Queue.dequeue_any([rq_queue], None, connection=redis, serializer=JSONSerializer)
    assert found is not None
    worker.prepare_job_execution(found[0], remove_from_intermediate_queue=True)
    assert found[0].get_status() == "started"
    assert queue.lost([name]) == {name}


class Forgetful(StepJob):
    """A step that is done, whose end cannot be reported to Redis at first."""

    beats = 0

    def perform(self) -> None:
        """Nothing is left to do."""

    def heartbeat(self, *args: Any, **options: Any) -> None:
        """As RQ's, but the first call finds Redis unavailable."""
        self.beats += 1
        if self.beats == 1:
            raise RedisConnectionError("unavailable")
        super().heartbeat(*args, **options)


def test_a_redis_that_was_unavailable_for_a_moment_fails_no_step(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    name = published(StepQueue(redis))
    queue = queue_of(redis)
    worker = EngineWorker([queue], connection=redis, serializer=JSONSerializer)
    job = Forgetful(name, connection=redis, serializer=JSONSerializer)
    job.refresh()  # type: ignore[no-untyped-call]
    worker.execution = Execution.create(job, 60, pipeline=redis.pipeline())
    with pytest.raises(RedisConnectionError):
        worker.perform_job(job, queue)
    assert job.beats == 2
    assert name not in queue.failed_job_registry.get_job_ids()
    assert "Traceback" not in caplog.text


# --- messages of other programs ---------------------------------------------------------------


def touch(*_: object) -> None:
    """What a hostile message would have called."""
    raise AssertionError("it was called")


def test_callbacks_webhooks_and_retries_of_a_message_are_ignored(redis: Redis) -> None:
    queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
    callback = Callback("tests.integration.test_queue.touch")
    written = queue.enqueue_call(
        STEP_FUNCTION,
        args=(str(uuid4()),),
        on_success=callback,
        on_failure=callback,
        on_stopped=callback,
        meta={"any": "thing"},
        timeout=1,
    )
    redis.hset(
        written.key,
        mapping={
            "webhooks": json.dumps([{"url": "http://127.0.0.1:1/", "statuses": ["finished"]}]),
            "retries_left": "1000",
            "repeats_left": "1000",
            "dependency_ids": json.dumps(["another"]),
            "group_id": "a group",
        },
    )
    assert Job.fetch(written.id, connection=redis, serializer=JSONSerializer).success_callback

    message = StepMessage.fetch(written.id, connection=redis, serializer=JSONSerializer)

    callbacks = (message.success_callback, message.failure_callback, message.stopped_callback)
    assert callbacks == (None, None, None)
    assert message.webhooks == []
    assert not message.should_retry
    assert (message.repeats_left, message.dependency_ids, message.group_id) == (None, [], None)
    assert message.timeout == -1
    assert message.meta == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", b"cos\nsystem\n(S'true'\ntR."),  # a pickle
        ("data", b"["),
        ("data", b'["os.system", null, ["true"], {}]'),
        ("data", b'["worker.runner.run_step", null, ["../etc"], {}]'),
        ("data", b'["worker.runner.run_step", null, [5], {}]'),
        ("data", b'["worker.runner.run_step", null, [], {}]'),
        ("data", f'["{STEP_FUNCTION}", "tests", ["{uuid4()}"], {{}}]'.encode()),
        ("data", f'["{STEP_FUNCTION}", null, ["{uuid4()}"], {{"more": 1}}]'.encode()),
        ("data", f'["{STEP_FUNCTION}", null, ["{uuid4()}", "more"], {{}}]'.encode()),
        ("origin", b"elsewhere"),
        ("status", b"odd"),
        ("created_at", b"odd"),
    ],
    ids=range(12),
)
def test_a_foreign_message_counts_as_missing(redis: Redis, field: str, value: bytes) -> None:
    name = published(StepQueue(redis))
    StepMessage.fetch(name, connection=redis, serializer=JSONSerializer)
    redis.hset(f"rq:job:{name}", field, value)
    with pytest.raises(NoSuchJobError):
        StepMessage.fetch(name, connection=redis, serializer=JSONSerializer)


@pytest.mark.usefixtures("weights_dir")
def test_a_worker_survives_foreign_messages(start: Start, redis: Redis, tmp_path: Path) -> None:
    service = start()
    worker = service.start_worker()
    queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
    queue.enqueue_call("pathlib.Path.touch", args=(str(tmp_path / "called"),))
    redis.lpush(queue.key, "no such message", "")
    redis.hset("rq:job:broken", mapping={"data": b"\x80", "status": "odd"})
    redis.lpush(queue.key, "broken")
    wait_until(StepQueue(redis).live_workers, "its registration")
    for name in presence.workers(redis):
        channel = f"rq:pubsub:{name}"
        for command in ("{", "[]", '{"command": "shutdown"}', '{"command": "kill-horse"}'):
            redis.publish(channel, command)
    service.start_dispatcher()

    assert service.ended(service.submit(silence(1))).status == JobStatus.COMPLETED
    assert worker.is_running()
    assert not (tmp_path / "called").exists()
    assert "dropped queue message" in service.log()
    assert "Traceback" not in service.log()
