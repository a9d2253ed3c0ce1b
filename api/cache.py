"""A cache of one value, loaded once for all that ask at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """The result of ``load``, cached for ``cached_s``; concurrent callers share one call."""

    def __init__(self, load: Callable[[], Awaitable[T]], *, cached_s: float) -> None:
        self._load = load
        self._cached_s = cached_s
        self._loading: asyncio.Task[T] | None = None
        self._cached_until = 0.0

    async def get(self) -> T:
        """The result; raises what ``load`` raised."""
        loading = self._loading
        if loading is None or (loading.done() and time.monotonic() >= self._cached_until):
            loading = self._loading = asyncio.create_task(self._refresh())
        # The first caller may be cancelled while others still wait.
        return await asyncio.shield(loading)

    async def _refresh(self) -> T:
        found = await self._load()
        self._cached_until = time.monotonic() + self._cached_s
        return found
