"""What is asked per request, per tick and per scrape reads no more rows where there are many."""

from __future__ import annotations

import pytest

from common.db import monitoring, snapshots
from tests.system.rows import Counting, fill, measure

MANY = 3_000
"""Jobs in the queue; ten times as many have ended."""
BOUND = 5
"""In place of the thousands that are counted at most."""
READ_AT_MOST = 2_000


def test_no_operation_reads_the_jobs_that_wait_or_those_that_have_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "MOST", BOUND)
    monkeypatch.setattr(snapshots, "FARTHEST", BOUND)
    monkeypatch.setattr(snapshots, "FARTHEST_LISTED", BOUND)
    with Counting(database_url, pool_size=2) as database:
        fill(database, queued=MANY, finished=10 * MANY)
        costs = measure(database, 3)

    assert {name: cost.rows for name, cost in costs.items() if cost.rows > READ_AT_MOST} == {}
