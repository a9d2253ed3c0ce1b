"""Webhook messages: written with what they tell of, claimed and sent by whoever has time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.db.tables import Job, WebhookDelivery, WebhookEndpoint
from common.domain.webhooks import WebhookEvent


def tell(session: Session, job_id: UUID, event: WebhookEvent) -> None:
    """Write a message about the job to each endpoint that wants it, and to the job's own URL."""
    job = session.get_one(Job, job_id, populate_existing=True)
    endpoints = session.scalars(
        select(WebhookEndpoint).where(
            WebhookEndpoint.tenant == job.tenant, WebhookEndpoint.events.contains([event])
        )
    ).all()
    addressees: list[tuple[UUID | None, str]] = [(each.id, each.url) for each in endpoints]
    if job.webhook_url is not None:
        addressees.append((None, job.webhook_url))
    payload = _payload(job, event) if addressees else ""
    session.add_all(
        WebhookDelivery(
            tenant=job.tenant,
            endpoint_id=endpoint_id,
            job_id=job.id,
            event=event,
            url=url,
            payload=payload,
        )
        for endpoint_id, url in addressees
    )


def _payload(job: Job, event: WebhookEvent) -> str:
    """Standard Webhooks' shape, "thin": what was said is to be had with a key, and is not sent."""
    data = {
        "job_id": str(job.id),
        "status": job.status,
        "recording_id": job.client_recording_id,
        "metadata": job.client_metadata,
        "language": job.detected_language or job.language,
        "duration_seconds": None if job.duration_ms is None else job.duration_ms / 1000,
        "error_code": job.error_code,
        "error_message": job.error_message,
    }
    document = {"type": event, "timestamp": datetime.now(UTC).isoformat(), "data": data}
    return json.dumps(document, ensure_ascii=False)
