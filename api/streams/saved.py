"""Routes for the saved texts of live streams, during the stream and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from math import inf
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from loguru import logger
from pydantic import Field
from starlette.responses import JSONResponse, Response

from api.auth.callers import Reader, Transcriber
from api.http.fields import Document
from api.http.problems import documented
from api.services import Services, ServicesDep
from api.transcripts.schemas import ResultModeration, ResultSegment, ResultWord
from common.db.streams import Stream, StreamFinal
from common.domain.job import MODERATION_FAILED
from common.domain.results import seconds, transcript_document
from common.transcripts import SEVERAL_MODELS

router = APIRouter(prefix="/streams", tags=["streams"], responses=documented(404, 422, 503))


class Utterance(Document):
    """An utterance, from one silence to the next: a final."""

    seq: int
    """The `seq` of its message."""
    start: float
    """In seconds since the stream's start, as all times here."""
    end: float
    text: str = Field(examples=["Xin chào các bạn."])
    language: str = Field(examples=["vi"])
    engine: str
    model_id: str = Field(examples=["base"])
    latency_ms: int
    """From the end of its audio to its text."""
    moderated_by: str | None
    """The model that moderated it; null where none did."""


class StreamDocument(Document):
    """A live stream and its text."""

    session_id: UUID
    outcome: str | None = Field(examples=["completed"])
    """completed, client_left (the client disconnected), interrupted (its gateway went silent), or
    an error's code; null while it is open."""
    engine: str
    model_id: str = Field(examples=["base"])
    """Engine, model and language are the last ones that were set."""
    language: str = Field(examples=["vi"])
    text: str = Field(examples=["Xin chào các bạn."])
    word_count: int
    duration_seconds: float
    """Of the audio received; accurate to a few seconds while it is open."""
    latency_ms: int | None
    """The median of its utterances; null as long as there are none."""
    created_at: datetime
    completed_at: datetime | None
    """When it ended, whatever the outcome; null while it is open."""
    finals: list[Utterance]
    segments: list[ResultSegment]
    words: list[ResultWord]
    moderation: ResultModeration | None
    """Null where the stream is not moderated."""
    warnings: list[str]
    recording_id: str | None
    """Your own name for it."""
    metadata: dict[str, Any] | None
    """Your own, unchanged."""
    delete_at: datetime | None
    """When it will be deleted; null until it has ended, or if never."""


@router.get(
    "/{session_id}", summary="Get a live stream and its text", response_model=StreamDocument
)
async def stream(session_id: UUID, services: ServicesDep, caller: Reader) -> Response:
    """A live stream with all its finals, also while it is open."""
    return await services.in_thread(_document, services, caller.tenant, session_id)


@router.delete(
    "/{session_id}",
    status_code=204,
    summary="Delete a live stream and its text",
    responses=documented(404),
)
async def delete(session_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Delete a live stream and its text; an open one is ended within seconds.

    A receipt remains. Deleting it again is a 204.
    """
    await services.in_thread(services.streams(caller.tenant).delete, session_id)
    logger.info("stream {stream_id} was deleted", stream_id=session_id)


def _document(services: Services, tenant: str, session_id: UUID) -> Response:
    found = services.streams(tenant).get(session_id)
    document = transcript_document(found.transcript, warnings=list(_warnings(found)))
    del document["manifest"]  # each final has its own
    del document["language_probabilities"]
    return JSONResponse(
        {
            "session_id": str(found.id),
            "outcome": found.outcome,
            "engine": found.engine,
            "model_id": found.model,
            **document,
            "latency_ms": found.latency_ms,
            "created_at": found.created_at.isoformat(),
            "completed_at": found.ended_at and found.ended_at.isoformat(),
            "finals": [_utterance(final) for final in found.finals],
            "recording_id": found.client.recording_id,
            "metadata": found.client.metadata,
            "delete_at": found.delete_at and found.delete_at.isoformat(),
        }
    )


def _utterance(final: StreamFinal) -> dict[str, Any]:
    return {
        "seq": final.seq,
        "start": seconds(final.span.start_ms),
        "end": seconds(final.span.end_ms),
        "text": final.text,
        "language": final.language,
        "engine": final.engine,
        "model_id": final.model,
        "latency_ms": final.latency_ms,
        "moderated_by": final.moderated_by and final.moderated_by.model,
    }


def _warnings(found: Stream) -> Iterator[str]:
    if not found.moderation:
        return
    others = [final for final in found.finals if final.segments and final.moderated_by is None]
    turn: float = inf
    if found.outcome is None:  # finals are moderated in order: the last ones may still follow
        moderated = (final.seq for final in found.finals if final.moderated_by is not None)
        turn = max(moderated, default=0)
    if any(final.seq < turn for final in others):
        yield MODERATION_FAILED
    if len(found.transcript.moderated_by or ()) > 1:
        yield SEVERAL_MODELS
