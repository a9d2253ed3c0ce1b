"""What was said on live streams, while they last and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from math import inf
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from loguru import logger
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from api.auth.callers import Reader, Transcriber
from api.http.problems import documented
from api.services import Services, ServicesDep
from api.transcripts.schemas import ResultModeration, ResultSegment, ResultWord
from common.db.streams import Stream, StreamFinal
from common.domain.job import MODERATION_FAILED
from common.domain.results import seconds, transcript_document
from common.transcripts import SEVERAL_MODELS

router = APIRouter(prefix="/streams", tags=["streams"], responses=documented(404, 422, 503))


class Utterance(BaseModel):
    """What was said from one silence to the next: a final."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seq: int
    """That of the message which told it."""
    start: float
    """In seconds of the stream's own clock, as all times here."""
    end: float
    text: str = Field(examples=["Xin chào các bạn."])
    language: str = Field(examples=["vi"])
    engine: str
    model_id: str = Field(examples=["base"])
    latency_ms: int
    """From its last sound to its text."""
    moderated_by: str | None
    """The model that judged it; null where none did."""


class StreamDocument(BaseModel):
    """A live stream and its text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    session_id: UUID
    outcome: str | None = Field(examples=["completed"])
    """completed, client_left (without a word), interrupted (its gateway went silent), or the code
    of the error that ended it; null while it goes on."""
    engine: str
    model_id: str = Field(examples=["base"])
    """With the engine and the language what it was set to last."""
    language: str = Field(examples=["vi"])
    text: str = Field(examples=["Xin chào các bạn."])
    word_count: int
    duration_seconds: float
    """Of the sound that came in, to a few seconds while it goes on."""
    latency_ms: int | None
    """The median of its utterances'; null as long as there are none."""
    created_at: datetime
    completed_at: datetime | None
    """When it ended, by whatever outcome; null while it goes on."""
    finals: list[Utterance]
    segments: list[ResultSegment]
    words: list[ResultWord]
    moderation: ResultModeration | None
    """Null where the stream was not to be moderated."""
    warnings: list[str]
    recording_id: str | None
    """Your own name for it."""
    metadata: dict[str, Any] | None
    """Your own, as it came."""
    delete_at: datetime | None
    """When it will be deleted; null until it has ended, and where it stays."""


@router.get("/{session_id}", summary="Take a live stream's text", response_model=StreamDocument)
async def stream(session_id: UUID, services: ServicesDep, caller: Reader) -> Response:
    """A live stream with all its finals, also while it goes on."""
    return await services.in_thread(_document, services, caller.tenant, session_id)


@router.delete(
    "/{session_id}",
    status_code=204,
    summary="Delete a live stream with its text",
    responses=documented(404),
)
async def delete(session_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Delete a live stream with its text; one that goes on is ended within seconds.

    What is left is a receipt. A stream that was deleted before is a 204 again.
    """
    await services.in_thread(services.streams(caller.tenant).delete, session_id)
    logger.info("stream {stream_id} was deleted", stream_id=session_id)


def _document(services: Services, tenant: str, session_id: UUID) -> Response:
    found = services.streams(tenant).get(session_id)
    document = transcript_document(found.transcript, warnings=list(_warnings(found)))
    del document["manifest"]  # what a job's has, each final tells of itself
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
    """What is to be said of its moderation."""
    if not found.moderation:
        return
    others = [final for final in found.finals if final.segments and final.moderated_by is None]
    turn: float = inf
    if found.outcome is None:  # they are judged in order: the turn of the last ones may come yet
        judged = (final.seq for final in found.finals if final.moderated_by is not None)
        turn = max(judged, default=0)
    if any(final.seq < turn for final in others):
        yield MODERATION_FAILED
    if len(found.transcript.moderated_by or ()) > 1:
        yield SEVERAL_MODELS
