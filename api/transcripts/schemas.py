"""The documents with a recording's text."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.http.fields import Document
from api.http.pagination import NextCursor
from common.domain.job import JobStatus
from common.domain.moderation import Label
from common.domain.transcript import Origin


class ResultSegment(BaseModel):
    """A subtitle-sized piece of text."""

    id: int
    start: float
    end: float
    text: str
    language: str
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float
    speaker: str | None = Field(examples=["SPEAKER_00"])
    """The id of who says it; null where that is not known, or the job has neither `diarize` nor
    separate channels."""
    channel: int | None = Field(examples=[None])
    """The channel, from 0, where `channels` are transcribed separately. Then segments of different
    channels may overlap; all are in the order of their starts."""
    flags: list[str]


class ResultWord(BaseModel):
    """A word and its times, in seconds."""

    word: str
    start: float
    end: float
    probability: float
    speaker: str | None
    estimated: bool = Field(examples=[False])
    """Whether its times are interpolated, as the text was changed and not aligned to the audio
    since."""


class TranscriptSegment(ResultSegment):
    """A segment, and its words."""

    words: list[ResultWord]


class ResultSpeaker(Document):
    """Somebody who speaks in a recording."""

    id: str = Field(examples=["SPEAKER_00"])
    """Counted in the order in which they first speak."""
    name: str | None = Field(examples=["Lan"])
    """As `PATCH /jobs/{job_id}/speakers` named them, or the voice that they were identified by."""
    voice_id: UUID | None
    """The enrolled voice that gave the name, which may be deleted since; null where there is none,
    or a person has changed the name."""
    similarity: float | None = Field(examples=[0.81])
    """Of the speaker and that voice: a cosine, at most 1."""
    seconds: float
    """How long they speak, also where somebody else does at the same time."""
    words: int


class JudgedSpan(Document):
    """An offensive part of a segment."""

    text: str = Field(examples=["fuck"])
    start: float | None = Field(examples=[12.34])
    """Start of its first word, in seconds; null where words have no times."""
    end: float | None = Field(examples=[12.61])
    label: Label = Field(examples=[Label.OFFENSIVE])
    source: Literal["list", "model"]
    """What found it: a word list, or the model (which would label the segment CLEAN without it)."""


class JudgedSegment(Document):
    """A segment's label."""

    id: int
    """The segment's id."""
    text: str
    label: Label = Field(examples=[Label.OFFENSIVE])
    score: float = Field(examples=[0.93])
    """The label's score."""
    scores: dict[Label, float] = Field(examples=[{"CLEAN": 0.04, "OFFENSIVE": 0.93, "HATE": 0.03}])
    """Probabilities; they sum to 1."""
    start: float
    """In seconds."""
    end: float
    spans: list[JudgedSpan]
    """The offensive parts, in order, where they could be located."""


class ModerationSummary(Document):
    """The moderated segments by label."""

    label: Label | None = Field(examples=[Label.OFFENSIVE])
    """The worst label; null where there are no segments."""
    counts: dict[Label, int] = Field(examples=[{"CLEAN": 40, "OFFENSIVE": 2, "HATE": 0}])
    """Segments."""
    seconds: dict[Label, float] = Field(examples=[{"CLEAN": 180.5, "OFFENSIVE": 6.2, "HATE": 0}])
    """Their total duration."""


class ResultModeration(Document):
    """The labels of the segments, and the model that gave them.

    Segments whose moderation failed are absent (warning `moderation_failed`). Where models or
    thresholds changed during the job (warning `moderated_by_several_models`), the first ones are
    reported here, all of them in the manifest.
    """

    results: list[JudgedSegment]
    summary: ModerationSummary
    speakers: dict[str, ModerationSummary] | None
    """The segments of each speaker by label; null where the job has no speakers."""
    model: str | None = Field(examples=["bert-finetuned-onnx"])
    """Null where nothing was moderated."""
    threshold: dict[Label, float] | None = Field(examples=[{"OFFENSIVE": 0.5, "HATE": 0.5}])
    """The lowest score at which a text gets the label."""


class Result(Document):
    """A recording's text."""

    job_id: UUID
    status: JobStatus = Field(examples=["COMPLETED"])
    text: str = Field(examples=["Xin chào các bạn."])
    word_count: int
    duration_seconds: float
    language: str = Field(examples=["vi"])
    language_probabilities: dict[str, float] | None = Field(examples=[{"vi": 0.97, "th": 0.01}])
    """The detected languages: with `language=auto`, and where another language is spoken than the
    requested one (warning `language_mismatch`)."""
    completed_at: datetime | None
    download_url: str | None
    revision: int | None = Field(examples=[1])
    """Of the transcript, the newest; null until there is one."""
    segments: list[ResultSegment]
    words: list[ResultWord]
    speakers: list[ResultSpeaker] | None
    """In the order in which they first speak; null where the job has neither `diarize` nor separate
    channels, and until it is COMPLETED."""
    moderation: ResultModeration | None
    """Null where the job is not moderated."""
    warnings: list[str]
    manifest: dict[str, Any] | None
    recording_id: str | None
    """Your own name for the recording."""
    metadata: dict[str, Any] | None
    """Your own, unchanged."""
    delete_at: datetime | None
    """When the job will be deleted with all its data; null if never."""


class RevisionDocument(Document):
    """A revision of a transcript, without its text."""

    revision: int = Field(examples=[2])
    origin: Origin = Field(examples=[Origin.EDIT])
    key_id: str | None
    """The API key of who made it; null: a worker did, or none was required."""
    note: str | None = Field(examples=["Names corrected"])
    created_at: datetime
    word_count: int
    changes: list[dict[str, Any]]
    """What it changed, in order of time: `op` (replace, split, join, delete, insert) and the
    segments `before` and `after`; where a text changed, `words` has it in pieces, each of which is
    equal, delete or insert. A change of speakers' names is the op speakers."""


class RevisionPage(BaseModel):
    """Some revisions, the newest first."""

    revisions: list[RevisionDocument]
    next_cursor: NextCursor


class EditableTranscript(RevisionDocument):
    """A revision with its text, as `PATCH` can change it; offensive words are not masked."""

    job_id: UUID
    language: str = Field(examples=["vi"])
    duration_seconds: float
    segments: list[TranscriptSegment]
    speakers: list[ResultSpeaker] | None
    """As in the result."""
    refinement: Literal["pending", "running", "done", "failed"] | None
    """Of the newest revision: whether a worker has moderated its new text, aligned its new words,
    and written its files; null where there is nothing to do, and in earlier ones."""


class TranscriptDifference(BaseModel):
    """What to change in one revision to get another."""

    old: int
    new: int
    changes: list[dict[str, Any]]
    """As those of a revision."""
