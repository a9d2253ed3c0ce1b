"""The promises of a merge that follows another one: a retry for the speakers that were missing."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select, update

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.revisions import Author, Revisions
from common.db.steps import Claim, Steps
from common.db.tables import JobMetrics, Step, Tally
from common.db.transcriptions import newest_revision
from common.db.vault import VOICES, Cipher
from common.db.voices import sealed
from common.domain.editing import Replace, apply_edits
from common.domain.job import JobStatus
from common.domain.metrics import AUDIO_TRANSCRIBED
from common.domain.pipeline import StepKind
from common.domain.speakers import Spoken, Stretch
from common.domain.transcript import Origin, Transcript
from common.domain.values import Span
from common.errors import WeightsUnusable
from common.transcripts import transcript_of
from tests.support.factories import (
    DIARIZED,
    TENANT,
    claim_next,
    do_step,
    finish_diarization,
    make_steps,
    plan_chunks,
    submit_job,
)
from worker.context import Context
from worker.steps import merge

KEY, LOST = "a-key-of-the-voices-0123456789abcdef", "a-lost-key-of-voices-0123456789abcdef"
A, B = "SPEAKER_00", "SPEAKER_01"
CHUNKS = 2


@pytest.fixture
def worker_settings() -> dict[str, str]:
    return {"VOICE_KEY": KEY}


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def voices() -> list[Stretch]:
    """Two voices of five seconds each, as different as can be."""
    embeddings = np.eye(2, 192, dtype="<f2")
    return [
        Stretch(0, at, (Spoken(Span(5_000 * at, 5_000 * (at + 1))),), one.tobytes(), 4_000)
        for at, one in enumerate(embeddings)
    ]


def merged(context: Context, steps: Steps, *, failing: int | None) -> list[str]:
    """Do all of a job's steps, of which the diarization of one chunk may fail; its warnings."""
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind != StepKind.DIARIZE:
            do_step(steps, claim, CHUNKS)
        elif claim.part_index == failing:
            fail(steps, claim)
        else:
            finish_diarization(steps, claim, voices())
    merge.run(context, claim)
    snapshot = Jobs(steps._database, TENANT).snapshot(claim.job_id)
    assert snapshot.status is JobStatus.COMPLETED
    return list(snapshot.warnings)


def fail(steps: Steps, claim: Claim) -> None:
    error = WeightsUnusable(model="a", engine="diarization", reason="made up")
    assert steps.fail(claim.step_id, claim.attempt, error)


def half_diarized(context: Context, steps: Steps) -> UUID:
    """A job with the speakers of its first chunk, of whom the second is named."""
    job_id = submit_job(steps._database, options=DIARIZED)
    plan_chunks(steps, CHUNKS)
    assert merged(context, steps, failing=1) == ["diarization_failed"]
    Revisions(steps._database, TENANT).change_speakers(job_id, {B: "Lan"}, Author())
    return job_id


def speakers(database: Database, job_id: UUID) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Their names, and who speaks from which millisecond on."""
    found = transcript_of(Jobs(database, TENANT).text(job_id)).diarization
    assert found is not None
    return dict(found.names), [(it.span.start_ms, it.speaker) for it in found.turns]


def change_result(database: Database, job_id: UUID, part: int, **changes: object) -> None:
    """Change what the diarization of a chunk has found."""
    of_chunk = (Step.job_id == job_id, Step.kind == StepKind.DIARIZE, Step.part == part)
    with database.transaction() as session:
        result = session.scalars(select(Step.result).where(*of_chunk)).one()
        session.execute(update(Step).where(*of_chunk).values(result={**result, **changes}))


def test_a_retry_adds_the_speakers_that_were_missing(
    context: Context, database: Database, steps: Steps
) -> None:
    job_id = half_diarized(context, steps)
    assert speakers(database, job_id) == ({B: "Lan"}, [(0, A), (5_000, B)])

    Jobs(database, TENANT).retry(job_id)

    assert merged(context, steps, failing=None) == []
    everywhere = [(0, A), (5_000, B), (10_000, A), (15_000, B)]
    assert speakers(database, job_id) == ({B: "Lan"}, everywhere)


def test_a_retry_that_cannot_decrypt_the_first_voices_keeps_the_speakers(
    context: Context, database: Database, steps: Steps
) -> None:
    job_id = half_diarized(context, steps)
    before = speakers(database, job_id)
    encrypted = sealed({"embeddings": "AAAA"}, Cipher(VOICES, [LOST]))
    change_result(database, job_id, 0, **encrypted)

    Jobs(database, TENANT).retry(job_id)

    assert merged(context, steps, failing=None) == ["diarization_failed"]
    assert speakers(database, job_id) == before


def test_a_retry_keeps_what_people_have_written_and_whom_they_named(
    context: Context, database: Database, steps: Steps
) -> None:
    job_id = half_diarized(context, steps)
    revisions = Revisions(database, TENANT)

    def corrected(transcript: Transcript) -> Transcript:
        return apply_edits(transcript, [Replace(0, text="Hello"), Replace(1, text="corrected")])

    reruns = [{"job_id": "a rerun"}]
    with database.transaction() as session:
        row = session.scalars(newest_revision(job_id)).one()
        row.manifest = row.manifest | {"reruns": reruns}
    revisions.change(job_id, corrected, origin=Origin.EDIT, author=Author())
    Jobs(database, TENANT).retry(job_id)

    assert merged(context, steps, failing=None) == []

    newest = revisions.get(job_id)
    assert (newest.row.origin, newest.row.manifest["reruns"]) == (Origin.RETRY, reruns)
    segments = newest.transcript.segments
    assert [(it.text, it.speaker) for it in segments] == [(" Hello", A), (" corrected", B)]
    names, turns = speakers(database, job_id)
    assert names == {B: "Lan"}
    assert turns == [(0, A), (5_000, B), (10_000, A), (15_000, B)]
    assert claim_next(steps).kind == StepKind.REFINE


def test_voices_that_other_networks_described_count_as_missing(
    context: Context, database: Database, steps: Steps
) -> None:
    submit_job(database, options=DIARIZED)
    plan_chunks(steps, CHUNKS)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind == StepKind.DIARIZE:
            finish_diarization(steps, claim, voices())
        else:
            do_step(steps, claim, CHUNKS)
    by = {"revision": 1, "weights": {"an-earlier-network": "a", "another": "b"}}
    change_result(database, claim.job_id, 1, by=by)

    merge.run(context, claim)

    snapshot = Jobs(database, TENANT).snapshot(claim.job_id)
    assert snapshot.warnings == ("diarization_failed",)
    assert speakers(database, claim.job_id) == ({}, [(0, A), (5_000, B)])


def test_the_audio_of_a_job_is_counted_once(
    context: Context, database: Database, steps: Steps
) -> None:
    job_id = half_diarized(context, steps)
    counted = counted_audio_s(database)
    assert sum(counted) == 10 * CHUNKS

    Jobs(database, TENANT).retry(job_id)

    assert merged(context, steps, failing=None) == []
    assert counted_audio_s(database) == counted
    with database.transaction() as session:
        assert session.get_one(JobMetrics, job_id).diarization_ms == 9 * CHUNKS


def counted_audio_s(database: Database) -> list[float]:
    with database.transaction() as session:
        values = select(Tally.value).where(Tally.name == AUDIO_TRANSCRIBED.name)
        return list(session.scalars(values))
