"""Jobs as a whole: made before their recording, listed, retried and deleted."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Body, Query, Request, Response
from loguru import logger
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from api.auth.callers import Caller, Reader, Transcriber
from api.http.fields import Name
from api.http.pagination import Limit, PageCursor, parsed, told
from api.http.problems import documented
from api.jobs.idempotency import PARAMETER, idempotency, tell_of_replay
from api.jobs.resolving import Resolver
from api.jobs.schemas import Status, UploadOptions
from api.services import Services, ServicesDep
from api.transcripts.routes import status_document
from common.db.deletions import Deletions, Reason, Receipt
from common.db.jobs import NewJob
from common.db.listing import Finished, JobFilter, JobLists
from common.db.tables import Kind
from common.domain.job import JobStatus
from common.domain.masking import masked
from common.errors import Transient
from common.transcripts import transcript_of

router = APIRouter(tags=["jobs"], responses=documented(422, 503))

CONTENT_LETTERS = 200
"""How much of a text the history shows."""

AS_SET = UploadOptions.model_validate({})
"""Nothing asked for: all as the settings say."""
_NEXT = Field(description="Where the list goes on; null at its end.")


class CreatedJob(BaseModel):
    """A job that waits for its recording."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    job_id: UUID
    status: JobStatus = Field(examples=["PENDING_UPLOAD"])
    upload_url: str = Field(examples=["/api/v1/jobs/3fa85f64-5717-4562-b3fc-2c963f66afa6/upload"])
    """Where to send the recording, as a form with the one field `file`."""
    upload_until: datetime
    """When the job is cancelled if none has come."""


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: list[Status]
    next_cursor: str | None = _NEXT


class HistoryEntry(BaseModel):
    """What was said once, and how long it took to turn it into text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Kind
    session_id: UUID
    """The id of the job or stream."""
    job_id: UUID | None
    """The same of a job; null of a stream."""
    engine: str
    model_id: str = Field(examples=["base"])
    language: str = Field(examples=["vi"])
    content: str
    """How the text begins: 200 characters at most, masked as the upload asked for."""
    duration_seconds: float
    latency_ms: int | None
    """From the request to the text; of a stream from the end of an utterance to its text, the
    median; null where it had none."""
    created_at: datetime
    completed_at: datetime
    recording_id: str | None
    metadata: dict[str, Any] | None


class History(BaseModel):
    """What was turned into text, newest first."""

    history: list[HistoryEntry]
    next_cursor: str | None = _NEXT


class DeletionReceipt(BaseModel):
    """What was deleted of a job or stream."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Kind
    session_id: UUID
    """The id of the job or stream."""
    job_id: UUID | None
    """The same of a job; null of a stream."""
    reason: Reason
    requested_at: datetime
    erased_at: datetime | None
    """When the storage was found to hold nothing of it, and nobody could write any more; a stream
    has nothing there."""
    rows: int
    """In Postgres."""
    files: int
    """In the storage."""
    bytes: int


class DeletionPage(BaseModel):
    """Some deletions, newest first."""

    deletions: list[DeletionReceipt]
    next_cursor: str | None = _NEXT


@router.post(
    "/jobs",
    status_code=201,
    summary="Make a job, and send its recording later",
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
    """Make a job that waits for its recording; the options are those of an upload."""
    job = replace(
        caller.asking(request, await services.get(Resolver).resolve(uuid4(), options)),
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
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> JobPage:
    """The tenant's jobs, newest first. Jobs that come in meanwhile do not shift the pages."""
    which = JobFilter(status, created_after, created_before, recording_id, model)
    lists = JobLists(services.database, caller.tenant)
    page = await services.in_thread(lists.page, which, limit=limit, after=parsed(cursor))
    return JobPage(jobs=list(map(status_document, page.items)), next_cursor=told(page.next))


@router.get("/history", summary="List what was turned into text")
async def history(
    services: ServicesDep, caller: Reader, limit: Limit = 50, cursor: PageCursor = None
) -> History:
    """Jobs that are COMPLETED and live streams that have ended, each with how its text begins.

    All of the tenant's, newest first.
    """
    lists = JobLists(services.database, caller.tenant)
    page = await services.in_thread(lists.finished, limit=limit, after=parsed(cursor))
    return History(history=list(map(_entry, page.items)), next_cursor=told(page.next))


@router.post(
    "/jobs/{job_id}/retry",
    summary="Have a failed job done after all",
    responses=documented(404, 409),
)
async def retry(job_id: UUID, services: ServicesDep, caller: Transcriber) -> Status:
    """Have what is missing of a job that FAILED done; what was done is not done again."""
    return await services.in_thread(_retry, services, caller, job_id)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Delete a job with all it has",
    responses=documented(404),
)
async def delete(job_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Cancel a job if it runs, and erase its recording, the sound cut from it, and its text.

    What is left is a receipt. A job that was deleted before is a 204 again. Webhook messages about
    it that have not arrived yet are still sent.
    """
    await services.in_thread(_delete, services, caller, job_id)


@router.get("/deletions", summary="Prove what was deleted")
async def deletions(
    services: ServicesDep,
    caller: Reader,
    job_id: Annotated[
        UUID | SkipJsonSchema[None], Query(description="Only that of this job.")
    ] = None,
    session_id: Annotated[
        UUID | SkipJsonSchema[None], Query(description="Only that of this job or stream.")
    ] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> DeletionPage:
    """Receipts for what the tenant had: deleted on request, or as its time was over. Newest first.

    A receipt has an `erased_at` once the storage was searched again, when no worker could write
    any more, and nothing was found.
    """
    receipts = Deletions(services.database, caller.tenant)
    after = parsed(cursor)
    page = await services.in_thread(
        receipts.page, job_id=job_id, session_id=session_id, limit=limit, after=after
    )
    return DeletionPage(deletions=list(map(_receipt, page.items)), next_cursor=told(page.next))


def _create(request: Request, services: Services, caller: Caller, job: NewJob) -> CreatedJob:
    jobs = services.jobs(caller.tenant)
    created = jobs.create(job)
    tell_of_replay(request, created)
    if not created.replayed:
        logger.info("job {job_id} made; its recording is to come", job_id=created.job_id)
    waits = timedelta(seconds=services.settings.job.upload_wait)
    return CreatedJob(
        job_id=created.job_id,
        status=created.status,
        upload_url=services.link(f"/api/v1/jobs/{created.job_id}/upload"),
        upload_until=jobs.snapshot(created.job_id).created_at + waits,
    )


def _retry(services: Services, caller: Caller, job_id: UUID) -> Status:
    jobs = services.jobs(caller.tenant)
    jobs.retry(job_id, caller.quota)
    logger.info("job {job_id} is tried again", job_id=job_id)
    services.events.work_to_do()
    services.events.job_changed(job_id)
    return status_document(jobs.snapshot(job_id))


def _delete(services: Services, caller: Caller, job_id: UUID) -> None:
    deletions = Deletions(services.database, caller.tenant)
    deleted = deletions.delete(job_id)
    if deleted is None:
        return
    services.stop(deleted.running)
    services.events.job_changed(job_id)
    logger.info("job {job_id} was deleted", job_id=job_id)
    with suppress(Transient):  # the dispatcher erases what is left
        erased = services.storage.erase(job_id, deleted.recording_id)
        deletions.erased(job_id, files=erased.files, size=erased.bytes)


def _entry(finished: Finished) -> HistoryEntry:
    transcript = transcript_of(finished.beginning)
    if finished.beginning.options.filter_profanity:
        transcript = masked(transcript)
    return HistoryEntry(
        kind=finished.kind,
        session_id=finished.id,
        job_id=finished.id if finished.kind is Kind.JOB else None,
        engine=finished.engine,
        model_id=finished.model,
        language=finished.beginning.language,
        content=transcript.text[:CONTENT_LETTERS],
        duration_seconds=finished.beginning.duration_ms / 1000,
        latency_ms=finished.latency_ms,
        created_at=finished.created_at,
        completed_at=finished.completed_at,
        recording_id=finished.client.recording_id,
        metadata=finished.client.metadata,
    )


def _receipt(receipt: Receipt) -> DeletionReceipt:
    return DeletionReceipt(
        kind=receipt.kind,
        session_id=receipt.id,
        job_id=receipt.id if receipt.kind is Kind.JOB else None,
        reason=receipt.reason,
        requested_at=receipt.requested_at,
        erased_at=receipt.erased_at,
        rows=receipt.rows,
        files=receipt.files,
        bytes=receipt.bytes,
    )
