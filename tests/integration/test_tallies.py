"""Counts in Postgres, in the transaction of what they count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import text

from common.db.database import Database
from common.db.tallies import Tallied, count, observe
from common.domain.metrics import AUDIO_TRANSCRIBED, JOBS_SUBMITTED, STAGE_RTF, STEP_RETRIES

BASE = {"tier": "standard", "engine": "faster-whisper", "model": "base"}
PLAN = {"stage": "plan", "engine": "faster-whisper", "model": "base"}


def tallied(database: Database) -> Tallied:
    with database.transaction() as session:
        return Tallied(session)


def test_what_is_rolled_back_was_not_counted(database: Database) -> None:
    with database.transaction() as session:
        count(session, JOBS_SUBMITTED, 1, **BASE)
    with suppress(ZeroDivisionError), database.transaction() as session:
        count(session, JOBS_SUBMITTED, 1, **BASE)
        raise ZeroDivisionError
    assert tallied(database).of(JOBS_SUBMITTED) == {("standard", "faster-whisper", "base"): 1}


def test_what_a_transaction_counts_twice_is_written_once(database: Database) -> None:
    with database.transaction() as session:
        count(session, AUDIO_TRANSCRIBED, 1.5, **BASE)
        count(session, AUDIO_TRANSCRIBED, 2.0, **BASE)
        assert session.scalar(text("SELECT count(*) FROM tallies")) == 0
    assert list(tallied(database).of(AUDIO_TRANSCRIBED).values()) == [3.5]


def test_observations_fall_between_their_bounds(database: Database) -> None:
    seen = [0.0005, 0.001, 0.0011, 0.5, 11.0]
    for value in seen:
        with database.transaction() as session:
            observe(session, STAGE_RTF, value, **PLAN)
    (found,) = tallied(database).distributions(STAGE_RTF).values()
    assert found.counts[:2] == (2, 1)
    assert found.counts[STAGE_RTF.bounds.index(0.5)] == 1
    assert found.counts[-1] == 1
    assert sum(found.counts) == len(seen)
    assert found.sum == pytest.approx(sum(seen))


def test_labels_may_hold_whatever_an_operator_calls_a_tier(database: Database) -> None:
    odd = 'a "b" \\ {c},\nd=e'
    with database.transaction() as session:
        count(session, STEP_RETRIES, kind="plan", code=odd)
    assert list(tallied(database).of(STEP_RETRIES)) == [("plan", odd)]


def test_transactions_that_count_the_same_in_any_order_do_not_deadlock(database: Database) -> None:
    names = ["fetch", "plan", "transcribe", "moderate", "merge"]
    rounds, threads = 20, 8

    def run(offset: int) -> None:
        for turn in range(rounds):
            with database.transaction() as session:
                for place in range(len(names)):
                    kind = names[(place * (1 + offset % 3) + turn + offset) % len(names)]
                    count(session, STEP_RETRIES, kind=kind, code="worker_lost")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
    counted = tallied(database).of(STEP_RETRIES)
    assert sum(counted.values()) == rounds * threads * len(names)
