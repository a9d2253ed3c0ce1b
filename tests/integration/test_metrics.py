"""The metrics for Prometheus."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from math import inf
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from sqlalchemy import text

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.keys import Keys, Tenants
from common.db.streams import Streams
from common.db.usage import NO_QUOTA
from common.db.vault import Vault
from common.db.webhooks import Deliveries, Outcome
from common.domain.keys import Scope
from common.domain.metrics import COUNTERS, HISTOGRAMS
from common.domain.webhooks import AttemptResult
from common.errors import DecodeFailed, EngineFailed
from common.redis import presence
from common.settings import ROOT
from tests.support.factories import (
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    new_final,
    open_stream,
    plan_chunks,
    submit_job,
)
from tests.support.gateway import GatewayProcess
from tests.support.s3 import cut_line_to
from tests.support.service import wait_until

OPERATOR = "the-operators-own-key-0123456789"
BASE = {"engine": "faster-whisper", "model": "base"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"GATEWAY_API_KEY": OPERATOR, "METRICS_OPEN": "true", "API_WORKERS": "2"}


@pytest.fixture
def database(gateway_database: Database) -> Iterator[Database]:
    yield gateway_database
    with gateway_database.transaction() as session:
        session.execute(
            text("TRUNCATE jobs, recordings, stream_sessions, tallies, tenants CASCADE")
        )


def scrape(gateway: GatewayProcess) -> Samples:
    answer = gateway.http.get("/metrics")
    assert answer.status_code == HTTPStatus.OK
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """A sample's; 0 as long as there is none."""
    return samples.get((f"stenopool_{name}", frozenset(labels.items())), 0.0)


def exists(samples: Samples, name: str, **labels: str) -> bool:
    """Whether there is a sample that says 0."""
    return samples.get((f"stenopool_{name}", frozenset(labels.items()))) == 0


def test_a_job_is_counted_until_its_end(gateway: GatewayProcess, database: Database) -> None:
    Tenants(database).put(TENANT, tier="gold")
    steps = make_steps(database)
    submit_job(database)
    waiting = scrape(gateway)
    assert value(waiting, "jobs_submitted_total", tier="gold", **BASE) == 1
    assert value(waiting, "jobs", status="pending") == 1
    assert value(waiting, "steps_waiting", kind="plan", priority="normal") == 1
    assert value(waiting, "steps_waiting_oldest_seconds", kind="plan", priority="normal") > 0

    plan_chunks(steps, 1)
    claim = claim_next(steps)
    running = scrape(gateway)
    assert value(running, "jobs", status="pending") == 0
    assert value(running, "jobs", status="processing") == 1
    assert value(running, "steps_running", kind="transcribe") == 1
    finish_chunk(steps, claim)
    finish_merge(steps, claim_next(steps))

    done = scrape(gateway)
    assert value(done, "jobs", status="processing") == 0
    assert value(done, "jobs_ended_total", status="completed", tier="gold", **BASE) == 1
    assert value(done, "audio_transcribed_seconds_total", tier="gold", **BASE) == 20
    engine = {"stage": "engine", **BASE}
    assert value(done, "job_stage_seconds_count", **engine) == 1
    assert value(done, "job_stage_seconds_sum", **engine) == pytest.approx(0.2)
    assert value(done, "job_stage_seconds_bucket", le="0.1", **engine) == 0
    assert value(done, "job_stage_seconds_bucket", le="0.25", **engine) == 1
    assert value(done, "job_stage_seconds_bucket", le="+Inf", **engine) == 1
    assert value(done, "job_stage_rtf_sum", **engine) == pytest.approx(0.01)
    assert value(done, "job_stage_rtf_bucket", le="0.01", **engine) == 1
    assert value(done, "job_stage_seconds_count", stage="moderation", **BASE) == 0
    assert value(done, "job_stage_seconds_count", stage="wall", **BASE) == 1


def test_failures_cancellations_retries_and_lost_leases_are_counted_by_their_reason(
    gateway: GatewayProcess, database: Database
) -> None:
    steps = make_steps(database, max_retries=1)
    submit_job(database)
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, EngineFailed(reason="it broke"))
    claim_next(steps)
    with database.transaction() as session:
        session.execute(text("UPDATE steps SET lease_until = now() - interval '1 second'"))
    assert steps.rescue_expired()
    claim = claim_next(steps)
    steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="nothing in it"))
    Jobs(database, TENANT).cancel(submit_job(database))

    samples = scrape(gateway)
    assert value(samples, "step_retries_total", kind="plan", code="engine_failed") == 1
    assert value(samples, "step_retries_total", kind="plan", code="worker_lost") == 1
    assert value(samples, "leases_expired_total", kind="plan") == 1
    assert value(samples, "job_failures_total", code="decode_failed", **BASE) == 1
    assert value(samples, "jobs_ended_total", status="failed", tier="standard", **BASE) == 1
    assert value(samples, "jobs_ended_total", status="cancelled", tier="standard", **BASE) == 1


def test_messages_are_counted_by_how_they_went(gateway: GatewayProcess, database: Database) -> None:
    deliveries = Deliveries(
        database, lease_s=30, delays_s=[0, 0], at_once_each=4, pause_after=10, vault=Vault()
    )
    jobs = Jobs(database, TENANT)
    jobs.cancel(submit_job(database, webhook_url="https://receiver.invalid/hook"))
    assert value(scrape(gateway), "webhook_deliveries_due") == 1
    (sending,) = deliveries.claim(1)
    assert deliveries.record(sending, Outcome(AttemptResult.AGAIN, 503, "it said 503", 5))
    (sending,) = deliveries.claim(1)
    assert deliveries.record(sending, Outcome(AttemptResult.DELIVERED, 200, None, 5))
    assert not deliveries.record(sending, Outcome(AttemptResult.DELIVERED, 200, None, 5))

    samples = scrape(gateway)
    assert value(samples, "webhook_attempts_total", outcome="again") == 1
    assert value(samples, "webhook_attempts_total", outcome="delivered") == 1
    assert value(samples, "webhook_deliveries_total", outcome="delivered") == 1
    assert value(samples, "webhook_deliveries_due") == 0


def test_a_stream_is_counted_until_its_end(gateway: GatewayProcess, database: Database) -> None:
    streams = Streams(database, TENANT)
    stream_id = open_stream(database)
    begun = scrape(gateway)
    assert value(begun, "streams_open") == 1
    assert value(begun, "streams_opened_total", **BASE) == 1
    # Or else the first would be no increase.
    assert exists(begun, "streams_ended_total", outcome="completed", **BASE)
    assert exists(begun, "streams_ended_total", outcome="interrupted", **BASE)
    assert exists(begun, "stream_audio_seconds_total", **BASE)

    now = {"engine": "zipformer", "model": "small", "language": "vi"}
    streams.beat(stream_id, audio_ms=1_500, **BASE, language="en", quota=NO_QUOTA)
    for _ in range(2):
        streams.beat(stream_id, audio_ms=4_000, **now, quota=NO_QUOTA)
        streams.add(stream_id, [new_final(1, latency_ms=200), new_final(2, latency_ms=700)])
        streams.close(stream_id, audio_ms=4_500, outcome="completed")

    done = scrape(gateway)
    small = {"engine": "zipformer", "model": "small"}
    assert value(done, "streams_open") == 0
    assert value(done, "streams_ended_total", outcome="completed", **small) == 1
    assert value(done, "stream_audio_seconds_total", **BASE) == 1.5
    assert value(done, "stream_audio_seconds_total", **small) == 3
    assert value(done, "stream_latency_seconds_count", **BASE) == 2
    assert value(done, "stream_latency_seconds_sum", **BASE) == pytest.approx(0.9)
    assert value(done, "stream_latency_seconds_bucket", le="0.2", **BASE) == 1


def test_requests_are_counted_by_their_route_over_all_processes(gateway: GatewayProcess) -> None:
    route = {"method": "GET", "route": "/api/v1/status/{job_id}"}
    asked = 40

    def answered() -> float:
        return value(scrape(gateway), "http_requests_total", status="404", **route)

    def ask(_: int) -> int:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        url = f"/api/v1/status/{uuid4()}"
        return gateway.http.get(url, headers=headers | {"Connection": "close"}).status_code

    before = answered()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(asked))) == {HTTPStatus.NOT_FOUND}
    for _ in range(4):  # whichever process is asked
        assert answered() == before + asked
    samples = scrape(gateway)
    assert value(samples, "http_response_seconds_count", **route) == before + asked
    gateway.http.get(f"/{uuid4()}")
    unknown = {"method": "GET", "route": "none", "status": "404"}
    assert value(scrape(gateway), "http_requests_total", **unknown) >= 1


def test_the_first_of_a_kind_is_an_increase(gateway: GatewayProcess, database: Database) -> None:
    before = scrape(gateway)
    assert exists(before, "leases_expired_total", kind="transcribe")
    one = {"tier": "standard", **BASE}
    assert not exists(before, "jobs_ended_total", status="failed", **one)
    submit_job(database)
    after = scrape(gateway)
    for status in ("completed", "failed", "cancelled"):
        assert exists(after, "jobs_ended_total", status=status, **one)
    assert exists(after, "audio_transcribed_seconds_total", **one)


def test_space_and_connections_are_measured(gateway: GatewayProcess, database: Database) -> None:
    samples = scrape(gateway)
    size = shutil.disk_usage(gateway.folder)
    assert value(samples, "disk_bytes") == size.total
    assert 0 < value(samples, "disk_free_bytes") < size.total
    assert value(samples, "redis_memory_bytes") > 100_000
    assert value(samples, "redis_memory_limit_bytes") == inf  # the tests' Redis has none
    with database.transaction() as session:
        limit = int(session.execute(text("SHOW max_connections")).scalar_one())
    assert value(samples, "database_connections_limit") == limit
    assert 1 <= value(samples, "database_connections") <= limit
    assert value(samples, "database_bytes") > 1_000_000


def test_running_dispatchers_are_counted(gateway: GatewayProcess) -> None:
    assert value(scrape(gateway), "dispatchers") == 0
    with Redis.from_url(gateway.redis_url) as redis:
        presence.report_dispatcher(redis, "the-tests-one")
        assert value(scrape(gateway), "dispatchers") == 1
        presence.remove_dispatcher(redis, "the-tests-one")
    assert value(scrape(gateway), "dispatchers") == 0


def test_metrics_name_no_tenant_and_no_job(gateway: GatewayProcess, database: Database) -> None:
    job_id = submit_job(database)
    gateway.http.get(f"/api/v1/status/{job_id}", headers={"Authorization": f"Bearer {OPERATOR}"})
    metrics = gateway.http.get("/metrics").text
    assert str(job_id) not in metrics
    assert TENANT not in metrics


def test_openmetrics_is_served_to_clients_that_accept_it(gateway: GatewayProcess) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = gateway.http.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert gateway.http.get("/metrics").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("file", ["grafana/stenopool.json", "prometheus/alerts.yml"])
def test_dashboard_and_alerts_use_metrics_that_exist(gateway: GatewayProcess, file: str) -> None:
    known = {
        family.name.removesuffix("_total")
        for family in text_string_to_metric_families(gateway.http.get("/metrics").text)
    }
    assert {metric.name for metric in (*COUNTERS, *HISTOGRAMS)} <= known
    asked = set(re.findall(r"stenopool_[a-z_]+", (ROOT / "docker" / file).read_text()))
    assert asked
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked} <= known


def test_the_dashboard_has_a_data_source_variable_and_complete_panels() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/stenopool.json").read_text())
    (variable,) = dashboard["templating"]["list"]
    assert variable["type"] == "datasource"
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["expr"].count("{") == target["expr"].count("}")


def test_where_keys_are_required_metrics_need_the_scope_admin(
    alone: Callable[..., GatewayProcess], database_url: str
) -> None:
    gateway = alone(GATEWAY_API_KEY=OPERATOR)
    with Database(database_url) as database:
        reader, admin = (
            Keys(database, "acme").create("a test's", [scope])[1].reveal()
            for scope in (Scope.READ, Scope.ADMIN)
        )

    def ask(key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return gateway.http.get("/metrics", headers=headers).status_code

    assert ask(None) == HTTPStatus.UNAUTHORIZED
    assert ask(reader) == HTTPStatus.FORBIDDEN
    assert ask(admin) == ask(OPERATOR) == HTTPStatus.OK


def test_while_postgres_is_unavailable_the_other_metrics_are_served(
    alone: Callable[..., GatewayProcess], database_url: str
) -> None:
    with cut_line_to(database_url) as (line, url):
        gateway = alone(DATABASE_URL=url, METRICS_OPEN="true")
        with Database(database_url) as database:
            submit_job(database)
        whole = scrape(gateway)
        assert value(whole, "up", part="postgres") == 1
        line.cut()
        left = scrape(gateway)
        assert value(left, "up", part="postgres") == 0
        assert value(left, "up", part="redis") == 1
        assert value(left, "http_requests_total", method="GET", route="/metrics", status="200") >= 1
        line.mend()
        wait_until(lambda: value(scrape(gateway), "up", part="postgres"), "Postgres")
        submitted = {"tier": "standard", **BASE}
        assert value(scrape(gateway), "jobs_submitted_total", **submitted) == 1
