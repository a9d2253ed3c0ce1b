"""The engine process of a worker: it keeps the engine warm and runs one step at a time.

It is a process of its own because native code may crash, hang or leak; `worker.child` starts it.

It reads lines of JSON from the socket it is given: ``{"doorbell", "execution"}``, and answers with
``{"step_id", "attempt", "limit_s", "job_id", "request_id"}`` for each step it starts and ``{"done",
"recycle"}`` at the end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from loguru import logger
from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from common.db.steps import Claim
from common.errors import Unavailable
from common.process.logs import set_up_logging
from common.process.orphans import die_with_parent
from common.redis.queue import StepMessage, connect, queue_of
from common.settings import Settings
from worker.compose import build_context, redis_url
from worker.runner import Runner

OOM_SCORE = "500"
"""When memory runs out the kernel should kill this process, whose step is simply done again."""


class StepJob(StepMessage):
    """A queue message whose work is done by the runner of this process."""

    runner: Runner

    def perform(self) -> None:
        """Run the step that the doorbell names."""
        self.runner.run(self.step_id, self.id)


class EngineWorker(Worker):
    """RQ's part of the engine process: the bookkeeping around a step."""

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """A Redis that goes away after a step, and is back for the report of that, failed no step.

        Raises:
            RedisError: it was no fault of the step's.
        """
        if isinstance(exc_info[1], RedisError):
            raise exc_info[1]
        super().handle_exception(job, *exc_info)


class EngineProcess:
    """Serves one worker until it goes away, or until it has grown too much."""

    def __init__(self, settings: Settings, name: str, link: socket.socket) -> None:
        self._settings = settings
        self._link = link
        self._lines = link.makefile("r", encoding="utf-8")
        self._redis: Redis = connect(redis_url(settings))
        self._queue = queue_of(self._redis)
        self._worker = EngineWorker(
            [self._queue], name=name, connection=self._redis, serializer=JSONSerializer
        )
        self._worker._is_horse = True  # noqa: SLF001 - as rq's own SpawnWorker does
        self._context = build_context(settings, self._redis, self._may_go_on)
        self._runner = Runner(self._context, name, self._announce, _end)
        self._steps_run = 0

    def warm_up(self) -> None:
        """Load the default engine and the moderation before the first step asks for them."""
        beside = Thread(target=self._warm_up_the_rest)
        beside.start()
        asr = self._settings.asr
        try:
            self._context.engines.get(asr.default_engine, asr.default_model)
        except Exception as error:
            # A job that wants it will say so in its own words; others may want other weights.
            logger.warning("the default engine cannot be loaded yet: {}", error)
        beside.join()

    def _warm_up_the_rest(self) -> None:
        with suppress(Unavailable):
            self._context.steps.any_open()  # the first statement takes a connection to be opened
        if self._settings.moderation.ai_load_models:
            try:
                self._context.moderation.get()
            except Exception as error:
                logger.warning("moderation will be missing from results: {}", error)

    def serve(self) -> None:
        """Run steps until the worker hangs up."""
        for line in self._lines:
            self._run(**json.loads(line))
            self._say(done=True, recycle=self._worn_out())

    def _run(self, doorbell: str, execution: str) -> None:
        try:
            job = StepJob(doorbell, connection=self._redis, serializer=JSONSerializer)
            job.refresh()  # type: ignore[no-untyped-call] # it may be none of ours
            job.runner = self._runner
            self._worker.execution = Execution.fetch(execution, doorbell, connection=self._redis)
            self._worker.perform_job(job, self._queue)
        except (RedisError, NoSuchJobError) as error:
            # Postgres has the step's outcome, or has it rung again.
            logger.warning("doorbell {}: Redis is away or has forgotten it: {!r}", doorbell, error)
        except Exception:
            logger.exception("doorbell {} could not be answered", doorbell)

    def _announce(self, claim: Claim, limit_s: float) -> None:
        self._steps_run += 1
        self._say(
            step_id=str(claim.step_id),
            attempt=claim.attempt,
            limit_s=limit_s,
            job_id=str(claim.job_id),
            request_id=claim.job.request_id,
        )

    def _may_go_on(self) -> bool:
        """Whether the worker has not hung up, as it does when it is told to stop."""
        readable, _, _ = select.select([self._link], [], [], 0)
        return not readable

    def _worn_out(self) -> bool:
        limits = self._settings.worker
        memory = self._context.memory
        if memory.grown > limits.max_growth_mb * 1_000_000:
            logger.info("replaced at {:.0f} MB, after {} steps", memory.held / 1e6, self._steps_run)
            return True
        return self._steps_run >= limits.max_steps

    def _say(self, **message: Any) -> None:
        self._link.sendall(json.dumps(message).encode() + b"\n")


def _end() -> None:
    """End at once, from any thread, in the middle of native code."""
    logger.info("the step was cancelled, or given to another worker: this process ends")
    os.kill(os.getpid(), signal.SIGKILL)


def _go_first_when_memory_runs_out() -> None:
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def main(name: str, link: socket.socket, parent: int, *, warm: bool) -> None:
    """Serve the worker ``name``, process ``parent``, over ``link``; ``warm``: load models ahead."""
    # so that a killed worker's step is never worked on twice at once
    die_with_parent(parent)
    _go_first_when_memory_runs_out()
    # Signals to the whole group are the worker's business: it lets the step in hand finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    settings = Settings()
    set_up_logging(settings.log, f"engine:{os.getpid()}")
    engine = EngineProcess(settings, name, link)
    if warm:
        engine.warm_up()
    engine.serve()


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[2]))
    main(sys.argv[1], connection, int(sys.argv[3]), warm="warm" in sys.argv[4:])
