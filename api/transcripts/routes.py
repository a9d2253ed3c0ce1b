"""What becomes of a recording: status, text, files, and calling it off."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from loguru import logger
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, Response

from api.auth.callers import Reader, Transcriber
from api.http.headers import attachment
from api.http.problems import documented
from api.jobs.changes import Changes
from api.jobs.schemas import AudioTrack, Status
from api.processes.wav import WavFiles, WavResponse
from api.services import Services, ServicesDep
from api.transcripts.original import RESPONSES, original
from api.transcripts.schemas import Result
from common.db.jobs import Jobs, Text
from common.db.snapshots import Snapshot
from common.domain.formats import FLAGGING, MEDIA_TYPES, write
from common.domain.job import JobStatus, is_final
from common.domain.masking import masked
from common.domain.redaction import spans_to_silence, unjudged
from common.domain.results import seconds, transcript_document
from common.domain.transcript import Transcript
from common.errors import Conflict, Needs, NotReady
from common.transcripts import transcript_of

router = APIRouter(tags=["jobs"], responses=documented(404, 422, 503))

REREAD_S = 2.0
"""How often a long poll looks by itself, should no wake-up come."""

TextFormat = Literal["json", "txt", "srt", "vtt", "tsv"]
Format = Literal["json", "txt", "srt", "vtt", "tsv", "wav", "original"]
Masks = Annotated[
    bool | SkipJsonSchema[None],
    Query(description="Mask the offending words; by default as the upload asked for."),
]

WAV = "audio/wav"


@router.get("/status/{job_id}", response_model=Status, summary="Ask where a job stands")
@router.get("/jobs/{job_id}", response_model=Status, summary="Ask where a job stands")
async def status(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    wait: Annotated[
        float, Query(ge=0, le=60, description="Answer after a change, or after so many seconds.")
    ] = 0,
) -> Status:
    """Where a job stands. With `wait`, a long poll; a job that has ended answers at once."""
    jobs = services.jobs(caller.tenant)
    deadline = time.monotonic() + wait
    with services.get(Changes).watch(job_id) as changed:
        first = now = await services.in_thread(jobs.snapshot, job_id)
        while (
            not is_final(now.status)
            and _visible(now) == _visible(first)
            and (left := deadline - time.monotonic()) > 0
            and not services.get(Changes).closing
            and not await request.is_disconnected()
        ):
            logger.debug("somebody waits for job {job_id}", job_id=job_id)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, REREAD_S))
            changed.clear()
            now = await services.in_thread(jobs.snapshot, job_id)
    return status_document(now)


@router.get(
    "/result/{job_id}",
    summary="Take the text as JSON",
    response_model=Result,
    responses=documented(409),
)
async def result(
    job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    partial: Annotated[
        bool, Query(description="Take what is there so far, whatever the job's status.")
    ] = False,
    filter_profanity: Masks = None,
) -> Response:
    """A job's text; 409 until it is COMPLETED, unless a partial one will do."""
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
    summary="Take the text as a file, or the recording",
    response_class=Response,
    responses={
        200: {
            "content": {kind: {} for kind in (*MEDIA_TYPES.values(), WAV, "audio/*", "video/*")},
            "description": "The file",
        },
        **RESPONSES,
        **documented(409),
    },
)
async def download(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    format: Annotated[Format, Query(description="The kind of file.")] = "txt",  # noqa: A002 - its name on the wire
    flag: Annotated[
        bool, Query(description="Begin offending cues with their label; srt and vtt only.")
    ] = False,
    filter_profanity: Masks = None,
    redact: Annotated[
        bool, Query(description="Cover offending words by a tone; wav only.")
    ] = False,
) -> Response:
    """A job's text as a file; or, with `format=wav` or `format=original`, its recording.

    `original` is what was sent, byte for byte, whatever became of the job; parts of it may be asked
    for (`Range`). Where recordings are in an object storage it answers 307 with a link to there,
    unless S3_LINKS is false.
    What `redact` covers is what the transcript has: the words that were marked, or the whole
    segment where their times are not known.
    """
    if flag and format not in FLAGGING:
        raise Needs(field="flag", value="true", needed="format=srt or format=vtt")
    jobs = services.jobs(caller.tenant)
    if filter_profanity and format in {"wav", "original"}:
        raise Needs(field="filter_profanity", value="true", needed="a format of text")
    if format == "wav":
        return await _recording(services, jobs, job_id, redact=redact)
    if redact:
        raise Needs(field="redact", value="true", needed="format=wav")
    if format == "original":
        return await original(request, services, jobs, job_id)
    return await services.in_thread(_file, jobs, job_id, format, flag=flag, mask=filter_profanity)


@router.post(
    "/jobs/{job_id}/cancel",
    summary="Call a job off",
    response_model=Status,
    responses=documented(409),
)
async def cancel(job_id: UUID, services: ServicesDep, caller: Transcriber) -> Status:
    """Call a job off; a job that was called off before stays so."""
    return await services.in_thread(_cancel, services, services.jobs(caller.tenant), job_id)


def _visible(snapshot: Snapshot) -> Snapshot:
    """What counts as a change: the estimate moves all the time."""
    return replace(snapshot, eta_s=None)


def status_document(snapshot: Snapshot) -> Status:
    """A job's status as clients read it."""
    return Status(
        job_id=snapshot.job_id,
        status=snapshot.status,
        stage=snapshot.stage,
        progress=snapshot.progress,
        chunks_completed=snapshot.chunks_completed,
        chunks_total=snapshot.chunks_total,
        planned=snapshot.planned,
        created_at=snapshot.created_at,
        started_at=snapshot.started_at,
        completed_at=snapshot.completed_at,
        error_message=snapshot.error_message,
        error_code=snapshot.error_code,
        eta_seconds=None if snapshot.eta_s is None else round(snapshot.eta_s, 1),
        queue_position=snapshot.queue_position,
        warnings=list(snapshot.warnings),
        filename=snapshot.filename,
        engine=snapshot.engine,
        model=snapshot.model,
        language=snapshot.language,
        duration_seconds=None if snapshot.duration_ms is None else seconds(snapshot.duration_ms),
        recording_id=snapshot.client.recording_id,
        metadata=snapshot.client.metadata,
        delete_at=snapshot.delete_at,
        audio_tracks=[AudioTrack(**track.to_json()) for track in snapshot.audio_tracks],
        audio_track=snapshot.audio_track,
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
        _check_all_judged(transcript)
    recording = await services.in_thread(jobs.recording, job_id)
    spans = spans_to_silence(transcript) if redact else []
    file = await services.get(WavFiles).open(
        recording.id, transcript.duration_ms, spans, snapshot.audio_track
    )
    name = attachment(snapshot.filename, "redacted.wav" if redact else "wav")
    return WavResponse(file, name)


def _file(
    jobs: Jobs, job_id: UUID, ending: TextFormat, *, flag: bool, mask: bool | None
) -> Response:
    snapshot, text, transcript = _text(jobs, job_id, partial=False, mask=mask)
    if flag:
        _check_moderated(text, "flag")
    content = write(
        ending, transcript, flag=flag, warnings=snapshot.warnings, manifest=text.manifest
    )
    return Response(
        content,
        media_type=MEDIA_TYPES[ending],
        headers={"Content-Disposition": attachment(snapshot.filename, ending)},
    )


def _text(
    jobs: Jobs, job_id: UUID, *, partial: bool, mask: bool | None
) -> tuple[Snapshot, Text, Transcript]:
    """The job and its text, with masks or (None) as its upload asked for.

    Raises:
        NotFound: there is no such job.
        NotReady, Conflict: it has no text yet, or never will.
        Needs: it was not moderated, so nobody knows what to mask.
    """
    snapshot = jobs.snapshot(job_id)
    if not partial:
        check_ready(snapshot)
    text = jobs.text(job_id)
    if mask:
        _check_moderated(text, "filter_profanity")
    hide = text.options.filter_profanity if mask is None else mask
    transcript = transcript_of(text, judged_only=hide)
    return snapshot, text, masked(transcript) if hide else transcript


def _check_moderated(text: Text, field: str) -> None:
    if not text.options.moderation:
        raise Needs(field=field, value="true", needed="a job with moderation=true")


def _check_all_judged(transcript: Transcript) -> None:
    """Better no recording than one that only seems to be redacted."""
    if span := next(unjudged(transcript), None):
        at = f"the text at {seconds(span.start_ms)} s"
        raise Conflict(reason=f"redact=true is not possible: moderation failed for {at}, or more")


def check_ready(snapshot: Snapshot) -> None:
    """Pass if the job is COMPLETED.

    Raises:
        Conflict: it failed or was cancelled.
        NotReady: it has not ended.
    """
    if snapshot.status is JobStatus.FAILED:
        raise Conflict(reason=f"The job failed: {snapshot.error_message}")
    if snapshot.status is JobStatus.CANCELLED:
        raise Conflict(reason="The job was cancelled")
    if snapshot.status is not JobStatus.COMPLETED:
        raise NotReady(status_now=snapshot.status.value)


def _cancel(services: Services, jobs: Jobs, job_id: UUID) -> Status:
    services.stop(jobs.cancel(job_id))
    services.events.job_changed(job_id)
    return status_document(jobs.snapshot(job_id))
