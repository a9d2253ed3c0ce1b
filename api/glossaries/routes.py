"""Routes for glossaries: lists of words that are to be written right."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Response
from loguru import logger
from pydantic.json_schema import SkipJsonSchema
from starlette.status import HTTP_201_CREATED, HTTP_204_NO_CONTENT

from api.auth.callers import Reader, Transcriber
from api.glossaries.schemas import (
    GlossaryContent,
    GlossaryDocument,
    GlossaryList,
    GlossarySummary,
    SuggestionDocument,
    SuggestionList,
)
from api.http.pagination import Limit, PageCursor, next_cursor, parse_cursor
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.services import ServicesDep
from common.db.glossaries import version_of
from common.db.tables import StoredGlossary

TAGGED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "ETag": {
                "description": "Names these contents, for If-Match",
                "schema": {"type": "string", "examples": ['"1774915200000000-0"']},
            }
        }
    }
}
IfMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(description="The ETag of the glossary that is replaced; without it, or with `*`: any."),
]

router = APIRouter(
    prefix="/glossaries",
    tags=["glossaries"],
    responses=documented(422, 503),
    dependencies=ONLY_KNOWN,
)


@router.post(
    "", summary="Create a glossary", status_code=HTTP_201_CREATED, responses=documented(409, 413)
)
async def create(
    wanted: GlossaryContent, services: ServicesDep, caller: Transcriber
) -> GlossaryDocument:
    """Create a glossary, for later jobs."""
    stored = services.glossaries(caller.tenant)
    row = await services.in_thread(stored.create, wanted.glossary(), default=wanted.default)
    logger.info("glossary {} was created: {} words", row.id, len(row.entries))
    return GlossaryDocument.model_validate(row)


@router.get("", summary="List glossaries")
async def list_glossaries(
    services: ServicesDep, caller: Reader, limit: Limit = 50, cursor: PageCursor = None
) -> GlossaryList:
    """The tenant's glossaries, newest first, without their entries."""
    page = await services.in_thread(
        services.glossaries(caller.tenant).page, limit=limit, after=parse_cursor(cursor)
    )
    return GlossaryList(
        glossaries=[GlossarySummary.model_validate(each) for each in page.items],
        next_cursor=next_cursor(page.next),
    )


@router.get("/suggestions", summary="List suggestions for glossaries")
async def suggestions(services: ServicesDep, caller: Reader, limit: Limit = 50) -> SuggestionList:
    """What people replaced in the transcripts of three jobs or more, and no glossary replaces.

    Add those that you want to the entries of a glossary. Suggestions are people's corrections, so
    they are deleted with the jobs.
    """
    found = await services.in_thread(services.glossaries(caller.tenant).suggestions, limit)
    return SuggestionList(suggestions=[SuggestionDocument.model_validate(it) for it in found])


@router.get("/{glossary_id}", summary="Get a glossary", responses=TAGGED | documented(404))
async def read(
    glossary_id: UUID, response: Response, services: ServicesDep, caller: Reader
) -> GlossaryDocument:
    """One glossary."""
    row = await services.in_thread(services.glossaries(caller.tenant).glossary, glossary_id)
    return _tagged(row, response)


@router.put(
    "/{glossary_id}",
    summary="Replace a glossary",
    responses=TAGGED | documented(404, 409, 412, 413),
)
async def replace(
    glossary_id: UUID,
    wanted: GlossaryContent,
    response: Response,
    services: ServicesDep,
    caller: Transcriber,
    if_match: IfMatch = None,
) -> GlossaryDocument:
    """Replace all of a glossary. Jobs keep the words that they were created with.

    412: it is no longer the one that If-Match names.
    """
    stored = services.glossaries(caller.tenant)
    version = (
        None if if_match is None or if_match == "*" else if_match.removeprefix("W/").strip('"')
    )
    row = await services.in_thread(
        stored.replace, glossary_id, wanted.glossary(), default=wanted.default, version=version
    )
    logger.info("glossary {} was replaced: {} words", row.id, len(row.entries))
    return _tagged(row, response)


@router.delete(
    "/{glossary_id}",
    summary="Delete a glossary",
    status_code=HTTP_204_NO_CONTENT,
    responses=documented(404),
)
async def delete(glossary_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Delete a glossary. Jobs keep the words that they were created with until they are deleted."""
    await services.in_thread(services.glossaries(caller.tenant).delete, glossary_id)
    logger.info("glossary {} was deleted", glossary_id)


def _tagged(row: StoredGlossary, response: Response) -> GlossaryDocument:
    response.headers["ETag"] = f'"{version_of(row)}"'
    return GlossaryDocument.model_validate(row)
