"""The dispatcher: hands steps to free workers in fair order, and rescues lost steps.

It publishes no more steps than there are free workers. So the order is decided as late as possible:
a short recording submitted while a long one runs is next, and does not wait for the long one's
chunks. Several dispatchers may run at once: they only publish a little more than is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf

from loguru import logger
from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError

from common.db.steps import Steps
from common.errors import Transient
from common.net.reach import redis_trouble
from common.redis import presence
from common.redis.events import JOB_CHANNEL, WORK_CHANNEL, Events
from common.redis.queue import StepQueue
from worker.dispatcher.pace import Pace

POLL_S = 0.5
"""The polling interval while there is work, should a notification be lost."""
IDLE_POLL_S = 10.0
"""The polling interval while there is no work."""
IDLE_TICK_S = 1.0
"""How soon it then notices a request to stop."""
RECONCILE_S = 1.0
LOST_S = 2.0
"""A message that is neither queued nor with a worker may be in transition, but not this long."""
IN_TRANSIT_S = 10.0
"""The same for a message in the intermediate queue: its worker may be loading an engine."""
OUTAGE_PAUSE_S = 1.0
OUTAGE_GRACE_S = 5.0
"""How long workers may take after an outage to renew leases, which none could before."""


class Dispatcher:
    """Runs until `stop` is called, and through outages of Postgres and Redis."""

    def __init__(
        self,
        steps: Steps,
        redis: Redis,
        *,
        job_timeout_s: float,
        on_change: Callable[[], None] = lambda: None,
        at_once: Mapping[str, int] | None = None,
    ) -> None:
        """``on_change`` is called whenever a job may have changed.

        ``at_once``: as of `Steps.publish`.
        """
        self._steps = steps
        self._on_change = on_change
        self._at_once = at_once
        self._redis = redis
        self._queue = StepQueue(redis)
        self._events = Events(redis)
        self._job_timeout_s = job_timeout_s
        self._missing_since: dict[str, float] = {}
        self._leases_expire_from = 0.0
        self._stopping = threading.Event()
        self._name = presence.own_name()
        self._reported_at = self._reconciled_at = -inf
        self._pace = Pace(IDLE_POLL_S)

    def stop(self) -> None:
        """Let `run` return soon."""
        self._stopping.set()

    def run(self) -> None:
        self._dispatch_and_reconcile()
        with suppress(RedisError):
            presence.remove_dispatcher(self._redis, self._name)

    def _dispatch_and_reconcile(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as wake_ups:  # type: ignore[no-untyped-call]
                    wake_ups.subscribe(WORK_CHANNEL, JOB_CHANNEL)
                    self._pace.wake()
                    while not self._stopping.is_set():
                        if self._pace.is_due():
                            self._check()
                        if time.monotonic() - self._reported_at >= presence.HEARTBEAT_S:
                            presence.report_dispatcher(self._redis, self._name)
                            self._reported_at = time.monotonic()
                        self._wait(wake_ups)
            except (Transient, RedisError) as error:
                trouble = redis_trouble(error) if isinstance(error, RedisError) else error
                logger.warning("waiting for a service: {}", trouble)
                self._leases_expire_from = time.monotonic() + OUTAGE_GRACE_S
                self._stopping.wait(OUTAGE_PAUSE_S)

    def _check(self) -> None:
        if not self._steps.any_open():
            self._pace.rest()
            return
        self._pace.hurry()
        self.dispatch()
        if time.monotonic() - self._reconciled_at >= RECONCILE_S:
            self._reconciled_at = time.monotonic()
            self.reconcile()

    def _wait(self, wake_ups: PubSub) -> None:
        """Wait for notifications, at most one polling interval, and handle all of them."""
        message = wake_ups.get_message(timeout=POLL_S if self._pace.hurries else IDLE_TICK_S)
        while message is not None:
            if message["channel"] == WORK_CHANNEL.encode():
                self._pace.wake()
            self._on_change()
            message = wake_ups.get_message(timeout=0)

    def dispatch(self) -> int:
        """Publish steps for the free workers; returns how many."""
        # After Redis lost its data, workers register again within seconds; until then, assume one.
        workers = max(1, self._queue.live_workers())
        free = max(0, workers - self._steps.handed_out())
        return self._steps.publish(
            free, self._queue.publish, limited=max(1, workers // 2), at_once=self._at_once
        )

    def reconcile(self) -> None:
        """Rescue steps with expired leases, republish lost messages, fail overdue jobs."""
        if time.monotonic() >= self._leases_expire_from:
            for job_id in self._steps.rescue_expired():
                logger.warning("job {job_id}: the lease of a step expired", job_id=job_id)
                self._events.job_changed(job_id)
        self._republish_lost()
        if self._job_timeout_s:
            for job_id in self._steps.fail_overdue_jobs(self._job_timeout_s):
                logger.warning("job {job_id}: failed, it exceeded JOB_TIMEOUT", job_id=job_id)
                self._events.job_changed(job_id)

    def _republish_lost(self) -> None:
        published = self._steps.published()
        steps = {rq_job_id: step_id for step_id, rq_job_id in published}
        missing = self._queue.lost(list(steps)) if steps else set()
        now = time.monotonic()
        self._missing_since = {it: self._missing_since.get(it, now) for it in missing}
        in_transit = self._queue.in_transit() if missing else set()
        lost = [
            rq_job_id
            for rq_job_id, since in self._missing_since.items()
            if now - since > (IN_TRANSIT_S if rq_job_id in in_transit else LOST_S)
        ]
        if lost:
            logger.warning("{} message(s) were lost: publishing their steps again", len(lost))
            self._steps.publish_again(steps[rq_job_id] for rq_job_id in lost)
