"""Routes for the speakers of a finished transcript."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body
from loguru import logger
from pydantic import BaseModel

from api.auth.callers import Reader, Transcriber
from api.http.fields import OneLine
from api.http.problems import documented
from api.jobs.waiting import check_ready
from api.services import Services, ServicesDep
from api.transcripts.schemas import ResultSpeaker
from common.db.deletions import record_erased, was_deleted
from common.db.revisions import Revisions
from common.db.tables import Kind
from common.domain.formats import files
from common.domain.masking import masked
from common.domain.results import speakers_document
from common.errors import Conflict, NotFound, Transient
from common.transcripts import transcript_of

router = APIRouter(tags=["jobs"], responses=documented(422, 503))

MOST_CHANGES = 100


Changes = Annotated[
    dict[str, OneLine | None],
    Body(
        max_length=MOST_CHANGES,
        examples=[{"SPEAKER_00": "Lan", "SPEAKER_02": "SPEAKER_00"}],
    ),
]


class Speakers(BaseModel):
    """The speakers of a recording, in the order in which they first speak."""

    speakers: list[ResultSpeaker]


@router.get(
    "/jobs/{job_id}/speakers",
    summary="List the speakers",
    response_model=Speakers,
    responses=documented(404, 409),
)
async def speakers(job_id: UUID, services: ServicesDep, caller: Reader) -> dict[str, Any]:
    """The speakers of a job with `diarize` or separate channels; 409 until it is COMPLETED."""
    return await services.in_thread(_speakers, services, caller.tenant, job_id)


@router.patch(
    "/jobs/{job_id}/speakers",
    summary="Rename or merge speakers",
    response_model=Speakers,
    responses=documented(404, 409),
)
async def change_speakers(
    job_id: UUID, services: ServicesDep, caller: Transcriber, changes: Changes
) -> dict[str, Any]:
    """Give speakers names, or take several for the same person. All downloads follow.

    The body has for an id a name, null (no name any more), or the id of another speaker: they are
    the same person, of whom that id stays. All changes are made, or none.
    """
    return await services.in_thread(_change, services, caller.tenant, job_id, changes)


def _change(
    services: Services, tenant: str, job_id: UUID, changes: dict[str, str | None]
) -> dict[str, Any]:
    if not changes:
        return _speakers(services, tenant, job_id)
    Revisions(services.database, tenant).change_speakers(job_id, changes)
    logger.info("job {job_id}: {count} speakers were changed", job_id=job_id, count=len(changes))
    services.events.job_changed(job_id)
    try:
        _write_files(services, tenant, job_id)
    except Transient as error:
        logger.warning("the result files of job {} have the earlier speakers: {}", job_id, error)
    return _speakers(services, tenant, job_id)


def _write_files(services: Services, tenant: str, job_id: UUID) -> None:
    """Write the result files, again if they are changed meanwhile."""
    jobs, storage = services.jobs(tenant), services.storage
    try:
        text = jobs.text(job_id)
        while True:
            transcript, warnings = transcript_of(text), jobs.snapshot(job_id).warnings
            shown = masked(transcript) if text.options.filter_profanity else transcript
            for name, content in files(shown, warnings=warnings, manifest=text.manifest):
                storage.write_result(job_id, name, content)
            written, text = text, jobs.text(job_id)
            if written.diarization == text.diarization:
                return
    except NotFound:  # the job is deleted, or its files were removed
        with services.database.transaction() as session:
            deleted = was_deleted(session, tenant, job_id, Kind.JOB)
        if deleted:
            erased = storage.erase(job_id, None)
            record_erased(services.database, job_id, files=erased.files, size=erased.bytes)


def _speakers(services: Services, tenant: str, job_id: UUID) -> dict[str, Any]:
    jobs = services.jobs(tenant)
    check_ready(jobs.snapshot(job_id))
    found = speakers_document(transcript_of(jobs.text(job_id)))
    if found is None:
        raise Conflict(reason="The job has no speakers: it was sent without diarize=true")
    return {"speakers": found}
