"""Names of weights as clients of other services use them."""

from __future__ import annotations

import re
from types import MappingProxyType

WHISPER = "whisper-1"
"""OpenAI's name for its Whisper; here it means the default weights."""

_OPENAI_MODEL = re.compile(r"whisper-1|gpt-4o(-mini)?-transcribe(-diarize)?(-\d{4}-\d{2}-\d{2})?")
_PUBLISHED = re.compile(
    r"((openai|systran|guillaumekln|mobiuslabsgmbh|deepdml|ggerganov|vinai)/)?"
    r"((faster-)?whisper-|ggml-)?"
    r"(?P<name>(phowhisper-)?(tiny|base|small|medium|large-v3-turbo|large-v3|large|turbo))"
    r"(-ct2|\.bin)?",
    re.IGNORECASE,
)
_SHORT_NAMES = MappingProxyType({"turbo": "large-v3-turbo", "large": "large-v3"})


def weights_named(model: str) -> tuple[str, str]:
    """Engine and weights for a client's ``model``; "" is the default.

    OpenAI's models are the default weights. Published Whisper weights have the names of the hub,
    Groq, faster-whisper or whisper.cpp: `Systran/faster-whisper-small`, `whisper-large-v3`,
    `ggml-base.bin`, `turbo`. Any other name is as `GET /v1/models` lists it.
    """
    if _OPENAI_MODEL.fullmatch(model):
        return "", ""
    published = _PUBLISHED.fullmatch(model)
    if published is None:
        engine, _, name = model.rpartition("/")
        return engine, name
    name = published["name"].lower()
    return "", _SHORT_NAMES.get(name, name)
