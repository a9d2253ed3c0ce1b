"""The result files of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.db.steps import Claim, Within
from common.domain.formats import files
from common.domain.masking import masked
from common.domain.request import Options
from common.domain.transcript import Transcript
from worker.context import Context, fenced, with_retries


def write_files(
    context: Context,
    claim: Claim,
    transcript: Transcript,
    *,
    warnings: Sequence[str],
    manifest: Mapping[str, Any],
) -> None:
    """Write the transcript of the claimed job in every format, masked if the job asks for it.

    The job is locked while a file is written: if a step of a newer revision could write it between
    the check of this claim and the writing, the older text would stay.

    Raises:
        StaleClaim: the claim is no longer valid, or the files were removed.
        StorageFull, Unavailable: as in every step.
    """
    recording = claim.job.recording
    assert recording is not None  # noqa: S101 - the phase that fetches it comes first
    hide = Options.from_json(claim.job.options).filter_profanity
    shown = masked(transcript) if hide else transcript
    with_retries(context.storage.begin, "results", claim.job_id)
    with fenced():
        for name, content in files(
            shown, warnings=warnings, manifest=manifest, filename=recording.filename
        ):
            with_retries(context.steps.write, claim, _stored(context, claim, name, content))


def _stored(context: Context, claim: Claim, name: str, content: bytes) -> Within:
    return lambda _session, _job: context.storage.write_result(claim.job_id, name, content)
