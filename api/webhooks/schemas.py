"""Webhook endpoints, their secrets, and the messages sent to them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from api.http.fields import Document, Name, RequestDocument, Seconds
from api.http.pagination import NextCursor
from common.domain.webhooks import DeliveryStatus
from common.net.egress import MAX_URL_LENGTH

DAY_S = 86_400
Url = Annotated[str, Field(max_length=MAX_URL_LENGTH, examples=["https://example.com/stenopool"])]
Event = Literal[
    "transcription.review",
    "transcription.completed",
    "transcription.failed",
    "transcription.cancelled",
    "rerun.completed",
    "rerun.failed",
    "rerun.cancelled",
    "enhancement.completed",
    "enhancement.failed",
    "enhancement.cancelled",
]
ALL: tuple[Event, ...] = get_args(Event)
Events = Annotated[list[Event], Field(min_length=1, max_length=len(ALL))]


class NewEndpoint(RequestDocument):
    """An endpoint to create."""

    url: Url
    """Where messages are sent, by POST: http or https, and no private address."""
    events: Events = Field(list(ALL))
    """The events to send; by default all."""
    description: Name = ""
    """Your own note."""


class EndpointChange(RequestDocument):
    """Changes to an endpoint; omitted fields stay as they are."""

    url: Url | SkipJsonSchema[None] = None
    """Pending messages go there, too."""
    events: Events | SkipJsonSchema[None] = None
    description: Name | SkipJsonSchema[None] = None
    paused: bool | SkipJsonSchema[None] = None
    """true: hold messages; false: send the held ones."""


class Endpoint(Document):
    """A URL that is notified when jobs end."""

    id: UUID
    url: str = Field(examples=["https://example.com/stenopool"])
    events: list[str] = Field(examples=[["transcription.completed"]])
    description: str
    paused: Annotated[bool, BeforeValidator(bool)] = Field(validation_alias="paused_at")
    """Whether its messages are held."""
    paused_at: datetime | None
    paused_reason: str | None = Field(examples=["10 messages in a row were given up"])
    failures: int
    """Messages that failed since the last delivery."""
    created_at: datetime


class NewlyMade(Endpoint):
    """An endpoint, and the secret that its messages are signed with."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class EndpointList(BaseModel):
    """A tenant's endpoints, oldest first."""

    endpoints: list[Endpoint]


class OldSecret(BaseModel):
    """A replaced secret, which still signs messages beside the new one."""

    secret: str
    until: datetime


class Secrets(BaseModel):
    """The secrets that sign messages (Standard Webhooks, "whsec_" and base64)."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    replaced: list[OldSecret]


class Rotation(RequestDocument):
    """How to rotate a secret."""

    overlap_seconds: int = Field(DAY_S, ge=0, le=30 * DAY_S)
    """How long the previous secrets sign messages, too."""


class Attempt(Document):
    """One delivery attempt."""

    attempt: int
    at: datetime = Field(validation_alias="created_at")
    status_code: int | None = Field(examples=[503])
    """Null: there was no response."""
    error: str | None = Field(examples=["it answered 503"])
    duration_seconds: Seconds = Field(validation_alias="duration_ms")


class DeliveryDocument(Document):
    """A message and its delivery attempts."""

    id: UUID
    webhook_id: str = Field(examples=["msg_3fa85f6457174562b3fc2c963f66afa6"])
    """Its id in the receiver's headers, the same in every attempt."""
    endpoint_id: UUID | None
    """Null: it goes to the job's own webhook_url."""
    job_id: UUID | None
    """Null: a test; or the job has been deleted since."""
    event: str = Field(examples=["transcription.completed"])
    url: str
    status: DeliveryStatus
    """failed: no more attempts follow."""
    created_at: datetime
    next_attempt_at: datetime | None
    """Not before this time; null: no attempt follows."""
    ended_at: datetime | None
    attempts: list[Attempt]


class DeliveryList(Document):
    """Some messages, newest first."""

    deliveries: list[DeliveryDocument]
    next_cursor: NextCursor
