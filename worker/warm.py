"""An RQ worker whose engine process stays: the engine is loaded once and serves step after step.

RQ forks a process for each job (it calls that one the horse), which would load the weights each
time. So `fork_work_horse` hands the job to the one engine process, and `wait_for_horse` waits until
that answers or ends; monitoring, stop commands and bookkeeping stay RQ's own.
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
from worker.child import Child, start_child

KILLED = {signal.SIGKILL, signal.SIGTERM}
"""Signals sent by people and by the kernel short of memory: no fault of the step's."""


@dataclass(slots=True)
class _Running:
    """The step in the engine process's hands."""

    step_id: UUID
    attempt: int
    limit_s: float
    ids: dict[str, str | None]
    """Of its job and of the request that made that, for the log."""


STARTING_S = 180.0
"""Time until an engine process begins the first step of a message: it may load large weights."""
LONGEST_END_S = 9
"""It has ended so many seconds after the time for the step in hand."""
FAREWELL_S = 1.0
"""What an engine process with nothing to do gets to end by itself."""
RETRY_S = 1.0
"""How soon to ask again whether Redis is back."""


class _NoAlarm(BaseDeathPenalty):
    """RQ's own time limits work by SIGALRM, which could strike while a message is being read."""

    def setup_death_penalty(self) -> None:
        """`WarmWorker.wait_for_horse` keeps the time itself."""

    def cancel_death_penalty(self) -> None:
        """There is none."""


class _Queue(Queue):
    """Lets its worker be broken off while it waits, but not over a doorbell it has just taken."""

    worker: ClassVar[WarmWorker]

    @classmethod
    def lmove(
        cls, connection: redis.Redis, queue_key: str, timeout: int | None
    ) -> tuple[str, bytes] | None:
        """Move the next doorbell to those in transit, once there is one."""
        cls.worker.begin_to_wait()
        found: tuple[str, bytes] | None = super().lmove(connection, queue_key, timeout)
        cls.worker.waits_for_work = False
        return found


class WarmWorker(Worker):
    """Serves one queue with one long-lived engine. For RQ 2.12, whose hooks it overrides.

    Set ``steps`` before `work`: where the reason of an engine process's death is recorded.

    Told to stop by a signal (SIGTERM, SIGINT), it takes nothing new. The step in hand may take
    ``stop_period_s`` more; then, or at a second signal, it is handed back: pending again at once,
    and nobody's fault.
    """

    steps: Steps
    announcement: Announcement
    stop_period_s = 25.0
    engine_idle_s = inf
    """Seconds without work after which the engine process ends, until there is work again."""
    death_penalty_class = _NoAlarm
    queue_class = _Queue
    waits_for_work = False
    """Whether a signal to stop may break off what this process is at."""

    _engine: Child | None = None
    _link: socket.socket
    _signals: socket.socket
    _heard = b""
    _running: _Running | None = None
    _deadline = 0.0
    _timed_out = False
    _warm = True
    """Whether the next engine process loads its models ahead: not once one has ended over that, so
    that only the steps that need them fail."""
    _spoke = True
    """Whether the last engine process has ever begun a step."""
    _stop_by = inf
    """When the engine process has to be done, on the monotonic clock."""
    _stop_sent = False
    """Whether the engine process was told to take no further step."""
    _rung: UUID
    """The step that the current message names; the engine process may run one that follows it."""
    _handed_back = False
    _used_at = inf
    """When there was last something to do, on the monotonic clock."""

    # --- RQ's hooks -----------------------------------------------------------------------------

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Register with Redis; a signal to stop that comes meanwhile has it unregister again.

        A signal also ends a wait for the engine process, whichever thread it comes to.
        """
        self._signals, wake_up = socket.socketpair()
        for end in (self._signals, wake_up):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_up.detach(), warn_on_full_buffer=False)
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        super().bootstrap(*args, **kwargs)

    def _install_signal_handlers(self) -> None:
        """`bootstrap` has done so, before others could know of this worker."""

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take no further work; a second signal also ends the time for what is in hand.

        Nothing is logged or sent from here, as the signal may have come in the middle of either.
        """
        again, self._stop_requested = self._stop_requested, True
        period_s = 0.0 if again else self.stop_period_s
        self._stop_by = time.monotonic() + period_s
        # Whatever holds it then, as a server that hangs may, the lease does the rest.
        signal.alarm(ceil(period_s) + LONGEST_END_S)
        if self.waits_for_work:
            raise StopRequested

    def begin_to_wait(self) -> None:
        """Have a signal to stop break off what follows, or do not begin with it."""
        self.waits_for_work = True
        if self._stop_requested:
            raise StopRequested

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for work; told to stop, for no moment longer."""
        _Queue.worker = self
        while True:
            try:
                self.begin_to_wait()
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except redis.exceptions.TimeoutError:  # of any other fault RQ waits for the end itself
                logger.warning("waiting for Redis, which does not answer")
                self._wait_for_redis()
            finally:
                self.waits_for_work = False

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Stop a step that was called off; other commands of RQ's have no use here."""
        with suppress(ValueError, AttributeError, TypeError):
            payload = parse_payload(message)
            if payload.get("command") == "stop-job":
                handle_stop_job_command(self, payload)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:  # noqa: ARG002
        """Hand the job to the engine process, after starting one if there is none."""
        self._given = cast("StepMessage", job).step_id
        engine = self._running_engine()
        assert self.execution is not None  # noqa: S101 - RQ prepares it just before
        self._horse_pid = engine.pid
        self._running = None
        self._timed_out = False
        self._deadline = time.monotonic() + STARTING_S
        line = json.dumps({"doorbell": job.id, "execution": self.execution.id})
        try:
            self._link.sendall(line.encode() + b"\n")
        except OSError:
            # It has just died; `wait_for_horse` will find that out.
            logger.warning("engine {} does not listen", engine.pid)

    def wait_for_horse(self) -> tuple[int | None, int | None, struct_rusage | None]:
        """Wait until the engine process is done (then it lives on), or dead, or has had its time.

        Raises:
            HorseMonitorTimeoutException: it is time for RQ's monitor to tell that it lives.
        """
        beat_at = time.monotonic() + HEARTBEAT_S
        while self._engine is not None:
            until = min(beat_at, self._deadline, self._stop_by)
            watched = [self._link, self._signals]
            readable, _, _ = select.select(watched, [], [], max(0.0, until - time.monotonic()))
            if self._stop_requested:
                self._ask_to_end()
            if self._link not in readable:
                if not self._is_over():
                    if time.monotonic() >= beat_at:
                        raise HorseMonitorTimeoutException
                    continue
                self._end_engine()
            lines = self._receive()
            if not lines:
                return self._reap()
            for line in lines:
                message = json.loads(line)
                self._spoke = True
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
        """End the engine process and whatever it started; does nothing when there is none."""
        self._end_engine()

    def get_heartbeat_ttl(self, job: Job) -> int:  # noqa: ARG002
        """Steps have no limit that RQ knows of, and it would make that a TTL of minutes."""
        return HEARTBEAT_S + 60

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run one job; a Redis that goes away meanwhile costs the doorbell, not the worker."""
        try:
            wanted = self._engine is not None or self._is_pending(job)
            if wanted:
                self._used_at = inf  # until the next heartbeat
                super().execute_job(job, queue)
            if self._handed_back or not wanted:
                queue.intermediate_queue.remove(job.id)
                job.delete()
        except redis.exceptions.RedisError as error:
            logger.warning("doorbell {}: Redis is away: {}", job.id, type(error).__name__)
            self._wait_for_redis()

    def maintain_heartbeats(self, job: Job) -> None:
        """Tell that this worker lives; a missed beat is no reason to end."""
        try:
            super().maintain_heartbeats(job)
            self._stay_known()
        except redis.exceptions.RedisError as error:
            logger.warning("no heartbeat: Redis is away: {}", type(error).__name__)

    def heartbeat(
        self,
        timeout: int | None = None,  # noqa: ARG002
        pipeline: redis.client.Pipeline | None = None,
    ) -> None:
        """Tell that this worker lives, also to a Redis that has forgotten it (FLUSHALL).

        ``timeout`` is always the same, as `common.redis.presence` reads from what is left of it how
        long ago that was. Between two jobs it also replaces an engine process that
        has ended.
        """
        if pipeline is None and not self._stop_requested:
            self._keep_engine()
        super().heartbeat(RECORD_S, pipeline)
        if pipeline is None:
            self._stay_known()

    def set_current_job_working_time(
        self, current_job_working_time: float, pipeline: redis.client.Pipeline | None = None
    ) -> None:
        """As RQ does, but a Redis that is away is no reason to end."""
        try:
            super().set_current_job_working_time(current_job_working_time, pipeline)
        except redis.exceptions.RedisError:
            self.current_job_working_time = current_job_working_time

    def teardown(self) -> None:
        """Say good-bye to Redis, if it listens, then let the engine process go."""
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except redis.exceptions.RedisError as error:
            logger.warning("Redis did not hear of the end: {}", type(error).__name__)
        self._retire_engine(FAREWELL_S)
        logger.info("stopped")

    def _is_pending(self, job: Job) -> bool:
        """Whether to start an engine process for it: another worker may have its step already."""
        try:
            return self.steps.is_pending(cast("StepMessage", job).step_id)
        except Unavailable:
            return True

    # --- the engine process -------------------------------------------------------------------

    def start_engine(self) -> None:
        """Start an engine process if there is none, so that it is warm when the next job comes."""
        self._running_engine()

    def _keep_engine(self) -> None:
        """Have an engine process at hand, unless there was nothing to do for long."""
        now = time.monotonic()
        self._used_at = min(self._used_at, now)
        if now - self._used_at < self.engine_idle_s:
            self.start_engine()
        elif self._engine is not None:
            logger.info("nothing to do for {:g} s: the engine's process ends", self.engine_idle_s)
            self._retire_engine()

    def _stay_known(self) -> None:
        """Say which weights are here; register with a Redis that lost what it knew."""
        from rq import worker_registration

        self.announcement.renew()

        if self.connection.sismember(self.redis_workers_keys, self.key):
            return
        logger.warning("Redis does not know this worker (any more): registering")
        with self.connection.pipeline() as pipeline:
            pipeline.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, pipeline)
            pipeline.expire(self.key, RECORD_S)
            pipeline.execute()

    def _wait_for_redis(self) -> None:
        """Wait until it takes commands: between two jobs RQ ends at the first that fails."""
        while not self._stop_requested:
            try:
                self.set_state(WorkerStatus.IDLE)
            except redis.exceptions.RedisError:
                time.sleep(RETRY_S)
            else:
                return
        raise StopRequested

    def _running_engine(self) -> Child:
        if self._engine is not None and self._engine.poll() is None:
            return self._engine
        self._warm = self._warm and self._spoke
        self._spoke = False
        self._engine, self._link = start_child(self.name, warm=self._warm)
        self._received = b""
        return self._engine

    def _receive(self) -> list[bytes]:
        """The lines that have come in; none when the engine process is gone."""
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
        """Whether its time is up, for the step or since it was asked to stop."""
        now = time.monotonic()
        self._handed_back = now >= self._stop_by or (self._stop_requested and self._running is None)
        self._timed_out = now >= self._deadline
        return self._handed_back or self._timed_out

    def _ask_to_end(self) -> None:
        """Tell the engine process to end after the step in hand."""
        with suppress(BlockingIOError):
            self._signals.recv(1024)
        if not self._stop_sent:
            self._stop_sent = True
            logger.info("told to stop; the step in hand may take {:g} s", self.stop_period_s)
            with suppress(OSError):  # it may have died just now
                self._link.shutdown(socket.SHUT_WR)

    def _end_engine(self) -> None:
        if self._engine is None:
            return
        try:
            os.killpg(self._engine.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _retire_engine(self, patience_s: float = 5.0) -> None:
        """Hang up: an idle engine process then ends by itself."""
        if self._engine is None:
            return
        self._link.close()
        try:
            self._engine.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._end_engine()
            self._engine.wait()
        self._engine = None
        self._warm = self._spoke = True

    def _reap(self) -> tuple[int, int, struct_rusage | None]:
        """Bury the engine process, and record what that means for the step it had in hand."""
        engine, self._engine = self._engine, None
        assert engine is not None  # noqa: S101 - only called while there is one
        self._link.close()
        try:
            code = engine.wait(timeout=1)
        except subprocess.TimeoutExpired:  # it has closed the link and lives
            os.killpg(engine.pid, signal.SIGKILL)
            code = engine.wait()
        running, self._running = self._running, None
        if self._handed_back:
            self._hand_back()
            return engine.pid, os.EX_OK, None
        if running is not None:
            self._record(running, self._cause(code, running))
        # as os.wait4 would tell it; any end before the job's is one that RQ has to know of
        return engine.pid, -code if code < 0 else 1 << 8, None

    def _hand_back(self) -> None:
        """Have others do what the engine process, now dead, had in hand."""
        try:
            jobs = self.steps.hand_back(self.name, self._given)
        except Unavailable as error:
            logger.warning("the step in hand cannot be handed back, its lease will end: {}", error)
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
            log.warning("the database is away; the lease of step {} will end", running.step_id)

    def _cause(self, code: int, running: _Running) -> StenoError:
        if self._timed_out:
            return ChunkTimedOut(limit_s=round(running.limit_s))
        if code >= 0:
            return EngineFailed(reason="its process ended by itself")
        name = signal.Signals(-code).name
        if -code in KILLED:
            return WorkerLost(reason=f"it was ended by {name}")
        return EngineFailed(reason=f"it crashed with {name}")
