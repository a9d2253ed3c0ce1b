"""Signatures, secrets and the schedule of webhook messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from common.domain.webhooks import (
    MAX_RETRY_AFTER_S,
    AttemptResult,
    Secret,
    good,
    next_delay_s,
    result_of,
    retry_after_s,
    rotated,
    signed_headers,
    webhook_id,
)
from common.settings import WebhookSettings

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
BODY = '{"type": "transcription.completed", "data": {"metadata": "Xin chào"}}'.encode()
DELAYS_S = (30.0, 120.0, 600.0, 3600.0)


def test_only_a_message_that_is_unchanged_and_signed_with_the_secret_is_accepted() -> None:
    secret = Secret.new().text
    headers = signed_headers(uuid4(), BODY, [Secret.new().text, secret], datetime.now(UTC))
    assert Webhook(secret).verify(BODY, headers) == json.loads(BODY)
    for body, signer in (
        (BODY.replace(b"completed", b"failed"), secret),
        (BODY, Secret.new().text),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, signed_headers(uuid4(), BODY, [signer], datetime.now(UTC)))


def test_a_replaced_secret_is_good_until_its_time_is_over_and_no_longer() -> None:
    old = Secret.new()
    secrets = rotated([old], NOW, overlap_s=3600)
    assert good(secrets, NOW + timedelta(seconds=3599))[-1].text == old.text
    assert good(secrets, NOW + timedelta(seconds=3600)) == [secrets[0]]


def test_a_rotation_without_overlap_leaves_one_secret() -> None:
    old = Secret.new()
    (only,) = rotated([old], NOW, overlap_s=0)
    assert only.text != old.text


def test_rotating_again_does_not_keep_the_oldest_secret_longer() -> None:
    first = Secret.new()
    twice = rotated(rotated([first], NOW, overlap_s=60), NOW, overlap_s=3600)
    ends = [NOW + timedelta(seconds=seconds) for seconds in (3600, 60)]
    assert [secret.until for secret in twice] == [None, *ends]


def test_a_secret_survives_being_stored() -> None:
    for secret in rotated([Secret.new()], NOW, overlap_s=60):
        assert Secret.from_json(secret.to_json()) == secret


def test_a_message_has_one_id_however_often_it_is_sent() -> None:
    delivery = UUID("3fa85f64-5717-4562-b3fc-2c963f66afa6")
    assert webhook_id(delivery) == "msg_3fa85f6457174562b3fc2c963f66afa6"
    later = signed_headers(delivery, BODY, [Secret.new().text], NOW + timedelta(hours=1))
    assert later["webhook-id"] == webhook_id(delivery)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (200, AttemptResult.DELIVERED),
        (204, AttemptResult.DELIVERED),
        (301, AttemptResult.REFUSED),
        (307, AttemptResult.REFUSED),
        (400, AttemptResult.REFUSED),
        (404, AttemptResult.REFUSED),
        (408, AttemptResult.AGAIN),
        (410, AttemptResult.GONE),
        (429, AttemptResult.AGAIN),
        (500, AttemptResult.AGAIN),
        (503, AttemptResult.AGAIN),
    ],
)
def test_what_a_receivers_answer_leads_to(status: int, result: AttemptResult) -> None:
    assert result_of(status) is result


@given(st.integers(1, 4), st.floats(0, 1, exclude_max=True))
def test_a_retry_comes_within_a_fifth_of_its_time(failures: int, luck: float) -> None:
    delay_s = next_delay_s(DELAYS_S, failures, luck=luck)
    nominal = DELAYS_S[failures - 1]
    assert delay_s is not None
    assert 0.8 * nominal <= delay_s <= 1.2 * nominal


def test_after_the_last_delay_a_message_is_given_up() -> None:
    assert next_delay_s(DELAYS_S, 5, luck=0.5) is None
    assert next_delay_s((), 1, luck=0.5) is None


def test_a_receiver_may_ask_for_a_longer_delay_but_not_for_ever() -> None:
    assert next_delay_s(DELAYS_S, 1, luck=0.5, asked_s=300) == 300
    assert next_delay_s(DELAYS_S, 1, luck=0.5, asked_s=1) == 30
    assert next_delay_s(DELAYS_S, 1, luck=0.5, asked_s=1e9) == MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        ("soon", None),
        ("-5", None),
        (f"Sat, 14 Mar 2026 15:09:26 +{'9' * 30}", None),
        (None, None),
    ],
)
def test_both_forms_of_retry_after_are_read(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW) == seconds


def test_the_default_schedule_is_the_documented_one() -> None:
    assert WebhookSettings(_env_file=None).delays_s == DELAYS_S  # type: ignore[call-arg]


@pytest.mark.parametrize("text", ["soon", "30,-1", "1;2"])
def test_a_schedule_that_means_nothing_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="retry_delays"):
        WebhookSettings(retry_delays=text)
