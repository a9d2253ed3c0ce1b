"""What those who watch a job are told, and what it costs."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.jobs.changes import JobChanges
from api.jobs.feeds import Growth, JobFeed, JobFeeds
from common.db.database import Database
from common.db.jobs import Jobs
from common.db.steps import Claim, Steps
from common.domain.request import Options
from common.errors import Busy, DecodeFailed
from common.redis.events import Events
from common.transcripts import GrowingTranscript
from tests.support.factories import (
    MODERATED,
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    offensive,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess

MASKED = Options(moderation=True, filter_profanity=True)


@dataclass(frozen=True)
class SentEvent:
    name: str
    id: str
    data: dict[str, Any]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"EVENTS_HEARTBEAT": "0.2"}


class Watcher:
    """Somebody who watches a job; events are taken one by one."""

    def __init__(self, gateway: GatewayProcess, job_id: UUID, last: str | None = None) -> None:
        headers = {} if last is None else {"Last-Event-ID": last}
        path = f"{gateway.url}/api/v1/jobs/{job_id}/events"
        self._client = httpx.Client(timeout=60, trust_env=False)
        request = self._client.build_request("GET", path, headers=headers)
        self.answer = self._client.send(request, stream=True)
        self.comments = 0
        self._lines = self.answer.iter_lines()

    def __enter__(self) -> Iterator[SentEvent]:
        return self._events()

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._client.close()

    def _events(self) -> Iterator[SentEvent]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                key, _, value = line.partition(": ")
                fields[key] = value
            elif "event" in fields:
                yield SentEvent(fields["event"], fields["id"], json.loads(fields["data"]))
                fields = {}


def until(told: Iterator[SentEvent], name: str) -> SentEvent:
    return next(event for event in told if event.name == name)


def merge(steps: Steps, count: int, **others: Any) -> None:
    finish_merge(
        steps,
        claim_next(steps),
        segments=[
            stored_segment(index * 10_000, (index + 1) * 10_000, f" chunk {index}", **others)
            for index in range(count)
        ],
    )


def completed(database: Database, steps: Steps, count: int = 2) -> UUID:
    job_id = submit_job(database)
    plan_chunks(steps, count)
    for _ in range(count):
        finish_chunk(steps, claim_next(steps))
    merge(steps, count)
    return job_id


def test_a_watcher_is_told_all_that_happens_in_order(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, events: Events
) -> None:
    job_id = submit_job(gateway_database)
    watcher = Watcher(gateway, job_id)
    with watcher as told:
        assert watcher.answer.headers["content-type"].startswith("text/event-stream")
        assert until(told, "status").data["status"] == "PENDING"
        plan_chunks(steps, 2)
        events.job_changed(job_id)
        assert until(told, "status").data["stage"] == "transcribing"
        finish_chunk(steps, claim_next(steps))
        events.job_changed(job_id)
        first = until(told, "segment")
        assert (first.id, first.data["id"], first.data["text"]) == ("1", 0, "chunk 0")
        assert until(told, "progress").data["chunks_completed"] == 1
        finish_chunk(steps, claim_next(steps))
        events.job_changed(job_id)
        second = until(told, "segment")
        assert (second.id, second.data["text"], second.data["start"]) == ("2", "chunk 1", 10.0)
        merge(steps, 2)
        events.job_changed(job_id)
        last = until(told, "completed")
        assert (last.id, last.data["status"]) == ("2-end", "COMPLETED")
        assert list(told) == []  # the line was closed


def test_chunks_that_finish_out_of_order_are_told_in_order(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, events: Events
) -> None:
    job_id = submit_job(gateway_database)
    plan_chunks(steps, 3)
    claims = [claim_next(steps) for _ in range(3)]
    with Watcher(gateway, job_id) as told:
        finish_chunk(steps, claims[2])
        finish_chunk(steps, claims[1])
        events.job_changed(job_id)
        seen = list(_until_progress(told, 2))
        assert [event for event in seen if event.name == "segment"] == []
        finish_chunk(steps, claims[0])
        events.job_changed(job_id)
        texts = [until(told, "segment").data["text"] for _ in range(3)]
    assert texts == ["chunk 0", "chunk 1", "chunk 2"]


def _until_progress(told: Iterator[SentEvent], chunks: int) -> Iterator[SentEvent]:
    for event in told:
        yield event
        if event.name == "progress" and event.data["chunks_completed"] == chunks:
            return


def test_who_comes_back_goes_on_where_the_line_was_cut(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    with Watcher(gateway, job_id) as told:
        last = until(told, "segment").id
    finish_chunk(steps, claim_next(steps))
    merge(steps, 2)
    with Watcher(gateway, job_id, last) as told:
        rest = [(event.name, event.id) for event in told]
    assert rest == [("segment", "2"), ("completed", "2-end")]


def test_who_was_told_the_end_is_not_told_again(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    with Watcher(gateway, job_id) as told:
        end = list(told)[-1]
    with (watcher := Watcher(gateway, job_id, end.id)) as told:
        assert list(told) == []
    # EventSource would come back for ever otherwise (WHATWG HTML, section 9.2.3).
    assert watcher.answer.status_code == 204


@pytest.mark.parametrize(("how", "name"), [("fail", "failed"), ("cancel", "cancelled")])
def test_a_job_that_ends_otherwise_says_so(
    gateway: GatewayProcess,
    gateway_database: Database,
    steps: Steps,
    events: Events,
    how: str,
    name: str,
) -> None:
    job_id = submit_job(gateway_database)
    with Watcher(gateway, job_id) as told:
        until(told, "status")
        if how == "fail":
            claim = claim_next(steps)
            steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="no sound"))
            events.job_changed(job_id)
        else:
            gateway.http.post(f"/api/v1/jobs/{job_id}/cancel")
        last = until(told, name)
    assert last.id == "0-end"
    assert last.data["status"] == name.upper()


def moderate_offensive(steps: Steps, claim: Claim) -> None:
    assert claim.kind == "moderate"
    finish_moderation(steps, claim, offensive(1, 6))


def test_segments_of_a_moderated_job_come_with_their_label(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, events: Events
) -> None:
    job_id = submit_job(gateway_database, options=MODERATED)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    with Watcher(gateway, job_id) as told:
        assert [e for e in _until_progress(told, 1) if e.name == "segment"] == []
        moderate_offensive(steps, claim_next(steps))
        events.job_changed(job_id)
        segment = until(told, "segment").data
    assert segment["text"] == "chunk 0"
    assert segment["moderation"]["label"] == "OFFENSIVE"


def test_a_job_whose_words_are_to_be_masked_never_shows_them(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, events: Events
) -> None:
    job_id = submit_job(gateway_database, options=MASKED)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    with Watcher(gateway, job_id) as told:
        assert [e for e in _until_progress(told, 1) if e.name == "segment"] == []
        moderate_offensive(steps, claim_next(steps))
        events.job_changed(job_id)
        segment = until(told, "segment").data
    assert segment["text"] == "c**** 0"
    assert "chunk" not in json.dumps(segment)


def test_a_quiet_line_is_kept_alive(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    watcher = Watcher(gateway, job_id)
    with watcher as told:
        until(told, "progress")
        while watcher.comments < 2:
            watcher.comments += next(watcher._lines).startswith(":")
        steps.publish(1, lambda _: None)
        gateway.http.post(f"/api/v1/jobs/{job_id}/cancel")
        assert until(told, "cancelled")


def test_what_cannot_be_watched_is_refused(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = completed(gateway_database, steps)
    path = f"/api/v1/jobs/{job_id}/events"
    assert gateway.http.get(f"/api/v1/jobs/{uuid4()}/events").status_code == 404
    assert gateway.http.get(path, headers={"X-Tenant-Id": "other"}).status_code == 404
    strange = gateway.http.get(path, headers={"Last-Event-ID": "yesterday"})
    assert strange.status_code == 400
    assert "Last-Event-ID" in strange.json()["detail"]


def test_no_tenant_takes_every_place(gateway_database: Database, steps: Steps) -> None:
    job_id = submit_job(gateway_database)
    assert claim_next(steps).job_id == job_id
    transcript = GrowingTranscript(Jobs(gateway_database, TENANT), job_id)

    async def read() -> Growth:
        return transcript.read()

    async def run() -> None:
        feeds = JobFeeds(JobChanges("redis://127.0.0.1"), limit=3, limit_each=2)

        def watch(tenant: str) -> AbstractAsyncContextManager[JobFeed]:
            return feeds.watch(tenant, job_id, read)

        async with watch("greedy"), watch("greedy"):
            with pytest.raises(Busy):
                await watch("greedy").__aenter__()
            async with watch("other"):
                with pytest.raises(Busy):
                    await watch("third").__aenter__()
        async with watch("greedy"):
            pass

    asyncio.run(run())


def connections(database: Database, name: str) -> int:
    with database.transaction() as session:
        return int(
            session.connection()
            .exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = %s",
                (name,),
            )
            .scalar_one()
        )


def test_500_watchers_share_the_connections_of_one_gateway(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    jobs = [submit_job(gateway_database) for _ in range(50)]
    plan_chunks(steps, 1)  # of the first one, as they are fairly served

    async def watch_all() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        begun = 0
        ended: list[int] = []
        all_begun = asyncio.Event()

        async def watch(client: httpx.AsyncClient, job_id: UUID) -> None:
            nonlocal begun
            async with client.stream("GET", f"/api/v1/jobs/{job_id}/events") as answer:
                async for line in answer.aiter_lines():
                    if line == "event: progress":
                        begun += 1
                        if begun == 500:
                            all_begun.set()
                    if line == "event: cancelled":
                        ended.append(1)

        async with httpx.AsyncClient(
            base_url=gateway.url, limits=limits, timeout=60, trust_env=False
        ) as client:
            watchers = [
                asyncio.create_task(watch(client, job_id)) for job_id in jobs for _ in range(10)
            ]
            await asyncio.wait_for(all_begun.wait(), 60)
            held.append(await asyncio.to_thread(connections, gateway_database, "stenopool"))
            for job_id in jobs:
                await asyncio.to_thread(gateway.http.post, f"/api/v1/jobs/{job_id}/cancel")
            await asyncio.gather(*watchers)
        return ended

    held: list[int] = []
    assert sum(asyncio.run(watch_all())) == 500
    # This test's own pool is among them.
    assert held[0] <= 2 * 10


def test_a_gateway_told_to_stop_lets_no_watcher_hold_it(
    tmp_path: Path,
    gateway: GatewayProcess,
    gateway_database: Database,
    pool: ThreadPoolExecutor,
) -> None:
    job_id = submit_job(gateway_database)
    with GatewayProcess(tmp_path, gateway.database_url, gateway.redis_url) as leaving:
        with Watcher(leaving, job_id) as told:
            until(told, "progress")
            assert leaving.process is not None
            leaving.process.send_signal(signal.SIGTERM)
            rest: Future[list[SentEvent]] = pool.submit(list, told)
            assert rest.result(timeout=60) == []
        leaving.process.wait(60)
