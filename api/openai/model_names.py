"""Weights by the names that clients of other services have for them."""

from __future__ import annotations

import re
from types import MappingProxyType

WHISPER = "whisper-1"
"""OpenAI's name for its Whisper, which every client knows: here, the default weights."""

_OPENAI_MODEL = re.compile(r"whisper-1|gpt-4o(-mini)?-transcribe(-\d{4}-\d{2}-\d{2})?")
_PUBLISHED = re.compile(
    r"((openai|systran|guillaumekln|mobiuslabsgmbh|deepdml|ggerganov|vinai)/)?"
    r"((faster-)?whisper-|ggml-)?"
    r"(?P<name>(phowhisper-)?(tiny|base|small|medium|large-v3-turbo|large-v3|large|turbo))"
    r"(-ct2|\.bin)?",
    re.IGNORECASE,
)
_SHORT_NAMES = MappingProxyType({"turbo": "large-v3-turbo", "large": "large-v3"})


def weights_named(model: str) -> tuple[str, str]:
    """Engine and weights that clients mean by ``model``; "" is the default.

    OpenAI's models are the default weights. Published Whisper weights go by the names that the hub,
    Groq, faster-whisper and whisper.cpp have for them: `Systran/faster-whisper-small`,
    `whisper-large-v3`, `ggml-base.bin`, `turbo`. Any other name is an engine's and weights', as
    `GET /v1/models` lists them.
    """
    if _OPENAI_MODEL.fullmatch(model):
        return "", ""
    published = _PUBLISHED.fullmatch(model)
    if published is None:
        engine, _, name = model.rpartition("/")
        return engine, name
    name = published["name"].lower()
    return "", _SHORT_NAMES.get(name, name)
