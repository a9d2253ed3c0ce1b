"""What many ask for at once and is looked up for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """What ``look`` finds: it looks once at a time, and what it found is good for ``good_s``."""

    def __init__(self, look: Callable[[], Awaitable[T]], *, good_s: float) -> None:
        self._look = look
        self._good_s = good_s
        self._looking: asyncio.Task[T] | None = None
        self._good_until = 0.0

    async def get(self) -> T:
        """Raises what looking raised."""
        looking = self._looking
        if looking is None or (looking.done() and time.monotonic() >= self._good_until):
            looking = self._looking = asyncio.create_task(self._found())
        # Who asked first may leave, and then the others wait still.
        return await asyncio.shield(looking)

    async def _found(self) -> T:
        found = await self._look()
        self._good_until = time.monotonic() + self._good_s
        return found
