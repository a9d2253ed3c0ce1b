"""What goes over the wire: the upload form and the documents that are answered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from api.http.fields import checked
from common.domain.job import JobStatus
from common.domain.moderation import Label


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _as_text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else value


def _no_control(text: str) -> str:
    if any(ord(letter) < 32 and letter not in "\t\r\n" for letter in text):
        raise ValueError("text without control characters")
    return text


Word = BeforeValidator(_lower)
"""A name in whatever case it is sent."""
Prose = Annotated[str, Field(max_length=2000), AfterValidator(_no_control)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_no_control)]
Metadata = Annotated[dict[str, Any], AfterValidator(checked)]
Number = Annotated[float, Field(allow_inf_nan=False)]

MAX_TEXTS = 1_000
MAX_LETTERS = 50_000
"""Of a text to moderate, in code points: a transcript of 50 minutes."""
ModeratedText = Annotated[str, Field(min_length=1, max_length=MAX_LETTERS)]
ModeratedTexts = Annotated[list[ModeratedText], Field(min_length=1, max_length=MAX_TEXTS)]


def _without_default(schema: dict[str, Any]) -> None:
    """Leave out a default of null that a client may not send."""
    schema.pop("default", None)


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


class StreamOptions(BaseModel):
    """What may be said of a live stream; what is not is taken from the settings."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, strict=False)

    model_id: Name | SkipJsonSchema[None] = Field(
        None, examples=["base"], json_schema_extra=_without_default
    )
    """The weights, or `whisper` or `zipformer` for that engine's; `GET /api/v1/models` tells which
    can hear streams. Another one may be named at any time."""
    engine: Annotated[
        Literal["faster-whisper", "whisper", "zipformer"] | SkipJsonSchema[None],
        Word,
        Field(json_schema_extra=_without_default),
    ] = None
    """The code that runs them, where two have weights of that name."""
    language: Annotated[
        str | SkipJsonSchema[None], Word, Field(examples=["vi"], json_schema_extra=_without_default)
    ] = None
    """A Whisper code (vi, en, ...)."""
    moderation: Annotated[
        bool | SkipJsonSchema[None], Field(json_schema_extra=_without_default)
    ] = None
    """Judge each final; unless the gateway was told otherwise, true."""
    endpointing: int = Field(500, ge=200, le=5_000)
    """Milliseconds of silence that end an utterance."""
    recording_id: Annotated[
        Name | SkipJsonSchema[None], Field(json_schema_extra=_without_default)
    ] = None
    """Your own name for it, given back as it came."""
    metadata: Annotated[
        Metadata | SkipJsonSchema[None], Field(json_schema_extra=_without_default)
    ] = None
    """A JSON object of at most 16 KB, given back as it came; in an address as text."""


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


class ModerationRequest(BaseModel):
    """Texts to judge: one, or a list."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "oneOf": [{"required": ["text"]}, {"required": ["texts"]}],
            "examples": [{"texts": ["Chúc bạn một ngày vui", "shut the fuck up"]}],
        },
    )

    text: ModeratedText | SkipJsonSchema[None] = Field(None, json_schema_extra=_without_default)
    """A text; in place of `texts`."""
    texts: ModeratedTexts | SkipJsonSchema[None] = Field(None, json_schema_extra=_without_default)
    """Texts; in place of `text`."""


class ModerationSpan(BaseModel):
    """Characters that gave offence."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    start: int = Field(examples=[9])
    """The first of them, counted from 0 in Unicode code points of the text as it was sent."""
    end: int = Field(examples=[13])
    """The first after them."""
    text: str = Field(examples=["fuck"])
    label: Label = Field(examples=[Label.OFFENSIVE])
    source: Literal["list", "model"]
    """Who found them: a word list, or the model (without them it would call the text CLEAN)."""


class ModerationResult(BaseModel):
    """How a text was judged."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    label: Label = Field(examples=[Label.OFFENSIVE])
    score: float = Field(examples=[0.93])
    """That of the label."""
    scores: dict[Label, float] = Field(examples=[{"CLEAN": 0.04, "OFFENSIVE": 0.93, "HATE": 0.03}])
    """Probabilities; they sum to 1."""
    spans: list[ModerationSpan]
    """What gave offence, in order, where that can be told."""


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


class ModerationAnswer(BaseModel):
    """One result a text, in order, and who judged."""

    model_config = ConfigDict(
        use_attribute_docstrings=True, json_schema_extra={"examples": [_EXAMPLE]}
    )

    results: list[ModerationResult]
    model: str = Field(examples=["bert-finetuned-onnx"])
    threshold: dict[Label, float] = Field(examples=[{"OFFENSIVE": 0.5, "HATE": 0.5}])
    """The least score at which a text gets the label."""


class Health(BaseModel):
    """Whether all parts work."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: Literal["healthy", "degraded"]
    version: str
    parts: dict[str, str]
    workers: int | None
    """Those alive; none: nothing is transcribed. null: Redis does not say."""
    dispatchers: int | None
    """Those alive that reach all that they need; none: no job goes on. null: Redis does not say."""


class ProblemDocument(BaseModel):
    """Problem details (RFC 9457); errors about a value also name field, limit or allowed, value."""

    type: str = Field("about:blank")
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["priority must be one of high, normal, low; got 'urgent'"])
    code: str = Field(examples=["unknown_option"])
