"""The route that lists the weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.auth.callers import Reader
from api.http.fields import Document
from api.jobs.resolving import Resolver
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


class ModelChoice(Document):
    """The weights of a job that asks for the model auto."""

    language: str = Field(examples=["vi"])
    """A Whisper code; * for all other languages."""
    model: str | None = Field(examples=["faster-whisper/base"])
    """The engine and the weights that it would use now; null where there are none."""
    candidates: list[str]
    """All that are considered, best first."""
    reason: str
    """Why this one."""


class Models(BaseModel):
    """All weights that can be requested, and the moderation model."""

    models: list[ModelState]
    auto: list[ModelChoice]
    """What the model auto means now, by language."""
    moderation: ModerationModel


@router.get("/models", response_model=Models, summary="List the weights")
async def models(services: ServicesDep, _: Reader) -> Models:
    """All weights that can be requested, and whether this machine has them.

    `streams`, `loaded` and `live_streams` describe the gateway process that answers.
    """
    live = services.settings.stream
    resolver = services.get(Resolver)
    default = await asyncio.to_thread(resolver.default)
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
                default=(state.engine, state.model) == (default.engine, default.model),
                streams=can_stream(state),
                default_of_streams=(state.engine, state.model) == (live.engine, live.model),
                loaded=(state.engine, state.model) in loaded,
                live_streams=loaded.get((state.engine, state.model)),
            )
            for state in await asyncio.to_thread(services.weights.states)
        ],
        auto=await asyncio.to_thread(lambda: list(_choices(resolver))),
        moderation=_moderation(services),
    )


def _choices(resolver: Resolver) -> Iterator[ModelChoice]:
    for language, names in resolver.settings.asr.models_for.items():
        chosen, is_here = resolver.choose(names)
        better = names if chosen is None else names[: names.index(chosen)]
        reasons = [f"{name} is not installed, and cannot be fetched." for name in better]
        if chosen is not None:
            state = "installed" if is_here else "fetched for the first job that needs it"
            reasons.append(f"{chosen} is {state}.")
        reason = " ".join(reasons)
        yield ModelChoice(
            language=language,
            model=None if chosen is None else str(chosen),
            candidates=[str(name) for name in names],
            reason=reason,
        )


def _moderation(services: Services) -> ModerationModel:
    by, state = services.get(ModerationProcess).by, services.get(ModerationProcess).state
    return ModerationModel(
        state=state,
        model=by.model if by else None,
        sha256=by.sha256 if by else None,
        threshold=dict(by.thresholds) if by else None,
    )
