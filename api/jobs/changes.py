"""Notifications of changed jobs: one Redis subscription a process, not one a client."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.redis.events import JOB_CHANNEL

RETRY_S = 1.0
SILENCE_S = 15.0
"""How long the subscription may be silent before it is checked with a ping."""


class JobChanges:
    """Who waits for which job.

    Notifications may get lost, and while Redis is unavailable all of them do: callers limit their
    waits.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(
            redis_url, socket_connect_timeout=3, health_check_interval=SILENCE_S
        )
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None
        self.closing = False

    async def start(self) -> None:
        self._listener = asyncio.create_task(self._listen())

    def shut_down(self) -> None:
        """The process is about to end: wake everybody, for good."""
        self.closing = True
        self._wake_all()

    async def close(self) -> None:
        self.shut_down()
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        await self._redis.aclose()

    @contextmanager
    def watch(self, job_id: object) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job changes; the waiter clears it."""
        key, event = str(job_id), asyncio.Event()
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(JOB_CHANNEL)
                    # Changes before the subscription are not sent again.
                    self._wake_all()
                    while True:
                        message = await subscription.get_message(timeout=SILENCE_S)
                        if message is not None:
                            self._wake(message["data"].decode())
            except (RedisError, OSError) as error:
                logger.warning("no notifications from Redis: {}", error)
                await asyncio.sleep(RETRY_S)

    def _wake(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def _wake_all(self) -> None:
        for key in list(self._waiting):
            self._wake(key)
