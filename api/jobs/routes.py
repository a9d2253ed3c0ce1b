"""Routes for jobs: create, list, status, cancel, retry, approve, delete; receipts of deletions."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Body, Query, Request, Response
from loguru import logger
from pydantic import AwareDatetime, BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from api.auth.callers import Caller, Reader, Transcriber
from api.http.fields import Document, Name
from api.http.pagination import Limit, NextCursor, PageCursor, next_cursor, parse_cursor
from api.http.problems import documented
from api.jobs.changes import JobChanges
from api.jobs.idempotency import PARAMETER, idempotency, mark_replay
from api.jobs.resolving import resolved
from api.jobs.schemas import Status, Subject, UploadOptions
from api.services import Services, ServicesDep
from common.db.deletions import Deletions, Reason, record_erased
from common.db.jobs import Jobs, NewJob
from common.db.listing import JobFilter, JobLists
from common.db.snapshots import Snapshot
from common.domain.job import JobStatus, is_final
from common.errors import Transient

router = APIRouter(tags=["jobs"], responses=documented(422, 503))


REREAD_S = 2.0
"""How often a long poll reads the job where no notification arrives."""

AS_SET = UploadOptions.model_validate({})
"""No options given: all defaults."""


class CreatedJob(Document):
    """A job that waits for its recording."""

    job_id: UUID
    status: JobStatus = Field(examples=["PENDING_UPLOAD"])
    upload_url: str = Field(examples=["/api/v1/jobs/3fa85f64-5717-4562-b3fc-2c963f66afa6/upload"])
    """Where to send the recording, as a form with the one field `file`."""
    upload_until: datetime
    """When the job is cancelled if none has arrived."""


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: list[Status]
    next_cursor: NextCursor


class DeletionReceipt(Subject):
    """What was deleted of a job, a stream or a voice."""

    reason: Reason
    requested_at: datetime
    erased_at: datetime | None
    """Set once erasure is verified: the storage holds nothing of it, and no worker can write any
    more. Streams and voices have nothing in the storage."""
    rows: int
    """Deleted in Postgres."""
    files: int
    """Deleted in the storage."""
    bytes: int


class DeletionPage(BaseModel):
    """Some deletions, newest first."""

    deletions: list[DeletionReceipt]
    next_cursor: NextCursor


@router.post(
    "/jobs",
    status_code=201,
    summary="Create a job, and upload its recording later",
    responses=documented(400, 409, 413),
    openapi_extra={"parameters": [PARAMETER]},
)
async def create(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Transcriber,
    options: Annotated[UploadOptions, Body()] = AS_SET,
) -> CreatedJob:
    """Create a job that waits for its recording; the options are those of an upload."""
    job = replace(
        await resolved(services, caller, request, uuid4(), options),
        idempotency=idempotency(request, options),
    )
    created = await services.in_thread(_create, request, services, caller, job)
    response.headers["Location"] = f"/api/v1/jobs/{created.job_id}"
    return created


@router.get("/jobs", summary="List jobs")
async def jobs(
    services: ServicesDep,
    caller: Reader,
    status: Annotated[
        list[JobStatus] | SkipJsonSchema[None], Query(description="Any of these.")
    ] = None,
    created_after: AwareDatetime | SkipJsonSchema[None] = None,
    created_before: AwareDatetime | SkipJsonSchema[None] = None,
    recording_id: Annotated[
        Name | SkipJsonSchema[None], Query(description="Your own name for the recording.")
    ] = None,
    model: Annotated[Name | SkipJsonSchema[None], Query(description="The weights.")] = None,
    source_job_id: Annotated[
        UUID | SkipJsonSchema[None],
        Query(description="Those that change the transcript of this job, such as reruns."),
    ] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> JobPage:
    """The tenant's jobs, newest first. New jobs do not shift the pages."""
    which = JobFilter(status, created_after, created_before, recording_id, model, source_job_id)
    lists = JobLists(services.database, caller.tenant)
    page = await services.in_thread(lists.page, which, limit=limit, after=parse_cursor(cursor))
    return JobPage(
        jobs=[Status.model_validate(each) for each in page.items],
        next_cursor=next_cursor(page.next),
    )


@router.get(
    "/status/{job_id}",
    response_model=Status,
    summary="Get a job's status",
    responses=documented(404),
)
@router.get(
    "/jobs/{job_id}", response_model=Status, summary="Get a job's status", responses=documented(404)
)
async def status(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    wait: Annotated[
        float, Query(ge=0, le=60, description="Respond after a change, or after so many seconds.")
    ] = 0,
) -> Status:
    """A job's status. `wait` makes it a long poll; a job that has ended is answered at once."""
    jobs = services.jobs(caller.tenant)
    deadline = time.monotonic() + wait
    with services.get(JobChanges).watch(job_id) as changed:
        first = now = await services.in_thread(jobs.snapshot, job_id)
        while (
            not is_final(now.status)
            and _visible(now) == _visible(first)
            and (left := deadline - time.monotonic()) > 0
            and not services.get(JobChanges).closing
            and not await request.is_disconnected()
        ):
            logger.debug("a long poll waits for job {job_id}", job_id=job_id)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, REREAD_S))
            changed.clear()
            now = await services.in_thread(jobs.snapshot, job_id)
    return Status.model_validate(now)


@router.post(
    "/jobs/{job_id}/cancel",
    summary="Cancel a job",
    response_model=Status,
    responses=documented(404, 409),
)
async def cancel(job_id: UUID, services: ServicesDep, caller: Transcriber) -> Status:
    """Cancel a job. Cancelling it again changes nothing.

    A job that had its text when it was retried keeps it, and is COMPLETED or in REVIEW as before.
    """
    return await services.in_thread(cancel_job, services, services.jobs(caller.tenant), job_id)


@router.post("/jobs/{job_id}/retry", summary="Retry a failed job", responses=documented(404, 409))
async def retry(job_id: UUID, services: ServicesDep, caller: Transcriber) -> Status:
    """Retry the steps that are not done; finished steps are not repeated.

    The job is FAILED, or COMPLETED or in REVIEW with a warning that a step failed
    (`moderation_failed`, `diarization_failed`); the latter keeps its text meanwhile.
    """
    return await services.in_thread(retry_job, services, caller, job_id)


@router.post(
    "/jobs/{job_id}/approve",
    summary="Approve a job's text",
    response_model=Status,
    responses=documented(404, 409),
)
async def approve(job_id: UUID, services: ServicesDep, caller: Transcriber) -> Status:
    """Complete a job in REVIEW; its text is approved as it is then. In any other state: 409."""
    return await services.in_thread(_approve, services, caller, job_id)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Delete a job and all its data",
    responses=documented(404),
)
async def delete(job_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Cancel a job if it runs, and erase its recording, the audio made from it, and its text.

    A receipt remains. Deleting it again is a 204. Webhook messages about it that are not delivered
    yet are still sent.
    """
    await services.in_thread(delete_job, services, caller, job_id)


@router.get("/deletions", summary="List receipts of deletions")
async def deletions(
    services: ServicesDep,
    caller: Reader,
    job_id: Annotated[UUID | SkipJsonSchema[None], Query(description="Only of this job.")] = None,
    session_id: Annotated[
        UUID | SkipJsonSchema[None],
        Query(
            description="Only of this job, stream or voice: the id that it had.",
            examples=["3fa85f64-5717-4562-b3fc-2c963f66afa6"],
        ),
    ] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> DeletionPage:
    """Receipts for jobs, streams and voices that were deleted, on request or by retention.

    Newest first. `?session_id=3fa85f64-5717-4562-b3fc-2c963f66afa6` gives the one of the job,
    stream or voice that had this id.

    `erased_at` is set once erasure is verified: the storage was searched when no worker could
    write any more, and nothing was found.
    """
    receipts = Deletions(services.database, caller.tenant)
    after = parse_cursor(cursor)
    page = await services.in_thread(
        receipts.page, job_id=job_id, session_id=session_id, limit=limit, after=after
    )
    return DeletionPage(
        deletions=[DeletionReceipt.model_validate(each) for each in page.items],
        next_cursor=next_cursor(page.next),
    )


def _create(request: Request, services: Services, caller: Caller, job: NewJob) -> CreatedJob:
    jobs = services.jobs(caller.tenant)
    created = jobs.create(job)
    mark_replay(request, created)
    if not created.replayed:
        logger.info("job {job_id} created; it waits for its recording", job_id=created.job_id)
    waits = timedelta(seconds=services.settings.job.upload_wait)
    return CreatedJob(
        job_id=created.job_id,
        status=created.status,
        upload_url=services.link(f"/api/v1/jobs/{created.job_id}/upload"),
        upload_until=jobs.snapshot(created.job_id).created_at + waits,
    )


def retry_job(services: Services, caller: Caller, job_id: UUID) -> Status:
    """Retry a job, and have the dispatcher look for its steps; see `Jobs.retry`."""
    jobs = services.jobs(caller.tenant)
    jobs.retry(job_id, caller.quota)
    logger.info("job {job_id} is retried", job_id=job_id)
    services.events.work_to_do()
    services.events.job_changed(job_id)
    return Status.model_validate(jobs.snapshot(job_id))


def _approve(services: Services, caller: Caller, job_id: UUID) -> Status:
    jobs = services.jobs(caller.tenant)
    jobs.approve(job_id, caller.key_id)
    logger.info("job {job_id} was approved by key {key}", job_id=job_id, key=caller.key_id)
    services.events.work_to_do()  # other jobs may follow it
    services.events.job_changed(job_id)
    return Status.model_validate(jobs.snapshot(job_id))


def delete_job(services: Services, caller: Caller, job_id: UUID) -> None:
    """Delete a job and its files, and stop its steps; see `Deletions.delete`."""
    deleted = Deletions(services.database, caller.tenant).delete(job_id)
    if deleted is None:
        return
    services.stop(deleted.running)
    services.events.job_changed(job_id)
    logger.info("job {job_id} was deleted", job_id=job_id)
    with suppress(Transient):  # the dispatcher erases what is left
        erased = services.storage.erase(job_id, deleted.recording_id)
        record_erased(services.database, job_id, files=erased.files, size=erased.bytes)


def cancel_job(services: Services, jobs: Jobs, job_id: UUID) -> Status:
    """Cancel a job, and stop its steps; see `Jobs.cancel`."""
    services.stop(jobs.cancel(job_id))
    services.events.job_changed(job_id)
    return Status.model_validate(jobs.snapshot(job_id))


def _visible(snapshot: Snapshot) -> Snapshot:
    """The snapshot without the estimate, which changes all the time."""
    return replace(snapshot, eta_s=None)
