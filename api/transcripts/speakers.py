"""Routes for the speakers of a finished transcript."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body
from loguru import logger
from pydantic import BaseModel, BeforeValidator

from api.auth.callers import Caller, Reader, Transcriber
from api.http.fields import OneLine
from api.http.problems import documented
from api.jobs.waiting import check_ready
from api.services import Services, ServicesDep
from api.transcripts.schemas import ResultSpeaker
from common.db.revisions import Author, Revisions
from common.domain.results import speakers_document
from common.errors import NoSpeakers
from common.transcripts import transcript_of

router = APIRouter(tags=["jobs"], responses=documented(422, 503))

MOST_CHANGES = 100


def _not_blank(name: object) -> object:
    if isinstance(name, str) and not name.strip():
        raise ValueError("not empty (null removes the name)")
    return name


Changes = Annotated[
    dict[str, Annotated[OneLine, BeforeValidator(_not_blank)] | None],
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
    """The speakers of a job with `diarize` or separate channels; 409 until it has its text."""
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
    return await services.in_thread(_change, services, caller, job_id, changes)


def _change(
    services: Services, caller: Caller, job_id: UUID, changes: dict[str, str | None]
) -> dict[str, Any]:
    if not changes:
        return _speakers(services, caller.tenant, job_id)
    author = Author(caller.key_id)
    Revisions(services.database, caller.tenant).change_speakers(job_id, changes, author)
    logger.info("job {job_id}: {count} speakers were changed", job_id=job_id, count=len(changes))
    services.events.work_to_do()
    services.events.job_changed(job_id)
    return _speakers(services, caller.tenant, job_id)


def _speakers(services: Services, tenant: str, job_id: UUID) -> dict[str, Any]:
    jobs = services.jobs(tenant)
    check_ready(jobs.snapshot(job_id))
    found = speakers_document(transcript_of(jobs.text(job_id)))
    if found is None:
        raise NoSpeakers
    return {"speakers": found}
