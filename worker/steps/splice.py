"""Splice: put the new text of a span into the transcript that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from common.db.flow import locked_job
from common.db.revisions import Author, add_revision
from common.db.steps import Claim, StaleClaim
from common.db.tables import Job
from common.domain.differences import difference
from common.domain.glossary import Entry, rewritten
from common.domain.job import MODERATION_FAILED
from common.domain.merging import merge
from common.domain.request import Options
from common.domain.splicing import spliced
from common.domain.transcript import Origin, Transcript
from common.domain.values import Segment
from common.errors import Transient
from common.transcripts import moderated_by, parts
from worker.context import Context, with_retries
from worker.steps.audio import decoding_identity

SLOWEST = 0.005
"""As a merge."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Store the text of the claimed job's chunks in a new revision of its source.

    Raises:
        NotReady: the source is being retried; permanently.
        StaleClaim, Unavailable: as in every step.
    """
    job = claim.job
    stored, _ = with_retries(context.transcriptions.to_merge, claim.job_id)
    options = Options.from_json(job.options)
    span = options.span
    assert span is not None  # noqa: S101 - what such jobs are about
    anew = Transcript(
        job.transcription.detected_language or job.language,
        span.duration_ms,
        _rewritten(merge(parts(stored)), options.to_rewrite),
        moderated_by(stored) if options.moderation else None,
    )
    weights = job.transcription.weights_sha256 or ""
    rerun: dict[str, Any] = {
        "job_id": str(job.id),
        "start_ms": span.start_ms,
        "end_ms": span.end_ms,
        "model": job.model,
        "weights_sha256": weights,
        "decoding": decoding_identity(job, weights, anew.language),
    }

    def change(transcript: Transcript) -> tuple[Transcript, list[Any]]:
        changed = spliced(transcript, span, anew)
        return changed, difference(transcript, changed)

    source_id = job.source_id
    assert source_id is not None  # noqa: S101 - what such jobs are about

    def store(session: Session, job: Job) -> None:
        source = locked_job(session, source_id)
        if source is None:
            raise StaleClaim
        author = Author(job.key_id)
        add_revision(session, source, change, origin=Origin.RERUN, author=author, rerun=rerun)
        undone = any(it.moderation is None for it in stored)
        job.warnings = [MODERATION_FAILED] if options.moderation and undone else []

    with suppress(Transient):  # otherwise the dispatcher drops them
        context.storage.drop_chunks(job.id)
    following = context.finish(claim, within=store)
    context.events.job_changed(source_id)
    return following


def _rewritten(segments: Sequence[Segment], entries: Sequence[Entry]) -> tuple[Segment, ...]:
    """With the words of glossaries written right; the refinement labels what was changed."""
    new = rewritten(segments, entries)
    return tuple(
        it if it is old else replace(it, finding=None)
        for it, old in zip(new, segments, strict=True)
    )


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the recording."""
    audio_s = (claim.job.recording.duration_ms or 0) / 1000 if claim.job.recording else 0
    return context.settings.chunk.timeout + SLOWEST * audio_s
