"""Limits on the requests of a key, counted in Redis for all gateway processes together.

Fixed windows, aligned with the seconds and minutes of Redis' clock: one count is one round trip,
which suits clients that poll hundreds of times a second. Around the end of a minute up to twice the
limit may pass; the limit per second spreads these requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from loguru import logger
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.redis import Breaker
from common.domain.keys import Limits

CONNECTIONS = 8
TIMEOUT_S = 1.0
PAUSE_S = 5.0
"""How long requests are not counted after Redis failed."""
CLOCK_S = 60.0
"""How often Redis' clock is read; between readings this machine's monotonic clock is used."""


@dataclass(frozen=True, slots=True)
class RateWindow:
    """The window of one limit: ``count`` of ``limit`` requests; it ends in ``reset_s`` seconds."""

    field: str
    limit: int
    count: int
    reset_s: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.count)

    @property
    def is_over(self) -> bool:
        return self.count > self.limit

    @property
    def share(self) -> float:
        """The fraction that remains, in [0, 1]."""
        return self.remaining / self.limit

    def headers(self) -> dict[str, str]:
        """The response headers (draft-ietf-httpapi-ratelimit-headers-06)."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


class RateLimiter:
    """Counts requests. While Redis is unavailable it counts none, and limits nobody."""

    def __init__(self, redis_url: str, breaker: Breaker) -> None:
        self._breaker = breaker
        self._pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
        )
        self._storage = RedisStorage(
            "async+redis://",  # the pool knows the address
            implementation="redispy",
            key_prefix="steno:limit",
            connection_pool=self._pool,  # type: ignore[arg-type] # as its documentation says
        )
        self._paused_until: float | None = None
        self._clock = _RedisClock(Redis(connection_pool=self._pool))

    async def close(self) -> None:
        await self._pool.aclose()

    async def count(self, key_id: str, limits: Limits) -> RateWindow | None:
        """Count a request; returns the window over its limit, or else the one closest to it.

        None: there are no limits, or Redis is unavailable.
        """
        if self._breaker.is_open:
            return None
        if self._paused_until is not None and time.monotonic() < self._paused_until:
            return None
        closest: RateWindow | None = None
        try:
            for field, item in _items(limits):
                window = await self._count(key_id, field, item)
                if closest is None or window.share < closest.share:
                    closest = window
                if window.is_over:
                    break
        except (RedisError, OSError) as error:
            if self._paused_until is None:
                logger.warning("requests are not counted while Redis is unavailable: {!r}", error)
            self._paused_until = time.monotonic() + PAUSE_S
            if isinstance(error, RedisTimeoutError):
                self._breaker.trip()
            return None
        self._paused_until = None
        return closest

    async def _count(self, key_id: str, field: str, item: RateLimitItem) -> RateWindow:
        length, now = item.get_expiry(), await self._clock.now()
        number = int(now // length)
        count = await self._storage.incr(item.key_for(key_id, str(number)), length)
        reset_s = math.ceil((number + 1) * length - now)
        return RateWindow(field, item.amount, count, reset_s)


class _RedisClock:
    """Redis' clock: gateways whose own clocks differ must count in the same windows."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ahead_s = 0.0
        self._asked_at = -inf

    async def now(self) -> float:
        """Seconds since the epoch; Redis is asked once in `CLOCK_S`."""
        if time.monotonic() - self._asked_at > CLOCK_S:
            seconds, microseconds = await self._redis.time()
            self._asked_at = time.monotonic()
            self._ahead_s = seconds + microseconds / 1e6 - self._asked_at
        return time.monotonic() + self._ahead_s


def _items(limits: Limits) -> Iterator[tuple[str, RateLimitItem]]:
    if limits.requests_per_second:
        yield "requests_per_second", RateLimitItemPerSecond(limits.requests_per_second)
    if limits.requests_per_minute:
        yield "requests_per_minute", RateLimitItemPerMinute(limits.requests_per_minute)
