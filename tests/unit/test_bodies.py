"""How long a small body may take to come in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.http import bodies
from api.http.bodies import BodyRejected, count_body


async def read(header: tuple[bytes, bytes], piece: bytes, count: int, pause_s: float) -> int:
    """Read a body that comes in pieces; returns its size."""
    left = iter(range(count - 1, -1, -1))

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": piece, "more_body": next(left) > 0}

    following, size, more = count_body({"headers": [header]}, receive, 10_000), 0, True
    while more:
        message = await following()
        size, more = size + len(message["body"]), message["more_body"]
    return size


def test_a_body_that_trickles_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its bytes comes long before the client would count as disconnected."""
    monkeypatch.setattr(bodies, "TIMEOUT_S", 0.2)
    with pytest.raises(BodyRejected) as caught:
        asyncio.run(read((b"content-length", b"1000"), b"x", 1_000, 0.02))
    assert caught.value.status_code == 408


def test_a_body_at_a_decent_rate_has_the_time_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "TIMEOUT_S", 1.0)
    assert asyncio.run(read((b"transfer-encoding", b"chunked"), bytes(100), 40, 0.05)) == 4_000
