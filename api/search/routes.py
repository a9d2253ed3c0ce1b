"""The route for searching what was said."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AwareDatetime
from pydantic.json_schema import SkipJsonSchema

from api.auth.callers import Reader
from api.http.fields import Name
from api.http.pagination import Limit, PageCursor, next_cursor
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.search.schemas import SearchResult, SearchResults
from api.services import ServicesDep
from common.db.search import SearchCursor, SearchFilter
from common.db.tables import Kind
from common.domain.languages import LANGUAGES
from common.domain.searching import MAX_QUERY, Wanted
from common.errors import UnknownOption

router = APIRouter(tags=["search"], responses=documented(422, 503), dependencies=ONLY_KNOWN)


@router.get("/search", summary="Search what was said")
async def search(
    services: ServicesDep,
    caller: Reader,
    q: Annotated[
        str,
        Query(
            max_length=MAX_QUERY,
            description="Words. In quotation marks, they have to follow one another.",
            examples=["khach san"],
        ),
    ],
    kind: Annotated[
        Literal["job", "stream"] | SkipJsonSchema[None],
        Query(description="Only recordings, or only live streams."),
    ] = None,
    language: Annotated[
        str | SkipJsonSchema[None], Query(max_length=10, description="A Whisper code.")
    ] = None,
    speaker: Annotated[
        Name | SkipJsonSchema[None],
        Query(description="The name of somebody who speaks within the same minute."),
    ] = None,
    created_after: AwareDatetime | SkipJsonSchema[None] = None,
    created_before: AwareDatetime | SkipJsonSchema[None] = None,
    session_id: Annotated[
        UUID | SkipJsonSchema[None], Query(description="Only this job or live stream.")
    ] = None,
    limit: Limit = 20,
    cursor: PageCursor = None,
) -> SearchResults:
    """Search the newest texts of jobs that are COMPLETED or in REVIEW, and of ended live streams.

    All words have to be within about a minute, in any order, with or without marks: `khach san`
    finds "khách sạn". Passages that have the words in a row come first, and those with the marks as
    you typed them. Of words with very many matches the 500 newest passages are ranked. New texts do
    not shift the pages.
    """
    if language is not None and language not in LANGUAGES:
        raise UnknownOption(field="language", allowed=", ".join(LANGUAGES), value=language)
    which = SearchFilter(
        kind=None if kind is None else Kind(kind),
        language=language,
        speaker=speaker,
        created_after=created_after,
        created_before=created_before,
        source_id=session_id,
    )
    page = await services.in_thread(
        services.search(caller.tenant).page,
        Wanted.parse(q),
        which,
        limit=limit,
        after=None if cursor is None else SearchCursor.parse(cursor),
    )
    return SearchResults(
        results=[SearchResult.model_validate(each) for each in page.hits],
        is_complete=page.is_complete,
        next_cursor=next_cursor(page.next),
    )
