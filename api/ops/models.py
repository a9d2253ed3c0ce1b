"""The weights that jobs can ask for."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from api.auth.callers import Reader
from api.jobs.schemas import Models, ModelState, ModerationModel
from api.services import Gateway, GatewayDep

router = APIRouter(tags=["models"])


@router.get("/models", response_model=Models, summary="List the weights")
async def models(gateway: GatewayDep, _: Reader) -> Models:
    """All weights that can be asked for by name, and whether they are on this machine.

    `streams`, `loaded` and `live_streams` are about the gateway process that answers.
    """
    asr, live = gateway.settings.asr, gateway.settings.stream
    default = (asr.default_engine, asr.default_model)
    loaded = gateway.recognizers.loaded()
    can_stream = gateway.stream_resolver.can_stream
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
            for state in await asyncio.to_thread(gateway.weights.states)
        ],
        moderation=_moderation(gateway),
    )


def _moderation(gateway: Gateway) -> ModerationModel:
    by, state = gateway.judge.by, gateway.judge.state
    return ModerationModel(
        state=state,
        model=by.model if by else None,
        sha256=by.sha256 if by else None,
        threshold=dict(by.thresholds) if by else None,
    )
