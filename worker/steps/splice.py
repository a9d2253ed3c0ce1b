"""Splice: put the new text of a span into the transcript that it is about."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from common.db.flow import Flow, locked_job
from common.db.revisions import Author, add_revision
from common.db.steps import Claim, StaleClaim
from common.db.tables import Job, TranscriptRevision
from common.db.transcriptions import newest_revision
from common.domain.merging import merge
from common.domain.pipeline import StepKind, pipeline_of
from common.domain.request import Options
from common.domain.results import seconds
from common.domain.splicing import has_words, spliced
from common.domain.transcript import Origin, Transcript
from common.errors import NoSpeech, NotReady, SourceRetried, Transient
from common.transcripts import moderated_by, moderation_warnings, parts
from worker.context import Context, with_retries
from worker.steps.audio import decoding_identity
from worker.steps.merge import corrected

SLOWEST = 0.005
"""As a merge."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Store the text of the claimed job's chunks in a new revision of its source.

    A retry, for labels that are missing, stores no text again, which people may have edited since.

    Raises:
        NoSpeech: nothing was recognized in the span; permanently.
        SourceRetried, StaleClaim, Unavailable: as in every step.
    """
    job = claim.job
    stored, _ = with_retries(context.transcriptions.to_merge, claim.job_id)
    options = Options.from_json(job.options)
    span = options.span
    assert span is not None  # noqa: S101 - what such jobs are about
    anew = Transcript(
        job.transcription.detected_language or job.language,
        span.duration_ms,
        corrected(context, merge(parts(stored)), options.to_rewrite),
        moderated_by(stored) if options.moderation else None,
    )
    if not has_words(anew, span):
        raise NoSpeech(start=seconds(span.start_ms), end=seconds(span.end_ms))
    weights = job.transcription.weights_sha256 or ""
    rerun: dict[str, Any] = {
        "job_id": str(job.id),
        "start_ms": span.start_ms,
        "end_ms": span.end_ms,
        "model": job.model,
        "weights_sha256": weights,
        "decoding": decoding_identity(job, weights, anew.language),
    }

    source_id = job.source_id
    assert source_id is not None  # noqa: S101 - what such jobs are about

    def store(session: Session, job: Job) -> None:
        source = locked_job(session, source_id)
        if source is None:
            raise StaleClaim
        try:
            if _has_text_of(session, source_id, job.id):
                Flow(session, source).add_afterwards(StepKind.REFINE)
            else:
                add_revision(
                    session,
                    source,
                    lambda transcript: spliced(transcript, span, anew),
                    origin=Origin.RERUN,
                    author=Author(job.key_id),
                    made_by=lambda it: it | {"reruns": [*it.get("reruns", []), rerun]},
                )
        except NotReady as error:
            raise SourceRetried from error
        kept = [it for it in job.warnings if it not in pipeline_of(job.kind).warnings]
        own = moderation_warnings(stored) if options.moderation else ()
        job.warnings = list(dict.fromkeys([*kept, *own]))

    with suppress(Transient):  # otherwise the dispatcher drops them
        context.storage.drop_chunks(job.id)
    following = context.finish(claim, within=store)
    context.events.job_changed(source_id)
    return following


def _has_text_of(session: Session, source_id: UUID, rerun_id: UUID) -> bool:
    """Whether the newest revision comes from this rerun."""
    newest = newest_revision(source_id).with_only_columns(TranscriptRevision.manifest)
    reruns = (session.scalar(newest) or {}).get("reruns", ())
    return any(it["job_id"] == str(rerun_id) for it in reruns)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the recording."""
    audio_s = (claim.job.recording.duration_ms or 0) / 1000 if claim.job.recording else 0
    return context.settings.chunk.timeout + SLOWEST * audio_s
