"""Webhooks: what is told, how it is signed, and when a message is sent again.

Messages and signatures are those of Standard Webhooks (standardwebhooks.com, version 1).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets as randomness
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from common.domain.job import JobStatus


class WebhookEvent(StrEnum):
    """What is told."""

    COMPLETED = "transcription.completed"
    FAILED = "transcription.failed"
    CANCELLED = "transcription.cancelled"
    TEST = "webhook.test"


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


# --- signing ------------------------------------------------------------------------------------

PREFIX = "whsec_"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secret:
    """What messages are signed with; ``until``: it was replaced, and is good no longer than that.

    ``text`` is "whsec_" and base64.
    """

    text: str
    until: datetime | None = None

    @classmethod
    def new(cls) -> Self:
        key = randomness.token_bytes(SECRET_BYTES)
        return cls(PREFIX + base64.b64encode(key).decode())

    def to_json(self) -> dict[str, Any]:
        return {"secret": self.text, "until": self.until and self.until.isoformat()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """What `to_json` made."""
        until = document["until"]
        return cls(document["secret"], until and datetime.fromisoformat(until))


def good(secrets: Iterable[Secret], now: datetime) -> list[Secret]:
    """Those to sign with, the newest first."""
    return [secret for secret in secrets if secret.until is None or secret.until > now]


def rotated(secrets: Iterable[Secret], now: datetime, overlap_s: float) -> list[Secret]:
    """A new secret, and those before it, which stay good for ``overlap_s`` seconds at most."""
    end = now + timedelta(seconds=overlap_s)
    before = [
        Secret(secret.text, end if secret.until is None else min(secret.until, end))
        for secret in secrets
    ]
    return [Secret.new(), *good(before, now)]


def webhook_id(delivery_id: UUID) -> str:
    """What a receiver knows a message by, however often it comes."""
    return f"msg_{delivery_id.hex}"


def signed_headers(
    delivery_id: UUID, body: bytes, secrets: Sequence[str], now: datetime
) -> dict[str, str]:
    """The headers that prove where a message comes from, one signature a secret."""
    name, timestamp = webhook_id(delivery_id), str(int(now.timestamp()))
    message = b".".join((name.encode(), timestamp.encode(), body))
    return {
        "webhook-id": name,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, message) for secret in secrets),
    }


def _signature(secret: str, message: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, message, hashlib.sha256)).decode()


# --- what an attempt comes to ------------------------------------------------------------------

RETRIED = frozenset({408, 429})
RETRY_AFTER = frozenset({429, 503})
GONE = 410
JITTER = 0.2
MAX_RETRY_AFTER_S = 3600.0


class AttemptResult(StrEnum):
    """What follows from an attempt."""

    DELIVERED = "delivered"
    AGAIN = "again"
    REFUSED = "refused"
    """It would fail every time."""
    GONE = "gone"
    """The receiver wants no messages any more."""


def result_of(status: int) -> AttemptResult:
    """What a receiver means by its answer."""
    if 200 <= status < 300:
        return AttemptResult.DELIVERED
    if status >= 500 or status in RETRIED:
        return AttemptResult.AGAIN
    return AttemptResult.GONE if status == GONE else AttemptResult.REFUSED


def next_delay_s(
    delays_s: Sequence[float], failures: int, *, luck: float, asked_s: float | None = None
) -> float | None:
    """Seconds from the ``failures``-th failed attempt (from 1) to the next; None: there is none.

    ``luck`` in [0, 1) spreads the delay by a fifth either way, so that what failed together does
    not come back together. ``asked_s`` is what the receiver asked for by Retry-After.
    """
    if failures > len(delays_s):
        return None
    delay_s = delays_s[failures - 1] * (1 + JITTER * (2 * luck - 1))
    return max(delay_s, min(asked_s or 0.0, MAX_RETRY_AFTER_S))


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); None: none it says."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter of an absurd time zone
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
