"""Routes of the second AI step: what a language model makes of a job's transcript."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request, Response
from loguru import logger
from pydantic.json_schema import SkipJsonSchema

from api.auth.callers import Caller, Reader, Transcriber
from api.enhance.schemas import (
    Acceptance,
    AcceptedEnhancement,
    EnhancementDocument,
    EnhancementPage,
    EnhancementSummary,
    MissingSegments,
    NewEnhancement,
    TaskName,
)
from api.http.headers import attachment
from api.http.pagination import Limit, PageCursor, next_cursor, parse_cursor
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.jobs.enhancing import enhancement_options
from api.jobs.idempotency import PARAMETER, idempotency, mark_replay
from api.jobs.resolving import glossary_names
from api.jobs.routes import cancel_job, delete_job, retry_job
from api.services import Services, ServicesDep
from api.transcripts.revisions import TAGGED, IfMatch, based_on_of, store_revision
from api.transcripts.schemas import RevisionDocument
from common.db.enhancements import Enhancements, FoundEnhancement
from common.db.jobs import Created, NewJob
from common.db.listing import JobFilter
from common.db.revisions import Author, Revisions
from common.db.tables import TranscriptRevision
from common.domain.editing import Replace, apply_edits
from common.domain.enhancing.tasks import Task
from common.domain.formats import MEDIA_TYPES, write
from common.domain.job import JobStatus, Priority
from common.domain.masking import unmasked
from common.domain.pipeline import CHAT_ENGINE, ENHANCEMENT
from common.domain.request import Options
from common.domain.transcript import Origin, Transcript
from common.domain.values import Segment, Span
from common.errors import (
    Conflict,
    NotReady,
    OptionConflict,
    OutOfRange,
    StaleRevision,
)

router = APIRouter(
    prefix="/enhanced-ai",
    tags=["enhanced-ai"],
    responses=documented(422, 503),
    dependencies=ONLY_KNOWN,
)

MS = "_ms"
"""What the names of times in milliseconds end with."""
_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPES[ending]: {} for ending in ("srt", "vtt", "txt")}}
}


@router.post(
    "",
    status_code=202,
    summary="Have a language model work on a transcript",
    responses=documented(404, 409, 429),
    openapi_extra={"parameters": [PARAMETER]},
)
async def enhance(
    wanted: NewEnhancement,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Transcriber,
) -> AcceptedEnhancement:
    """Begin a job of its own on the newest revision of a job's transcript.

    What was said is data for the model, and never an instruction. The result cites the segments
    that it stands on. Nothing of the transcript is changed.
    """
    once = idempotency(request, wanted)
    source = await services.in_thread(services.jobs(caller.tenant).source, wanted.job_id)
    if wanted.glossaries is None:
        glossaries = list(Options.from_json(source.options).glossaries)
    else:
        names = glossary_names(wanted.glossaries)
        glossaries = await services.in_thread(services.glossaries(caller.tenant).named, names)
    options = enhancement_options(
        await services.in_thread(services.chat_server_in_use, caller.tenant),
        wanted.task,
        wanted.model,
        language=wanted.language,
        prompt=wanted.prompt,
        schema=wanted.schema_,
        terms=tuple(entry.word for each in glossaries for entry in each.entries),
    )
    if wanted.webhook_url is not None:
        await services.egress.check(wanted.webhook_url, "webhook_url")
    job = caller.attributed(
        request,
        NewJob(
            id=uuid4(),
            kind=ENHANCEMENT.kind,
            source_id=source.id,
            engine=CHAT_ENGINE,
            model=options.model,
            language=options.language or source.language,
            priority=Priority(source.priority),
            options=Options(),
            own_options={ENHANCEMENT.kind: options.to_json()},
            webhook_url=wanted.webhook_url,
            idempotency=once,
        ),
    )
    created = await services.in_thread(_create, services, caller, job)
    mark_replay(request, created)
    response.headers["Location"] = f"/api/v1/enhanced-ai/{created.job_id}"
    return AcceptedEnhancement(enhanced_job_id=created.job_id, status=created.status)


@router.get("", summary="List enhancements")
async def list_enhancements(
    services: ServicesDep,
    caller: Reader,
    job_id: Annotated[
        UUID | SkipJsonSchema[None], Query(description="Those of this job's transcript.")
    ] = None,
    task: TaskName | SkipJsonSchema[None] = None,
    status: Annotated[
        list[JobStatus] | SkipJsonSchema[None], Query(description="Any of these.")
    ] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> EnhancementPage:
    """The tenant's enhancements without their results, newest first."""
    which = JobFilter(status, source_id=job_id, kind=ENHANCEMENT.kind, task=task)
    stored = Enhancements(services.database, caller.tenant)
    page = await services.in_thread(stored.page, which, limit=limit, after=parse_cursor(cursor))
    return EnhancementPage(
        enhancements=[EnhancementSummary(**_summary(each)) for each in page.items],
        next_cursor=next_cursor(page.next),
    )


@router.get("/{enhanced_job_id}", summary="Get an enhancement", responses=documented(404))
async def read(enhanced_job_id: UUID, services: ServicesDep, caller: Reader) -> EnhancementDocument:
    """The status of an enhancement and, once it is COMPLETED, its result."""
    return _document(await _found(services, caller, enhanced_job_id))


@router.post(
    "/{enhanced_job_id}/cancel", summary="Cancel an enhancement", responses=documented(404, 409)
)
async def cancel(
    enhanced_job_id: UUID, services: ServicesDep, caller: Transcriber
) -> EnhancementDocument:
    """Cancel it, and what is being asked. Cancelling it again changes nothing."""
    await _found(services, caller, enhanced_job_id)
    await services.in_thread(cancel_job, services, services.jobs(caller.tenant), enhanced_job_id)
    return _document(await _found(services, caller, enhanced_job_id))


@router.post(
    "/{enhanced_job_id}/retry", summary="Retry an enhancement", responses=documented(404, 409)
)
async def retry(
    enhanced_job_id: UUID, services: ServicesDep, caller: Transcriber
) -> EnhancementDocument:
    """Make the requests again that failed; it is FAILED, or has segments `missing`."""
    await _found(services, caller, enhanced_job_id)
    await services.in_thread(retry_job, services, caller, enhanced_job_id)
    return _document(await _found(services, caller, enhanced_job_id))


@router.delete(
    "/{enhanced_job_id}",
    status_code=204,
    summary="Delete an enhancement",
    responses=documented(404),
)
async def delete(enhanced_job_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Cancel it if it runs, and delete it with its result. A receipt remains.

    It is also deleted with the job whose transcript it works on.
    """
    await _found(services, caller, enhanced_job_id)
    await services.in_thread(delete_job, services, caller, enhanced_job_id)


@router.get(
    "/{enhanced_job_id}/download",
    summary="Download a translation",
    responses=_FILES | documented(404, 409),
    response_class=Response,
)
async def download(
    enhanced_job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    format: Annotated[Literal["srt", "vtt", "txt"], Query(description="The kind of file.")] = "srt",  # noqa: A002 - its name on the wire
) -> Response:
    """The text of translate or punctuate as a file, with the times of the transcript."""
    found = await _found(services, caller, enhanced_job_id)
    result = _result(found, Task.TRANSLATE, Task.PUNCTUATE)
    transcript = Transcript(
        found.snapshot.language,
        found.snapshot.duration_ms or 0,
        tuple(map(_segment, result["segments"])),
    )
    # Players look for this name beside a video.
    is_translated = found.options.task is Task.TRANSLATE
    ending = f"{found.options.language}.{format}" if is_translated else format
    return Response(
        write(format, transcript),
        media_type=MEDIA_TYPES[format],
        headers={"Content-Disposition": attachment(found.snapshot.filename, ending)},
    )


@router.post(
    "/{enhanced_job_id}/apply",
    summary="Apply proposed edits to the transcript",
    response_model=RevisionDocument,
    responses=TAGGED | documented(404, 409, 412, 413, 428),
)
async def apply(
    enhanced_job_id: UUID,
    wanted: Acceptance,
    services: ServicesDep,
    caller: Transcriber,
    if_match: IfMatch = None,
) -> Response:
    """Make a new revision of the transcript with what correct or punctuate proposes.

    Nothing is applied by itself. 412: the transcript has changed since the proposals were made.
    """
    found = await _found(services, caller, enhanced_job_id)
    number = based_on_of(if_match)
    result = _result(found, Task.CORRECT, Task.PUNCTUATE)
    chosen = _chosen(result.get("edits") or result.get("segments") or [], wanted)
    revision = 0 if found.row is None else found.row.revision
    source_id = found.snapshot.source_id
    assert source_id is not None  # noqa: S101 - what such jobs are about
    source = await services.in_thread(services.jobs(caller.tenant).snapshot, source_id)
    is_masked = source.options.filter_profanity

    def change(transcript: Transcript) -> Transcript:
        edits = []
        for proposal in chosen:
            number, text = proposal["segment"], proposal["text"]
            segment = transcript.segments[number]
            if is_masked:
                text = _unmasked(text, segment, number)
            if text.strip() != segment.text.strip():
                edits.append(Replace(number, text=text))
        if not edits:
            raise Conflict(reason="These proposals would change nothing")
        return apply_edits(transcript, edits, is_limited=False)

    def store(revisions: Revisions, author: Author) -> TranscriptRevision:
        if number is not None and number != revision:
            is_newest = number == found.newest
            raise StaleRevision(newest=found.newest, value=revision if is_newest else number)
        return revisions.change(
            source_id, change, origin=Origin.PROPOSAL, author=author, based_on=revision
        )

    return await services.in_thread(store_revision, services, caller, source_id, wanted.note, store)


async def _found(services: Services, caller: Caller, job_id: UUID) -> FoundEnhancement:
    return await services.in_thread(Enhancements(services.database, caller.tenant).get, job_id)


def _create(services: Services, caller: Caller, job: NewJob) -> Created:
    created = services.jobs(caller.tenant).create_from_source(job)
    if not created.replayed:
        logger.info("job {source} is enhanced by {job}", source=job.source_id, job=job.id)
        services.events.work_to_do()
    return created


def _summary(found: FoundEnhancement) -> dict[str, Any]:
    job, row = found.snapshot, found.row
    return {
        "enhanced_job_id": job.job_id,
        "job_id": job.source_id,
        "task": found.options.task,
        "status": job.status,
        "stage": job.stage,
        "progress": job.progress,
        "requests_completed": job.chunks_completed,
        "requests_total": job.chunks_total,
        "model": (row and row.model) or job.model,
        "language": row.language if row else found.options.language,
        "revision": row and row.revision,
        "newest": None if row is None else row.revision == found.newest,
        "input_tokens": row and row.input_tokens,
        "output_tokens": row and row.output_tokens,
        "elapsed_seconds": None if row is None or row.elapsed_ms is None else row.elapsed_ms / 1000,
        "created_at": job.created_at,
        "completed_at": job.completed_at,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "warnings": list(job.warnings),
        "missing": [MissingSegments(**_shown(it)) for it in (row.missing if row else ())],
    }


def _document(found: FoundEnhancement) -> EnhancementDocument:
    result = None if found.row is None else found.row.result
    if result is not None and found.options.task is not Task.PROMPT:  # whose answer is not ours
        result = _shown(result)
    return EnhancementDocument(**_summary(found), result=result)


def _shown(value: Any) -> Any:
    """A result with its times in seconds."""
    if isinstance(value, list):
        return [_shown(each) for each in value]
    if isinstance(value, dict):
        return {
            key.removesuffix(MS): each / 1000 if key.endswith(MS) else _shown(each)
            for key, each in value.items()
        }
    return value


def _result(found: FoundEnhancement, *tasks: Task) -> dict[str, Any]:
    """The result of an enhancement of one of these tasks.

    Raises:
        OptionConflict: its task is another one.
        NotReady, Conflict: it has no result.
    """
    if found.options.task not in tasks:
        needed = f"to be {' or '.join(tasks)}"
        raise OptionConflict(field="task", value=found.options.task, needed=needed)
    result = None if found.row is None else found.row.result
    if result is None:
        status = found.snapshot.status
        if status in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise Conflict(reason=f"The enhancement is {status} and has no result")
        raise NotReady(status_now=status)
    return result


def _chosen(proposals: list[dict[str, Any]], wanted: Acceptance) -> list[dict[str, Any]]:
    if wanted.edits == "all":
        return proposals
    for index in wanted.edits:
        if index >= len(proposals):
            limit = f"below {len(proposals)}, the number of proposals"
            raise OutOfRange(field="edits", limit=limit, value=index)
    return [proposals[index] for index in dict.fromkeys(wanted.edits)]


def _unmasked(text: str, segment: Segment, number: int) -> str:
    """A proposal with its masked words as they are in the transcript.

    Raises:
        Conflict: other words are masked now.
    """
    plain = unmasked(text, segment)
    if plain is None:
        reason = f"Other words of segment {number} are masked now; enhance the transcript again"
        raise Conflict(reason=reason)
    return plain


def _segment(stored: dict[str, Any]) -> Segment:
    speaker = f"{stored['speaker']}: " if stored["speaker"] else ""
    return Segment(Span(stored["start_ms"], stored["end_ms"]), f"{speaker}{stored['text']}")
