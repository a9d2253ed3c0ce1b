from __future__ import annotations

import asyncio
import itertools

import pytest

from api.cache import SingleFlight


def test_simultaneous_requests_cause_one_lookup() -> None:
    found = itertools.count(1)

    async def look() -> int:
        await asyncio.sleep(0)
        return next(found)

    async def run() -> None:
        lookups = SingleFlight(look, cached_s=3600)
        disconnecting = asyncio.create_task(lookups.get())
        waiting = [asyncio.create_task(lookups.get()) for _ in range(50)]
        await asyncio.sleep(0)
        disconnecting.cancel()
        assert await asyncio.gather(*waiting) == [1] * 50
        assert await lookups.get() == 1

    asyncio.run(run())


def test_what_has_expired_is_looked_up_again() -> None:
    found = itertools.count()

    async def look() -> int:
        return next(found)

    async def run() -> None:
        lookups = SingleFlight(look, cached_s=0)
        assert [await lookups.get() for _ in range(3)] == [0, 1, 2]

    asyncio.run(run())


def test_a_failure_is_not_remembered() -> None:
    outcomes = iter([OSError("out"), None])

    async def look() -> None:
        if error := next(outcomes):
            raise error

    async def run() -> None:
        lookups = SingleFlight(look, cached_s=3600)
        with pytest.raises(OSError, match="out"):
            await lookups.get()
        await lookups.get()

    asyncio.run(run())
