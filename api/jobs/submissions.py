"""The route to submit a recording by its URL, from which a worker fetches it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Request
from loguru import logger
from pydantic import Field

from api.auth.callers import Caller, Transcriber
from api.http.problems import documented
from api.jobs.idempotency import PARAMETER, idempotency, mark_replay
from api.jobs.resolving import Resolver
from api.jobs.schemas import Accepted, UploadOptions
from api.services import Services, ServicesDep
from common.db.jobs import Created, Jobs, NewJob
from common.domain.job import JobStatus
from common.egress import MAX_URL_LETTERS
from common.errors import NotFound, OutcomeUnknown, Transient, Unsupported

router = APIRouter(tags=["jobs"])


class Submission(UploadOptions):
    """A recording to fetch, and the options of an upload."""

    url: Annotated[
        str, Field(max_length=MAX_URL_LETTERS, examples=["https://example.com/talk.mp3"])
    ]
    """Where to fetch it: http or https, without user name and password, and only from publicly
    reachable addresses. What follows the `?` is sent to that host only."""
    diarize: bool = False
    """Speaker diarization: not supported yet, so only false is accepted."""


@router.post(
    "/transcribe",
    summary="Submit a recording by its URL",
    response_model=Accepted,
    responses=documented(409, 422, 503),
    openapi_extra={"parameters": [PARAMETER]},
)
async def transcribe(
    wanted: Submission, request: Request, services: ServicesDep, caller: Transcriber
) -> Accepted:
    """Fetch and transcribe a recording; the response does not wait for the fetch.

    Problems with the recording or with the fetch are reported in the job's status.
    """
    if wanted.diarize:
        raise Unsupported(field="diarize")
    once = idempotency(request, wanted)
    await services.egress.check(wanted.url)
    job = replace(
        caller.attributed(request, await services.get(Resolver).resolve(uuid4(), wanted)),
        source_url=wanted.url,
        idempotency=once,
    )
    created = await services.in_thread(_commit, services, caller, job)
    mark_replay(request, created)
    return Accepted(
        job_id=created.job_id,
        status=created.status,
        message=(
            "The recording was submitted before"
            if created.replayed
            else "The recording will be fetched and transcribed"
        ),
        estimated_time_seconds=None,
    )


def _commit(services: Services, caller: Caller, job: NewJob) -> Created:
    services.check_queue()
    jobs = services.jobs(caller.tenant)
    try:
        created = jobs.create(job)
    except OutcomeUnknown:
        if not _is_committed(jobs, job):
            raise
        created = Created(job.id, JobStatus.PENDING, replayed=False)
    if not created.replayed:
        services.events.work_to_do()
        logger.info("job {} accepted: to be fetched", job.id)
    return created


def _is_committed(jobs: Jobs, job: NewJob) -> bool:
    try:
        jobs.snapshot(job.id)
    except (NotFound, Transient):
        return False
    return True
