"""What KEDA asks Postgres for: how many workers are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.steps import Steps
from common.errors import EngineFailed
from common.settings import ROOT
from tests.support.factories import (
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    plan_chunks,
    submit_job,
)
from tests.support.kustomize import read

SCALED, _ = read(ROOT / "docker" / "kubernetes" / "components" / "keda" / "worker.yaml")
(TRIGGER,) = SCALED["spec"]["triggers"]
QUERY: str = TRIGGER["metadata"]["query"]

Wanted = Callable[[], int]


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


@pytest.fixture
def wanted(database_url: str) -> Iterator[Wanted]:
    with psycopg.connect(database_url, autocommit=True) as connection:

        def ask() -> int:
            row = connection.execute(QUERY).fetchone()
            assert row is not None
            (count,) = row
            assert isinstance(count, int)
            return count

        yield ask


def test_each_is_a_worker() -> None:
    assert TRIGGER["type"] == "postgresql"
    assert TRIGGER["metadata"]["targetQueryValue"] == "1"


def test_a_waiting_job_wants_one(database: Database, wanted: Wanted) -> None:
    assert wanted() == 0
    submit_job(database)
    assert wanted() == 1


@pytest.mark.parametrize(("chunks", "count"), [(1, 1), (4, 1), (5, 2), (8, 2), (41, 11)])
def test_steps_that_are_due_want_one_for_every_four(
    database: Database, steps: Steps, wanted: Wanted, chunks: int, count: int
) -> None:
    submit_job(database)
    plan_chunks(steps, chunks)
    assert wanted() == count


def test_all_busy_workers_are_wanted(database: Database, steps: Steps, wanted: Wanted) -> None:
    submit_job(database)
    plan_chunks(steps, 8)
    claims = [claim_next(steps) for _ in range(6)]
    assert wanted() == 6 + 1
    claims += [claim_next(steps) for _ in range(2)]
    assert wanted() == 8
    for claim in claims[:5]:
        finish_chunk(steps, claim)
    assert wanted() == 3


@pytest.mark.parametrize(("delay_s", "count"), [(60, 0), (0, 1)])
def test_a_retry_wants_one_once_it_is_due(
    database: Database, wanted: Wanted, delay_s: float, count: int
) -> None:
    steps = make_steps(database, delay_s=delay_s)
    submit_job(database)
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="it crashed"))
    assert wanted() == count


def test_jobs_that_have_ended_want_none(database: Database, wanted: Wanted) -> None:
    steps = make_steps(database, max_retries=0)
    submit_job(database)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps))
    submit_job(database)
    failing = claim_next(steps)
    steps.fail(failing.step_id, failing.attempt, EngineFailed(reason="it crashed"))
    cancelled = submit_job(database)
    Jobs(database, TENANT).cancel(cancelled)
    assert wanted() == 0


def test_reading_two_columns_suffices(
    database_url: str, database: Database, wanted: Wanted
) -> None:
    submit_job(database)
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE ROLE scaler")
        connection.execute("GRANT SELECT (status, run_after) ON steps TO scaler")
        connection.execute("SET LOCAL ROLE scaler")
        assert connection.execute(QUERY).fetchone() == (wanted(),)
        connection.rollback()
