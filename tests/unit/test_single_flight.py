from __future__ import annotations

import asyncio

import pytest

from api.cache import SingleFlight


def test_many_who_ask_at_once_have_it_looked_up_once() -> None:
    looked = 0

    async def look() -> int:
        nonlocal looked
        looked += 1
        await asyncio.sleep(0)
        return looked

    async def run() -> None:
        lookups = SingleFlight(look, cached_s=3600)
        disconnecting = asyncio.create_task(lookups.get())
        waiting = [asyncio.create_task(lookups.get()) for _ in range(50)]
        await asyncio.sleep(0)
        disconnecting.cancel()
        assert await asyncio.gather(*waiting) == [1] * 50
        assert await lookups.get() == 1

    asyncio.run(run())


def test_what_is_not_good_any_more_is_looked_up_again() -> None:
    found = iter(range(9))

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
