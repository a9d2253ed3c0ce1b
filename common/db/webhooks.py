"""The life of a webhook message: written, claimed, sent, and its outcome recorded.

A message is written in the transaction that ends its job. It is claimed like a step, with a token
and a lease that is longer than an attempt. When a sender is killed, another one claims the message
and sends it again under the same id: delivery is at-least-once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import InstrumentedAttribute, Session

from common.db.database import Database
from common.db.tables import (
    NOW,
    Job,
    Tenant,
    Transcription,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from common.db.tallies import count
from common.db.vault import Vault
from common.domain.metrics import WEBHOOK_ATTEMPTS, WEBHOOK_DELIVERIES
from common.domain.webhooks import (
    AttemptResult,
    DeliveryStatus,
    Secret,
    WebhookEvent,
    next_delay_s,
)
from common.errors import SecretsLocked


def write_messages(session: Session, job_id: UUID, event: WebhookEvent) -> None:
    """Write a message for each endpoint that subscribes to the event, and for the job's own URL."""
    job = session.get_one(Job, job_id, populate_existing=True)
    endpoints = session.scalars(
        select(WebhookEndpoint)
        .where(WebhookEndpoint.tenant == job.tenant, WebhookEndpoint.events.contains([event]))
        # Wait for one that is being deleted: a message to it could not be written.
        .with_for_update(read=True, key_share=True)
    ).all()
    receivers: list[tuple[UUID | None, str]] = [(each.id, each.url) for each in endpoints]
    if job.webhook_url is not None:
        receivers.append((None, job.webhook_url))
    payload = message(event, _data(session, job)) if receivers else ""
    session.add_all(
        WebhookDelivery(
            tenant=job.tenant,
            endpoint_id=endpoint_id,
            job_id=job.id,
            event=event,
            url=url,
            payload=payload,
        )
        for endpoint_id, url in receivers
    )


def message(event: WebhookEvent, data: dict[str, Any]) -> str:
    """A message's body."""
    document = {"type": event, "timestamp": datetime.now(UTC).isoformat(), "data": data}
    return json.dumps(document, ensure_ascii=False)


def _data(session: Session, job: Job) -> dict[str, Any]:
    """A "thin" payload (Standard Webhooks): the text is not sent, but fetched with a key."""
    transcription = session.get(Transcription, job.id)
    return {
        "job_id": str(job.id),
        "source_job_id": None if job.source_id is None else str(job.source_id),
        "status": job.status,
        "recording_id": job.client_recording_id,
        "metadata": job.client_metadata,
        "language": (transcription and transcription.detected_language) or job.language,
        "duration_seconds": None if job.units_total is None else job.units_total / 1000,
        "error_code": job.error_code,
        "error_message": job.error_message,
    }


@dataclass(frozen=True, slots=True)
class Sending:
    """A message as it was claimed, until its lease ends, and the secrets that sign it."""

    row: WebhookDelivery
    secrets: tuple[str, ...]
    """Empty: they cannot be decrypted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt; ``error`` says in a few words why it failed."""

    result: AttemptResult
    status_code: int | None
    error: str | None
    duration_ms: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """The operations of a sender on messages, for all tenants."""

    database: Database
    lease_s: float
    delays_s: Sequence[float]
    at_once_each: int
    pause_after: int
    vault: Vault

    def claim(self, limit: int) -> list[Sending]:
        """Claim up to ``limit`` due messages, in turn over tenants and within them over lanes.

        At most ``at_once_each`` messages of a lane are in flight, so that a hanging receiver
        delays only its own lane. Messages to a paused endpoint wait, except tests.
        """
        with self.database.transaction() as session:
            ids = session.scalars(self._fairly(limit)).all()
            if not ids:
                return []
            claimed = session.scalars(
                update(WebhookDelivery)
                .where(WebhookDelivery.id.in_(ids))
                .values(
                    attempt=WebhookDelivery.attempt + 1,
                    token=func.gen_random_uuid(),
                    lease_until=func.clock_timestamp() + timedelta(seconds=self.lease_s),
                )
                .returning(WebhookDelivery)
            ).all()
            return [self._sending(session, delivery) for delivery in claimed]

    def next_due_s(self) -> float | None:
        """Seconds until the next message is due; None: no message is pending."""
        # Each is the first of an index.
        unclaimed = _earliest(WebhookDelivery.due_at).where(_unclaimed())
        claimed = _earliest(WebhookDelivery.lease_until).where(WebhookDelivery.lease_until > NOW)
        due = func.least(unclaimed.scalar_subquery(), claimed.scalar_subquery())
        with self.database.transaction() as session:
            due_s = session.scalar(select(func.extract("epoch", due - func.clock_timestamp())))
            return None if due_s is None else float(due_s)

    def record(self, sending: Sending, outcome: Outcome) -> bool:
        """Record the outcome of an attempt; False if its claim was lost."""
        with self.database.transaction() as session:
            # Locked before its deliveries, as in every other transaction.
            endpoint = sending.row.endpoint_id and session.get(
                WebhookEndpoint, sending.row.endpoint_id, with_for_update={"key_share": True}
            )
            delivery = session.scalar(
                select(WebhookDelivery).where(_held(sending)).with_for_update(key_share=True)
            )
            if delivery is None:
                return False
            session.add(
                WebhookAttempt(
                    delivery_id=delivery.id,
                    attempt=delivery.attempt,
                    status_code=outcome.status_code,
                    error=outcome.error,
                    duration_ms=outcome.duration_ms,
                )
            )
            delivery.token = delivery.lease_until = None
            self._apply(delivery, outcome)
            count(session, WEBHOOK_ATTEMPTS, outcome=outcome.result)
            if delivery.status != DeliveryStatus.PENDING:
                count(session, WEBHOOK_DELIVERIES, outcome=delivery.status)
            if endpoint and delivery.event != WebhookEvent.TEST:
                self._update_endpoint(endpoint, DeliveryStatus(delivery.status), outcome)
            return True

    def release(self, sending: Sending) -> None:
        """Release a message that was not sent; another sender may claim it at once."""
        with self.database.transaction() as session:
            session.execute(
                update(WebhookDelivery).where(_held(sending)).values(token=None, lease_until=None)
            )

    def prune(self, keep_days: int) -> int:
        """Fail messages to paused endpoints, and delete ended ones, after ``keep_days``.

        Ended messages of deleted jobs are deleted at once: they contain the jobs' metadata.
        """
        long_ago = NOW - timedelta(days=keep_days)
        paused = select(WebhookEndpoint.id).where(WebhookEndpoint.paused_at.is_not(None))
        with self.database.transaction() as session:
            given_up = session.scalars(
                update(WebhookDelivery)
                .where(
                    WebhookDelivery.status == DeliveryStatus.PENDING,
                    WebhookDelivery.created_at < long_ago,
                    WebhookDelivery.endpoint_id.in_(paused),
                    _unclaimed(),
                )
                .values(status=DeliveryStatus.FAILED, ended_at=func.clock_timestamp())
                .returning(WebhookDelivery.id)
            ).all()
            if given_up:
                count(session, WEBHOOK_DELIVERIES, len(given_up), outcome=DeliveryStatus.FAILED)
            orphaned = and_(
                WebhookDelivery.job_id.is_(None), WebhookDelivery.event != WebhookEvent.TEST
            )
            ended = delete(WebhookDelivery).where(WebhookDelivery.status != DeliveryStatus.PENDING)
            return sum(
                len(session.scalars(ended.where(which).returning(WebhookDelivery.id)).all())
                # One by one: each has an index.
                for which in (WebhookDelivery.ended_at < long_ago, orphaned)
            )

    # --- inside one transaction ---------------------------------------------------------------

    def _sending(self, session: Session, delivery: WebhookDelivery) -> Sending:
        if delivery.endpoint_id is None:
            stored = secrets_of(session, delivery.tenant, self.vault)
        else:
            stored = session.get_one(WebhookEndpoint, delivery.endpoint_id).secrets
        secrets: list[Secret] = []
        with suppress(SecretsLocked):  # its attempt reports it
            secrets = self.vault.open(stored, datetime.now(UTC))
        return Sending(delivery, tuple(secret.text for secret in secrets))

    def _fairly(self, limit: int) -> Any:
        lane, tenant = WebhookDelivery.lane, WebhookDelivery.tenant
        under_way = and_(
            WebhookDelivery.status == DeliveryStatus.PENDING,
            WebhookDelivery.lease_until > NOW,
        )
        by_lane = select(lane, func.count().label("n")).where(under_way).group_by(lane).subquery()
        by_tenant = (
            select(tenant, func.count().label("n")).where(under_way).group_by(tenant).subquery()
        )
        queued = (
            select(
                WebhookDelivery.id,
                tenant,
                WebhookDelivery.due_at,
                (
                    func.coalesce(by_lane.c.n, 0)
                    + func.row_number().over(
                        partition_by=lane, order_by=(WebhookDelivery.due_at, WebhookDelivery.id)
                    )
                ).label("turn"),
            )
            .outerjoin(by_lane, by_lane.c.lane == lane)
            .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
            .where(_due(), _is_sendable())
            .subquery()
        )
        ranked = (
            select(
                queued.c.id,
                queued.c.due_at,
                (
                    func.coalesce(by_tenant.c.n, 0)
                    + func.row_number().over(
                        partition_by=queued.c.tenant,
                        order_by=(queued.c.turn, queued.c.due_at, queued.c.id),
                    )
                ).label("turn"),
            )
            .outerjoin(by_tenant, by_tenant.c.tenant == queued.c.tenant)
            .where(queued.c.turn <= self.at_once_each)
            .subquery()
        )
        return (
            select(WebhookDelivery.id)
            .join(ranked, ranked.c.id == WebhookDelivery.id)
            # Checked again: the row may have changed while this waited for its lock.
            .where(_due())
            .order_by(ranked.c.turn, ranked.c.due_at)
            .limit(limit)
            .with_for_update(of=WebhookDelivery, skip_locked=True)
        )

    def _apply(self, delivery: WebhookDelivery, outcome: Outcome) -> None:
        now = func.clock_timestamp()
        if outcome.result is AttemptResult.DELIVERED:
            delivery.status, delivery.ended_at = DeliveryStatus.DELIVERED, now
            return
        delivery.failures += 1
        delay_s = None
        if outcome.result is AttemptResult.AGAIN and delivery.event != WebhookEvent.TEST:
            delay_s = next_delay_s(
                self.delays_s,
                delivery.failures,
                luck=random.random(),  # noqa: S311 - it only spreads the load
                asked_s=outcome.retry_after_s,
            )
        if delay_s is None:
            delivery.status, delivery.ended_at = DeliveryStatus.FAILED, now
        else:
            delivery.due_at = now + timedelta(seconds=delay_s)

    def _update_endpoint(
        self, endpoint: WebhookEndpoint, status: DeliveryStatus, outcome: Outcome
    ) -> None:
        if status is DeliveryStatus.DELIVERED:
            endpoint.failures = 0
        elif status is DeliveryStatus.FAILED:
            endpoint.failures += 1
            if outcome.result is AttemptResult.GONE:
                pause(endpoint, "The receiver answered 410 Gone")
            elif endpoint.failures >= self.pause_after:
                pause(endpoint, f"{endpoint.failures} messages in a row were given up")


def secrets_of(session: Session, tenant: str, vault: Vault) -> list[dict[str, Any]]:
    """The stored secrets for the own URLs of a tenant's jobs; created on first use."""
    known = session.scalar(select(Tenant.secrets).where(Tenant.id == tenant))
    if not known:
        row = locked_tenant(session, tenant)
        known = row.secrets = row.secrets or [vault.seal(Secret.new())]
    return list(known)


def locked_tenant(session: Session, tenant: str) -> Tenant:
    """The tenant's row, locked; created if there is none."""
    session.execute(upsert(Tenant).values(id=tenant).on_conflict_do_nothing())
    lock = {"key_share": True}
    return session.get_one(Tenant, tenant, with_for_update=lock, populate_existing=True)


def pause(endpoint: WebhookEndpoint, reason: str) -> None:
    """Pause an endpoint; a paused one keeps its time and reason."""
    if endpoint.paused_at is None:
        endpoint.paused_at, endpoint.paused_reason = datetime.now(UTC), reason


def _earliest(time: InstrumentedAttribute[Any]) -> Select[Any]:
    """The earliest ``time`` of a pending message, due or not."""
    return (
        select(time)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.status == DeliveryStatus.PENDING, _is_sendable())
        .order_by(time)
        .limit(1)
    )


def _is_sendable() -> ColumnElement[bool]:
    """Whether the message's endpoint, if any, is not paused; tests are sent anyway."""
    return or_(WebhookEndpoint.paused_at.is_(None), WebhookDelivery.event == WebhookEvent.TEST)


def _unclaimed() -> ColumnElement[bool]:
    return or_(
        WebhookDelivery.lease_until.is_(None),
        WebhookDelivery.lease_until <= NOW,
    )


def _due() -> ColumnElement[bool]:
    return and_(
        WebhookDelivery.status == DeliveryStatus.PENDING,
        WebhookDelivery.due_at <= NOW,
        _unclaimed(),
    )


def _held(sending: Sending) -> ColumnElement[bool]:
    return and_(
        WebhookDelivery.id == sending.row.id,
        WebhookDelivery.token == sending.row.token,
        WebhookDelivery.status == DeliveryStatus.PENDING,
    )
