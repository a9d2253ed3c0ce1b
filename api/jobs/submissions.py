"""Routes to submit a recording: by an upload, or by its URL, from which a worker fetches it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Request
from loguru import logger
from pydantic import Field

from api.auth.callers import Caller, Transcriber
from api.http.bodies import documented_body
from api.http.problems import documented
from api.jobs.idempotency import PARAMETER, idempotency, mark_replay
from api.jobs.resolving import resolved
from api.jobs.schemas import Accepted, UploadOptions
from api.jobs.uploads import AwaitedUpload, Upload
from api.services import Services, ServicesDep
from common.db.jobs import Created, NewJob
from common.domain.job import JobStatus
from common.errors import NotFound, OutcomeUnknown, Transient
from common.net.egress import MAX_URL_LENGTH

router = APIRouter(tags=["jobs"])


class Submission(UploadOptions):
    """A recording to fetch, and the options of an upload."""

    url: Annotated[str, Field(max_length=MAX_URL_LENGTH, examples=["https://example.com/talk.mp3"])]
    """Where to fetch it: http or https, without user name and password, and only from publicly
    reachable addresses. What follows the `?` is sent to that host only."""


def _form(*, options: bool = True) -> dict[str, Any]:
    schema = UploadOptions.model_json_schema()
    if not options:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    file = {"type": "string", "format": "binary", "description": "The recording, audio or video."}
    others = {name: _as_sent(option) for name, option in schema["properties"].items()}
    schema["properties"] = {"file": file, **others}
    schema["required"] = ["file"]
    return documented_body("multipart/form-data", schema)


def _as_sent(option: dict[str, Any]) -> dict[str, Any]:
    """An option's schema without null, which no form can send.

    Swagger UI fills the form with examples, and where there are none it invents them, such as the
    largest temperature. An empty example counts as not sent.
    """
    kinds = [kind for kind in option.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return option
    kept = {key: it for key, it in option.items() if key != "anyOf"}
    return {**kinds[0], "examples": [""], **kept}


@router.post(
    "/upload",
    summary="Upload a recording",
    response_model=Accepted,
    responses=documented(400, 408, 409, 413, 415, 422, 503),
    openapi_extra={**_form(), "parameters": [PARAMETER]},
)
async def upload(request: Request, services: ServicesDep, caller: Transcriber) -> Accepted:
    """Upload a recording; the response follows once it is stored.

    Options may come before or after the file. Formats are detected by content, not by name: mp3,
    wav, m4a, mp4, aac, ogg, opus, flac, wma, webm, mkv, avi, mov and more; of a video, its audio.
    """
    return await Upload(services, caller).accept(request)


@router.post(
    "/jobs/{job_id}/upload",
    summary="Upload the recording of a job that waits for it",
    response_model=Accepted,
    responses=documented(400, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra=_form(options=False),
)
async def upload_awaited(
    job_id: UUID, request: Request, services: ServicesDep, caller: Transcriber
) -> Accepted:
    """Upload the recording of a job that `POST /jobs` has created: once."""
    return await AwaitedUpload(services, caller, job_id).accept(request)


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
    once = idempotency(request, wanted)
    await services.egress.check(wanted.url)
    job = replace(
        await resolved(services, caller, request, uuid4(), wanted),
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
    except OutcomeUnknown as unknown:
        try:
            jobs.snapshot(job.id)
        except (NotFound, Transient):
            raise unknown from None
        created = Created(job.id, JobStatus.PENDING, replayed=False)
    if not created.replayed:
        services.events.work_to_do()
        logger.info("job {} accepted: to be fetched", job.id)
    return created
