"""An RQ worker with a long-lived engine process: it loads the engine once and runs many steps.

RQ forks a process for each job (the "work horse"), which would load the weights each time. Here
`fork_work_horse` passes the job to the engine process, and `wait_for_horse` waits until that
answers or ends. Monitoring, stop commands and bookkeeping are RQ's own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, inf
from resource import struct_rusage
from types import FrameType
from typing import Any, ClassVar, cast
from uuid import UUID

import redis
from loguru import logger
from rq import Queue, Worker
from rq.command import handle_stop_job_command, parse_payload
from rq.exceptions import StopRequested
from rq.job import Job
from rq.timeouts import BaseDeathPenalty, HorseMonitorTimeoutException
from rq.worker import WorkerStatus

from common.db.steps import Steps
from common.errors import ChunkTimedOut, EngineFailed, StenoError, Unavailable, WorkerLost
from common.redis.events import Events
from common.redis.presence import HEARTBEAT_S, RECORD_S
from common.redis.queue import StepMessage
from worker.announcement import Announcement
from worker.child import Forked, start_child

KILLED = {signal.SIGKILL, signal.SIGTERM}
"""Signals from operators and from the kernel when memory runs out: not the step's fault."""


@dataclass(frozen=True, slots=True)
class _Running:
    """The step that the engine process runs."""

    step_id: UUID
    attempt: int
    limit_s: float
    ids: dict[str, str | None]
    """The ids of its job and of the HTTP request, for the log."""


STARTING_S = 180.0
"""How long an engine process may take to begin a step: it may load large weights."""
LONGEST_END_S = 9
"""The worker exits at most so many seconds after the time limit of the current step."""
EXIT_TIMEOUT_S = 1.0
"""How long an idle engine process may take to exit when the worker stops."""
RETRY_S = 1.0
"""The pause between two attempts to reach Redis."""


class _NoAlarm(BaseDeathPenalty):
    """Disables RQ's own time limits: their SIGALRM could interrupt the read of a message."""

    def setup_death_penalty(self) -> None:
        """Do nothing: `WarmWorker.wait_for_horse` enforces the time limit."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""


Engine = Forked | subprocess.Popen[bytes]


class _Queue(Queue):
    """Lets a signal interrupt the wait for a message, but not a message just taken."""

    worker: ClassVar[WarmWorker]

    @classmethod
    def lmove(
        cls, connection: redis.Redis, queue_key: str, timeout: int | None
    ) -> tuple[str, bytes] | None:
        """Wait for the next message and move it to the intermediate queue."""
        cls.worker.begin_to_wait()
        found: tuple[str, bytes] | None = super().lmove(connection, queue_key, timeout)
        cls.worker.waits_for_work = False
        return found


class WarmWorker(Worker):
    """Serves one queue with one long-lived engine. It overrides hooks of RQ 2.12.

    Set ``steps`` before `work`: it records why an engine process ended.

    After a signal to stop (SIGTERM, SIGINT) it takes no new step. The current step may take
    ``stop_period_s`` more. Then, or at a second signal, the step is handed back: it is pending
    again at once, and no failure is counted.
    """

    steps: Steps
    announcement: Announcement
    stop_period_s = 25.0
    engine_idle_s = inf
    """Seconds without work after which the engine process exits, until there is work again."""
    death_penalty_class = _NoAlarm
    queue_class = _Queue
    waits_for_work = False
    """Whether a signal to stop may interrupt this process."""

    _engine: Engine | None = None
    _link: socket.socket
    _signals: socket.socket
    _received = b""
    _running: _Running | None = None
    _deadline = 0.0
    _timed_out = False
    _warm = True
    """Whether the next engine process loads its models ahead. Not after one has ended during that:
    then only the steps that need the models fail."""
    _has_begun = True
    """Whether the last engine process has ever begun a step."""
    _stop_by = inf
    """The deadline of the engine process after a signal to stop, on the monotonic clock."""
    _stop_sent = False
    """Whether the engine process was asked to take no further step."""
    _given: UUID
    """The step that the current message names; the engine process may run one that follows it."""
    _handed_back = False
    _used_at = inf
    """When there was last work, on the monotonic clock."""

    # --- RQ's hooks -----------------------------------------------------------------------------

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Register with Redis; after a signal to stop during that, unregister again.

        A signal also ends a wait for the engine process, whichever thread receives it.
        """
        self._signals, wake_up = socket.socketpair()
        for end in (self._signals, wake_up):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_up.detach(), warn_on_full_buffer=False)
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        super().bootstrap(*args, **kwargs)

    def _install_signal_handlers(self) -> None:
        """Do nothing: `bootstrap` installs them before this worker is registered."""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take no further work; a second signal also ends the time of the current step.

        Log and send nothing here: the signal may have interrupted either.
        """
        again, self._stop_requested = self._stop_requested, True
        period_s = 0.0 if again else self.stop_period_s
        self._stop_by = time.monotonic() + period_s
        # If a hung server blocks the exit, the lease of the step expires.
        signal.alarm(ceil(period_s) + LONGEST_END_S)
        if self.waits_for_work:
            raise StopRequested

    def begin_to_wait(self) -> None:
        """Let a signal to stop interrupt the wait; raise `StopRequested` if one was received."""
        self.waits_for_work = True
        if self._stop_requested:
            raise StopRequested

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for work until a signal to stop."""
        _Queue.worker = self
        while True:
            try:
                self.begin_to_wait()
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except redis.exceptions.TimeoutError:  # RQ itself waits out any other error
                logger.warning("waiting for Redis, which does not answer")
                self._wait_for_redis()
            finally:
                self.waits_for_work = False

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Stop a cancelled step; ignore RQ's other commands."""
        with suppress(ValueError, AttributeError, TypeError):
            payload = parse_payload(message)
            if payload.get("command") == "stop-job":
                handle_stop_job_command(self, payload)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:  # noqa: ARG002
        """Pass the job to the engine process; start one if there is none."""
        self._given = cast("StepMessage", job).step_id
        engine = self.start_engine()
        assert self.execution is not None  # noqa: S101 - RQ prepares it just before
        self._horse_pid = engine.pid
        self._running = None
        self._timed_out = False
        self._deadline = time.monotonic() + STARTING_S
        line = json.dumps({"rq_job": job.id, "execution": self.execution.id})
        try:
            self._link.sendall(line.encode() + b"\n")
        except OSError:
            # It has just ended; `wait_for_horse` handles that.
            logger.warning("engine process {} closed its connection", engine.pid)

    def wait_for_horse(self) -> tuple[int | None, int | None, struct_rusage | None]:
        """Wait until the engine process finishes the job, ends, or exceeds the time limit.

        Raises:
            HorseMonitorTimeoutException: RQ's monitor has to send a heartbeat.
        """
        beat_at = time.monotonic() + HEARTBEAT_S
        while self._engine is not None:
            until = min(beat_at, self._deadline, self._stop_by)
            watched = [self._link, self._signals]
            readable, _, _ = select.select(watched, [], [], max(0.0, until - time.monotonic()))
            if self._stop_requested:
                self._request_end()
            if self._link not in readable:
                if not self._is_over():
                    if time.monotonic() >= beat_at:
                        raise HorseMonitorTimeoutException
                    continue
                self.kill_horse()
            lines = self._receive()
            if not lines:
                return self._reap()
            for line in lines:
                message = json.loads(line)
                self._has_begun = True
                if "done" in message:
                    if message["recycle"]:
                        self._retire_engine()
                    return self.horse_pid, os.EX_OK, None
                self._running = _Running(
                    UUID(message["step_id"]),
                    message["attempt"],
                    message["limit_s"],
                    {name: message[name] for name in ("job_id", "request_id")},
                )
                self._deadline = time.monotonic() + self._running.limit_s
                logger.debug("step {step_id} attempt {attempt} may take {limit_s} s", **message)
        return None, None, None

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:  # noqa: ARG002
        """Kill the engine process and its children; do nothing if there is none."""
        if self._engine is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._engine.pid, signal.SIGKILL)

    def get_heartbeat_ttl(self, job: Job) -> int:  # noqa: ARG002
        """The TTL of a running job: RQ knows no limit of it and would use minutes."""
        return HEARTBEAT_S + 60

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run one job; if Redis is lost during it, the message is lost, but the worker goes on."""
        try:
            wanted = self._engine is not None or self._is_pending(job)
            if wanted:
                self._used_at = inf  # until the next heartbeat
                super().execute_job(job, queue)
            if self._handed_back or not wanted:
                queue.intermediate_queue.remove(job.id)
                job.delete()
        except redis.exceptions.RedisError as error:
            logger.warning("RQ job {}: Redis is unavailable: {}", job.id, type(error).__name__)
            self._wait_for_redis()

    def maintain_heartbeats(self, job: Job) -> None:
        """Send heartbeats; a missed one does not end the worker."""
        try:
            super().maintain_heartbeats(job)
            self._stay_registered()
        except redis.exceptions.RedisError as error:
            logger.warning("no heartbeat: Redis is unavailable: {}", type(error).__name__)

    def heartbeat(
        self,
        timeout: int | None = None,  # noqa: ARG002
        pipeline: redis.client.Pipeline | None = None,
    ) -> None:
        """Send a heartbeat, and register again with a Redis that lost its data (FLUSHALL).

        The TTL is always the same, since `common.redis.presence` derives the age of the heartbeat
        from the remaining TTL. Between two jobs this also replaces an engine process that has
        ended.
        """
        if pipeline is None and not self._stop_requested:
            self._keep_engine()
        super().heartbeat(RECORD_S, pipeline)
        if pipeline is None:
            self._stay_registered()

    def set_current_job_working_time(
        self, current_job_working_time: float, pipeline: redis.client.Pipeline | None = None
    ) -> None:
        """As RQ does, but an unavailable Redis does not end the worker."""
        try:
            super().set_current_job_working_time(current_job_working_time, pipeline)
        except redis.exceptions.RedisError:
            self.current_job_working_time = current_job_working_time

    def teardown(self) -> None:
        """Unregister from Redis, if it is available, then end the engine process."""
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except redis.exceptions.RedisError as error:
            logger.warning(
                "the worker could not be unregistered from Redis: {}", type(error).__name__
            )
        self._retire_engine(EXIT_TIMEOUT_S)
        logger.info("stopped")

    def _is_pending(self, job: Job) -> bool:
        """Whether its step can still be claimed; if not, no engine process is started for it."""
        try:
            return self.steps.is_pending(cast("StepMessage", job).step_id)
        except Unavailable:
            return True

    # --- the engine process -------------------------------------------------------------------

    def start_engine(self) -> Engine:
        """Start an engine process if there is none, so that the next job finds it warm."""
        if self._engine is not None and self._engine.poll() is None:
            return self._engine
        self._warm = self._warm and self._has_begun
        self._has_begun = False
        self._engine, self._link = start_child(self.name, warm=self._warm)
        self._received = b""
        return self._engine

    def _keep_engine(self) -> None:
        """Keep an engine process running, unless there was no work for `engine_idle_s`."""
        now = time.monotonic()
        self._used_at = min(self._used_at, now)
        if now - self._used_at < self.engine_idle_s:
            self.start_engine()
        elif self._engine is not None:
            logger.info("idle for {:g} s: ending the engine process", self.engine_idle_s)
            self._retire_engine()

    def _stay_registered(self) -> None:
        """Report the weights; register again with a Redis that lost its data."""
        from rq import worker_registration

        self.announcement.renew()

        if self.connection.sismember(self.redis_workers_keys, self.key):
            return
        logger.warning("this worker is not registered in Redis: registering")
        with self.connection.pipeline() as pipeline:
            pipeline.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, pipeline)
            pipeline.expire(self.key, RECORD_S)
            pipeline.execute()

    def _wait_for_redis(self) -> None:
        """Wait until Redis takes commands: between two jobs RQ ends at the first that fails."""
        while not self._stop_requested:
            try:
                self.set_state(WorkerStatus.IDLE)
            except redis.exceptions.RedisError:
                time.sleep(RETRY_S)
            else:
                return
        raise StopRequested

    def _receive(self) -> list[bytes]:
        """The lines received so far, at least one; none: the engine process has ended."""
        while b"\n" not in self._received:
            try:
                data = self._link.recv(65_536)
            except OSError:
                data = b""
            if not data:
                return []
            self._received += data
        *lines, self._received = self._received.split(b"\n")
        return lines

    def _is_over(self) -> bool:
        """Whether the step exceeded its time limit, or the worker has to stop now."""
        now = time.monotonic()
        self._handed_back = now >= self._stop_by or (self._stop_requested and self._running is None)
        self._timed_out = now >= self._deadline
        return self._handed_back or self._timed_out

    def _request_end(self) -> None:
        with suppress(BlockingIOError):
            self._signals.recv(1024)
        if not self._stop_sent:
            self._stop_sent = True
            logger.info("stopping; the current step may take {:g} s", self.stop_period_s)
            with suppress(OSError):  # it may have just ended
                self._link.shutdown(socket.SHUT_WR)

    def _retire_engine(self, timeout_s: float = 5.0) -> None:
        """Disconnect: an idle engine process then exits by itself; kill it after ``timeout_s``."""
        if self._engine is None:
            return
        self._link.close()
        try:
            self._engine.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_horse()
            self._engine.wait()
        self._engine = None
        self._warm = self._has_begun = True

    def _reap(self) -> tuple[int, int, struct_rusage | None]:
        """Wait for the exit of the engine process, and record the failure of its step."""
        engine, self._engine = self._engine, None
        assert engine is not None  # noqa: S101 - only called while there is one
        self._link.close()
        try:
            code = engine.wait(timeout=1)
        except subprocess.TimeoutExpired:  # it closed the connection but still runs
            os.killpg(engine.pid, signal.SIGKILL)
            code = engine.wait()
        running, self._running = self._running, None
        if self._handed_back:
            self._hand_back()
            return engine.pid, os.EX_OK, None
        if running is not None:
            self._record(running, self._cause(code, running))
        # as from os.wait4; RQ must see any end before that of the job as an error
        return engine.pid, -code if code < 0 else 1 << 8, None

    def _hand_back(self) -> None:
        """Return the step of the ended engine process, so that another worker can claim it."""
        try:
            jobs = self.steps.hand_back(self.name, self._given)
        except Unavailable as error:
            logger.warning(
                "the current step cannot be handed back, its lease will expire: {}", error
            )
            return
        events = Events(self.connection)
        events.work_to_do()
        for job_id in jobs:
            logger.info("job {job_id}: its step is handed back", job_id=job_id)
            events.job_changed(job_id)

    def _record(self, running: _Running, error: StenoError) -> None:
        log = logger.bind(**running.ids)
        try:
            if self.steps.fail(running.step_id, running.attempt, error):
                log.warning("step {} attempt {}: {}", running.step_id, running.attempt, error)
        except Unavailable:
            log.warning(
                "the database is unavailable; the lease of step {} will expire", running.step_id
            )

    def _cause(self, code: int, running: _Running) -> StenoError:
        if self._timed_out:
            return ChunkTimedOut(limit_s=round(running.limit_s))
        if code >= 0:
            return EngineFailed(reason="its process exited")
        name = signal.Signals(-code).name
        if -code in KILLED:
            return WorkerLost(reason=f"it was killed by {name}")
        return EngineFailed(reason=f"it crashed with {name}")
