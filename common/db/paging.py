"""Lists from newest to oldest, by page, with keyset pagination.

A page begins after the last row of the page before, not at an offset: new rows shift nothing
(use-the-index-luke.com/no-offset).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, tuple_

from common.errors import OutOfRange

T = TypeVar("T")
LONGEST_ECHO = 200


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a list: after the row of time ``at`` and, within that time, of ``id``."""

    at: datetime
    id: UUID

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.at.isoformat()} {self.id}".encode()).decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the output of `str`.

        Raises:
            OutOfRange: it is malformed.
        """
        try:
            at, _, row_id = base64.b64decode(text, b"-_", validate=True).decode().rpartition(" ")
            cursor = cls(datetime.fromisoformat(at), UUID(row_id))
        except ValueError:
            cursor = None
        if cursor is None or cursor.at.tzinfo is None:
            limit = "a next_cursor of this list"
            raise OutOfRange(field="cursor", limit=limit, value=text[:LONGEST_ECHO])
        return cursor


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a list, and the cursor of the next page; None: there is none."""

    items: list[T]
    next: Cursor | None


def beyond(cursor: Cursor | None, at: Any, row_id: Any) -> Iterable[ColumnElement[bool]]:
    """The condition on rows after ``cursor``, of their columns ``at`` and ``row_id``."""
    if cursor is not None:
        yield tuple_(at, row_id) < tuple_(cursor.at, cursor.id)


def page_of(rows: Sequence[T], limit: int, place: Callable[[T], Cursor]) -> Page[T]:
    """The first ``limit`` of ``rows``; one more row means that there is a next page."""
    items = list(rows[:limit])
    return Page(items, place(items[-1]) if len(rows) > limit else None)
