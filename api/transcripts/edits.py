"""Edits of a transcript as clients send them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from api.http.fields import Note, RequestDocument
from common.domain import editing
from common.domain.editing import MAX_EDITS, UNCHANGED

LONGEST_S = 10_000_000
"""Beyond the end of any recording."""
MOST = 10_000_000
"""Beyond the segments of any transcript, and the words of any segment."""
Index = Annotated[int, Field(ge=0, le=MOST, examples=[3])]
Time = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False, examples=[12.5])]


def milliseconds(value: float) -> int:
    """A time of the API, in seconds."""
    return round(value * 1000)


class Replace(RequestDocument):
    """Change the text, the times or the speaker of a segment; what is left out stays."""

    op: Literal["replace"]
    segment: Index
    text: str | SkipJsonSchema[None] = None
    start: Time | SkipJsonSchema[None] = None
    end: Time | SkipJsonSchema[None] = None
    speaker: str | None = None
    """The id of a speaker; null: it is not known who speaks."""

    def edit(self) -> editing.Replace:
        given = self.model_fields_set
        return editing.Replace(
            self.segment,
            text=self.text,
            start_ms=None if self.start is None else milliseconds(self.start),
            end_ms=None if self.end is None else milliseconds(self.end),
            speaker=self.speaker if "speaker" in given else UNCHANGED,
        )


class Split(RequestDocument):
    """Split a segment between two words: at the boundary nearest to `at`, or before a word."""

    op: Literal["split"]
    segment: Index
    at: Time | SkipJsonSchema[None] = None
    word: Index | SkipJsonSchema[None] = None
    """The index of a word of the segment, counted from 0: the second part begins with it. So it is
    at least 1."""

    def edit(self) -> editing.Split:
        at_ms = None if self.at is None else milliseconds(self.at)
        return editing.Split(self.segment, at_ms=at_ms, word=self.word)


class Join(RequestDocument):
    """Join the segments from `first` to `last`, which are of one speaker and one channel."""

    op: Literal["join"]
    first: Index
    last: Index

    def edit(self) -> editing.Join:
        return editing.Join(self.first, self.last)


class Delete(RequestDocument):
    """Delete a segment."""

    op: Literal["delete"]
    segment: Index

    def edit(self) -> editing.Delete:
        return editing.Delete(self.segment)


class Insert(RequestDocument):
    """Add a segment where there is none."""

    op: Literal["insert"]
    start: Time
    end: Time
    text: str
    speaker: str | None = None

    def edit(self) -> editing.Insert:
        start_ms, end_ms = milliseconds(self.start), milliseconds(self.end)
        return editing.Insert(start_ms, end_ms, self.text, self.speaker)


AnyEdit = Annotated[Replace | Split | Join | Delete | Insert, Field(discriminator="op")]


class Edits(RequestDocument):
    """Changes to one revision of a transcript: all are made, or none."""

    edits: list[AnyEdit] = Field(min_length=1, max_length=MAX_EDITS)
    """In order. `segment`, `first` and `last` are ids of the revision that If-Match names. A
    segment that an edit deletes, joins or splits cannot be named by later ones."""
    note: Note | None = Field(default=None, examples=["Names corrected"])
    """Why: it is kept with the revision."""
