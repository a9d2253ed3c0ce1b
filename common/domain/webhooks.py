"""Webhooks: events, signatures, and retries.

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
    """The events of webhook messages."""

    REVIEW = "transcription.review"
    COMPLETED = "transcription.completed"
    FAILED = "transcription.failed"
    CANCELLED = "transcription.cancelled"
    RERUN_COMPLETED = "rerun.completed"
    RERUN_FAILED = "rerun.failed"
    RERUN_CANCELLED = "rerun.cancelled"
    ENHANCEMENT_COMPLETED = "enhancement.completed"
    ENHANCEMENT_FAILED = "enhancement.failed"
    ENHANCEMENT_CANCELLED = "enhancement.cancelled"
    TEST = "webhook.test"


def event_of(kind: str, status: JobStatus) -> WebhookEvent | None:
    """The event of a job of this kind that has come to this status; None: there is none."""
    name = f"{kind}.{status.lower()}"
    return next((event for event in WebhookEvent if event == name), None)


class DeliveryStatus(StrEnum):
    """The status of a message."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


# --- signing ------------------------------------------------------------------------------------

PREFIX = "whsec_"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secret:
    """The key of signatures; ``until``: it was replaced, and expires then.

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
        """Read the output of `to_json`."""
        until = document["until"]
        return cls(document["secret"], until and datetime.fromisoformat(until))


def good(secrets: Iterable[Secret], now: datetime) -> list[Secret]:
    """The valid secrets, newest first."""
    return [secret for secret in secrets if secret.until is None or secret.until > now]


def rotated(secrets: Iterable[Secret], now: datetime, overlap_s: float) -> list[Secret]:
    """A new secret, and the earlier ones, which stay valid for at most ``overlap_s`` seconds."""
    end = now + timedelta(seconds=overlap_s)
    before = [
        Secret(secret.text, end if secret.until is None else min(secret.until, end))
        for secret in secrets
    ]
    return [Secret.new(), *good(before, now)]


def webhook_id(delivery_id: UUID) -> str:
    """The id of a message for its receiver, the same in every attempt."""
    return f"msg_{delivery_id.hex}"


def signed_headers(
    delivery_id: UUID, body: bytes, secrets: Sequence[str], now: datetime
) -> dict[str, str]:
    """The headers that authenticate a message, with one signature for each secret."""
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


# --- attempts and retries -----------------------------------------------------------------------

RETRIED = frozenset({408, 429})
RETRY_AFTER = frozenset({429, 503})
GONE = 410
JITTER = 0.2
MAX_RETRY_AFTER_S = 3600.0


class AttemptResult(StrEnum):
    """The result of an attempt."""

    DELIVERED = "delivered"
    AGAIN = "again"
    REFUSED = "refused"
    """A retry would fail too."""
    GONE = "gone"
    """The receiver wants no more messages."""


def result_of(status: int) -> AttemptResult:
    """The result of an attempt that was answered with ``status``."""
    if 200 <= status < 300:
        return AttemptResult.DELIVERED
    if status >= 500 or status in RETRIED:
        return AttemptResult.AGAIN
    return AttemptResult.GONE if status == GONE else AttemptResult.REFUSED


def next_delay_s(
    delays_s: Sequence[float], failures: int, *, luck: float, asked_s: float | None = None
) -> float | None:
    """Seconds from the ``failures``-th failed attempt (from 1) to the next; None: there is none.

    ``luck`` in [0, 1) varies the delay by a fifth either way, so that messages that failed together
    are not retried together. ``asked_s`` is the receiver's Retry-After.
    """
    if failures > len(delays_s):
        return None
    delay_s = delays_s[failures - 1] * (1 + JITTER * (2 * luck - 1))
    return max(delay_s, min(asked_s or 0.0, MAX_RETRY_AFTER_S))


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, section 10.2.3); None: absent or invalid."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter of an absurd time zone
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
