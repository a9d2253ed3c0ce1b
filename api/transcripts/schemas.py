"""A recording's text, as it is answered."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from common.domain.job import JobStatus
from common.domain.moderation import Label


class ResultSegment(BaseModel):
    """A subtitle-sized piece of text."""

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float
    speaker: str | None
    channel: int | None
    flags: list[str]


class ResultWord(BaseModel):
    """A word and when it was said, in seconds."""

    word: str
    start: float
    end: float
    probability: float
    speaker: str | None


class JudgedSpan(BaseModel):
    """What gave offence in a segment, and when it was said."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    text: str = Field(examples=["fuck"])
    start: float | None = Field(examples=[12.34])
    """Of the first word that it is part of, in seconds; null where words have no times."""
    end: float | None = Field(examples=[12.61])
    label: Label = Field(examples=[Label.OFFENSIVE])
    source: Literal["list", "model"]
    """Who found it: a word list, or the model (without it it would call the segment CLEAN)."""


class JudgedSegment(BaseModel):
    """How a segment was judged."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: int
    """That of the segment."""
    text: str
    label: Label = Field(examples=[Label.OFFENSIVE])
    score: float = Field(examples=[0.93])
    """That of the label."""
    scores: dict[Label, float] = Field(examples=[{"CLEAN": 0.04, "OFFENSIVE": 0.93, "HATE": 0.03}])
    """Probabilities; they sum to 1."""
    start: float
    """In seconds."""
    end: float
    spans: list[JudgedSpan]
    """What gave offence, in order, where that can be told."""


class ModerationSummary(BaseModel):
    """All segments that were judged, by label."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    label: Label | None = Field(examples=[Label.OFFENSIVE])
    """The worst; null where there was nothing to judge."""
    counts: dict[Label, int] = Field(examples=[{"CLEAN": 40, "OFFENSIVE": 2, "HATE": 0}])
    """Segments."""
    seconds: dict[Label, float] = Field(examples=[{"CLEAN": 180.5, "OFFENSIVE": 6.2, "HATE": 0}])
    """How long those segments are together."""


class ResultModeration(BaseModel):
    """How the segments were judged, and by whom.

    Segments that could not be judged are absent (warning `moderation_failed`). Where models or
    thresholds changed under way (warning `moderated_by_several_models`) the first ones are told
    here, all in the manifest.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    results: list[JudgedSegment]
    summary: ModerationSummary
    model: str | None = Field(examples=["bert-finetuned-onnx"])
    """Null where nobody judged."""
    threshold: dict[Label, float] | None = Field(examples=[{"OFFENSIVE": 0.5, "HATE": 0.5}])
    """The least score at which a text gets the label."""


class Result(BaseModel):
    """A recording's text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    job_id: UUID
    status: JobStatus = Field(examples=["COMPLETED"])
    text: str = Field(examples=["Xin chào các bạn."])
    word_count: int
    duration_seconds: float
    language: str = Field(examples=["vi"])
    language_probabilities: dict[str, float] | None = Field(examples=[{"vi": 0.97, "th": 0.01}])
    """The languages detected: of `language=auto`, and where the text failed because another
    language is spoken than the one asked for (warning `language_mismatch`)."""
    completed_at: datetime | None
    download_url: str | None
    segments: list[ResultSegment]
    words: list[ResultWord]
    moderation: ResultModeration | None
    """Null where the job was not to be moderated."""
    warnings: list[str]
    manifest: dict[str, Any] | None
    recording_id: str | None
    """Your own name for the recording."""
    metadata: dict[str, Any] | None
    """Your own, as it came."""
    delete_at: datetime | None
    """When the job will be deleted with all it has; null where it stays."""
