"""The promises about a new revision: the files follow it, and its new text is moderated."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.revisions import Author, Revisions
from common.db.steps import Claim, StaleClaim, Steps
from common.domain.formats import write
from common.domain.job import JobStatus, StepStatus
from common.domain.masking import masked
from common.domain.moderation import Label
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.domain.speakers import Diarization, SpeakerCount, Turn
from common.domain.transcript import Origin, Transcript
from common.domain.values import Span
from common.errors import Conflict, ModerationOff
from tests.support.factories import (
    BY,
    CLEAN,
    TENANT,
    claim_next,
    do_step,
    finish_merge,
    make_steps,
    published,
    stored_segment,
    submit_job,
)
from tests.support.service import wait_until, waits_for_a_lock
from worker.context import Context
from worker.steps import refine

A = "SPEAKER_00"
SAID = [
    stored_segment(0, 9_000, " hello there", speaker=A, verdict=CLEAN.to_json()),
    stored_segment(9_500, 13_000, " good bye", speaker=A, verdict=CLEAN.to_json()),
]
DIARIZATION = Diarization((Turn(Span(0, 13_000), A),))
OPTIONS = Options(moderation=True, filter_profanity=True, diarize=SpeakerCount())


@pytest.fixture
def steps(database: Database) -> Steps:
    return make_steps(database)


@pytest.fixture
def revisions(database: Database) -> Revisions:
    return Revisions(database, TENANT)


@pytest.fixture
def job_id(database: Database, steps: Steps) -> UUID:
    """A COMPLETED job."""
    job_id = submit_job(database, options=OPTIONS)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        do_step(steps, claim, 1)
    manifest = {"moderation": [BY.to_json()]}
    finish_merge(steps, claim, segments=SAID, diarization=DIARIZATION, manifest=manifest)
    return job_id


def say(revisions: Revisions, job_id: UUID, text: str) -> None:
    """Change the text of the first segment."""

    def change(transcript: Transcript) -> Transcript:
        first, *rest = transcript.segments
        changed = replace(first, text=f" {text}", finding=None)
        return replace(transcript, segments=(changed, *rest))

    revisions.change(job_id, change, origin=Origin.EDIT, author=Author())


def refining(steps: Steps) -> Claim:
    claim = claim_next(steps)
    assert claim.kind == StepKind.REFINE
    return claim


def file(tmp_path: Path, job_id: UUID, ending: str) -> str:
    return (tmp_path / "results" / str(job_id) / f"transcript.{ending}").read_text()


def test_a_new_revision_is_moderated_and_its_files_are_written(
    context: Context, steps: Steps, revisions: Revisions, job_id: UUID, tmp_path: Path
) -> None:
    say(revisions, job_id, "fuck off")
    assert revisions.get(job_id).refining is StepStatus.PENDING

    refine.run(context, refining(steps))

    found = revisions.get(job_id)
    assert (found.refining, found.row.revision, found.row.refinements) == (StepStatus.DONE, 2, 1)
    first, second = found.transcript.segments
    assert first.finding is not None
    assert first.finding.label is Label.OFFENSIVE
    assert second.finding == CLEAN  # it was not changed
    assert file(tmp_path, job_id, "txt") == f"{A}: f*** off\n{A}: good bye\n"
    models = json.loads(file(tmp_path, job_id, "json"))["manifest"]["moderation"]
    assert [it["model"] == BY.model for it in models] == [True, False]


def test_the_files_have_what_is_stored(
    context: Context, steps: Steps, revisions: Revisions, job_id: UUID, tmp_path: Path
) -> None:
    say(revisions, job_id, "fuck off")
    refine.run(context, refining(steps))

    found = revisions.get(job_id)
    stored = write("json", masked(found.transcript), manifest=found.row.manifest)
    assert file(tmp_path, job_id, "json") == stored


def test_the_machines_revision_stays_as_it_was(
    context: Context, steps: Steps, revisions: Revisions, job_id: UUID
) -> None:
    before = revisions.get(job_id, 1).transcript
    for text in ("one", "two"):
        say(revisions, job_id, text)
        refine.run(context, refining(steps))
    assert revisions.get(job_id, 1).transcript == before
    assert [it.revision for it in revisions.page(job_id, limit=9, before=None)[0]] == [3, 2, 1]


def test_names_of_speakers_reach_the_files_without_moderation_anew(
    context: Context, steps: Steps, revisions: Revisions, job_id: UUID, tmp_path: Path
) -> None:
    context.settings.moderation.ai_load_models = False
    revisions.change_speakers(job_id, {A: "Lan"}, Author())
    refine.run(context, refining(steps))
    assert file(tmp_path, job_id, "srt").count("Lan: ") == 2
    assert revisions.get(job_id).row.refinements == 0


def test_what_refines_an_older_revision_changes_nothing(
    context: Context, steps: Steps, revisions: Revisions, job_id: UUID, tmp_path: Path
) -> None:
    say(revisions, job_id, "first")
    late = refining(steps)
    say(revisions, job_id, "second")

    with pytest.raises(StaleClaim):
        refine.run(context, late)

    assert not (tmp_path / "results" / str(job_id)).exists()
    refine.run(context, refining(steps))
    assert file(tmp_path, job_id, "txt").startswith(f"{A}: second\n")
    assert published(steps) == []


def test_a_late_refinement_cannot_overwrite_the_files_of_a_newer_one(
    context: Context,
    database: Database,
    steps: Steps,
    revisions: Revisions,
    job_id: UUID,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its claim was valid when it began to write: what is newer waits, or comes first."""
    say(revisions, job_id, "first")
    late = refining(steps)
    newer: list[Future[None]] = []
    write_result = context.storage.write_result

    def say_more() -> None:
        say(revisions, job_id, "second")
        refine.run(context, refining(steps))

    def slowly(of_job: UUID, name: str, content: bytes) -> None:
        if not newer:
            newer.append(pool.submit(say_more))
            wait_until(
                lambda: newer[0].done() or waits_for_a_lock(database),
                "the newer revision to wait, or to be refined",
            )
        write_result(of_job, name, content)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(context.storage, "write_result", slowly)
        with suppress(StaleClaim):
            refine.run(context, late)
        newer[0].result()

    assert revisions.get(job_id).refining is StepStatus.DONE
    for ending in ("txt", "srt", "vtt", "tsv", "json"):
        text = file(tmp_path, job_id, ending)
        assert "second" in text
        assert "first" not in text


def test_without_moderation_the_files_follow_and_the_step_fails(
    context: Context,
    database: Database,
    steps: Steps,
    revisions: Revisions,
    job_id: UUID,
    tmp_path: Path,
) -> None:
    context.settings.moderation.ai_load_models = False
    say(revisions, job_id, "hello")
    claim = refining(steps)

    with pytest.raises(ModerationOff) as error:
        refine.run(context, claim)

    assert file(tmp_path, job_id, "txt").startswith(f"{A}: hello\n")
    assert steps.fail(claim.step_id, claim.attempt, error.value)
    assert revisions.get(job_id).refining is StepStatus.FAILED
    jobs = Jobs(database, TENANT)
    assert jobs.snapshot(job_id).status is JobStatus.COMPLETED
    assert jobs.snapshot(job_id).warnings == ("refinement_failed",)

    context.settings.moderation.ai_load_models = True
    jobs.retry(job_id)

    assert jobs.snapshot(job_id).status is JobStatus.COMPLETED
    assert jobs.snapshot(job_id).warnings == ()
    context.moderation._broken_until = 0  # as after its pause
    refine.run(context, refining(steps))
    assert revisions.get(job_id).refining is StepStatus.DONE
    with pytest.raises(Conflict):
        jobs.retry(job_id)


def test_a_cancelled_retry_stops_its_steps_and_not_the_refinement(
    database: Database, steps: Steps, revisions: Revisions
) -> None:
    job_id = submit_job(database, options=OPTIONS)
    while (claim := claim_next(steps)).kind != StepKind.MERGE:
        if claim.kind == StepKind.MODERATE:
            steps.fail(claim.step_id, claim.attempt, ModerationOff())
        else:
            do_step(steps, claim, 1)
    finish_merge(steps, claim, segments=SAID, diarization=DIARIZATION)
    say(revisions, job_id, "hello you")
    refinement = refining(steps)
    jobs = Jobs(database, TENANT)
    jobs.retry(job_id)
    moderation = claim_next(steps, "worker-2")

    assert [worker for worker, _ in jobs.cancel(job_id)] == ["worker-2"]

    steps.check(refinement)
    with pytest.raises(StaleClaim):
        steps.check(moderation)
