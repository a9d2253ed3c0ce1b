"""What clients that watch a job receive, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.jobs.changes import JobChanges
from api.jobs.feeds import Growth, JobFeed, JobFeeds
from common.db.database import Database
from common.db.jobs import Jobs
from common.domain.request import Options
from common.errors import Busy, DecodeFailed
from common.transcripts import GrowingTranscript
from tests.support.api import Api
from tests.support.factories import MODERATED, TENANT, offensive
from tests.support.gateway import GatewayProcess, StartGateway

MASKED = Options(moderation=True, filter_profanity=True)
JOBS, WATCHERS = 20, 200


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
        self.lines = self.answer.iter_lines()

    def __enter__(self) -> Iterator[SentEvent]:
        return self._events()

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._client.close()

    def _events(self) -> Iterator[SentEvent]:
        fields: dict[str, str] = {}
        for line in self.lines:
            if line.startswith(":"):
                continue
            if line:
                key, _, value = line.partition(": ")
                fields[key] = value
            elif "event" in fields:
                yield SentEvent(fields["event"], fields["id"], json.loads(fields["data"]))
                fields = {}


def until(events: Iterator[SentEvent], name: str) -> SentEvent:
    return next(event for event in events if event.name == name)


def no_segment_until(events: Iterator[SentEvent], chunks: int) -> None:
    """Read on to the progress of so many chunks, before which no segment may come."""
    for event in events:
        assert event.name != "segment"
        if event.name == "progress" and event.data["chunks_completed"] == chunks:
            return


def test_a_watcher_receives_all_that_happens_in_order(api: Api) -> None:
    job_id = api.submit()
    watcher = Watcher(api.gateway, job_id)
    with watcher as events:
        assert watcher.answer.headers["content-type"].startswith("text/event-stream")
        assert until(events, "status").data["status"] == "PENDING"
        api.plan(2)
        assert until(events, "status").data["stage"] == "transcribing"
        api.transcribe()
        first = until(events, "segment")
        assert (first.id, first.data["id"], first.data["text"]) == ("1", 0, "chunk 0")
        assert until(events, "progress").data["chunks_completed"] == 1
        api.transcribe()
        second = until(events, "segment")
        assert (second.id, second.data["text"], second.data["start"]) == ("2", "chunk 1", 10.0)
        api.merge(2)
        last = until(events, "completed")
        assert (last.id, last.data["status"]) == ("2-end", "COMPLETED")
        assert list(events) == []  # the line was closed


def test_a_watcher_receives_the_review_with_the_text_and_then_the_approval(api: Api) -> None:
    job_id = api.submit(options=Options(review=True))
    with Watcher(api.gateway, job_id) as events:
        api.complete(2)
        texts = [until(events, "segment").data["text"] for _ in range(2)]
        assert texts == ["chunk 0", "chunk 1"]
        review = until(events, "review")
        assert (review.id, review.data["status"]) == ("2", "REVIEW")
        with Watcher(api.gateway, job_id, review.id) as later:
            assert [next(later).name for _ in range(2)] == ["progress", "review"]
            api.ask("POST", f"jobs/{job_id}/approve")
            ends = [(it.name, it.id) for them in (events, later) for it in them]
    assert ends == [("completed", "2-end")] * 2


def test_chunks_that_finish_out_of_order_are_sent_in_order(api: Api) -> None:
    job_id = api.submit()
    api.plan(3)
    first, second, third = (api.claim() for _ in range(3))
    with Watcher(api.gateway, job_id) as events:
        api.transcribe(third, second)
        no_segment_until(events, 2)
        api.transcribe(first)
        texts = [until(events, "segment").data["text"] for _ in range(3)]
    assert texts == ["chunk 0", "chunk 1", "chunk 2"]


def test_a_watcher_that_reconnects_goes_on_after_its_last_event(api: Api) -> None:
    job_id = api.submit()
    api.plan(2)
    api.transcribe()
    with Watcher(api.gateway, job_id) as events:
        last = until(events, "segment").id
    api.transcribe()
    api.merge(2)
    with Watcher(api.gateway, job_id, last) as events:
        rest = [(event.name, event.id) for event in events]
    assert rest == [("segment", "2"), ("completed", "2-end")]
    with (watcher := Watcher(api.gateway, job_id, "2-end")) as events:
        assert list(events) == []
    # EventSource would come back for ever otherwise (WHATWG HTML, section 9.2.3).
    assert watcher.answer.status_code == 204


@pytest.mark.parametrize(("how", "name"), [("fail", "failed"), ("cancel", "cancelled")])
def test_a_job_that_fails_or_is_cancelled_says_so(api: Api, how: str, name: str) -> None:
    job_id = api.submit()
    with Watcher(api.gateway, job_id) as events:
        until(events, "status")
        if how == "fail":
            api.fail(DecodeFailed(reason="no audio"))
        else:
            api.ask("POST", f"jobs/{job_id}/cancel")
        last = until(events, name)
    assert last.id == "0-end"
    assert last.data["status"] == name.upper()


@pytest.mark.parametrize(("options", "text"), [(MODERATED, "chunk 0"), (MASKED, "c**** 0")])
def test_a_moderated_segment_comes_once_it_has_its_label_and_its_masks(
    api: Api, options: Options, text: str
) -> None:
    job_id = api.submit(options=options)
    api.plan(1)
    api.transcribe()
    with Watcher(api.gateway, job_id) as events:
        no_segment_until(events, 1)
        api.moderate(offensive(1, 6))
        segment = until(events, "segment").data
    assert segment["text"] == text
    assert segment["moderation"]["label"] == "OFFENSIVE"
    assert ("chunk" in json.dumps(segment)) == (options is MODERATED)


def test_a_quiet_line_is_kept_alive(api: Api) -> None:
    job_id = api.submit()
    watcher = Watcher(api.gateway, job_id)
    with watcher as events:
        until(events, "progress")
        for _ in range(2):
            next(line for line in watcher.lines if line.startswith(":"))
        api.ask("POST", f"jobs/{job_id}/cancel")
        assert until(events, "cancelled")


def test_a_job_that_cannot_be_watched_is_refused(api: Api) -> None:
    path = f"jobs/{api.submit()}/events"
    api.get(f"jobs/{uuid4()}/events", 404)
    api.ask("GET", path, 404, headers={"X-Tenant-Id": "other"})
    strange = api.ask("GET", path, 400, headers={"Last-Event-ID": "yesterday"})
    assert "Last-Event-ID" in strange.json()["detail"]


@pytest.mark.anyio
async def test_no_tenant_takes_every_place(api: Api) -> None:
    job_id = api.submit()
    api.claim()
    transcript = GrowingTranscript(Jobs(api.database, TENANT), job_id)

    async def read() -> Growth:
        return transcript.read()

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


def connections(database: Database, name: str) -> int:
    with database.transaction() as session:
        found = session.connection().exec_driver_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = %s",
            (name,),
        )
        return int(found.scalar_one())


@pytest.mark.anyio
async def test_many_watchers_share_the_connections_of_one_gateway(api: Api) -> None:
    jobs = [api.submit() for _ in range(JOBS)]
    api.plan(1)  # of the first one, as they are fairly served
    all_begun = asyncio.Barrier(WATCHERS + 1)

    async def is_cancelled(client: httpx.AsyncClient, job_id: UUID) -> bool:
        async with client.stream("GET", f"/api/v1/jobs/{job_id}/events") as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line == "event: progress":
                    break
            await all_begun.wait()
            return "event: cancelled" in [line async for line in lines]

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=api.gateway.url, limits=limits, timeout=60, trust_env=False
    ) as client:
        each = WATCHERS // JOBS
        watchers = [asyncio.create_task(is_cancelled(client, it)) for it in jobs * each]
        await asyncio.wait_for(all_begun.wait(), 60)
        held = connections(api.database, "stenopool")
        for job_id in jobs:
            api.ask("POST", f"jobs/{job_id}/cancel")
        assert all(await asyncio.gather(*watchers))
    assert held <= 2 * 10  # this test's own pool is among them


def test_a_gateway_that_stops_ends_the_streams_of_its_watchers(
    api: Api, alone: StartGateway, pool: ThreadPoolExecutor
) -> None:
    job_id = api.submit()
    gateway = alone(database_url=api.gateway.database_url)
    with Watcher(gateway, job_id) as events:
        until(events, "progress")
        gateway.process.terminate()
        assert pool.submit(list, events).result(timeout=60) == []
    gateway.process.wait(60)
