"""Lists by the page: the parameters of a request, and the cursor in its answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from common.db.paging import Cursor

Limit = Annotated[int, Query(ge=1, le=200, description="Entries on a page.")]
PageCursor = Annotated[
    str | SkipJsonSchema[None],
    Query(max_length=200, description="The `next_cursor` of the previous page."),
]
NextCursor = Annotated[
    str | None, Field(description="Where the next page begins; null at the end of the list.")
]


def parse_cursor(cursor: str | None) -> Cursor | None:
    """Where a page begins; None: at the newest entry."""
    return None if cursor is None else Cursor.parse(cursor)


def next_cursor(cursor: object | None) -> str | None:
    """Where the next page begins; None: there is none."""
    return None if cursor is None else str(cursor)
