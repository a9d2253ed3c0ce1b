"""Webhook messages arrive: at receivers that fail, hang, redirect or are late, and after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from sqlalchemy import delete, text, update
from standardwebhooks.webhooks import Webhook

from common.db.database import Database
from common.db.endpoints import DeliveryFilter, MessageDelivery, Webhooks
from common.db.tables import Job, WebhookDelivery, WebhookEndpoint
from common.db.vault import Vault, seal_all
from common.db.webhooks import Outcome, write_messages
from common.domain.webhooks import AttemptResult, DeliveryStatus, WebhookEvent
from common.errors import SecretsLocked, SetupProblem
from common.net.egress import Egress
from common.settings import WebhookSettings
from scripts.cli.cli import steno
from tests.support.factories import TENANT, submit_job
from tests.support.service import Start, wait_until, waits_for_a_lock
from tests.system.receiver import Receiver
from worker.dispatcher.pace import Pace
from worker.dispatcher.webhooks import WebhookSender, deliveries_for

FAST = WebhookSettings(retry_delays="0,0,0", pause_after=3)
IMPATIENT = WebhookSettings(timeout=2, retry_delays="0")
NO_KEY = Vault()
"""Secrets are stored in the clear."""
ARRIVED = Outcome(AttemptResult.DELIVERED, 200, None, 5)
ALL = [WebhookEvent.COMPLETED, WebhookEvent.FAILED, WebhookEvent.CANCELLED]


@pytest.fixture
def webhooks(database: Database) -> Webhooks:
    return Webhooks(database, TENANT, NO_KEY)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@contextmanager
def sending(
    database: Database,
    settings: WebhookSettings = FAST,
    *,
    allow: str = "127.0.0.1",
    vault: Vault = NO_KEY,
) -> Iterator[WebhookSender]:
    deliveries = deliveries_for(database, settings, vault)
    sender = WebhookSender(deliveries, Egress(allow), settings)
    sender._pace = Pace(0.2)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def end_job(database: Database, tenant: str = TENANT, url: str | None = None) -> UUID:
    """End a job, and deliver its message."""
    job_id = submit_job(database, tenant=tenant)
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(webhook_url=url))
        write_messages(session, job_id, WebhookEvent.COMPLETED)
    return job_id


def endpoint(webhooks: Webhooks, url: str) -> WebhookEndpoint:
    return webhooks.create(url, ALL, "", limit=100)[0]


def end_leases(database: Database) -> None:
    """As if their time had passed."""
    with database.transaction() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.lease_until.is_not(None))
            .values(lease_until=datetime.now(UTC))
        )


def all_of(webhooks: Webhooks, **which: object) -> list[MessageDelivery]:
    chosen = DeliveryFilter(**which)  # type: ignore[arg-type]
    return webhooks.deliveries(chosen, limit=1000, cursor=None).items


def ended(webhooks: Webhooks, **which: object) -> list[MessageDelivery]:
    """All messages, once all of them have ended."""

    def look() -> list[MessageDelivery] | None:
        found = all_of(webhooks, **which)
        over = all(each.row.status != DeliveryStatus.PENDING for each in found)
        return found if found and over else None

    return wait_until(look, "the end of all messages", 30)


def delivered(database: Database, webhooks: Webhooks, **how: Any) -> MessageDelivery:
    """The only message, once it has ended; ``how`` are arguments of `sending`."""
    with sending(database, **how):
        (delivery,) = ended(webhooks)
    return delivery


def test_a_message_arrives_signed_and_says_what_became_of_the_job(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    made, secret = webhooks.create(f"{receiver.url}/ok", ALL, "", limit=20)
    job_id = end_job(database)
    delivery = delivered(database, webhooks)
    (arrival,) = receiver.arrivals()
    document = Webhook(secret.text).verify(arrival.body, dict(arrival.headers))
    assert document["type"] == "transcription.completed"
    assert document["data"]["job_id"] == str(job_id)
    assert "segments" not in document["data"]
    assert arrival.headers["content-type"] == "application/json"
    assert arrival.message_id == f"msg_{delivery.row.id.hex}"
    assert delivery.row.endpoint_id == made.id
    assert [(it.attempt, it.status_code, it.error) for it in delivery.attempts] == [(1, 200, None)]


def test_a_jobs_own_url_is_notified_with_the_tenants_secret(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    end_job(database, url=f"{receiver.url}/ok")
    delivered(database, webhooks)
    (arrival,) = receiver.arrivals()
    (secret,) = webhooks.secrets(None)
    Webhook(secret.text).verify(arrival.body, dict(arrival.headers))


def test_while_a_secret_is_rotated_receivers_with_either_accept_messages(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    made, old = webhooks.create(f"{receiver.url}/ok", ALL, "", limit=20)
    new, _ = webhooks.rotate(made.id, overlap_s=3600)
    end_job(database)
    delivered(database, webhooks)
    (arrival,) = receiver.arrivals()
    for secret in (old, new):
        Webhook(secret.text).verify(arrival.body, dict(arrival.headers))


@pytest.mark.parametrize(
    ("settings", "path", "status", "codes", "reason"),
    [
        (FAST, "/fail/2", "delivered", [503, 503, 200], None),
        (FAST, "/fail/99", "failed", [503] * 4, "it answered 503"),
        (FAST, "/status/429", "failed", [429] * 4, "it answered 429"),
        (FAST, "/status/404", "failed", [404], "it answered 404"),
        (FAST, "/redirect", "failed", [307], "it answered 307, and redirects are not followed"),
        (IMPATIENT, "/hang", "failed", [None] * 2, "no answer within 2 s"),
        (IMPATIENT, "/late/20", "failed", [None] * 2, "no answer within 2 s"),
        (IMPATIENT, "/drip", "failed", [None] * 2, "no answer within 2 s"),
    ],
)
def test_a_delivery_ends_as_documented(
    database: Database,
    webhooks: Webhooks,
    receiver: Receiver,
    settings: WebhookSettings,
    path: str,
    status: str,
    codes: list[int | None],
    reason: str | None,
) -> None:
    endpoint(webhooks, receiver.url + path)
    end_job(database)
    delivery = delivered(database, webhooks, settings=settings)
    assert delivery.row.status == status
    assert [it.status_code for it in delivery.attempts] == codes
    assert delivery.attempts[-1].error == reason
    assert receiver.arrivals("/inside") == []
    assert {it.message_id for it in receiver.arrivals()} == {f"msg_{delivery.row.id.hex}"}
    assert len(receiver.arrivals()) == len(codes)


def test_a_receiver_that_is_down_is_retried_until_it_is_up(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    with Receiver() as down:
        url = down.url
    made = endpoint(webhooks, f"{url}/ok")
    end_job(database)
    patient = FAST.model_copy(update={"retry_delays": ",".join(["0.1"] * 200)})
    with sending(database, patient):
        wait_until(lambda: len(all_of(webhooks)[0].attempts) >= 2, "two attempts", 30)
        webhooks.change(made.id, url=f"{receiver.url}/ok")
        (delivery,) = ended(webhooks)
    assert delivery.row.status == "delivered"
    assert delivery.attempts[0].status_code is None
    assert delivery.attempts[0].error == "All connection attempts failed"


def test_an_address_that_is_not_public_is_rejected_when_a_message_is_sent(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    """It may have been public when it was saved."""
    endpoint(webhooks, f"{receiver.url}/ok")
    end_job(database)
    delivery = delivered(database, webhooks, allow="")
    assert delivery.row.status == "failed"
    (attempt,) = delivery.attempts
    assert attempt.error == "url is rejected: 127.0.0.1 is an address that is not public"
    assert receiver.arrivals() == []


def test_an_endpoint_whose_messages_fail_is_paused_and_goes_on_when_resumed(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    made = endpoint(webhooks, f"{receiver.url}/status/500")
    for _ in range(3):
        end_job(database)
    with sending(database):
        assert {each.row.status for each in ended(webhooks)} == {"failed"}
        paused = webhooks.endpoint(made.id)
        assert paused.paused_at is not None
        assert paused.paused_reason == "3 messages in a row were given up"

        waiting = end_job(database)
        test = webhooks.test(made.id)  # a test may be sent to one that is paused
        wait_until(
            lambda: any(it.attempts for it in all_of(webhooks) if it.row.id == test.row.id),
            "the test's attempt",
            30,
        )
        (delivery,) = all_of(webhooks, job_id=waiting)
        assert (delivery.row.status, delivery.attempts) == ("pending", [])

        webhooks.change(made.id, url=f"{receiver.url}/ok", paused=False)
        (delivery,) = ended(webhooks, job_id=waiting)
    assert delivery.row.status == "delivered"
    assert webhooks.endpoint(made.id).failures == 0


def test_a_receiver_that_answers_410_pauses_its_endpoint_at_once(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    made = endpoint(webhooks, f"{receiver.url}/status/410")
    end_job(database)
    delivery = delivered(database, webhooks)
    assert delivery.row.status == "failed"
    assert webhooks.endpoint(made.id).paused_reason == "The receiver answered 410 Gone"


def test_a_test_is_tried_once_and_counts_for_nothing(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    made = endpoint(webhooks, f"{receiver.url}/status/500")
    for _ in range(4):
        webhooks.test(made.id)
    with sending(database):
        assert [len(each.attempts) for each in ended(webhooks)] == [1] * 4
    assert webhooks.endpoint(made.id).failures == 0
    assert webhooks.endpoint(made.id).paused_at is None


def test_a_message_is_sent_again_under_its_id_when_it_is_asked_for(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    endpoint(webhooks, f"{receiver.url}/fail/4")
    end_job(database)
    with sending(database):
        (given_up,) = ended(webhooks)
        assert given_up.row.status == "failed"
        webhooks.redeliver(given_up.row.id)
        (delivery,) = ended(webhooks)
    assert delivery.row.status == "delivered"
    assert [it.attempt for it in delivery.attempts] == [1, 2, 3, 4, 5]
    assert len({it.message_id for it in receiver.arrivals()}) == 1


def test_a_receiver_that_hangs_on_a_thousand_messages_delays_no_other(
    database: Database, receiver: Receiver
) -> None:
    job_id = submit_job(database)
    with database.transaction() as session:
        session.add_all(
            WebhookDelivery(
                tenant=TENANT,
                job_id=job_id,
                event=WebhookEvent.COMPLETED,
                url=f"{receiver.url}/hang/{number}",
                payload="{}",
            )
            for number in range(1000)
        )
    others = Webhooks(database, "other", NO_KEY)
    with Receiver("127.0.0.2") as lively:
        endpoint(others, f"{lively.url}/ok")
        hanging = FAST.model_copy(update={"timeout": 60.0, "at_once": 6})
        with sending(database, hanging, allow="127.0.0.0/8"):
            wait_until(lambda: len(receiver.arrivals()) == 4, "all slots of the receiver", 30)
            for _ in range(20):
                end_job(database, "other")
            assert {each.row.status for each in ended(others)} == {"delivered"}
        assert len(receiver.arrivals()) == 4
        assert len(lively.arrivals()) == 20


def test_only_the_current_claim_records_an_outcome(database: Database, webhooks: Webhooks) -> None:
    endpoint(webhooks, "http://receiver.example/")
    end_job(database)
    deliveries = deliveries_for(database, FAST, NO_KEY)
    (lost,) = deliveries.claim(10)
    end_leases(database)
    (current,) = deliveries.claim(10)
    assert deliveries.claim(10) == []
    assert not deliveries.record(lost, Outcome(AttemptResult.REFUSED, 404, "it answered 404", 5))
    assert deliveries.record(current, ARRIVED)
    assert not deliveries.record(current, ARRIVED)
    (delivery,) = all_of(webhooks)
    assert delivery.row.status == "delivered"
    assert [it.attempt for it in delivery.attempts] == [2]


def test_tenants_take_turns_and_no_receiver_has_more_than_its_share(database: Database) -> None:
    for tenant, urls in (("a", "xxxxxxy"), ("b", "z")):
        for letter in urls:
            end_job(database, tenant, f"http://{letter}.example/{letter}")
    deliveries = deliveries_for(database, FAST, NO_KEY)
    first = [each.row.url for each in deliveries.claim(2)]
    assert sorted(first) == ["http://x.example/x", "http://z.example/z"]
    rest = [each.row.url for each in deliveries.claim(100)]
    assert sorted(rest) == ["http://x.example/x"] * 3 + ["http://y.example/y"]
    assert deliveries.claim(100) == []


def test_a_message_outlives_its_job_until_it_has_arrived_and_no_longer(
    database: Database, webhooks: Webhooks, receiver: Receiver
) -> None:
    job_id = end_job(database, url=f"{receiver.url}/ok")
    deliveries = deliveries_for(database, FAST, NO_KEY)
    with database.transaction() as session:
        session.delete(session.get_one(Job, job_id))
    assert deliveries.prune(30) == 0
    with sending(database):
        wait_until(receiver.arrivals, "the message", 30)
        wait_until(lambda: deliveries.prune(30) or not all_of(webhooks), "its end", 30)
    assert all_of(webhooks) == []


def test_old_messages_are_deleted_and_those_of_paused_endpoints_fail(
    database: Database, webhooks: Webhooks
) -> None:
    paused = endpoint(webhooks, "http://paused.example/")
    webhooks.change(paused.id, paused=True)
    end_job(database)
    webhooks.change(paused.id, events=[])
    endpoint(webhooks, "http://busy.example/")
    for _ in range(2):
        end_job(database)
    deliveries = deliveries_for(database, FAST, NO_KEY)
    deliveries.record(deliveries.claim(1)[0], ARRIVED)
    assert deliveries.prune(30) == 0
    long_ago = datetime.now(UTC) - timedelta(days=31)
    with database.transaction() as session:
        session.execute(update(WebhookDelivery).values(created_at=long_ago))
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.ended_at.is_not(None))
            .values(ended_at=long_ago)
        )
    assert deliveries.prune(30) == 1
    left = {each.row.url: each.row.status for each in all_of(webhooks)}
    assert left == {"http://paused.example/": "failed", "http://busy.example/": "pending"}


def test_a_jobs_end_and_its_message_are_one_commit(database: Database, webhooks: Webhooks) -> None:
    endpoint(webhooks, "http://receiver.example/")
    job_id = submit_job(database)

    with suppress(LookupError), database.transaction() as session:
        write_messages(session, job_id, WebhookEvent.FAILED)
        raise LookupError
    assert all_of(webhooks) == []


def test_a_job_ends_also_while_a_subscribed_endpoint_is_deleted(
    database: Database, webhooks: Webhooks, pool: ThreadPoolExecutor
) -> None:
    deleted = endpoint(webhooks, "http://127.0.0.1/deleted")
    with database.transaction() as session:
        session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == deleted.id))
        ending = pool.submit(end_job, database)
        wait_until(lambda: waits_for_a_lock(database), "the end of the job to wait")
    ending.result()
    assert all_of(webhooks) == []


def has_more_than(receiver: Receiver, count: int) -> bool:
    return len(receiver.arrivals("/hang")) > count


def test_nothing_is_lost_when_senders_are_killed_with_messages_in_flight(
    start: Start, webhooks: Webhooks, receiver: Receiver
) -> None:
    service = start(
        EGRESS_ALLOW="127.0.0.1",
        WEBHOOK_TIMEOUT="2",
        WEBHOOK_RETRY_DELAYS=",".join(["0.2"] * 50),
        WEBHOOK_AT_ONCE_EACH="8",
    )
    database = service.database
    hanging = endpoint(webhooks, f"{receiver.url}/hang")
    endpoint(webhooks, f"{receiver.url}/ok")
    jobs = [end_job(database) for _ in range(30)]
    for _ in range(2):
        dispatcher = service.start_dispatcher()
        before = len(receiver.arrivals("/hang"))
        wait_until(partial(has_more_than, receiver, before), "a message in flight", 60)
        dispatcher.kill()
        dispatcher.wait()
        end_leases(database)
    webhooks.change(hanging.id, url=f"{receiver.url}/ok/hung-before")
    service.start_dispatcher()
    found = ended(webhooks)
    assert len(found) == 2 * len(jobs)
    assert {each.row.status for each in found} == {"delivered"}
    arrived = {it.message_id for it in receiver.arrivals("/ok")}
    assert arrived == {f"msg_{each.row.id.hex}" for each in found}
    hung = {it.message_id for it in receiver.arrivals("/hang")}
    assert hung <= {it.message_id for it in receiver.arrivals("/ok/hung-before")}


# --- secrets at rest ----------------------------------------------------------------------------

KEY, NEW_KEY = "k" * 32, "n" * 32


def in_the_clear(database: Database) -> bool:
    """Whether Postgres has a secret that anybody can read."""
    with database.transaction() as session:
        stored = (
            "SELECT secrets::text FROM webhook_endpoints UNION SELECT secrets::text FROM tenants"
        )
        rows = session.scalars(text(stored))
        return any("whsec_" in row for row in rows)


def test_with_a_key_no_secret_is_stored_in_the_clear_and_messages_are_signed(
    database: Database, receiver: Receiver
) -> None:
    vault = Vault([KEY])
    webhooks = Webhooks(database, TENANT, vault)
    made, secret = webhooks.create(f"{receiver.url}/ok", ALL, "", limit=20)
    assert webhooks.secrets(made.id) == [secret]
    replaced = webhooks.rotate(made.id, 3600)
    (own,) = webhooks.secrets(None)
    assert not in_the_clear(database)
    end_job(database, url=f"{receiver.url}/job")
    with sending(database, vault=vault):
        ended(webhooks)
    for arrival in receiver.arrivals():
        signed_with = [own] if arrival.path == "/job" else replaced
        for each in signed_with:
            Webhook(each.text).verify(arrival.body, dict(arrival.headers))


def test_old_secrets_stay_good_as_keys_change(database: Database, webhooks: Webhooks) -> None:
    made, secret = webhooks.create("https://example.com/", ALL, "", limit=20)
    (own,) = webhooks.secrets(None)
    for keys, done in (([KEY], 2), ([NEW_KEY, KEY], 2), ([NEW_KEY], 2)):
        vault = Vault(keys)
        mine = Webhooks(database, TENANT, vault)
        assert (mine.secrets(made.id), mine.secrets(None)) == ([secret], [own])
        assert seal_all(database, vault) == (done, 0)
        assert not in_the_clear(database)
    assert seal_all(database, Vault([KEY])) == (0, 2)


@pytest.mark.parametrize("vault", [Vault(), Vault([NEW_KEY])], ids=["no key", "another key"])
def test_a_lost_key_is_named_and_delays_no_other(
    database: Database, receiver: Receiver, vault: Vault
) -> None:
    locked, _ = Webhooks(database, TENANT, Vault([KEY])).create(
        f"{receiver.url}/locked", ALL, "", limit=20
    )
    webhooks = Webhooks(database, TENANT, vault)
    plain = endpoint(webhooks, f"{receiver.url}/ok")
    with pytest.raises(SecretsLocked, match="SECRETS_KEY"):
        webhooks.secrets(locked.id)
    end_job(database)
    with sending(database, vault=vault):
        both = ended(webhooks)
    outcomes = {each.row.endpoint_id: each for each in both}
    assert outcomes[plain.id].row.status == DeliveryStatus.DELIVERED
    assert outcomes[locked.id].row.status == DeliveryStatus.FAILED
    assert "SECRETS_KEY" in (outcomes[locked.id].attempts[0].error or "")
    assert {arrival.path for arrival in receiver.arrivals()} == {"/ok"}
    (renewed,) = webhooks.rotate(locked.id, 3600)
    assert webhooks.secrets(locked.id) == [renewed]


def test_a_key_that_can_be_guessed_is_rejected() -> None:
    with pytest.raises(SetupProblem, match="SECRETS_KEY"):
        Vault([KEY, "short"])


def test_operators_encrypt_what_was_stored_before(
    database: Database, webhooks: Webhooks, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    _, secret = webhooks.create("https://example.com/", ALL, "", limit=20)
    refused = CliRunner().invoke(steno, ["keys", "encrypt-secrets"])
    assert "SECRETS_KEY is not set" in refused.output
    monkeypatch.setenv("SECRETS_KEY", f" {NEW_KEY} , {KEY}")
    done = CliRunner().invoke(steno, ["keys", "encrypt-secrets"], catch_exceptions=False)
    assert "1 endpoints and tenants" in done.output
    assert not in_the_clear(database)
    (made,) = webhooks.endpoints()
    assert Webhooks(database, TENANT, Vault([NEW_KEY])).secrets(made.id) == [secret]
