"""Results of a search."""

from __future__ import annotations

from datetime import datetime

from pydantic import AliasPath, BaseModel, Field

from api.http.fields import Document, Seconds
from api.http.pagination import NextCursor
from api.jobs.schemas import Subject


class Match(Document):
    """A range of characters (Unicode code points) `[start, end)` of a result's text."""

    start: int = Field(examples=[4])
    end: int = Field(examples=[9])


class SearchResult(Subject):
    """A stretch of up to about a minute of a recording or a live stream."""

    filename: str | None
    """Null for a live stream."""
    start: Seconds = Field(
        examples=[72.4], validation_alias=AliasPath("found", "segment", "span", "start_ms")
    )
    """The start of the segment with the first of the matching words, in seconds of the recording
    or stream."""
    end: Seconds = Field(
        examples=[77.1], validation_alias=AliasPath("found", "segment", "span", "end_ms")
    )
    """The end of that segment."""
    speaker: str | None = Field(
        examples=["Lan"], validation_alias=AliasPath("found", "segment", "speaker")
    )
    """The name of who says it; null where speakers are not known."""
    language: str = Field(
        examples=["vi"], validation_alias=AliasPath("found", "segment", "language")
    )
    text: str = Field(
        examples=["Cái khách sạn gần biển …"], validation_alias=AliasPath("found", "text")
    )
    """The part with most of what is searched for, masked if the upload requested it."""
    matches: list[Match] = Field(validation_alias=AliasPath("found", "matches"))
    """The words in `text` that are searched for."""
    rank: float = Field(examples=[2.09])
    """The larger, the better the match; comparable within one search."""
    created_at: datetime
    """When the job or the stream was created."""
    recording_id: str | None
    """Your own name for it."""


class SearchResults(BaseModel):
    """Some results, the best first."""

    results: list[SearchResult]
    is_complete: bool
    """Whether all that matches was ranked. Otherwise the results are from the newest texts: add
    words or filters to find others."""
    next_cursor: NextCursor
