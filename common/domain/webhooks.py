"""Webhooks: what is told, and when a message is sent again."""

from __future__ import annotations

from enum import StrEnum

from common.domain.job import JobStatus


class WebhookEvent(StrEnum):
    """What an endpoint can be told of."""

    COMPLETED = "transcription.completed"
    FAILED = "transcription.failed"
    CANCELLED = "transcription.cancelled"


EVENT_OF: dict[JobStatus, WebhookEvent] = {
    JobStatus.COMPLETED: WebhookEvent.COMPLETED,
    JobStatus.FAILED: WebhookEvent.FAILED,
    JobStatus.CANCELLED: WebhookEvent.CANCELLED,
}


class DeliveryStatus(StrEnum):
    """Where a message stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
