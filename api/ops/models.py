"""The route that lists the weights."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.auth.callers import Reader
from api.http.fields import Document
from api.processes.moderator import ModerationProcess
from api.processes.recognizers import Recognizers
from api.services import Services, ServicesDep
from api.streams.options import StreamResolver
from common.domain.moderation import Label

router = APIRouter(tags=["models"])


class ModelState(Document):
    """Weights, and whether this machine has them."""

    engine: str
    model: str
    languages: list[str]
    size_bytes: int
    licence: str
    state: Literal["present", "missing", "corrupt"]
    problem: str | None
    """Why weights that are present cannot be used; null where nothing is known."""
    default: bool
    """Jobs use these by default."""
    streams: bool
    """Live streams can use them, on the gateway process that answers."""
    default_of_streams: bool
    """Streams use these by default."""
    loaded: bool
    """Whether they are in memory, ready for live streams."""
    live_streams: int | None
    """The number of streams that use them now; null where they are not in memory."""


class ModerationModel(Document):
    """The moderation model, as this process has loaded it."""

    state: str = Field(examples=["ok"])
    """ok, off, loading, or what is wrong with it."""
    model: str | None = Field(examples=["bert-finetuned-onnx"])
    sha256: str | None
    """Of the model's graph."""
    threshold: dict[Label, float] | None
    """The lowest score at which a text gets the label."""


class Models(BaseModel):
    """All weights that can be requested, and the moderation model."""

    models: list[ModelState]
    moderation: ModerationModel


@router.get("/models", response_model=Models, summary="List the weights")
async def models(services: ServicesDep, _: Reader) -> Models:
    """All weights that can be requested, and whether this machine has them.

    `streams`, `loaded` and `live_streams` describe the gateway process that answers.
    """
    asr, live = services.settings.asr, services.settings.stream
    default = (asr.default_engine, asr.default_model)
    loaded = services.get(Recognizers).loaded()
    can_stream = services.get(StreamResolver).can_stream
    return Models(
        models=[
            ModelState(
                engine=state.engine,
                model=state.model,
                languages=list(state.languages),
                size_bytes=state.size,
                licence=state.licence,
                state=state.state,
                problem=state.problem,
                default=(state.engine, state.model) == default,
                streams=can_stream(state),
                default_of_streams=(state.engine, state.model) == (live.engine, live.model),
                loaded=(state.engine, state.model) in loaded,
                live_streams=loaded.get((state.engine, state.model)),
            )
            for state in await asyncio.to_thread(services.weights.states)
        ],
        moderation=_moderation(services),
    )


def _moderation(services: Services) -> ModerationModel:
    by, state = services.get(ModerationProcess).by, services.get(ModerationProcess).state
    return ModerationModel(
        state=state,
        model=by.model if by else None,
        sha256=by.sha256 if by else None,
        threshold=dict(by.thresholds) if by else None,
    )
