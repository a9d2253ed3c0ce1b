"""Redis clients of a gateway: a server that hangs delays one request a second, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

from loguru import logger
from redis import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common.redis.queue import connect_as

ANSWER_S = 1.0
"""How long a request waits for a command."""
PROBE_S = 1.0


class Breaker:
    """A circuit breaker (Nygard, "Release It!"): open from a timeout until a probe is answered.

    A Redis that rejects connections needs no breaker, as that takes no time. The probe runs in a
    thread of its own, so that no request has to wait for it.
    """

    def __init__(self, probe: Callable[[], object]) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.is_open = False

    def trip(self) -> None:
        """A command was not answered in time."""
        with self._lock:
            if self.is_open:
                return
            self.is_open = True
        logger.warning("Redis does not answer: requests do without it until it does")
        threading.Thread(target=self._wait, name="redis-probe", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _wait(self) -> None:
        while not self._closing.wait(PROBE_S):
            with suppress(RedisError):
                self._probe()
                logger.info("Redis answers again")
                self.is_open = False
                return


class GuardedRedis(Redis):
    """A client whose commands fail at once while its ``breaker`` is open."""

    breaker: Breaker

    @classmethod
    def at(cls, url: str) -> Self:
        """A client of the server at ``url``.

        Raises:
            SetupProblem: the URL is invalid.
        """
        client = connect_as(cls, url, answer_s=ANSWER_S)
        client.breaker = Breaker(connect_as(Redis, url, answer_s=ANSWER_S).ping)
        return client

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Raise `redis.exceptions.TimeoutError` at once while the breaker is open."""
        if self.breaker.is_open:
            raise RedisTimeoutError("It does not answer")
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisTimeoutError:
            self.breaker.trip()
            raise

    def close(self) -> None:
        self.breaker.close()
        super().close()


class BackgroundPublisher:
    """Publishes in a thread of its own: no response waits for Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")

    def publish(self, channel: str, message: str) -> None:
        """Send a message soon, in the order of the calls; delivery is not guaranteed."""
        self._thread.submit(self._publish, channel, message)

    def close(self) -> None:
        """Send the queued messages, and stop."""
        self._thread.shutdown()

    def _publish(self, channel: str, message: str) -> None:
        with suppress(RedisError):
            self._redis.publish(channel, message)
