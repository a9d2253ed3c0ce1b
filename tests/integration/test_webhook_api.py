"""Endpoints, secrets, messages and URLs to fetch, over HTTP."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from common.db.database import Database
from common.db.tables import Job
from common.db.vault import Vault
from common.db.webhooks import write_messages
from common.domain.webhooks import WebhookEvent
from common.net.egress import Egress
from common.settings import WebhookSettings
from tests.support.factories import submit_job
from tests.support.gateway import GatewayProcess
from tests.support.service import wait_until
from tests.system.receiver import Receiver
from worker.dispatcher.pace import Pace
from worker.dispatcher.webhooks import WebhookSender, deliveries_for

PUBLIC = "https://8.8.8.8/hook"
"""Public by its number, so that no DNS is needed."""
OWN = "127.0.0.3"
"""What of this machine may be reached."""


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"EGRESS_ALLOW": OWN, "WEBHOOK_MAX_ENDPOINTS": "5"}


def create(gateway: GatewayProcess, **fields: Any) -> dict[str, Any]:
    tenant = {"X-Tenant-Id": fields.pop("tenant", "default")}
    answer = gateway.http.post("/api/v1/webhooks", json={"url": PUBLIC} | fields, headers=tenant)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def tenant() -> str:
    return f"tenant-{uuid4().hex}"


def test_an_endpoint_is_created_changed_paused_resumed_and_deleted(gateway: GatewayProcess) -> None:
    made = create(gateway, description="the call centre")
    assert made["secret"].startswith("whsec_")
    assert made["events"] == [
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
    path = f"/api/v1/webhooks/{made['id']}"
    shown = gateway.http.get(path).json()
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert shown in gateway.http.get("/api/v1/webhooks").json()["endpoints"]

    change = {"events": ["transcription.failed"], "paused": True, "url": f"{PUBLIC}/2"}
    changed = gateway.http.patch(path, json=change).json()
    assert (changed["events"], changed["url"]) == (["transcription.failed"], f"{PUBLIC}/2")
    assert (changed["paused"], changed["paused_reason"]) == (True, "It was asked for")
    assert changed["description"] == "the call centre"
    assert gateway.http.patch(path, json={"paused": False}).json()["paused_at"] is None

    assert gateway.http.delete(path).status_code == 204
    assert gateway.http.get(path).status_code == 404
    assert gateway.http.delete(path).status_code == 404


@pytest.mark.parametrize("field", ["url", "webhook_url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2/",
        "http://xn--/",
        "http://2130706434/",
        "http://017700000002/",
        "http://0x7f000002/",
        "http://[::ffff:127.0.0.2]/",
        "http://[::1]/",
        "http://0.0.0.0/",
        "http://169.254.169.254/latest/meta-data/",
        "http://public.example@127.0.0.2/",
        "http://10.1.2.3/",
        "http://localhost/",
        "file:///etc/passwd",
    ],
)
def test_a_url_of_a_private_address_is_rejected_wherever_one_is_accepted(
    gateway: GatewayProcess, url: str, field: str
) -> None:
    endpoint = create(gateway, tenant=tenant())["id"]
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/v1/transcribe", {"json": {"url": PUBLIC} | {field: url}}),
    ]
    if field == "url":
        requests += [
            ("POST", "/api/v1/webhooks", {"json": {"url": url}}),
            ("PATCH", f"/api/v1/webhooks/{endpoint}", {"json": {"url": url}}),
        ]
    else:
        upload = {"files": {"file": ("a.wav", b"RIFF")}, "data": {field: url}}
        requests.append(("POST", "/api/v1/upload", upload))
    for method, path, body in requests:
        answer = gateway.http.request(method, path, **body)
        assert answer.status_code == 422, path
        assert (answer.json()["code"], answer.json()["field"]) == ("url_refused", field)


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        ("webhooks", {}, "missing", "url"),
        ("webhooks", {"events": []}, "out_of_range", "events"),
        ("webhooks", {"events": ["webhook.test"]}, "unknown_option", "events[0]"),
        ("webhooks", {"secret": "whsec_mine"}, "unsupported_option", "secret"),
        ("webhooks", {"description": "a\x00b"}, "out_of_range", "description"),
        ("webhooks", {"url": f"{PUBLIC}/{'a' * 2000}"}, "out_of_range", "url"),
        ("webhooks", {"url": 5}, "out_of_range", "url"),
        ("transcribe", {}, "missing", "url"),
        ("transcribe", {"identify": True}, "option_conflict", "identify"),
        ("transcribe", {"speakers": 2}, "unsupported_option", "speakers"),
        ("transcribe", {"model": "none"}, "unknown_option", "model"),
        ("transcribe", {"language": "xx"}, "unknown_option", "language"),
    ],
)
def test_a_wrong_option_is_named(
    gateway: GatewayProcess, path: str, body: dict[str, Any], code: str, field: str
) -> None:
    whole = {"url": PUBLIC} | body if body else body
    answer = gateway.http.post(f"/api/v1/{path}", json=whole)
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == (code, field)


def test_a_tenant_has_a_limited_number_of_endpoints(gateway: GatewayProcess) -> None:
    name = tenant()
    for _ in range(5):
        create(gateway, tenant=name)
    answer = gateway.http.post(
        "/api/v1/webhooks", json={"url": PUBLIC}, headers={"X-Tenant-Id": name}
    )
    assert answer.status_code == 409
    assert "5 endpoints" in answer.json()["detail"]


@pytest.mark.parametrize("whose", ["endpoint", "tenant"])
def test_a_replaced_secret_stays_valid_for_a_while(gateway: GatewayProcess, whose: str) -> None:
    headers = {"X-Tenant-Id": tenant()}
    base = "/api/v1/webhooks/secret"
    rotate = f"{base}/rotate"
    if whose == "endpoint":
        made = create(gateway, tenant=headers["X-Tenant-Id"])
        base, rotate = (f"/api/v1/webhooks/{made['id']}/{it}" for it in ("secret", "rotate"))
    first = gateway.http.get(base, headers=headers).json()
    assert first["replaced"] == []
    if whose == "tenant":
        others = gateway.http.get(base, headers={"X-Tenant-Id": tenant()}).json()
        assert others["secret"] != first["secret"]
    second = gateway.http.post(rotate, headers=headers).json()
    assert second["secret"] != first["secret"]
    assert [old["secret"] for old in second["replaced"]] == [first["secret"]]
    assert gateway.http.get(base, headers=headers).json() == second
    third = gateway.http.post(rotate, headers=headers, json={"overlap_seconds": 0}).json()
    assert third["replaced"] == []


def test_messages_are_listed_with_their_attempts_page_by_page_and_sent_again(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    name = tenant()
    headers = {"X-Tenant-Id": name}
    settings = WebhookSettings(retry_delays="0")
    deliveries = deliveries_for(gateway_database, settings, Vault())
    sender = WebhookSender(deliveries, Egress(OWN), settings)
    sender._pace = Pace(0.2)
    with Receiver(OWN) as receiver:
        made = create(gateway, tenant=name, url=f"{receiver.url}/fail/2")
        jobs = [submit_job(gateway_database, tenant=name) for _ in range(3)]
        with gateway_database.transaction() as session:
            for job_id in jobs:
                write_messages(session, job_id, WebhookEvent.COMPLETED)
        test = gateway.http.post(f"/api/v1/webhooks/{made['id']}/test", headers=headers)
        assert test.status_code == 202
        assert test.json()["event"] == "webhook.test"
        sender.start()
        try:
            found = wait_until(lambda: _ended(gateway, headers, 4), "the end of all messages")
            assert {each["status"] for each in found} == {"failed"}
            of_jobs = [each for each in found if each["job_id"]]
            assert {each["job_id"] for each in of_jobs} == {str(job_id) for job_id in jobs}
            attempts = of_jobs[0]["attempts"]
            assert [(it["attempt"], it["status_code"]) for it in attempts] == [(1, 503), (2, 503)]
            assert attempts[0]["error"] == "it answered 503"

            again = f"/api/v1/webhooks/deliveries/{of_jobs[0]['id']}/redeliver"
            answer = gateway.http.post(again, headers=headers)
            assert (answer.status_code, answer.json()["status"]) == (202, "pending")
            wait_until(lambda: _ended(gateway, headers, 4, status="delivered"), "its arrival")
        finally:
            sender.stop()
        arrived = receiver.arrivals()
        assert [it.message_id for it in arrived].count(of_jobs[0]["webhook_id"]) == 3

    page = _deliveries(gateway, headers, limit=3)
    rest = _deliveries(gateway, headers, limit=3, cursor=page["next_cursor"])
    pages = page["deliveries"] + rest["deliveries"]
    assert [each["id"] for each in pages] == [each["id"] for each in found]
    assert rest["next_cursor"] is None
    (only,) = _deliveries(gateway, headers, job_id=jobs[1])["deliveries"]
    assert only["job_id"] == str(jobs[1])
    assert len(_deliveries(gateway, headers, endpoint_id=made["id"])["deliveries"]) == 4
    assert _deliveries(gateway, headers, endpoint_id=str(uuid4()))["deliveries"] == []

    path = f"/api/v1/webhooks/{made['id']}"
    gateway.http.patch(path, json={"paused": True}, headers=headers)
    assert gateway.http.post(again, headers=headers).status_code == 409


def _deliveries(gateway: GatewayProcess, headers: dict[str, str], **which: Any) -> dict[str, Any]:
    answer = gateway.http.get("/api/v1/webhooks/deliveries", params=which, headers=headers)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def _ended(
    gateway: GatewayProcess, headers: dict[str, str], count: int, status: str | None = None
) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] = _deliveries(gateway, headers)["deliveries"]
    over = len(found) == count and all(each["status"] != "pending" for each in found)
    return found if over and status in {None, *(each["status"] for each in found)} else None


# --- recordings by URL ----------------------------------------------------------------------------


def test_a_recording_is_named_by_its_url_and_waits_to_be_fetched(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    wanted = {
        "url": "https://8.8.8.8/talk.mp3?signature=hush",
        "language": "vi",
        "recording_id": "call 7",
        "metadata": {"b": 1, "a": [2]},
        "webhook_url": PUBLIC,
        "diarize": False,
    }
    answer = gateway.http.post("/api/v1/transcribe", json=wanted)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["status"], document["estimated_time_seconds"]) == ("PENDING", None)
    with gateway_database.transaction() as session:
        job = session.get_one(Job, document["job_id"])
        assert (job.source_url, job.webhook_url) == (wanted["url"], PUBLIC)
    status = gateway.http.get(f"/api/v1/status/{document['job_id']}")
    assert "hush" not in status.text
    assert status.json()["recording_id"] == "call 7"
    assert "hush" not in gateway.log_file.read_text()
    gateway.http.post(f"/api/v1/jobs/{document['job_id']}/cancel")


def test_the_same_submission_under_one_key_is_one_job(gateway: GatewayProcess) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    first, again = (
        gateway.http.post("/api/v1/transcribe", json={"url": PUBLIC}, headers=headers)
        for _ in range(2)
    )
    assert again.json()["job_id"] == first.json()["job_id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    other = gateway.http.post("/api/v1/transcribe", json={"url": f"{PUBLIC}2"}, headers=headers)
    assert other.status_code == 409
    gateway.http.post(f"/api/v1/jobs/{first.json()['job_id']}/cancel")
