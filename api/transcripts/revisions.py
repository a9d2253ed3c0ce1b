"""Routes for the revisions of a transcript: read, edit, compare, restore."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query
from loguru import logger
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import JSONResponse, Response
from starlette.status import HTTP_304_NOT_MODIFIED

from api.auth.callers import Caller, Reader, Transcriber
from api.http.fields import Note, RequestDocument
from api.http.pagination import Limit
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.services import Services, ServicesDep
from api.transcripts.edits import Edits
from api.transcripts.schemas import (
    EditableTranscript,
    RevisionDocument,
    RevisionPage,
    TranscriptDifference,
)
from common.db.revisions import Author, Revision, Revisions
from common.db.tables import TranscriptRevision
from common.domain.differences import difference
from common.domain.editing import apply_edits
from common.domain.job import StepStatus
from common.domain.results import seconds, segment_document, speakers_document, words_of
from common.domain.transcript import Origin
from common.errors import OutOfRange, PreconditionMissing

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["transcripts"],
    responses=documented(422, 503),
    dependencies=ONLY_KNOWN,
)

MAX_REVISION = 2**31 - 1
_TAG = re.compile(r'(?:W/)?"(\d{1,9})(?:-\d{1,9})?(?:-[a-z]{1,9})?"', re.ASCII)

Number = Annotated[int, Query(ge=1, le=MAX_REVISION)]
IfMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(description="The ETag of the transcript that the change was made on; `*`: any."),
]
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "ETag": {
                "description": "The revision, how often it was refined, and the status of a "
                "refinement that is not done: it completes the times and the moderation of new "
                "words",
                "schema": {"type": "string", "examples": ['"2-1"']},
            }
        }
    }
}


class Restore(RequestDocument):
    """Why an earlier revision is restored."""

    note: Note | None = None


@router.get(
    "/transcript",
    summary="Get the transcript, to edit it",
    response_model=EditableTranscript,
    responses=TAGGED | {304: {"description": "It is that of If-None-Match"}} | documented(404, 409),
)
async def read(
    job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    revision: Annotated[
        Number | SkipJsonSchema[None], Query(description="By default the newest.")
    ] = None,
    if_none_match: Annotated[str | SkipJsonSchema[None], Header()] = None,
) -> Response:
    """A revision of a job's transcript, with all its words; 409 until there is one."""
    revisions = Revisions(services.database, caller.tenant)
    return await services.in_thread(_read, revisions, job_id, revision, if_none_match)


@router.patch(
    "/transcript",
    summary="Edit the transcript",
    response_model=RevisionDocument,
    responses=TAGGED | documented(404, 409, 412, 413, 428),
)
async def edit(
    job_id: UUID,
    edits: Edits,
    services: ServicesDep,
    caller: Transcriber,
    if_match: IfMatch = None,
) -> Response:
    """Make a new revision. All downloads, and all other texts of the job, follow.

    Words that stay keep their times; new ones are `estimated` until a worker has aligned them to
    the audio. 412: somebody else has made a revision meanwhile.
    """
    made = [each.edit() for each in edits.edits]

    def store(revisions: Revisions, author: Author) -> TranscriptRevision:
        return revisions.change(
            job_id,
            lambda transcript: apply_edits(transcript, made),
            origin=Origin.EDIT,
            author=author,
            based_on=based_on_of(if_match),
        )

    return await services.in_thread(store_revision, services, caller, job_id, edits.note, store)


@router.get("/revisions", summary="List the revisions", responses=documented(404, 409))
async def revisions(
    job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    limit: Limit = 50,
    cursor: Annotated[
        Number | SkipJsonSchema[None],
        Query(description="The `next_cursor` of the previous page."),
    ] = None,
) -> RevisionPage:
    """The revisions of a job's transcript, the newest first. None is ever deleted or changed."""
    stored = Revisions(services.database, caller.tenant)
    rows, before = await services.in_thread(stored.page, job_id, limit=limit, before=cursor)
    return RevisionPage(
        revisions=[RevisionDocument.model_validate(row) for row in rows],
        next_cursor=None if before is None else str(before),
    )


@router.get(
    "/revisions/difference", summary="Compare two revisions", responses=documented(404, 409)
)
async def compare(
    job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    old: Annotated[Number, Query(description="A revision.")] = 1,
    new: Annotated[
        Number | SkipJsonSchema[None], Query(description="By default the newest.")
    ] = None,
) -> TranscriptDifference:
    """What to change in one revision to get another one."""
    stored = Revisions(services.database, caller.tenant)
    return await services.in_thread(_compare, stored, job_id, old, new)


@router.post(
    "/revisions/{revision}/restore",
    summary="Restore an earlier revision",
    response_model=RevisionDocument,
    responses=TAGGED | documented(404, 409, 412),
)
async def restore(
    job_id: UUID,
    revision: Annotated[int, Path(ge=1, le=MAX_REVISION)],
    services: ServicesDep,
    caller: Transcriber,
    body: Restore | None = None,
    if_match: IfMatch = None,
) -> Response:
    """Make a new revision with the text, the times and the speakers of an earlier one."""

    def store(revisions: Revisions, author: Author) -> TranscriptRevision:
        based_on = None if if_match is None else based_on_of(if_match)
        return revisions.restore(job_id, revision, author=author, based_on=based_on)

    note = None if body is None else body.note
    return await services.in_thread(store_revision, services, caller, job_id, note, store)


def _read(
    revisions: Revisions, job_id: UUID, number: int | None, if_none_match: str | None
) -> Response:
    revision = revisions.get(job_id, number)
    headers = {"ETag": tag_of(revision.row, revision.refining)}
    if headers["ETag"] in (if_none_match or ""):
        return Response(status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    return JSONResponse(_document(revision), headers=headers)


def _document(revision: Revision) -> dict[str, Any]:
    transcript = revision.transcript
    return {
        **RevisionDocument.model_validate(revision.row).model_dump(mode="json"),
        "job_id": str(revision.row.job_id),
        "language": transcript.language,
        "duration_seconds": seconds(transcript.duration_ms),
        "segments": [
            {
                **segment_document(index, segment, transcript.language),
                "words": words_of(segment),
            }
            for index, segment in enumerate(transcript.segments)
        ],
        "speakers": speakers_document(transcript),
        "refinement": revision.refining,
    }


def store_revision(
    services: Services,
    caller: Caller,
    job_id: UUID,
    note: str | None,
    store: Callable[[Revisions, Author], TranscriptRevision],
) -> Response:
    """The answer about a revision that ``store`` makes, for which workers have something to do."""
    row = store(Revisions(services.database, caller.tenant), Author(caller.key_id, note))
    logger.info("job {job_id}: revision {number} is stored", job_id=job_id, number=row.revision)
    services.events.work_to_do()
    services.events.job_changed(job_id)
    document = RevisionDocument.model_validate(row).model_dump(mode="json")
    return JSONResponse(document, headers={"ETag": tag_of(row)})


def _compare(revisions: Revisions, job_id: UUID, old: int, new: int | None) -> TranscriptDifference:
    before, after = revisions.get(job_id, old), revisions.get(job_id, new)
    return TranscriptDifference(
        old=before.row.revision,
        new=after.row.revision,
        changes=difference(before.transcript, after.transcript),
    )


def tag_of(row: TranscriptRevision, refining: StepStatus | None = None) -> str:
    """The ETag of a revision, whose refinement may not be done."""
    unsettled = "" if refining in (None, StepStatus.DONE) else f"-{refining.lower()}"
    return f'"{row.revision}-{row.refinements}{unsettled}"'


def based_on_of(if_match: str | None) -> int | None:
    """The revision that a header If-Match names, refined or not; None: any.

    Raises:
        PreconditionMissing: there is no such header.
        OutOfRange: it names none, or several.
    """
    if if_match is None:
        raise PreconditionMissing
    if if_match.strip() == "*":
        return None
    found = _TAG.fullmatch(if_match.strip())
    if found is None:
        limit = 'the ETag of the transcript, such as "2-1", or *'
        raise OutOfRange(field="If-Match", limit=limit, value=if_match[:200])
    return int(found[1])
