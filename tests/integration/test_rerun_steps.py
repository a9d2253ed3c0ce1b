"""The promises about the steps of a rerun: which audio they read, and what they lock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select, text, update

from common.audio.decode import DAMAGED, MonoDecoder
from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.revisions import Author, Revisions
from common.db.steps import StaleClaim, Steps
from common.db.tables import Job, Transcription
from common.domain.chunks import windows_from_json
from common.domain.editing import Replace, apply_edits
from common.domain.job import JobStatus
from common.domain.pipeline import RERUN, StepKind
from common.domain.request import Cutting, Options
from common.domain.transcript import Origin, Transcript
from common.domain.values import Chunk, Span
from common.errors import ModerationOff, NoSpeech, SourceRetried
from tests.support.audio_files import KINDS, damage, write
from tests.support.factories import (
    TENANT,
    claim_next,
    do_all,
    do_step,
    finish_chunk,
    finish_moderation,
    make_steps,
    new_job,
    new_recording,
    plan_chunks,
    published,
    submit_job,
)
from tests.support.service import wait_until
from tests.support.speech import speak
from worker.context import Context
from worker.steps import plan, splice

SPAN = Span(30_000, 36_000)
FIXED = Cutting("fixed")


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


def rerun(database: Database, source_id: UUID, span: Span = SPAN, cutting: Cutting = FIXED) -> UUID:
    options = Options(span=span, cutting=cutting)
    job = new_job(kind=RERUN.kind, source_id=source_id, options=options)
    return Jobs(database, TENANT).create_from_source(job).job_id


def test_a_damaged_recording_is_read_at_the_times_of_its_first_transcription(
    context: Context, database: Database, steps: Steps
) -> None:
    context = replace(context, may_continue=lambda: False)
    voice = np.tile(speak("The captain walked along the beach."), 20)[: 45 * 16_000]
    recording = new_recording(45_000)
    path = context.storage.incoming(recording.id)
    damage(write(path, (voice * 32_767).astype(np.int16), KINDS["aac"]), 0.3, 0.33)
    whole = MonoDecoder(path)
    samples = np.concatenate(list(whole))
    assert DAMAGED in whole.warnings
    source = new_job()
    Jobs(database, TENANT).submit(recording, source)
    context.storage.keep(recording.id)
    do_all(steps)
    with database.transaction() as session:
        session.execute(update(Job).values(warnings=[DAMAGED]))

    rerun_id = rerun(database, source.id)
    plan.run(context, claim_next(steps))

    part = claim_next(steps).part
    assert part is not None
    audio = Chunk(part.index, windows_from_json(part.data)).audio
    found = np.frombuffer(context.storage.read_chunk(rerun_id, 0), "<i2")
    assert np.array_equal(found, samples[audio.start_ms * 16 : audio.end_ms * 16])


def test_no_more_audio_is_charged_than_is_transcribed_again(
    context: Context, database: Database, steps: Steps
) -> None:
    recording = new_recording(45_000)
    write(context.storage.incoming(recording.id), np.zeros(45 * 16_000, np.int16), KINDS["wav"])
    source = new_job()
    Jobs(database, TENANT).submit(recording, source)
    context.storage.keep(recording.id)
    do_all(steps)
    rerun_id = rerun(database, source.id, Span(2_000, 8_000), Cutting())
    with pytest.raises(NoSpeech):
        plan.run(context, claim_next(steps))
    with database.transaction() as session:
        assert session.get_one(Transcription, rerun_id).charged_ms == 6_000


def waiting_for_locks(database: Database) -> int:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with database.transaction() as session:
        return session.scalar(text(waiting)) or 0


def test_a_source_is_deleted_while_its_rerun_ends(
    context: Context, database: Database, steps: Steps
) -> None:
    source_id = submit_job(database)
    do_all(steps)
    rerun(database, source_id, Span(2_000, 8_000))
    while (claim := claim_next(steps)).kind != StepKind.SPLICE:
        do_step(steps, claim, 1)
    with ThreadPoolExecutor(2) as pool, database.transaction() as holding:
        holding.execute(select(Job.id).where(Job.id == source_id).with_for_update())
        deleting = pool.submit(Deletions(database, TENANT).delete, source_id)
        wait_until(lambda: waiting_for_locks(database) == 1, "the deletion to wait")
        ending = pool.submit(splice.run, context, claim)
        wait_until(lambda: waiting_for_locks(database) >= 2, "the splice to wait")
        holding.rollback()
        assert deleting.result() is not None
        with pytest.raises(StaleClaim):
            ending.result()


def spliced(context: Context, database: Database, steps: Steps, source_id: UUID) -> UUID:
    """A rerun that has ended."""
    rerun_id = rerun(database, source_id, Span(2_000, 8_000))
    while (claim := claim_next(steps)).kind != StepKind.SPLICE:
        do_step(steps, claim, 1)
    splice.run(context, claim)
    do_step(steps, claim_next(steps))  # the refinement
    return rerun_id


def test_a_rerun_waits_while_its_source_is_retried(
    context: Context, database: Database, steps: Steps
) -> None:
    source_id = submit_job(database, options=Options(moderation=True))
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    moderation = claim_next(steps)
    assert steps.fail(moderation.step_id, moderation.attempt, ModerationOff())
    do_step(steps, claim_next(steps))
    rerun_id = rerun(database, source_id, Span(2_000, 8_000))
    while (claim := claim_next(steps)).kind != StepKind.SPLICE:
        do_step(steps, claim, 1)
    jobs = Jobs(database, TENANT)
    jobs.retry(source_id)

    with pytest.raises(SourceRetried) as error:
        splice.run(context, claim)

    ready: list[UUID] = []
    for _ in range(5):  # more often than a step is retried
        assert steps.fail(claim.step_id, claim.attempt, error.value)
        ready += published(steps)
        ready.remove(claim.step_id)
        again = steps.claim(claim.step_id, "worker-1")
        assert again is not None
        claim = again
    assert jobs.snapshot(rerun_id).status is JobStatus.PROCESSING
    (moderation_id,) = ready
    retried = steps.claim(moderation_id, "worker-2")
    assert retried is not None
    finish_moderation(steps, retried)
    do_step(steps, claim_next(steps))
    splice.run(context, claim)
    assert jobs.snapshot(rerun_id).status is JobStatus.COMPLETED


def test_the_manifest_has_the_reruns_of_the_text_that_is_given_out(
    context: Context, database: Database, steps: Steps
) -> None:
    source_id = submit_job(database)
    do_all(steps)
    revisions = Revisions(database, TENANT)

    def reruns() -> list[str]:
        made = revisions.get(source_id).row.manifest.get("reruns", [])
        return [it["job_id"] for it in made]

    first = str(spliced(context, database, steps, source_id))
    second = str(spliced(context, database, steps, source_id))
    assert reruns() == [first, second]
    for number, made in ((1, []), (2, [first]), (3, [first, second])):
        revisions.restore(source_id, number, author=Author())
        assert reruns() == made


def test_a_retry_for_labels_keeps_what_people_have_written(
    context: Context, database: Database, steps: Steps
) -> None:
    source_id = submit_job(database)
    do_all(steps)
    options = Options(span=Span(2_000, 8_000), cutting=FIXED, moderation=True)
    made = new_job(kind=RERUN.kind, source_id=source_id, options=options)
    jobs, revisions = Jobs(database, TENANT), Revisions(database, TENANT)
    jobs.create_from_source(made)
    while (claim := claim_next(steps)).kind != StepKind.SPLICE:
        if claim.kind == StepKind.MODERATE:
            assert steps.fail(claim.step_id, claim.attempt, ModerationOff())
        else:
            do_step(steps, claim, 1)
    splice.run(context, claim)
    assert jobs.snapshot(made.id).warnings == ("moderation_failed",)

    def correct(transcript: Transcript) -> Transcript:
        return apply_edits(transcript, [Replace(0, text="corrected")])

    revisions.change(source_id, correct, origin=Origin.EDIT, author=Author())
    do_step(steps, claim_next(steps))  # its refinement
    jobs.retry(made.id)
    finish_moderation(steps, claim_next(steps))
    splice.run(context, claim_next(steps))

    assert (jobs.snapshot(made.id).status, jobs.snapshot(made.id).warnings) == ("COMPLETED", ())
    found = revisions.get(source_id)
    assert (found.row.origin, found.transcript.text) == (Origin.EDIT, "corrected")
    assert claim_next(steps).kind == StepKind.REFINE
