"""Enrolled voices."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from api.http.fields import Document, Omittable, OneLine, Prose, RequestDocument
from api.http.pagination import NextCursor


class Consent(RequestDocument):
    """The person's agreement to be recognized."""

    by: OneLine = Field(examples=["Trần Thị Lan"])
    """Who gave it: the person, or who may agree for them."""
    note: Prose | None = Field(None, examples=["Signed form 12"])
    """Where it is to be found, for instance."""


class NewVoice(RequestDocument):
    """A person to enrol, from a recording in which they speak."""

    name: OneLine = Field(examples=["Lan"])
    """The name that speakers with this voice get. Several voices of one name are one person."""
    job_id: UUID
    """A COMPLETED job with `diarize`, or one in REVIEW."""
    speaker: Annotated[str, Field(max_length=200)] | None = Field(None, examples=["SPEAKER_00"])
    """Who it is in that job; may be left out where only one person speaks."""
    consent: Consent


class VoiceChange(RequestDocument):
    """Changes to a voice; omitted fields stay as they are."""

    name: Omittable[OneLine] = Field(None, examples=["Lan"])
    """Texts keep the name that they have."""


class RecordedConsent(Document):
    """The agreement to be recognized, as it was recorded."""

    by: str = Field(examples=["Trần Thị Lan"])
    note: str | None
    at: datetime
    key_id: str | None
    """The API key that enrolled the voice; null: none was required."""


class VoiceDocument(Document):
    """An enrolled voice. What it is recognized by is not shown."""

    id: UUID
    name: str = Field(examples=["Lan"])
    seconds: float = Field(examples=[42.5])
    """How much speech it is made of."""
    network: str
    """The name of the network that described it. Recordings that are described by another one are
    not searched for it: enrol it again."""
    telephone: bool
    """Whether it came over a telephone, which changes a voice: enrol the person from another
    recording as well."""
    consent: RecordedConsent
    job_id: UUID
    """The job that it was enrolled from, which may be deleted."""
    speaker: str = Field(examples=["SPEAKER_00"])
    created_at: datetime


class VoiceList(BaseModel):
    """Some voices, newest first."""

    voices: list[VoiceDocument]
    next_cursor: NextCursor
