"""Routes for texts: results as JSON, downloads, and the history."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AliasPath, BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, Response

from api.auth.callers import Reader
from api.http.fields import Seconds
from api.http.headers import attachment
from api.http.pagination import Limit, NextCursor, PageCursor, next_cursor, parse_cursor
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.jobs.schemas import Subject
from api.jobs.waiting import REVISION, check_ready
from api.processes.wav import WavFiles, WavResponse
from api.services import Services, ServicesDep
from api.transcripts.documents import page_policy, to_docx, to_html
from api.transcripts.original import RESPONSES, original
from api.transcripts.schemas import Result
from common.db.jobs import Jobs, Text
from common.db.listing import JobLists
from common.db.snapshots import Snapshot
from common.domain.formats import (
    DOCUMENT_TYPES,
    FLAGGING,
    MEDIA_TYPES,
    RTTM,
    SUBTITLES,
    DocumentFormat,
    TextFormat,
    write,
)
from common.domain.masking import masked
from common.domain.redaction import spans_to_silence, unmoderated
from common.domain.results import seconds, transcript_document
from common.domain.subtitles import LIMITS, NO_LAYOUT, Layout
from common.domain.transcript import Transcript
from common.errors import Conflict, OptionConflict
from common.filenames import NAMELESS
from common.transcripts import transcript_of, transcript_shown

router = APIRouter(tags=["jobs"], responses=documented(422, 503), dependencies=ONLY_KNOWN)


Format = Literal[TextFormat, DocumentFormat, "wav", "original"]
Masks = Annotated[
    bool | SkipJsonSchema[None],
    Query(description="Mask offensive words; by default as the upload requested."),
]

WAV = "audio/wav"
TEXT_TYPES: Mapping[str, str] = {**MEDIA_TYPES, **DOCUMENT_TYPES}
CONTENT_TYPES = (*TEXT_TYPES.values(), WAV, "audio/*", "video/*")


def _limited(name: str, description: str) -> Any:
    least, most = LIMITS[name]
    return Query(description=f"{description}; srt and vtt only.", ge=least, le=most)


def _layout(
    max_line_width: Annotated[
        int | None, _limited("max_line_width", "Characters of a line of subtitles")
    ] = None,
    max_line_count: Annotated[
        int | None, _limited("max_line_count", "Lines of a cue; needs max_line_width")
    ] = None,
    max_cue_seconds: Annotated[float | None, _limited("max_cue_seconds", "Longest cue")] = None,
    min_cue_seconds: Annotated[
        float | None, _limited("min_cue_seconds", "Shortest cue, where a pause allows it")
    ] = None,
    max_cps: Annotated[float | None, _limited("max_cps", "Characters to read in a second")] = None,
) -> Layout:
    return Layout.of(
        max_line_width=max_line_width,
        max_line_count=max_line_count,
        max_cue_seconds=max_cue_seconds,
        min_cue_seconds=min_cue_seconds,
        max_cps=max_cps,
    )


WITH_SPEAKERS = "a job with diarize=true, or whose channels were separated"

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
    caller: Reader,
    format: Annotated[Format, Query(description="The kind of file.")] = "txt",  # noqa: A002 - its name on the wire
    flag: Annotated[
        bool,
        Query(description="Prefix offensive text with its label; srt, vtt, docx and html only."),
    ] = False,
    layout: Annotated[Layout, Depends(_layout)] = NO_LAYOUT,
    filter_profanity: Masks = None,
    redact: Annotated[
        bool, Query(description="Replace offensive words by a tone; wav only.")
    ] = False,
) -> Response:
    """A job's text as a file; or, with `format=wav` or `format=original`, its recording.

    `original` is the uploaded file, byte for byte, whatever the job's status; ranges are supported.
    Where recordings are in an object storage, the response is a 307 with a link to it, unless
    S3_LINKS is false. `redact` replaces the words marked by moderation, or the whole segment where
    the times of words are unknown.
    """
    if flag and format not in FLAGGING:
        raise OptionConflict(field="flag", value="true", needed="format=srt, vtt, docx or html")
    if layout != NO_LAYOUT and format not in SUBTITLES:
        given = next(name for name in LIMITS if name in request.query_params)
        value = request.query_params[given]
        raise OptionConflict(field=given, value=value, needed="format=srt or format=vtt")
    jobs = services.jobs(caller.tenant)
    if filter_profanity and format in {"wav", "original"}:
        raise OptionConflict(field="filter_profanity", value="true", needed="a format of text")
    if format == "wav":
        return await _recording(services, jobs, job_id, redact=redact)
    if redact:
        raise OptionConflict(field="redact", value="true", needed="format=wav")
    if format == "original":
        return await original(request, services, jobs, job_id)
    return await services.in_thread(
        _file, jobs, job_id, format, flag=flag, layout=layout, mask=filter_profanity
    )


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
    snapshot, text, transcript = _text(jobs, job_id, partial=partial, mask=mask)
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
        _text, jobs, job_id, partial=False, mask=False
    )
    if redact:
        _check_moderated(text, "redact")
        _check_all_moderated(transcript)
    recording = await services.in_thread(jobs.recording, job_id)
    spans = spans_to_silence(transcript) if redact else []
    name = attachment(snapshot.filename, "redacted.wav" if redact else "wav")
    wav = services.get(WavFiles).open(
        recording.id, transcript.duration_ms, spans, snapshot.audio_track
    )
    source = AsyncExitStack()
    return WavResponse(await source.enter_async_context(wav), source, name)


def _file(
    jobs: Jobs,
    job_id: UUID,
    ending: TextFormat | DocumentFormat,
    *,
    flag: bool,
    layout: Layout,
    mask: bool | None,
) -> Response:
    snapshot, text, transcript = _text(jobs, job_id, partial=False, mask=mask)
    if flag:
        _check_moderated(text, "flag")
    if ending == RTTM and transcript.diarization is None:
        raise OptionConflict(field="format", value=RTTM, needed=WITH_SPEAKERS)
    headers = {
        "Content-Disposition": attachment(snapshot.filename, ending),
        REVISION: str(text.revision),
    }
    name = snapshot.filename or NAMELESS
    if ending == "docx":
        content: str | bytes = to_docx(transcript, name, flag=flag)
    elif ending == "html":
        content = to_html(transcript, name, flag=flag)
        headers["Content-Security-Policy"] = page_policy()
    else:
        content = write(
            ending,
            transcript,
            flag=flag,
            layout=layout,
            warnings=snapshot.warnings,
            manifest=text.manifest,
            filename=snapshot.filename,
        )
    return Response(content, media_type=TEXT_TYPES[ending], headers=headers)


def _text(
    jobs: Jobs, job_id: UUID, *, partial: bool, mask: bool | None
) -> tuple[Snapshot, Text, Transcript]:
    """The job and its text, with or without masks; None: as its upload requested."""
    snapshot = jobs.snapshot(job_id)
    if not partial:
        check_ready(snapshot)
    text = jobs.text(job_id)
    if mask:
        _check_moderated(text, "filter_profanity")
    hide = text.options.filter_profanity if mask is None else mask
    transcript = transcript_of(text, moderated_only=hide)
    return snapshot, text, masked(transcript) if hide else transcript


def _check_moderated(text: Text, field: str) -> None:
    if not text.options.moderation:
        raise OptionConflict(field=field, value="true", needed="a job with moderation=true")


def _check_all_moderated(transcript: Transcript) -> None:
    """Reject a redaction that would be incomplete."""
    if span := next(unmoderated(transcript), None):
        at = f"the text at {seconds(span.start_ms)} s"
        raise Conflict(reason=f"redact=true is not possible: moderation failed for {at}")
