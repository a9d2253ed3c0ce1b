"""Refine: complete a revision that a person has made: its moderation, and its result files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loguru import logger

from common.db.steps import Claim
from common.db.transcriptions import refined, transcript_in
from common.domain.moderation import each_once
from common.domain.transcript import Transcript
from common.errors import StenoError
from worker.context import Context, with_retries
from worker.steps.results import write_files


def run(context: Context, claim: Claim) -> Claim | None:
    """Refine the newest revision of the claimed job.

    While the claim is valid it stays the newest: each new one has a step of its own.

    Raises:
        ModerationOff, ModerationUnusable: permanently; the result files are written before.
        ModerationFailed, StaleClaim, StorageFull, Unavailable: as in every step.
    """
    revision = with_retries(context.transcriptions.newest, claim.job_id)
    transcript, failure = transcript_in(revision), None
    try:
        complete = _moderated(context, transcript)
    except StenoError as error:
        complete, failure = transcript, error
    manifest = _manifest(revision.manifest, complete)
    if complete != transcript:
        with_retries(context.steps.write, claim, refined(complete, manifest))
    write_files(context, claim, complete, warnings=claim.job.warnings, manifest=manifest)
    if failure is not None:
        raise failure
    return context.finish(claim)


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """The time limit."""
    return context.settings.chunk.timeout


def _moderated(context: Context, transcript: Transcript) -> Transcript:
    """With the findings of the segments that lack one, if moderation was requested."""
    missing = [it for it in transcript.segments if it.finding is None and it.text.strip()]
    if transcript.moderated_by is None or not missing:
        return transcript
    moderation = context.moderation.get()
    findings = moderation.classify([segment.text for segment in missing])
    found = dict(zip(map(id, missing), findings, strict=True))
    logger.info("{} segments of a new revision are moderated", len(missing))
    return replace(
        transcript,
        segments=tuple(
            replace(it, finding=found.get(id(it), it.finding)) for it in transcript.segments
        ),
        moderated_by=each_once([*transcript.moderated_by, moderation.by]),
    )


def _manifest(manifest: dict[str, Any], transcript: Transcript) -> dict[str, Any]:
    models = transcript.moderated_by
    return {**manifest, "moderation": None if models is None else [it.to_json() for it in models]}
