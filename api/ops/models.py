"""The weights that jobs can ask for."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.auth.callers import Reader
from api.processes.moderator import ModerationProcess
from api.processes.recognizers import Recognizers
from api.services import Services, ServicesDep
from api.streams.options import StreamResolver
from common.domain.moderation import Label

router = APIRouter(tags=["models"])


class ModelState(BaseModel):
    """Weights, and whether they are on this machine."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    engine: str
    model: str
    languages: list[str]
    size_bytes: int
    licence: str
    state: Literal["present", "missing", "corrupt"]
    default: bool
    """Jobs that name none have these."""
    streams: bool
    """Live streams can ask for them, from the gateway process that answers."""
    default_of_streams: bool
    """Streams that name none have these."""
    loaded: bool
    """They are in memory, ready for live streams."""
    live_streams: int | None
    """How many they hear at this moment; null where they are not in memory."""


class ModerationModel(BaseModel):
    """The model that moderates, as far as this process has loaded it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    state: str = Field(examples=["ok"])
    """ok, off, loading, or what is wrong with it."""
    model: str | None = Field(examples=["bert-finetuned-onnx"])
    sha256: str | None
    """Of its graph."""
    threshold: dict[Label, float] | None
    """The least score at which a text gets the label."""


class Models(BaseModel):
    """All weights that can be asked for by name, and the model that moderates."""

    models: list[ModelState]
    moderation: ModerationModel


@router.get("/models", response_model=Models, summary="List the weights")
async def models(services: ServicesDep, _: Reader) -> Models:
    """All weights that can be asked for by name, and whether they are on this machine.

    `streams`, `loaded` and `live_streams` are about the gateway process that answers.
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
