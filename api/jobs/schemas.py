"""What goes over the wire of jobs: the options of an upload, and the documents about them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.http.fields import Metadata, Name, Number, Prose, Word
from common.domain.job import JobStatus


def _as_text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else value


class UploadOptions(BaseModel):
    """The options of an upload; what is not given is taken from the settings."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, strict=False)

    language: Annotated[str | None, Word] = Field(None, examples=["vi"])
    """A Whisper code (vi, en, ...) or auto."""
    priority: Annotated[Literal["high", "normal", "low"], Word] = "normal"
    """Which jobs go first."""
    engine: Annotated[Literal["faster-whisper", "whisper.cpp"] | None, Word] = None
    """The code that runs the weights."""
    model: str | None = None
    """The weights, such as base; `GET /api/v1/models` lists them."""
    task: Annotated[Literal["transcribe", "translate"], Word] = "transcribe"
    """translate: to English."""
    beam_size: int | None = Field(None, ge=1, le=16)
    """Hypotheses followed at once."""
    temperature: Number | None = Field(None, ge=0, le=1)
    """A fixed one, in place of the fallback ladder."""
    initial_prompt: Prose | None = None
    """Text the recording is to be taken to continue."""
    hotwords: Prose | None = None
    """Names and terms that are likely to be said, such as Stenopool, Hà Nội."""
    word_timestamps: bool = True
    """Times of single words."""
    moderation: bool | None = None
    """Label each segment CLEAN, OFFENSIVE or HATE; unless the gateway was told otherwise, true."""
    filter_profanity: bool = False
    """Mask the offending words wherever the text is shown, but for their first letters, as in
    `f***`. The text is stored as it was said: results can be asked for with or without masks."""
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
    audio_track: Annotated[str, BeforeValidator(_as_text), Field(max_length=35)] | None = Field(
        None, examples=["1"]
    )
    """Which of several audio tracks: its index, counted from 0, or its language, such as vi. Unless
    asked for, the default one, or, where nobody speaks on that, the first that has speech."""
    recording_id: Name | None = None
    """Your own name for the recording, given back as it came."""
    metadata: Metadata | None = None
    """A JSON object of at most 16 KB, given back as it came; in a form as text."""
    webhook_url: Annotated[str, Field(max_length=2000)] | None = None
    """Where to tell of the job's end, beside the tenant's own webhooks."""
    delete_after: int | None = Field(None, ge=60, le=315_360_000)
    """Seconds after its end at which the job is deleted with all it has; unless the tenant or the
    gateway was told otherwise, never."""


class AudioTrack(BaseModel):
    """An audio track of a recording."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: int
    """Counted from 0, audio tracks only."""
    language: str | None = Field(examples=["vie"])
    """As the container has it, mostly ISO 639-2."""
    title: str | None
    codec: str = Field(examples=["aac"])
    channels: int
    default: bool
    """Transcribed unless another is asked for, or nobody speaks on it."""


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
    """queued, fetching, planning, transcribing, moderating (all is transcribed), merging or done;
    fetching: from the URL it was submitted by."""
    progress: int = Field(ge=0, le=100, examples=[40])
    chunks_completed: int
    chunks_total: int
    """Grows until the job is `planned`."""
    planned: bool
    """Whether the recording is cut into all its chunks."""
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error_message: str | None
    error_code: str | None
    eta_seconds: float | None
    """By the job's own pace; null until two chunks are transcribed."""
    queue_position: int | None
    """How many turns other jobs have before this job's first one, if no more jobs come in. 0: it is
    next. 1000 (200 in lists): that many or more. Null once it was started."""
    warnings: list[str]
    filename: str | None
    """Null until a recording is here."""
    engine: str
    model: str
    language: str
    duration_seconds: float | None
    recording_id: str | None
    """Your own name for the recording."""
    metadata: dict[str, Any] | None
    """Your own, as it came."""
    delete_at: datetime | None
    """When the job will be deleted with all it has; null until it has ended, and where it stays."""
    audio_tracks: list[AudioTrack]
    """Empty until the recording has come in."""
    audio_track: int | None
    """The index of the one that is transcribed; null until that is known."""
