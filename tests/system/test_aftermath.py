"""The chaos test reports every broken promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.tables import Job, Outbox, Part, Step, TranscriptRevision
from common.domain.pipeline import StepKind
from common.domain.request import Options
from tests.support.factories import (
    MODERATED,
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    make_steps,
    plan_chunks,
    submit_job,
)
from tests.system.aftermath import STUCK_S, Findings, examine_rows

WORKERS = 1


@pytest.fixture(params=[Options(), MODERATED], ids=["plain", "moderated"])
def job_id(database: Database, request: pytest.FixtureRequest) -> UUID:
    """A job of two chunks that was completed as it should."""
    steps = make_steps(database)
    job_id = submit_job(database, options=request.param)
    plan_chunks(steps, 2)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind == StepKind.TRANSCRIBE:
            finish_chunk(steps, claim)
        else:
            finish_moderation(steps, claim)
    finish_merge(steps, claim)
    return job_id


def violations(database: Database, *accepted: UUID) -> list[str]:
    finding = Findings()
    fault = datetime.now(UTC) - timedelta(seconds=1)
    with database.transaction() as session:
        examine_rows(finding, session, [str(job_id) for job_id in accepted], fault, WORKERS)
    return finding.violations


def test_a_job_that_went_well_breaks_no_promise(database: Database, job_id: UUID) -> None:
    assert violations(database, job_id) == []


def test_an_accepted_job_that_is_not_there_is_seen(database: Database, job_id: UUID) -> None:
    stranger = uuid4()
    (violation,) = violations(database, job_id, stranger)
    assert str(stranger) in violation


def not_completed(session: Session) -> None:
    session.execute(update(Job).values(status="FAILED", error_code="engine_failed"))


def stored_twice(session: Session) -> None:
    chunk = (Step.kind == StepKind.TRANSCRIBE, Step.part == 1)
    session.execute(update(Step).where(*chunk).values(stored_count=2))


def without_a_chunk(session: Session) -> None:
    session.execute(delete(Part).where(Part.index == 0))


def without_a_transcript(session: Session) -> None:
    session.execute(delete(TranscriptRevision))


def moderated_unlike_its_options(session: Session) -> None:
    moderated = (Step.kind == StepKind.MODERATE, Step.part == 1)
    (job_id,) = session.scalars(select(Job.id))
    changed = update(Step).where(*moderated).values(result=None).returning(Step.id)
    if not session.execute(changed).all():
        session.add(Step(job_id=job_id, kind=StepKind.MODERATE, part=1, status="done", result={}))


def left_in_the_outbox(session: Session) -> None:
    session.add(Outbox(step_id=session.scalars(select(Step.id)).first()))


def left_pending(session: Session) -> None:
    session.execute(update(Step).where(Step.kind == "merge").values(status="pending"))


def late(session: Session) -> None:
    end = datetime.now(UTC) + timedelta(seconds=STUCK_S + 10)
    merge = update(Step).where(Step.kind == "merge")
    session.execute(merge.values(started_at=end, finished_at=end))


@pytest.mark.parametrize(
    ("happened", "message"),
    [
        (not_completed, "is FAILED: engine_failed"),
        (stored_twice, "transcribe 1 .* was stored 2 times"),
        (without_a_chunk, "lacks 1 chunk"),
        (without_a_transcript, "exactly one row in transcripts"),
        (moderated_unlike_its_options, "chunk 1 .* was moderated, or not, against its options"),
        (left_in_the_outbox, "the outbox is not empty"),
        (left_pending, "merge .* is pending"),
        (late, "no step was finished for"),
    ],
)
def test_a_broken_promise_is_reported(
    database: Database, job_id: UUID, happened: Callable[[Session], None], message: str
) -> None:
    with database.transaction() as session:
        happened(session)
    assert any(re.search(message, violation) for violation in violations(database, job_id))
