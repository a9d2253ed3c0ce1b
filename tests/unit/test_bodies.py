"""How long a small body may take to come in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.http import bodies
from api.http.bodies import BodyRejected, count_body


def test_a_body_that_trickles_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its bytes comes long before the client would count as disconnected."""
    monkeypatch.setattr(bodies, "TIMEOUT_S", 0.2)
    scope: dict[str, Any] = {"headers": [(b"content-length", b"1000")]}

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        following = count_body(scope, receive, 10_000)
        for _ in range(1_000):
            await following()

    with pytest.raises(BodyRejected) as caught:
        asyncio.run(read())
    assert caught.value.status_code == 408


def test_a_body_at_a_decent_rate_has_the_time_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "TIMEOUT_S", 1.0)
    scope: dict[str, Any] = {"headers": [(b"transfer-encoding", b"chunked")]}
    pieces = iter(range(40))

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": bytes(100), "more_body": next(pieces) < 39}

    async def read() -> int:
        following, size, more = count_body(scope, receive, 10_000), 0, True
        while more:
            message = await following()
            size, more = size + len(message["body"]), message["more_body"]
        return size

    assert asyncio.run(read()) == 4_000
