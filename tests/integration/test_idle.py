"""What an idle dispatcher costs, and that nothing is overlooked for it."""

from __future__ import annotations

import time

from sqlalchemy import func, select, text

from common.db.database import Database
from common.db.tables import Outbox
from tests.support.factories import submit_job
from tests.support.service import Start, wait_until

LOOK_S = 2.5
MOST = 15
"""Transactions within that time; with a look every half second it would be fifty."""


def test_an_idle_dispatcher_asks_little_and_finds_a_step_without_a_notification(
    start: Start,
) -> None:
    service = start()
    service.start_dispatcher()
    first = submit_job(service.database)
    wait_until(lambda: waiting(service.database) == 0, "the first step to be handed out")
    service.jobs.cancel(first)
    wait_until(lambda: is_idle(service.database), "it to be idle")

    submit_job(service.database)  # and nobody is notified

    wait_until(lambda: waiting(service.database) == 0, "the step to be handed out")


def is_idle(database: Database) -> bool:
    before = transactions(database)
    time.sleep(LOOK_S)
    return transactions(database) - before < MOST


def transactions(database: Database) -> int:
    """How many there were in this database."""
    with database.transaction() as session:
        found = session.scalar(
            text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        )
        return int(found or 0)


def waiting(database: Database) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(Outbox)) or 0
