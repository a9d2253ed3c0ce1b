"""Hosts whose clocks differ from the servers' count as all others do."""

from __future__ import annotations

from datetime import datetime

import pytest
from redis import Redis
from sqlalchemy import text

from common.db.database import Database
from common.redis import presence
from tests.support.service import Start, wait_until

SKEWED = """
import sys, time
from datetime import timedelta

import rq

real_now, real_time = rq.utils.now, time.time
for module in list(sys.modules.values()):
    if getattr(module, "now", None) is real_now:
        module.now = lambda: real_now() + timedelta(seconds={skew_s})
time.time = lambda: real_time() + {skew_s}
"""
"""Code that has a process of ours live at another time."""


@pytest.mark.parametrize("skew_s", [-3600, 3600])
def test_a_worker_and_a_dispatcher_whose_clock_is_wrong_count_as_living(
    start: Start, redis_url: str, skew_s: int
) -> None:
    service = start()
    service.start_worker(SKEWED.format(skew_s=skew_s))
    service.start_dispatcher(SKEWED.format(skew_s=skew_s))
    with Redis.from_url(redis_url) as redis:
        for look in (presence.workers, presence.dispatchers):
            (silence_s,) = wait_until(lambda: look(redis).values(), "a sign of life")  # noqa: B023
            assert 0 <= round(silence_s) < presence.SILENT_S
        (key,) = redis.keys("rq:worker:*")
        beat = datetime.fromisoformat(redis.hget(key, "last_heartbeat").decode())
        assert abs(beat.timestamp() - redis.time()[0] - skew_s) < abs(skew_s) / 2  # it is wrong


def test_a_day_has_24_hours_whatever_the_time_zone_of_postgres(database_url: str) -> None:
    summer_time = text(
        "SELECT timestamptz '2027-03-27 12:00+01' + interval '1 day'"
        " = timestamptz '2027-03-28 12:00+01'"
    )
    with Database(database_url) as database, database.transaction() as session:
        name = session.scalar(text("SELECT current_database()"))
        session.execute(text(f"ALTER DATABASE \"{name}\" SET timezone = 'Europe/Berlin'"))
    try:
        with Database(database_url) as database, database.transaction() as session:
            assert session.scalar(summer_time)
    finally:
        with Database(database_url) as database, database.transaction() as session:
            session.execute(text(f'ALTER DATABASE "{name}" RESET timezone'))
