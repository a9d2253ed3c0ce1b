"""Texts to moderate, and the answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from api.http.fields import Document, Omittable, RequestDocument
from common.domain.moderation import Label

MAX_TEXTS = 1_000
MAX_LETTERS = 50_000
"""Longest text in code points, about a transcript of 50 minutes."""
ModeratedText = Annotated[str, Field(min_length=1, max_length=MAX_LETTERS)]
ModeratedTexts = Annotated[list[ModeratedText], Field(min_length=1, max_length=MAX_TEXTS)]


class ModerationRequest(RequestDocument):
    """Texts to moderate: one, or a list."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
            "examples": [{"texts": ["Chúc bạn một ngày vui", "shut the fuck up"]}],
        }
    )

    text: Omittable[ModeratedText] = None
    """A text; in place of `texts`."""
    texts: Omittable[ModeratedTexts] = None
    """Texts; in place of `text`."""


class ModerationSpan(Document):
    """An offensive part of a text."""

    start: int = Field(examples=[9])
    """Index of its first character, in Unicode code points of the text as it was sent."""
    end: int = Field(examples=[13])
    """Index after its last character."""
    text: str = Field(examples=["fuck"])
    label: Label = Field(examples=[Label.OFFENSIVE])
    source: Literal["list", "model"]
    """What found it: a word list, or the model (which would label the text CLEAN without it)."""


class ModerationResult(Document):
    """A text's label."""

    label: Label = Field(examples=[Label.OFFENSIVE])
    score: float = Field(examples=[0.93])
    """The label's score."""
    scores: dict[Label, float] = Field(examples=[{"CLEAN": 0.04, "OFFENSIVE": 0.93, "HATE": 0.03}])
    """Probabilities; they sum to 1."""
    spans: list[ModerationSpan]
    """The offensive parts, in order, where they could be located."""


_EXAMPLE: dict[str, Any] = {
    "results": [
        {
            "label": "CLEAN",
            "score": 0.98,
            "scores": {"CLEAN": 0.98, "OFFENSIVE": 0.01, "HATE": 0.01},
            "spans": [],
        },
        {
            "label": "OFFENSIVE",
            "score": 0.93,
            "scores": {"CLEAN": 0.04, "OFFENSIVE": 0.93, "HATE": 0.03},
            "spans": [
                {"start": 9, "end": 13, "text": "fuck", "label": "OFFENSIVE", "source": "list"}
            ],
        },
    ],
    "model": "bert-finetuned-onnx",
    "threshold": {"OFFENSIVE": 0.5, "HATE": 0.5},
}


class ModerationAnswer(Document):
    """One result a text, in order, and the model that gave them."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    results: list[ModerationResult]
    model: str = Field(examples=["bert-finetuned-onnx"])
    threshold: dict[Label, float] = Field(examples=[{"OFFENSIVE": 0.5, "HATE": 0.5}])
    """The lowest score at which a text gets the label."""
