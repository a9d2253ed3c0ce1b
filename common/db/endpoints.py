"""Queries of the gateway about webhooks, always within one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.paging import Cursor, Page, beyond, page_of
from common.db.tables import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from common.db.vault import Vault
from common.db.webhooks import locked_tenant, message, pause, secrets_of
from common.domain.webhooks import DeliveryStatus, Secret, WebhookEvent, rotated
from common.errors import Conflict, NotFound, SecretsLocked


@dataclass(frozen=True, slots=True)
class MessageDelivery:
    """A message, and its attempts so far, the oldest first."""

    row: WebhookDelivery
    attempts: Sequence[WebhookAttempt]


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which messages; None: any."""

    endpoint_id: UUID | None = None
    job_id: UUID | None = None
    status: DeliveryStatus | None = None


class Webhooks:
    """The endpoints, messages and secrets of one tenant.

    Methods with an ``endpoint_id`` raise `NotFound` if the tenant has no such endpoint.
    """

    def __init__(self, database: Database, tenant: str, vault: Vault) -> None:
        self._database = database
        self._tenant = tenant
        self._vault = vault

    # --- endpoints ------------------------------------------------------------------------------

    def create(
        self, url: str, events: Sequence[WebhookEvent], description: str, *, limit: int
    ) -> tuple[WebhookEndpoint, Secret]:
        """Create an endpoint with its own secret.

        Raises:
            Conflict: the tenant has ``limit`` endpoints already.
        """
        with self._database.transaction() as session:
            locked_tenant(session, self._tenant)  # serializes concurrent calls
            count = session.scalar(
                select(func.count())
                .select_from(WebhookEndpoint)
                .where(WebhookEndpoint.tenant == self._tenant)
            )
            if count is not None and count >= limit:
                raise Conflict(reason=f"The tenant has {count} endpoints, the maximum")
            secret = Secret.new()
            endpoint = WebhookEndpoint(
                tenant=self._tenant,
                url=url,
                events=list(events),
                description=description,
                secrets=[self._vault.seal(secret)],
            )
            session.add(endpoint)
            session.flush()
            session.refresh(endpoint)
            return endpoint, secret

    def endpoints(self) -> list[WebhookEndpoint]:
        """All of them, the oldest first."""
        with self._database.transaction() as session:
            return list(
                session.scalars(
                    select(WebhookEndpoint)
                    .where(WebhookEndpoint.tenant == self._tenant)
                    .order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)
                )
            )

    def endpoint(self, endpoint_id: UUID) -> WebhookEndpoint:
        """One endpoint; raises `NotFound`."""
        with self._database.transaction() as session:
            return self._endpoint(session, endpoint_id)

    def change(
        self, endpoint_id: UUID, *, paused: bool | None = None, **values: Any
    ) -> WebhookEndpoint:
        """Set columns of an endpoint; a new URL also applies to pending messages.

        ``paused`` False also resets its failures.
        """
        with self._database.transaction() as session:
            endpoint = self._endpoint(session, endpoint_id, lock=True)
            for name, value in values.items():
                setattr(endpoint, name, value)
            if paused:
                pause(endpoint, "It was asked for")
            if paused is False:
                endpoint.paused_at, endpoint.paused_reason, endpoint.failures = None, None, 0
            if "url" in values:
                session.execute(
                    update(WebhookDelivery)
                    .where(
                        WebhookDelivery.endpoint_id == endpoint_id,
                        WebhookDelivery.status == DeliveryStatus.PENDING,
                    )
                    .values(url=values["url"])
                )
            return endpoint

    def delete(self, endpoint_id: UUID) -> None:
        """Delete an endpoint and its messages, pending ones too."""
        with self._database.transaction() as session:
            session.delete(self._endpoint(session, endpoint_id, lock=True))

    # --- secrets --------------------------------------------------------------------------------

    def secrets(self, endpoint_id: UUID | None) -> list[Secret]:
        """The secrets of an endpoint, or (None) of the jobs' own URLs, newest first.

        Raises:
            SecretsLocked: they cannot be decrypted.
        """
        with self._database.transaction() as session:
            if endpoint_id is None:
                stored = secrets_of(session, self._tenant, self._vault)
            else:
                stored = self._endpoint(session, endpoint_id).secrets
            return self._vault.open(stored, datetime.now(UTC))

    def rotate(self, endpoint_id: UUID | None, overlap_s: float) -> list[Secret]:
        """Create a secret; earlier ones stay valid for at most ``overlap_s`` seconds.

        Secrets that cannot be decrypted are dropped.
        """
        with self._database.transaction() as session:
            holder = (
                locked_tenant(session, self._tenant)
                if endpoint_id is None
                else self._endpoint(session, endpoint_id, lock=True)
            )
            now, before = datetime.now(UTC), list[Secret]()
            with suppress(SecretsLocked):
                before = self._vault.open(holder.secrets, now)
            secrets = rotated(before, now, overlap_s)
            holder.secrets = [self._vault.seal(secret) for secret in secrets]
            return secrets

    # --- messages -------------------------------------------------------------------------------

    def deliveries(
        self, which: DeliveryFilter, *, limit: int, cursor: Cursor | None
    ) -> Page[MessageDelivery]:
        """Messages, newest first."""
        asked = {
            WebhookDelivery.endpoint_id: which.endpoint_id,
            WebhookDelivery.job_id: which.job_id,
            WebhookDelivery.status: which.status,
        }
        with self._database.transaction() as session:
            rows = session.scalars(
                select(WebhookDelivery)
                .where(
                    WebhookDelivery.tenant == self._tenant,
                    *(column == value for column, value in asked.items() if value is not None),
                    *beyond(cursor, WebhookDelivery.created_at, WebhookDelivery.id),
                )
                .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
                .limit(limit + 1)
            ).all()
            page = page_of(rows, limit, lambda row: Cursor(row.created_at, row.id))
            return Page(_with_attempts(session, page.items), page.next)

    def test(self, endpoint_id: UUID) -> MessageDelivery:
        """Add a test message to an endpoint, paused or not; it is sent once, without retries."""
        with self._database.transaction() as session:
            endpoint = self._endpoint(session, endpoint_id)
            delivery = WebhookDelivery(
                tenant=self._tenant,
                endpoint_id=endpoint_id,
                event=WebhookEvent.TEST,
                url=endpoint.url,
                payload=message(WebhookEvent.TEST, {"endpoint_id": str(endpoint_id)}),
            )
            session.add(delivery)
            session.flush()
            session.refresh(delivery)
            return MessageDelivery(delivery, [])

    def redeliver(self, delivery_id: UUID) -> MessageDelivery:
        """Send a message again, at once and under the same id, with the retries of a new one.

        Raises:
            NotFound: the tenant has no such message.
            Conflict: its endpoint is paused.
        """
        with self._database.transaction() as session:
            delivery = session.scalar(
                select(WebhookDelivery).where(
                    WebhookDelivery.id == delivery_id, WebhookDelivery.tenant == self._tenant
                )
            )
            if delivery is None:
                raise NotFound(what="delivery", value=delivery_id)
            if delivery.endpoint_id is not None:  # always locked before its message
                endpoint = self._endpoint(session, delivery.endpoint_id, lock=True)
                if endpoint.paused_at is not None and delivery.event != WebhookEvent.TEST:
                    raise Conflict(reason="The endpoint is paused")
            session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.id == delivery_id)
                .values(
                    status=DeliveryStatus.PENDING,
                    failures=0,
                    due_at=func.clock_timestamp(),
                    ended_at=None,
                )
            )
            session.refresh(delivery)
            return _with_attempts(session, [delivery])[0]

    # --- inside one transaction -----------------------------------------------------------------

    def _endpoint(
        self, session: Session, endpoint_id: UUID, *, lock: bool = False
    ) -> WebhookEndpoint:
        statement = select(WebhookEndpoint).where(
            WebhookEndpoint.id == endpoint_id, WebhookEndpoint.tenant == self._tenant
        )
        endpoint = session.scalar(statement.with_for_update(key_share=True) if lock else statement)
        if endpoint is None:
            raise NotFound(what="endpoint", value=endpoint_id)
        return endpoint


def _with_attempts(session: Session, rows: Sequence[WebhookDelivery]) -> list[MessageDelivery]:
    attempts: dict[UUID, list[WebhookAttempt]] = {row.id: [] for row in rows}
    for attempt in session.scalars(
        select(WebhookAttempt)
        .where(WebhookAttempt.delivery_id.in_(attempts))
        .order_by(WebhookAttempt.id)
    ):
        attempts[attempt.delivery_id].append(attempt)
    return [MessageDelivery(row, attempts[row.id]) for row in rows]
