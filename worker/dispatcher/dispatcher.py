"""The dispatcher: hands steps to free workers in fair order, and sets right what went wrong.

It publishes no more steps than there are free workers. So the order is decided as late as it can
be, and a short recording that comes in while a long one is under way is next, not behind the long
one's chunks. Several may run at once: they only publish a little more than is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import cast

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
"""How soon work is found whose notification got lost, while there is other work."""
IDLE_POLL_S = 10.0
"""The same while there is none."""
IDLE_TICK_S = 1.0
"""How soon it then notices a request to stop."""
RECONCILE_S = 1.0
LOST_S = 2.0
"""A doorbell in nobody's hands may be between two of them, but not for this long."""
IN_TRANSIT_S = 10.0
"""One taken by a worker that does not begin may wait for an engine to load, or for nothing."""
LONGEST_END_S = 9
"""It has ended so many seconds after it was told to."""
OUTAGE_PAUSE_S = 1.0
OUTAGE_GRACE_S = 5.0
"""After an outage leases are given this long to be renewed: nobody could while it lasted."""


class Dispatcher:
    """Runs until `stop` is called; outages of Postgres and Redis are waited out."""

    def __init__(
        self,
        steps: Steps,
        redis: Redis,
        *,
        job_timeout_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_change`` is called where a job may have changed, now and then more than once."""
        self._steps = steps
        self._on_change = on_change
        self._redis = redis
        self._doorbell = StepQueue(redis)
        self._events = Events(redis)
        self._job_timeout_s = job_timeout_s
        self._suspects: dict[str, float] = {}
        self._leases_count_from = 0.0
        self._stopping = threading.Event()
        self._name = presence.own_name()
        self._told = self._reconciled = -inf
        self._pace = Pace(IDLE_POLL_S)

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stopping.set()

    def run(self) -> None:
        """Dispatch and reconcile."""
        self._dispatch_and_reconcile()
        with suppress(RedisError):
            presence.remove_dispatcher(self._redis, self._name)

    def _dispatch_and_reconcile(self) -> None:
        while not self._stopping.is_set():
            try:
                with _wake_ups(self._redis) as wake_ups:
                    wake_ups.subscribe(WORK_CHANNEL, JOB_CHANNEL)
                    self._pace.wake()
                    while not self._stopping.is_set():
                        if self._pace.is_due():
                            self._look()
                        if time.monotonic() - self._told >= presence.HEARTBEAT_S:
                            presence.report_dispatcher(self._redis, self._name)
                            self._told = time.monotonic()
                        self._wait(wake_ups)
            except (Transient, RedisError) as error:
                trouble = redis_trouble(error) if isinstance(error, RedisError) else error
                logger.warning("waiting for a service to come back: {}", trouble)
                self._leases_count_from = time.monotonic() + OUTAGE_GRACE_S
                self._stopping.wait(OUTAGE_PAUSE_S)

    def _look(self) -> None:
        if not self._steps.any_open():
            self._pace.rest()
            return
        self._pace.hurry()
        self.dispatch()
        if time.monotonic() - self._reconciled >= RECONCILE_S:
            self._reconciled = time.monotonic()
            self.reconcile()

    def _wait(self, wake_ups: PubSub) -> None:
        """Wait for a notification, for one tick, and take along those that came with it."""
        message = wake_ups.get_message(timeout=POLL_S if self._pace.hurries else IDLE_TICK_S)
        while message is not None:
            if message["channel"] == WORK_CHANNEL.encode():
                self._pace.wake()
            self._on_change()
            message = wake_ups.get_message(timeout=0)

    def dispatch(self) -> int:
        """Publish steps for the workers that are free; how many it was."""
        # A worker that Redis has forgotten registers again within seconds; until then, one.
        workers = max(1, self._doorbell.live_workers())
        free = max(0, workers - self._steps.handed_out())
        return self._steps.publish(free, self._doorbell.publish, limited=max(1, workers // 2))

    def reconcile(self) -> None:
        """Take back steps of silent workers, ring lost doorbells again, end overdue jobs."""
        if time.monotonic() >= self._leases_count_from:
            self._reclaim()
        self._ring_again()
        if self._job_timeout_s:
            for job_id in self._steps.fail_overdue_jobs(self._job_timeout_s):
                logger.warning("job {job_id}: ran into JOB_TIMEOUT", job_id=job_id)
                self._events.job_changed(job_id)

    def _reclaim(self) -> None:
        for job_id in self._steps.reclaim_expired():
            logger.warning("job {job_id}: a silent worker lost its step", job_id=job_id)
            self._events.job_changed(job_id)

    def _ring_again(self) -> None:
        published = self._steps.published()
        doorbells = {doorbell: step_id for step_id, doorbell in published}
        silent = self._doorbell.lost(list(doorbells)) if doorbells else set()
        now = time.monotonic()
        self._suspects = {bell: self._suspects.get(bell, now) for bell in silent}
        in_transit = self._doorbell.in_transit() if silent else set()
        lost = [
            bell
            for bell, since in self._suspects.items()
            if now - since > (IN_TRANSIT_S if bell in in_transit else LOST_S)
        ]
        if lost:
            logger.warning("{} doorbell(s) were lost and are rung again", len(lost))
            self._steps.publish_again(doorbells[bell] for bell in lost)


def _wake_ups(redis: Redis) -> PubSub:
    return cast("PubSub", redis.pubsub(ignore_subscribe_messages=True))  # type: ignore[no-untyped-call]
