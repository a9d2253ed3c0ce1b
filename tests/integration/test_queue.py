"""What the doorbell promises over a Redis that only half remembers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue, Worker
from rq.executions import Execution
from rq.serializers import JSONSerializer

from common.db.steps import Publication
from common.presence import QUEUE_NAME
from common.queue import Doorbell, connect
from worker.horse import HorseWorker, StepJob


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with connect(redis_url) as connection:
        yield connection


def rung(doorbell: Doorbell) -> str:
    name = str(uuid4())
    doorbell.ring([Publication(outbox_id=1, step_id=uuid4(), doorbell=name, description="plan")])
    return name


def test_a_doorbell_that_waits_is_not_lost(redis: Redis) -> None:
    doorbell = Doorbell(redis)
    assert doorbell.lost([rung(doorbell)]) == set()


def test_a_doorbell_that_was_flushed_is_lost(redis: Redis) -> None:
    doorbell = Doorbell(redis)
    name = rung(doorbell)
    redis.flushall()
    assert doorbell.lost([name]) == {name}


def test_a_doorbell_whose_worker_died_before_it_claimed_the_step_is_lost(redis: Redis) -> None:
    doorbell = Doorbell(redis)
    name = rung(doorbell)
    queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
    worker = Worker([queue], connection=redis, serializer=JSONSerializer)
    found = Queue.dequeue_any([queue], None, connection=redis, serializer=JSONSerializer)
    assert found is not None
    worker.prepare_job_execution(found[0], remove_from_intermediate_queue=True)
    assert found[0].get_status() == "started"
    assert doorbell.lost([name]) == {name}


class Forgetful(StepJob):
    """A step that is done, whose end Redis does not hear of at first."""

    beats = 0

    def perform(self) -> None:
        """Nothing is left to do."""

    def heartbeat(self, *args: Any, **options: Any) -> None:
        """As RQ's, but for the first, which meets a Redis that is away."""
        self.beats += 1
        if self.beats == 1:
            raise RedisConnectionError("away")
        super().heartbeat(*args, **options)


def test_a_redis_that_was_away_for_a_moment_fails_no_step(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    name = rung(Doorbell(redis))
    queue = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
    worker = HorseWorker([queue], connection=redis, serializer=JSONSerializer)
    job = Forgetful(name, connection=redis, serializer=JSONSerializer)
    job.refresh()  # type: ignore[no-untyped-call]
    worker.execution = Execution.create(job, 60, pipeline=redis.pipeline())
    with pytest.raises(RedisConnectionError):
        worker.perform_job(job, queue)
    assert job.beats == 2
    assert name not in queue.failed_job_registry.get_job_ids()
    assert "Traceback" not in caplog.text
