"""Requests of the second AI step, and the documents about them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field

from api.http.fields import Names, Note, OneLine, Prose, RequestDocument, Word
from api.http.pagination import NextCursor
from common.domain.enhancement import MAX_PROMPT_LENGTH
from common.domain.enhancing.tasks import Task
from common.domain.job import JobStatus


def _all_or_some(value: object) -> object:
    if value != "all" and not (value and isinstance(value, list)):
        raise ValueError("all, or a list of indexes")
    return value


TaskName = Annotated[Task, Word]


class NewEnhancement(RequestDocument):
    """What a language model is to do with a job's transcript."""

    job_id: UUID
    """A job with a transcript."""
    task: TaskName = Field(examples=["summary"])
    """summary; chapters; action_items (who, what); minutes; keywords; punctuate (only marks and
    capitals change); translate (needs `language`); correct (proposes edits); prompt (your own)."""
    model: OneLine | None = None
    """The model, as the server names it; by default that of the settings."""
    language: Annotated[str, Word, Field(max_length=20)] | None = Field(None, examples=["vi"])
    """The language of the answer, a Whisper code; by default that of the transcript."""
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)] | None = None
    """What to do, of the task prompt."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """A JSON schema that the answer to your prompt must meet; by default the answer is a text."""
    glossaries: Annotated[Prose, Names] | None = None
    """The names of glossaries, separated by commas, whose words are to be written right; by default
    those of the job. `none`: use none."""
    webhook_url: Annotated[str, Field(max_length=2000)] | None = None
    """A URL that is notified of the end, in addition to the tenant's webhooks."""


class AcceptedEnhancement(BaseModel):
    """An enhancement was accepted."""

    enhanced_job_id: UUID
    status: JobStatus = Field(examples=["PENDING"])


class MissingSegments(BaseModel):
    """Segments that the result knows nothing of, as the model gave no usable answer about them."""

    first: int
    last: int
    start: float
    end: float


class EnhancementSummary(BaseModel):
    """The state of an enhancement, without its result."""

    enhanced_job_id: UUID
    job_id: UUID
    """The job whose transcript it works on."""
    task: Task
    status: JobStatus
    stage: str = Field(examples=["asking"])
    """queued, dividing, asking (the model), combining or done."""
    progress: int = Field(ge=0, le=100)
    requests_completed: int
    requests_total: int
    """Requests to the model; more may follow, to condense the answers."""
    model: str
    language: str | None
    """Of the answer; null: it is not known yet."""
    revision: int | None
    """The revision of the transcript that it works on; segments are numbered as in it."""
    newest: bool | None
    """Whether that is the newest one."""
    input_tokens: int | None
    """As the server counts them, once it has ended: of all requests, those too whose answer was
    rejected or broken off. Requests that were answered before are not made again."""
    output_tokens: int | None
    elapsed_seconds: float | None
    """How long these answers took, one after the other."""
    created_at: datetime
    completed_at: datetime | None
    error_code: str | None
    error_message: str | None
    warnings: list[str]
    """enhancement_incomplete: see `missing`; retry it for these segments."""
    missing: list[MissingSegments]


class EnhancementDocument(EnhancementSummary):
    """An enhancement, with its result."""

    result: dict[str, Any] | None
    """Null until it is COMPLETED.

    summary: `text`, `sentences[] {text, segments, start, end}`. chapters: `chapters[] {title,
    segment, start, end}`. action_items: `action_items[] {who, what, due, segment, start, end}`.
    minutes: `sections[] {title, points[] {text, segments, start, end}}`. keywords: `keywords[]
    {keyword, count, segments}`. punctuate, translate: `segments[] {segment, text, speaker, start,
    end}`. correct: `edits[] {segment, before, text, reason, start, end}`. prompt: `answer`.
    """


class EnhancementPage(BaseModel):
    """Some enhancements, newest first."""

    enhancements: list[EnhancementSummary]
    next_cursor: NextCursor


class Acceptance(RequestDocument):
    """Which proposals to apply to the transcript."""

    edits: Annotated[
        list[Annotated[int, Field(ge=0)]] | Literal["all"], BeforeValidator(_all_or_some)
    ]
    """all, or their indexes in `edits` of correct, or in `segments` of punctuate."""
    note: Note | None = None
    """Why: it is kept with the revision."""
