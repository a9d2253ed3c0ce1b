"""Webhook endpoints, their secrets, and the messages sent to them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from api.http.fields import Name
from api.http.pagination import NextCursor
from common.domain.webhooks import DeliveryStatus
from common.egress import MAX_URL_LETTERS

DAY_S = 86_400
Url = Annotated[str, Field(max_length=MAX_URL_LETTERS, examples=["https://example.com/stenopool"])]
Event = Literal["transcription.completed", "transcription.failed", "transcription.cancelled"]
ALL: tuple[Event, ...] = get_args(Event)
Events = Annotated[list[Event], Field(min_length=1, max_length=len(ALL))]


class NewEndpoint(BaseModel):
    """An endpoint to make."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    url: Url
    """Where messages are sent, by POST: http or https, and no private address."""
    events: Events = list(ALL)
    """What it is told of; by default all there is."""
    description: Name = ""
    """For people."""


class EndpointChange(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    url: Url | SkipJsonSchema[None] = None
    """Messages that wait go there, too."""
    events: Events | SkipJsonSchema[None] = None
    description: Name | SkipJsonSchema[None] = None
    paused: bool | SkipJsonSchema[None] = None
    """true: messages wait; false: those that waited are sent."""


class Endpoint(BaseModel):
    """A URL that is told of the ends of jobs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: UUID
    url: str = Field(examples=["https://example.com/stenopool"])
    events: list[str] = Field(examples=[["transcription.completed"]])
    description: str
    paused: bool
    """Whether its messages wait."""
    paused_at: datetime | None
    paused_reason: str | None = Field(examples=["10 messages in a row were given up"])
    failures: int
    """Messages given up since the last one that arrived."""
    created_at: datetime


class NewlyMade(Endpoint):
    """An endpoint, and the secret that its messages are signed with."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class EndpointList(BaseModel):
    """A tenant's endpoints, the oldest first."""

    endpoints: list[Endpoint]


class OldSecret(BaseModel):
    """A secret that was replaced, and signs messages, beside the new one, for a while."""

    secret: str
    until: datetime


class Secrets(BaseModel):
    """What messages are signed with (Standard Webhooks, "whsec_" and base64)."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    replaced: list[OldSecret]


class Rotation(BaseModel):
    """How a secret is replaced."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    overlap_seconds: int = Field(DAY_S, ge=0, le=30 * DAY_S)
    """For how long the secrets before sign messages, too."""


class Attempt(BaseModel):
    """How one attempt went."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    attempt: int
    at: datetime
    status_code: int | None = Field(examples=[503])
    """Null: there was no answer."""
    error: str | None = Field(examples=["it answered 503"])
    duration_seconds: float


class DeliveryDocument(BaseModel):
    """A message, and how it went."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: UUID
    webhook_id: str = Field(examples=["msg_3fa85f6457174562b3fc2c963f66afa6"])
    """What the receiver knows it by, in every attempt."""
    endpoint_id: UUID | None
    """Null: it goes to the job's own webhook_url."""
    job_id: UUID | None
    """Null: a test; or the job has been deleted since."""
    event: str = Field(examples=["transcription.completed"])
    url: str
    status: DeliveryStatus
    """failed: it was given up."""
    created_at: datetime
    next_attempt_at: datetime | None
    """No sooner, that is; null: there will be none."""
    ended_at: datetime | None
    attempts: list[Attempt]


class DeliveryList(BaseModel):
    """Some messages, the newest first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    deliveries: list[DeliveryDocument]
    next_cursor: NextCursor
