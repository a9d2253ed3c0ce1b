"""The options of an upload, and the documents about jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from api.http.fields import (
    Document,
    Metadata,
    Name,
    Names,
    Number,
    Prose,
    RequestDocument,
    Seconds,
    Word,
)
from common.db.tables import Kind
from common.domain.job import JobStatus
from common.domain.request import Channels
from common.domain.speakers import MAX_SPEAKERS


def _as_text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else value


def _is_given(value: object) -> bool:
    return value is not None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


SpeakerNumber = Annotated[int | None, Field(ge=1, le=MAX_SPEAKERS)]


class UploadOptions(RequestDocument):
    """The options of an upload; defaults come from the settings."""

    language: Annotated[str | None, Word] = Field(None, examples=["vi"])
    """A Whisper code (vi, en, ...) or auto."""
    languages: Annotated[str, Word, Names, Field(max_length=200)] | None = Field(
        None, examples=["vi,en"]
    )
    """Several languages that are spoken in the recording, separated by commas: each part is
    transcribed in its own. The first one is taken where none can be detected."""
    priority: Annotated[Literal["high", "normal", "low"], Word] = "normal"
    """Jobs of higher priority run first."""
    engine: Annotated[Literal["faster-whisper", "whisper.cpp", "sherpa-onnx"] | None, Word] = None
    """The code that runs the weights."""
    model: str | None = None
    """The weights, such as base (`GET /api/v1/models`), or auto: the best for the language."""
    task: Annotated[Literal["transcribe", "translate"], Word] = "transcribe"
    """translate: to English."""
    beam_size: int | None = Field(None, ge=1, le=16)
    """Number of hypotheses that the decoder keeps."""
    temperature: Number | None = Field(None, ge=0, le=1)
    """A fixed temperature, in place of the fallback ladder."""
    initial_prompt: Prose | None = None
    """Text that the decoder takes as the preceding context."""
    hotwords: Prose | None = None
    """Names and terms that are likely to occur, such as Stenopool, Hà Nội."""
    glossaries: Annotated[Prose, Names] | None = Field(None, examples=["none"])
    """The names of glossaries (`POST /api/v1/glossaries`), separated by commas: their words are
    hotwords, and are written right in the text where they say so. By default the tenant's default
    one; none: none."""
    word_timestamps: bool = True
    """Whether words have times."""
    moderation: bool | None = None
    """Label each segment CLEAN, OFFENSIVE or HATE; true unless moderation is off on the gateway."""
    filter_profanity: bool = False
    """Mask offensive words wherever the text is shown, except their first letters, as in `f***`.
    The stored text is unmasked: results are available with and without masks."""
    diarize: bool = False
    """Find who says what. Segments are split where the speaker changes."""
    num_speakers: SpeakerNumber = None
    """How many people speak, if that is known; needs `diarize`."""
    min_speakers: SpeakerNumber = None
    """The least number of people who speak, if that is known; needs `diarize`."""
    max_speakers: SpeakerNumber = None
    """The greatest number of people who speak, if that is known; needs `diarize`."""
    channels: Annotated[Channels, Word] = "mix"
    """mix: all channels are mixed to one and transcribed together. separate: each channel is
    transcribed by itself, for recordings with one person on each; the channels are the speakers.
    auto: as separate where different people speak on two channels, otherwise as mix."""
    identify: bool = False
    """Name the speakers whose voices are enrolled (`POST /api/v1/voices`); needs `diarize`."""
    review: bool | None = None
    """Whether a person has to approve the text: the job waits in REVIEW, until `POST
    /api/v1/jobs/{job_id}/approve` completes it. By default as the tenant is configured."""
    enhance: Annotated[str, Names, Field(max_length=200)] | None = Field(
        None, examples=["summary,chapters"]
    )
    """What a language model is to do with the text once the job is COMPLETED, separated by commas:
    summary, chapters, action_items, minutes, keywords, punctuate, correct. Each is a job of its
    own: see `enhancements` in the status, and `GET /api/v1/enhanced-ai/{id}`."""
    chunk_strategy: Annotated[Literal["vad", "silence", "fixed"] | None, Word] = None
    """How the recording is cut: by detected speech, by silence, or at fixed times."""
    chunk_duration: Number | None = Field(None, ge=1, le=60)
    """Longest window, in seconds; at most 30 for Whisper."""
    chunk_overlap: Number | None = Field(None, ge=0, le=7.5)
    """Overlap of windows where there is no silence, in seconds; at most a quarter of a window."""
    silence_threshold: Number | None = Field(None, ge=-96, le=0)
    """Level below which audio counts as silence, in dBFS."""
    min_silence_duration: int | None = Field(None, ge=10, le=10_000)
    """Shortest silence to cut in, in milliseconds."""
    audio_track: Annotated[str, BeforeValidator(_as_text), Field(max_length=35)] | None = Field(
        None, examples=["1"]
    )
    """The audio track to transcribe: its index, counted from 0, or its language, such as vi. By
    default the container's default track or, where it has no speech, the first one with speech."""
    recording_id: Name | None = None
    """Your own name for the recording, returned unchanged."""
    metadata: Metadata | None = None
    """A JSON object of at most 16 KB, returned unchanged; in a form as text."""
    webhook_url: Annotated[str, Field(max_length=2000)] | None = None
    """A URL that is notified of the job's review and end, in addition to the tenant's webhooks."""
    delete_after: int | None = Field(None, ge=60, le=315_360_000)
    """Seconds after the job's end until it is deleted with all its data. By default as the tenant
    or the gateway is configured, else never."""


class Subject(Document):
    """What an entry of a list is about: a job or a live stream; of a deletion, maybe a voice."""

    kind: Kind
    session_id: UUID = Field(validation_alias="id")
    """The id of the job, stream or voice."""
    job_id: UUID | None = Field(validation_alias="id")
    """The same, for a job; else null."""

    @field_validator("job_id")
    @classmethod
    def _of_jobs_alone(cls, job_id: UUID, info: ValidationInfo) -> UUID | None:
        return job_id if info.data["kind"] is Kind.JOB else None


class AudioTrack(Document):
    """An audio track of a recording."""

    index: int
    """Counted from 0, audio tracks only."""
    language: str | None = Field(examples=["vie"])
    """As the container names it, mostly ISO 639-2."""
    title: str | None
    codec: str = Field(examples=["aac"])
    channels: int
    default: bool
    """Transcribed unless another track is requested, or it has no speech."""


class Accepted(BaseModel):
    """A recording was accepted."""

    job_id: UUID
    status: JobStatus = Field(examples=["PENDING"])
    message: str
    estimated_time_seconds: float | None = Field(examples=[42.5])
    """Null until a job with the same weights has finished here."""


class OwnEnhancement(Document):
    """An enhancement of a job's text; see `GET /api/v1/enhanced-ai/{enhanced_job_id}`."""

    enhanced_job_id: UUID = Field(validation_alias="job_id")
    task: str = Field(examples=["summary"])
    status: JobStatus


class RecordingSpan(Document):
    """A part of a recording, in seconds."""

    start: Seconds = Field(validation_alias="start_ms", examples=[12.3])
    end: Seconds = Field(validation_alias="end_ms", examples=[45.6])


class Status(Document):
    """A job's status."""

    job_id: UUID
    kind: str = Field(examples=["transcription"])
    """transcription, rerun or enhancement."""
    source_job_id: UUID | None = Field(validation_alias="source_id")
    """The job whose transcript this one works on; null: it has one of its own."""
    status: JobStatus = Field(examples=["PROCESSING"])
    stage: str = Field(examples=["transcribing"])
    """queued, fetching (from its URL), fetching_model, planning, transcribing, moderating (all is
    transcribed), diarizing (likewise), merging, splicing (of a rerun), dividing, asking and
    combining (of an enhancement), review (a person has to approve the text) or done."""
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
    eta_seconds: Annotated[float | None, AfterValidator(_rounded)] = Field(validation_alias="eta_s")
    """Estimated from the job's own speed; null until two chunks are transcribed."""
    queue_position: int | None
    """How many turns of other jobs precede this job's first one, if no more jobs arrive. 0: it is
    next. 1000 (200 in lists): that many or more. Null once it has started."""
    warnings: list[str]
    filename: str | None
    """Null until there is a recording."""
    engine: str
    model: str
    language: str
    """Of several languages, the main one."""
    languages: list[str] = Field(validation_alias=AliasPath("options", "languages"))
    """Those that the request names; empty unless there are several."""
    diarize: Annotated[bool, BeforeValidator(_is_given)] = Field(
        validation_alias=AliasPath("options", "diarize")
    )
    """Whether the request asks who says what."""
    identify: bool = Field(validation_alias=AliasPath("options", "identify"))
    """Whether the request asks to name enrolled people."""
    channels: Channels = Field(validation_alias=AliasPath("options", "channels"))
    """As the request has it; the result's manifest says what was done."""
    duration_seconds: Seconds | None = Field(validation_alias="duration_ms")
    """Of the recording; of a rerun, of its `span`."""
    span: RecordingSpan | None = Field(validation_alias=AliasPath("options", "span"))
    """What a rerun transcribes again: what was requested, in whole words; null for other jobs."""
    recording_id: str | None = Field(validation_alias=AliasPath("client", "recording_id"))
    """Your own name for the recording."""
    metadata: dict[str, Any] | None = Field(validation_alias=AliasPath("client", "metadata"))
    """Your own, unchanged."""
    delete_at: datetime | None
    """When the job will be deleted with all its data; null until it has ended, or if never."""
    audio_tracks: list[AudioTrack]
    """Empty until the recording has been received."""
    audio_track: int | None
    """The index of the transcribed track; null until it is known."""
    reviewed_by: str | None
    """The id of the API key that approved the text; null if none was required, or nobody has."""
    enhancements: list[OwnEnhancement]
    """The first 50 of what language models make of its text."""
