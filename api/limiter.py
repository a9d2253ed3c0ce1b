"""How many requests a key may make, counted in Redis for all gateway processes together.

Windows begin with the clock's seconds and minutes, and one count is one round trip: a gateway that
is asked for a status hundreds of times a second has no time for more. So up to twice the limit may
pass around the end of a minute, which the limit a second keeps apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from loguru import logger
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from common.domain.keys import Limits

CONNECTIONS = 8
PATIENCE_S = 1.0
OUTAGE_S = 5.0
"""How long Redis is not asked again after it did not answer."""


@dataclass(frozen=True, slots=True)
class Window:
    """One limit's: ``count`` of ``limit`` requests were made, and in ``reset_s`` it ends."""

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
        """How much is left, in [0, 1]."""
        return self.remaining / self.limit

    def headers(self) -> dict[str, str]:
        """As clients read them (draft-ietf-httpapi-ratelimit-headers-06)."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


class Limiter:
    """Counts requests. Where Redis is out it counts none: everybody may go on."""

    def __init__(self, redis_url: str) -> None:
        self._pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=CONNECTIONS,
            timeout=PATIENCE_S,
            socket_connect_timeout=PATIENCE_S,
            socket_timeout=PATIENCE_S,
        )
        self._storage = RedisStorage(
            "async+redis://",  # the pool knows the address
            implementation="redispy",
            key_prefix="steno:limit",
            connection_pool=self._pool,  # type: ignore[arg-type] # as its documentation says
        )
        self._out_until: float | None = None

    async def close(self) -> None:
        await self._pool.aclose()

    async def count(self, key_id: str, limits: Limits) -> Window | None:
        """Count a request; returns the window that is over, or else the one closest to it.

        None: there are no limits, or Redis is out.
        """
        if self._out_until is not None and time.monotonic() < self._out_until:
            return None
        closest: Window | None = None
        try:
            for field, item in _items(limits):
                window = await self._count(key_id, field, item)
                if closest is None or window.share < closest.share:
                    closest = window
                if window.is_over:
                    break
        except (RedisError, OSError) as error:
            if self._out_until is None:
                logger.warning("requests are not counted while Redis is out: {!r}", error)
            self._out_until = time.monotonic() + OUTAGE_S
            return None
        self._out_until = None
        return closest

    async def _count(self, key_id: str, field: str, item: RateLimitItem) -> Window:
        length, now = item.get_expiry(), time.time()
        number = int(now // length)
        count = await self._storage.incr(item.key_for(key_id, str(number)), length)
        reset_s = math.ceil((number + 1) * length - now)
        return Window(field, item.amount, count, reset_s)


def _items(limits: Limits) -> Iterator[tuple[str, RateLimitItem]]:
    if limits.requests_per_second:
        yield "requests_per_second", RateLimitItemPerSecond(limits.requests_per_second)
    if limits.requests_per_minute:
        yield "requests_per_minute", RateLimitItemPerMinute(limits.requests_per_minute)
