"""What goes over the wire: the upload form and the documents that are answered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from common.domain.job import JobStatus


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _no_control(text: str) -> str:
    if any(ord(letter) < 32 and letter not in "\t\r\n" for letter in text):
        raise ValueError("text without control characters")
    return text


Word = BeforeValidator(_lower)
"""A name in whatever case it is sent."""
Prose = Annotated[str, Field(max_length=2000), AfterValidator(_no_control)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class UploadOptions(BaseModel):
    """The options of an upload; what is not given is taken from the settings."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, strict=False)

    language: Annotated[str | None, Word] = Field(None, examples=["vi"])
    """A Whisper code (vi, en, ...) or auto."""
    priority: Annotated[Literal["high", "normal", "low"], Word] = "normal"
    """Which jobs go first."""
    engine: Annotated[Literal["faster-whisper", "whisper.cpp"] | None, Word] = None
    """The code that runs the weights."""
    model: str | None = Field(None, examples=["base"])
    """The weights; `GET /api/v1/models` lists them."""
    task: Annotated[Literal["transcribe", "translate"], Word] = "transcribe"
    """translate: to English."""
    beam_size: int | None = Field(None, ge=1, le=16)
    """Hypotheses followed at once."""
    temperature: Number | None = Field(None, ge=0, le=1)
    """A fixed one, in place of the fallback ladder."""
    initial_prompt: Prose | None = None
    """Text the recording is to be taken to continue."""
    hotwords: Prose | None = Field(None, examples=["Stenopool, Hà Nội"])
    """Names and terms that are likely to be said."""
    word_timestamps: bool = True
    """Times of single words."""
    chunk_strategy: Annotated[Literal["vad", "silence", "fixed"] | None, Word] = None
    """Where the recording is cut: by speech, by silence, or by the clock."""
    chunk_duration: Number | None = Field(None, ge=1, le=30)
    """Longest window, in seconds."""
    chunk_overlap: Number | None = Field(None, ge=0, le=7.5)
    """Seconds that neighbours share where there is no silence; at most a quarter of a window."""
    silence_threshold: Number | None = Field(None, ge=-96, le=0)
    """Loudness below which sound counts as silence, in dBFS."""
    min_silence_duration: int | None = Field(None, ge=10, le=10_000)
    """Shortest silence worth cutting in, in milliseconds."""


class Accepted(BaseModel):
    """A recording was taken in."""

    job_id: UUID
    status: JobStatus = Field(examples=["PENDING"])
    message: str
    estimated_time_seconds: float | None = Field(examples=[42.5])
    """None until a job with the same weights has finished here."""


class Status(BaseModel):
    """Where a job stands."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    job_id: UUID
    status: JobStatus = Field(examples=["PROCESSING"])
    stage: str = Field(examples=["transcribing"])
    """queued, planning, transcribing, merging or done."""
    progress: int = Field(ge=0, le=100, examples=[40])
    chunks_completed: int
    chunks_total: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error_message: str | None
    error_code: str | None
    eta_seconds: float | None
    queue_position: int | None
    """Jobs that go before this one; null once it was started."""
    warnings: list[str]
    filename: str
    engine: str
    model: str
    language: str
    duration_seconds: float | None


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


class Result(BaseModel):
    """A recording's text."""

    job_id: UUID
    status: JobStatus = Field(examples=["COMPLETED"])
    text: str = Field(examples=["Xin chào các bạn."])
    word_count: int
    duration_seconds: float
    language: str = Field(examples=["vi"])
    completed_at: datetime | None
    download_url: str | None
    segments: list[ResultSegment]
    words: list[ResultWord]
    moderation: dict[str, Any] | None
    warnings: list[str]
    manifest: dict[str, Any] | None


class ModelState(BaseModel):
    """Weights, and whether they are on this machine."""

    engine: str
    model: str
    languages: list[str]
    size_bytes: int
    licence: str
    state: Literal["present", "missing", "corrupt"]
    default: bool


class Models(BaseModel):
    """All weights that can be asked for by name."""

    models: list[ModelState]


class Health(BaseModel):
    """Whether all parts work."""

    status: Literal["healthy", "degraded"]
    version: str
    parts: dict[str, str]
    workers: int | None


class ProblemDocument(BaseModel):
    """Problem details (RFC 9457); errors about a value also name field, limit or allowed, value."""

    type: str = Field("about:blank")
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["priority must be one of high, normal, low; got 'urgent'"])
    code: str = Field(examples=["unknown_option"])
