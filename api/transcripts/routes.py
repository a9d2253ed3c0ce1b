"""Routes for texts: results as JSON, downloads, and the history."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import AliasPath, BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, Response

from api.auth.callers import LinkedReader, Reader
from api.http.fields import Seconds
from api.http.headers import attachment
from api.http.pagination import Limit, NextCursor, PageCursor, next_cursor, parse_cursor
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.jobs.schemas import Subject
from api.processes.wav import WavFiles, WavResponse
from api.services import Services, ServicesDep
from api.transcripts.downloads import (
    TEXT_TYPES,
    DownloadOptions,
    check_moderated,
    text_file,
    text_of,
)
from api.transcripts.original import RESPONSES, original
from api.transcripts.schemas import Result
from common.db.jobs import Jobs, Text
from common.db.listing import JobLists
from common.domain.redaction import spans_to_silence, unmoderated
from common.domain.results import seconds, transcript_document
from common.domain.transcript import Transcript
from common.errors import Conflict
from common.transcripts import transcript_shown

router = APIRouter(tags=["jobs"], responses=documented(422, 503), dependencies=ONLY_KNOWN)


Masks = Annotated[
    bool | SkipJsonSchema[None],
    Query(description="Mask offensive words; by default as the upload requested."),
]

WAV = "audio/wav"
CONTENT_TYPES = (*TEXT_TYPES.values(), WAV, "audio/*", "video/*")

CONTENT_LETTERS = 200
"""Characters of a text that the history shows."""


def _beginning(text: Text) -> str:
    return transcript_shown(text).text[:CONTENT_LETTERS]


class HistoryEntry(Subject):
    """A finished job or stream, the beginning of its text, and its latency."""

    engine: str
    model_id: str = Field(examples=["base"], validation_alias="model")
    language: str = Field(examples=["vi"], validation_alias=AliasPath("beginning", "language"))
    content: Annotated[str, BeforeValidator(_beginning)] = Field(validation_alias="beginning")
    """The first 200 characters of the text, masked if the upload requested it."""
    duration_seconds: Seconds = Field(validation_alias=AliasPath("beginning", "duration_ms"))
    latency_ms: int | None
    """From the request to the text; for a stream the median from the end of an utterance to its
    text; null where it had none."""
    created_at: datetime
    completed_at: datetime
    recording_id: str | None = Field(validation_alias=AliasPath("client", "recording_id"))
    metadata: dict[str, Any] | None = Field(validation_alias=AliasPath("client", "metadata"))


class History(BaseModel):
    """Finished jobs and streams, newest first."""

    history: list[HistoryEntry]
    next_cursor: NextCursor


@router.get(
    "/result/{job_id}",
    summary="Get the text as JSON",
    response_model=Result,
    responses=documented(404, 409),
)
async def result(
    job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    partial: Annotated[
        bool, Query(description="Return the text so far, whatever the job's status.")
    ] = False,
    filter_profanity: Masks = None,
) -> Response:
    """A job's text; 409 until it is COMPLETED or in REVIEW, unless `partial` is set.

    Such a job that is retried, for what it lacks, keeps its text meanwhile.
    """
    return await services.in_thread(
        _result,
        services.jobs(caller.tenant),
        job_id,
        partial=partial,
        mask=filter_profanity,
        download_url=services.link(f"/api/v1/download/{job_id}"),
    )


@router.get(
    "/download/{job_id}",
    summary="Download the text or the recording",
    response_class=Response,
    responses={
        200: {
            "content": {kind: {} for kind in CONTENT_TYPES},
            "description": "The file",
        },
        **RESPONSES,
        **documented(404, 409),
    },
)
async def download(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    caller: LinkedReader,
    options: Annotated[DownloadOptions, Query()],
) -> Response:
    """A job's text as a file; or, with `format=wav` or `format=original`, its recording.

    A link of `POST /jobs/{id}/links` is answered without a key, and only as it was made.
    `original` is the uploaded file, byte for byte, whatever the job's status; ranges are supported.
    Where recordings are in an object storage, the response is a 307 with a link to it, unless
    S3_LINKS is false. `redact` replaces the words marked by moderation, or the whole segment where
    the times of words are unknown.
    """
    options.check()
    jobs = services.jobs(caller.tenant)
    if options.format == "wav":
        return await _recording(services, jobs, job_id, redact=options.redact)
    if options.format == "original":
        return await original(request, services, jobs, job_id)
    return await services.in_thread(text_file, jobs, job_id, options)


@router.get("/history", summary="List finished jobs and streams")
async def history(
    services: ServicesDep, caller: Reader, limit: Limit = 50, cursor: PageCursor = None
) -> History:
    """The tenant's COMPLETED jobs and ended live streams, with the beginning of each text.

    Newest first.
    """
    lists = JobLists(services.database, caller.tenant)
    page = await services.in_thread(lists.finished, limit=limit, after=parse_cursor(cursor))
    return History(
        history=[HistoryEntry.model_validate(each) for each in page.items],
        next_cursor=next_cursor(page.next),
    )


def _result(
    jobs: Jobs, job_id: UUID, *, partial: bool, mask: bool | None, download_url: str
) -> Response:
    snapshot, text, transcript = text_of(jobs, job_id, partial=partial, mask=mask)
    document: dict[str, Any] = {
        "job_id": str(job_id),
        "status": snapshot.status,
        "completed_at": snapshot.completed_at and snapshot.completed_at.isoformat(),
        "download_url": download_url if text.complete else None,
        "revision": text.revision,
        **transcript_document(transcript, warnings=snapshot.warnings, manifest=text.manifest),
        "recording_id": snapshot.client.recording_id,
        "metadata": snapshot.client.metadata,
        "delete_at": snapshot.delete_at and snapshot.delete_at.isoformat(),
    }
    return JSONResponse(document)


async def _recording(services: Services, jobs: Jobs, job_id: UUID, *, redact: bool) -> Response:
    snapshot, text, transcript = await services.in_thread(
        text_of, jobs, job_id, partial=False, mask=False
    )
    if redact:
        check_moderated(text, "redact")
        _check_all_moderated(transcript)
    recording = await services.in_thread(jobs.recording, job_id)
    spans = spans_to_silence(transcript) if redact else []
    name = attachment(snapshot.filename, "redacted.wav" if redact else "wav")
    wav = services.get(WavFiles).open(
        recording.id, transcript.duration_ms, spans, snapshot.audio_track
    )
    source = AsyncExitStack()
    return WavResponse(await source.enter_async_context(wav), source, name)


def _check_all_moderated(transcript: Transcript) -> None:
    """Reject a redaction that would be incomplete."""
    if span := next(unmoderated(transcript), None):
        at = f"the text at {seconds(span.start_ms)} s"
        raise Conflict(reason=f"redact=true is not possible: moderation failed for {at}")
