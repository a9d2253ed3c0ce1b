"""The engine process of a worker: it keeps the engine warm and runs one step at a time.

It is a separate process because native code may crash, hang or leak; `worker.child` starts it.

It reads lines of JSON from its socket: ``{"rq_job", "execution"}``. It answers with ``{"step_id",
"attempt", "limit_s", "job_id", "request_id"}`` for each step that it starts, and with ``{"done",
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
from importlib import import_module
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
from common.domain.pipeline import TRANSCRIPTION, StepKind
from common.errors import Unavailable
from common.process.logs import set_up_logging
from common.process.orphans import die_with_parent
from common.redis.queue import StepMessage, connect, queue_of
from common.settings import Settings
from worker.compose import build_context, redis_url
from worker.runner import STEPS, Runner

BY_EVERY_JOB = [
    module
    for kind, module in STEPS[TRANSCRIPTION.kind].items()
    if kind not in (StepKind.FETCH, StepKind.FETCH_MODEL)
]
"""The modules of steps that are imported ahead; those that fetch are large and seldom needed."""
OOM_SCORE = "500"
"""When memory runs out, the kernel should kill this process: its step is retried."""


class StepJob(StepMessage):
    """A queue message whose step the runner of this process runs."""

    runner: Runner

    def perform(self) -> None:
        self.runner.run(self.step_id, self.id)


class EngineWorker(Worker):
    """RQ's part of the engine process: it records the start and end of an RQ job."""

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Record an exception of the step, unless Redis caused it.

        Redis may be lost after a step and be back when this is called. No step failed then.

        Raises:
            RedisError: Redis caused it, and not the step.
        """
        if isinstance(exc_info[1], RedisError):
            raise exc_info[1]
        super().handle_exception(job, *exc_info)


class EngineProcess:
    """Serves one worker until the worker disconnects or this process has grown too much."""

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
        self._context = build_context(settings, self._redis, self._may_continue)
        self._runner = Runner(self._context, name, self._report_start, _end)
        self._steps_run = 0

    def warm_up(self) -> None:
        """Load the default engine and the moderation before the first step needs them."""
        beside = Thread(target=self._warm_up_the_rest)
        beside.start()
        name = self._context.models.first_present(self._settings.asr.default_models)
        try:
            if name is not None:
                self._context.engines.get(name)
        except Exception as error:
            # A job that needs them reports the error itself; others may need other weights.
            logger.warning("the default engine cannot be loaded yet: {}", error)
        beside.join()

    def _warm_up_the_rest(self) -> None:
        for module in BY_EVERY_JOB:
            import_module(module)
        with suppress(Unavailable):
            self._context.steps.any_open()  # the first statement opens a connection
        if self._settings.moderation.ai_load_models:
            try:
                self._context.moderation.get()
            except Exception as error:
                logger.warning("results will lack moderation: {}", error)

    def serve(self) -> None:
        for line in self._lines:
            self._run(**json.loads(line))
            self._send(done=True, recycle=self._has_reached_a_limit())

    def _run(self, rq_job: str, execution: str) -> None:
        try:
            job = StepJob(rq_job, connection=self._redis, serializer=JSONSerializer)
            job.refresh()  # type: ignore[no-untyped-call] # raises if this service did not write it
            job.runner = self._runner
            self._worker.execution = Execution.fetch(execution, rq_job, connection=self._redis)
            self._worker.perform_job(job, self._queue)
        except (RedisError, NoSuchJobError) as error:
            # Postgres has the step's outcome, or the dispatcher publishes the step again.
            logger.warning("RQ job {}: Redis is unavailable or lost it: {!r}", rq_job, error)
        except Exception:
            logger.exception("RQ job {} could not be run", rq_job)

    def _report_start(self, claim: Claim, limit_s: float) -> None:
        self._steps_run += 1
        self._send(
            step_id=str(claim.step_id),
            attempt=claim.attempt,
            limit_s=limit_s,
            job_id=str(claim.job_id),
            request_id=claim.job.request_id,
        )

    def _may_continue(self) -> bool:
        """Whether the worker is still connected; it disconnects when it has to stop."""
        readable, _, _ = select.select([self._link], [], [], 0)
        return not readable

    def _has_reached_a_limit(self) -> bool:
        limits = self._settings.worker
        memory = self._context.memory
        if memory.has_grown(limits.max_growth_mb * 1_000_000):
            logger.info("replaced at {:.0f} MB, after {} steps", memory.held / 1e6, self._steps_run)
            return True
        return self._steps_run >= limits.max_steps

    def _send(self, **message: Any) -> None:
        self._link.sendall(json.dumps(message).encode() + b"\n")


def _end() -> None:
    """Exit at once, from any thread, even during native code."""
    logger.info("the step was cancelled or another worker has it: this process exits")
    os.kill(os.getpid(), signal.SIGKILL)


def _prefer_for_out_of_memory_kill() -> None:
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def main(name: str, link: socket.socket, parent: int, *, warm: bool) -> None:
    """Serve the worker ``name``, process ``parent``, over ``link``; ``warm``: load models ahead."""
    # Otherwise two processes could run the step of a killed worker at once.
    die_with_parent(parent)
    _prefer_for_out_of_memory_kill()
    # The worker handles signals to the whole group: it lets the current step finish.
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
