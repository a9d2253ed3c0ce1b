"""Lists a page at a time, as they are asked for and answered."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic.json_schema import SkipJsonSchema

from common.db.paging import Cursor

Limit = Annotated[int, Query(ge=1, le=200, description="Entries on a page.")]
PageCursor = Annotated[
    str | SkipJsonSchema[None],
    Query(max_length=200, description="Where to go on: the `next_cursor` of the page before."),
]


def parsed(cursor: str | None) -> Cursor | None:
    """Where a page begins; None: at the newest."""
    return None if cursor is None else Cursor.parse(cursor)


def told(cursor: Cursor | None) -> str | None:
    """Where the next page begins; None: there is none."""
    return None if cursor is None else str(cursor)
