"""Stored live streams: saved once, charged once, listed, deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text, update

from common.db.database import Database
from common.db.deletions import Deletions
from common.db.keys import Tenants
from common.db.retention import Retention
from common.db.snapshots import ClientData
from common.db.streams import COMPLETED, INTERRUPTED, Streams
from common.db.tables import Base, Job, StreamSession
from common.db.usage import HOUR_MS, NO_QUOTA, SILENT_S, Quota, Usage
from common.domain.moderation import Label, ModeratedBy
from common.errors import NotFound, TooManyStreams, TooMuchAudio
from common.redis.events import Events
from common.redis.queue import connect
from common.storage.local import LocalStorage
from tests.support.factories import (
    BY,
    TENANT,
    claim_next,
    finish_merge,
    make_steps,
    moderated_final,
    new_final,
    new_stream,
    offensive,
    open_stream,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess
from tests.support.s3 import cut_line_to
from tests.support.service import wait_until
from worker.dispatcher.cleanup import Cleanup

KEY = "a-keys-id"
BASE: dict[str, Any] = {"engine": "faster-whisper", "model": "base", "language": "en"}
UNKNOWN = uuid4()


@pytest.fixture
def database(gateway_database: Database) -> Database:
    """The gateway's, with nothing of earlier tests."""
    with gateway_database.transaction() as session:
        tables = "stream_sessions, jobs, recordings, deletions, usage_days, tallies, tenants"
        session.execute(text(f"TRUNCATE {tables} CASCADE"))
    return gateway_database


@pytest.fixture
def streams(database: Database) -> Streams:
    return Streams(database, TENANT)


@pytest.fixture
def cleanup(gateway: GatewayProcess, database: Database) -> Cleanup:
    folder = gateway.folder
    storage = LocalStorage(folder / "uploads", folder / "uploads" / ".incoming", folder / "results")
    events = Events(connect(gateway.redis_url))
    return Cleanup(Retention(database, grace_s=0.0), storage, events, upload_wait_s=3600)


def ask(
    gateway: GatewayProcess, method: str, path: str, status: int = 200, **request: Any
) -> httpx.Response:
    answer = gateway.http.request(method, f"/api/v1/{path}", **request)
    assert answer.status_code == status, answer.text
    return answer


def get(gateway: GatewayProcess, path: str, answer: int = 200, /, **query: Any) -> Any:
    return ask(gateway, "GET", path, answer, params=query or None).json()


def beat(streams: Streams, stream_id: UUID, audio_ms: int, quota: Quota = NO_QUOTA) -> None:
    streams.beat(stream_id, audio_ms=audio_ms, **BASE, quota=quota)


def silence(database: Database, *stream_ids: UUID) -> None:
    """Make their last heartbeat too old."""
    expired = text(f"now() - interval '{SILENT_S} seconds'")
    with database.transaction() as session:
        session.execute(
            update(StreamSession).where(StreamSession.id.in_(stream_ids)).values(seen_at=expired)
        )


def delete_now(database: Database, stream_id: UUID) -> None:
    """Have its retention end now."""
    with database.transaction() as session:
        due = update(StreamSession).where(StreamSession.id == stream_id)
        session.execute(due.values(delete_at=text("now()")))


def charged_ms(database: Database, key_id: str | None = None) -> int:
    return sum(day.own_audio_ms for day in Usage(database, TENANT, key_id).days(2))


# --- saved ----------------------------------------------------------------------------------------


def test_a_final_is_saved_once_however_often_it_is_added(streams: Streams) -> None:
    stream_id = new_stream().id
    streams.open(new_stream(id=stream_id))
    finals = [new_final(2, " one"), moderated_final(5), new_final(9, " three", language="vi")]

    def add(_: int) -> None:
        streams.add(stream_id, finals)
        streams.add(stream_id, [new_final(2, " something else")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))

    assert list(streams.get(stream_id).finals) == finals


def writes(streams: Streams, stream_id: UUID) -> list[Callable[[], object]]:
    """All that a gateway writes while a stream goes on."""
    return [
        lambda: streams.add(stream_id, [new_final(2)]),
        lambda: streams.moderate(stream_id, 1, moderated_final(1).segments, BY),
        lambda: beat(streams, stream_id, 1_000),
        lambda: streams.close(stream_id, audio_ms=1_000, outcome=COMPLETED),
    ]


def test_another_tenants_stream_is_not_found(database: Database, streams: Streams) -> None:
    stream_id = open_stream(database)
    streams.add(stream_id, [new_final(1)])
    others = Streams(database, "another")
    for call in writes(others, stream_id):
        with pytest.raises(NotFound):
            call()
    for use in (others.get, others.delete):
        with pytest.raises(NotFound):
            use(stream_id)
    found = streams.get(stream_id)
    assert (found.audio_ms, found.ended_at, len(found.finals)) == (0, None, 1)
    assert Usage(database, "another", None).days(2) == []


def test_a_stream_reports_its_current_engine(database: Database, streams: Streams) -> None:
    stream_id = open_stream(database)
    streams.beat(
        stream_id, audio_ms=1, engine="zipformer", model="vi", language="vi", quota=NO_QUOTA
    )
    found = streams.get(stream_id)
    assert (found.engine, found.model, found.language) == ("zipformer", "vi", "vi")


def test_a_stream_ends_once(database: Database, streams: Streams) -> None:
    stream_id = open_stream(database)
    streams.close(stream_id, audio_ms=5_000, outcome="idle")
    ended_at = streams.get(stream_id).ended_at
    streams.close(stream_id, audio_ms=5_000, outcome=COMPLETED)
    found = streams.get(stream_id)
    assert (found.outcome, found.ended_at, found.audio_ms) == ("idle", ended_at, 5_000)
    assert ended_at is not None


def test_writes_to_a_deleted_stream_are_rejected(database: Database, streams: Streams) -> None:
    stream_id = open_stream(database)
    streams.delete(stream_id)
    for call in writes(streams, stream_id):
        with pytest.raises(NotFound):
            call()
    assert rows(database, stream_id) == {"deletions": 1}


# --- how many and how much ------------------------------------------------------------------------


def test_a_key_has_a_limit_of_live_streams(database: Database) -> None:
    quota = Quota(concurrent_streams=3)

    def begin(number: int, key_id: str | None = KEY) -> UUID | None:
        tenant = f"tenant-{number % 2}"
        try:
            return open_stream(database, tenant=tenant, key_id=key_id, quota=quota)
        except TooManyStreams:
            return None

    with ThreadPoolExecutor(8) as pool:
        begun = [each for each in pool.map(begin, range(16)) if each]
    assert len(begun) == 3
    assert Usage(database, "tenant-0", KEY).spent().concurrent_streams == 3
    assert begin(0, "another")
    assert begin(0, None)

    silence(database, begun[0])
    assert begin(0)  # its gateway counts as dead
    assert not begin(0)
    with database.transaction() as session:
        tenant = session.get_one(StreamSession, begun[1]).tenant
    Streams(database, tenant).close(begun[1], audio_ms=1, outcome=COMPLETED)
    assert begin(0)
    assert not begin(0)
    submit_job(database, key_id=KEY, quota=quota)  # jobs are no streams


def test_a_rejected_stream_leaves_nothing_behind(database: Database, streams: Streams) -> None:
    quota = Quota(concurrent_streams=1)
    first = open_stream(database, key_id=KEY, quota=quota)
    with pytest.raises(TooManyStreams) as refused:
        streams.open(new_stream(id=UNKNOWN, key_id=KEY, quota=quota))
    details = refused.value.details
    assert (details["field"], details["limit"], details["value"]) == ("concurrent_streams", 1, 2)
    with pytest.raises(NotFound):
        streams.get(UNKNOWN)
    with database.transaction() as session:
        opened = "SELECT value FROM tallies WHERE name = 'stenopool_streams_opened'"
        assert session.scalar(text(opened)) == 1
    assert streams.get(first)


def test_audio_is_charged_by_its_growth_and_once(database: Database, streams: Streams) -> None:
    stream_id = open_stream(database, key_id=KEY)
    assert Usage(database, TENANT, KEY).days(2) == []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: beat(streams, stream_id, 15_000), range(8)))
    beat(streams, stream_id, 14_000)  # one that was late
    assert charged_ms(database, KEY) == streams.get(stream_id).audio_ms == 15_000
    beat(streams, stream_id, 31_000)
    for _ in range(2):
        streams.close(stream_id, audio_ms=32_500, outcome=COMPLETED)
    assert charged_ms(database, KEY) == streams.get(stream_id).audio_ms == 32_500
    (day,) = Usage(database, TENANT, KEY).days(2)
    assert (day.jobs, day.audio_ms) == (0, 32_500)


def test_a_used_up_quota_rejects_more_audio_and_received_audio_is_charged(
    database: Database, streams: Streams
) -> None:
    quota = Quota(audio_ms_per_day=20_000)
    stream_id = open_stream(database, key_id=KEY, quota=quota)
    beat(streams, stream_id, 19_999, quota)
    with pytest.raises(TooMuchAudio) as refused:
        beat(streams, stream_id, 34_000, quota)
    assert refused.value.details["limit"] == 20_000 / HOUR_MS
    assert charged_ms(database, KEY) == 34_000
    streams.close(stream_id, audio_ms=35_000, outcome=TooMuchAudio.code)
    assert streams.get(stream_id).outcome == "too_much_audio"
    with pytest.raises(TooMuchAudio):
        open_stream(database, key_id=KEY, quota=quota)
    open_stream(database, key_id="another", quota=quota)


def test_usage_includes_streams(gateway: GatewayProcess, database: Database) -> None:
    stream_id = open_stream(database)
    beat(Streams(database, TENANT), stream_id, HOUR_MS)
    (today,) = get(gateway, "usage")["days"]
    assert (today["jobs"], today["audio_hours"]) == (0, 1)


# --- gateways that die ----------------------------------------------------------------------------


def test_a_stream_whose_gateway_died_is_ended_and_keeps_its_text(
    gateway: GatewayProcess, database: Database, streams: Streams, cleanup: Cleanup
) -> None:
    Tenants(database).put(TENANT, delete_after_s=3600)
    died, lives, ended = (open_stream(database) for _ in range(3))
    streams.add(died, [new_final(1, latency_ms=100), new_final(2, latency_ms=201)])
    streams.close(ended, audio_ms=1_000, outcome=COMPLETED)
    silence(database, died, ended)

    cleanup.clean()

    found = streams.get(died)
    assert (found.outcome, len(found.finals)) == (INTERRUPTED, 2)
    assert found.ended_at is not None
    assert found.delete_at is not None
    assert (found.delete_at - found.ended_at).total_seconds() == 3600
    with database.transaction() as session:  # at its last heartbeat, and not when this was found
        assert session.get_one(StreamSession, died).seen_at == found.ended_at
    assert streams.get(lives).outcome is None
    assert streams.get(ended).outcome == COMPLETED
    shown = get(gateway, f"streams/{died}")
    assert (shown["outcome"], shown["text"]) == ("interrupted", "hello hello")
    entry = get(gateway, "history")["history"][-1]
    assert (entry["session_id"], entry["latency_ms"]) == (str(died), 150)


def test_a_heartbeat_reopens_an_interrupted_stream(database: Database, cleanup: Cleanup) -> None:
    streams = Streams(database, TENANT, delete_after_s=60)
    stream = new_stream()
    streams.open(stream)
    beat(streams, stream.id, 1_000)
    silence(database, stream.id)
    cleanup.clean()
    streams.add(stream.id, [new_final(1)])
    beat(streams, stream.id, 2_000)
    again = streams.get(stream.id)
    assert (again.outcome, again.ended_at, again.delete_at) == (None, None, None)
    silence(database, stream.id)
    cleanup.clean()
    streams.close(stream.id, audio_ms=3_000, outcome=COMPLETED)
    found = streams.get(stream.id)
    assert (found.outcome, found.audio_ms, charged_ms(database)) == (COMPLETED, 3_000, 3_000)
    assert found.delete_at is not None


def test_after_an_outage_of_postgres_streams_get_time_to_send_heartbeats(
    gateway: GatewayProcess, database: Database, streams: Streams, cleanup: Cleanup
) -> None:
    silent, over = open_stream(database), open_stream(database)
    streams.close(over, audio_ms=1_000, outcome=COMPLETED)
    with cut_line_to(gateway.database_url) as (line, url), Database(url) as far:
        cleanup._retention = Retention(far, grace_s=0.0)
        line.cut()
        cleanup.start()
        wait_until(lambda: cleanup._streams_expire_from, "the cleanup to notice")
        silence(database, silent)
        delete_now(database, over)
        line.mend()
        wait_until(lambda: "stream_sessions" not in rows(database, over), "it to go on")
        assert streams.get(silent).outcome is None
        cleanup.stop()


# --- shown ----------------------------------------------------------------------------------------


def test_a_stream_is_returned_with_all_its_finals_also_while_it_is_live(
    gateway: GatewayProcess, database: Database, streams: Streams
) -> None:
    metadata = {"z": 1, "a": {"\u00e9": [None]}}
    client = ClientData("n\u01a1i 7", metadata)
    stream_id = open_stream(database, moderation=True, client=client)
    empty = get(gateway, f"streams/{stream_id}")
    assert (empty["text"], empty["finals"], empty["latency_ms"]) == ("", [], None)
    assert (empty["outcome"], empty["completed_at"]) == (None, None)

    silent = new_final(8, segments=(), latency_ms=900)
    streams.add(stream_id, [moderated_final(3), moderated_final(7, offensive(1, 6)), silent])
    beat(streams, stream_id, 9_500)

    shown = get(gateway, f"streams/{stream_id}")
    assert (shown["text"], shown["word_count"]) == ("hello hello", 2)
    assert shown["session_id"] == str(stream_id)
    assert (shown["duration_seconds"], shown["latency_ms"], shown["outcome"]) == (9.5, 300, None)
    assert (shown["engine"], shown["model_id"], shown["language"]) == tuple(BASE.values())
    assert [(it["seq"], it["start"], it["end"], it["text"]) for it in shown["finals"]] == [
        (3, 3.0, 3.8, "hello"),
        (7, 7.0, 7.8, "hello"),
        (8, 8.0, 8.8, ""),
    ]
    assert [it["moderated_by"] for it in shown["finals"]] == ["a-model", "a-model", None]
    assert [(it["id"], it["start"]) for it in shown["segments"]] == [(0, 3.0), (1, 7.0)]
    assert [(it["word"], it["end"]) for it in shown["words"]] == [("hello", 3.8), ("hello", 7.8)]
    moderation = shown["moderation"]
    assert [it["label"] for it in moderation["results"]] == ["CLEAN", "OFFENSIVE"]
    assert moderation["results"][1]["spans"][0]["text"] == "hello"
    assert (moderation["model"], moderation["summary"]["label"]) == ("a-model", "OFFENSIVE")
    assert (shown["warnings"], shown["recording_id"]) == ([], "n\u01a1i 7")
    assert json.dumps(shown["metadata"]) == json.dumps(metadata)

    streams.close(stream_id, audio_ms=10_000, outcome=COMPLETED)
    ended = get(gateway, f"streams/{stream_id}")
    assert (ended["outcome"], ended["duration_seconds"]) == ("completed", 10)
    assert ended["completed_at"] > ended["created_at"]


def test_a_stream_warns_where_its_moderation_is_incomplete_or_mixed(
    gateway: GatewayProcess, database: Database, streams: Streams
) -> None:
    other = ModeratedBy("another", "b" * 64, {Label.OFFENSIVE: 0.5, Label.HATE: 0.5})
    finals = [moderated_final(2, by=BY), moderated_final(3, by=other), new_final(1), new_final(4)]

    def warnings(moderation: bool, *which: int, ended: bool = False) -> list[str]:
        stream_id = open_stream(database, moderation=moderation)
        streams.add(stream_id, [finals[index] for index in which])
        if ended:
            streams.close(stream_id, audio_ms=0, outcome=COMPLETED)
        shown = get(gateway, f"streams/{stream_id}")
        assert (shown["moderation"] is not None) == moderation
        found: list[str] = shown["warnings"]
        return found

    assert warnings(True, 0) == warnings(False, 2) == warnings(True) == []
    assert warnings(True, 0, 2) == ["moderation_failed"]
    assert warnings(True, 0, 3) == []  # its turn comes yet
    assert warnings(True, 0, 3, ended=True) == ["moderation_failed"]
    assert warnings(True, 0, 1) == ["moderated_by_several_models"]


def test_moderation_is_added_to_a_saved_final(
    gateway: GatewayProcess, database: Database, streams: Streams
) -> None:
    stream_id = open_stream(database, moderation=True)
    moderated = moderated_final(1, offensive(0, 4))
    streams.add(stream_id, [new_final(1)])
    assert get(gateway, f"streams/{stream_id}")["moderation"]["results"] == []
    streams.moderate(stream_id, 1, moderated.segments, BY)
    assert streams.get(stream_id).finals == (moderated,)
    shown = get(gateway, f"streams/{stream_id}")
    assert [each["label"] for each in shown["moderation"]["results"]] == ["OFFENSIVE"]


# --- history --------------------------------------------------------------------------------------


def complete_job(database: Database) -> UUID:
    steps = make_steps(database)
    job_id = submit_job(database)
    plan_chunks(steps, 0)
    segment = stored_segment(0, 10_000, " from a recording")
    finish_merge(steps, claim_next(steps), segments=[segment])
    return job_id


def complete_stream(database: Database, *finals: Any, **fields: Any) -> UUID:
    stream_id = open_stream(database, **fields)
    streams = Streams(database, TENANT)
    streams.add(stream_id, finals)
    streams.close(stream_id, audio_ms=12_500, outcome=COMPLETED)
    return stream_id


def test_history_orders_jobs_and_streams(gateway: GatewayProcess, database: Database) -> None:
    job_id = complete_job(database)
    words = [new_final(seq, f" w{seq},", latency_ms=100 * seq) for seq in range(1, 90)]
    client = ClientData("mine", {"a": 1})
    stream_id = complete_stream(database, *words, client=client, language="vi")
    silent_id = complete_stream(database)
    open_stream(database)  # goes on
    submit_job(database)  # so does this

    silent, stream, job = get(gateway, "history")["history"]

    assert (job["kind"], job["job_id"], job["session_id"]) == ("job", str(job_id), str(job_id))
    assert job["content"] == "from a recording"
    assert (stream["kind"], stream["job_id"]) == ("stream", None)
    assert stream["session_id"] == str(stream_id)
    assert (stream["engine"], stream["model_id"]) == ("faster-whisper", "base")
    assert stream["language"] == "vi"
    assert stream["content"].startswith("w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11,")
    assert len(stream["content"]) <= 200
    assert (stream["duration_seconds"], stream["latency_ms"]) == (12.5, 4_500)
    assert (stream["recording_id"], stream["metadata"]) == ("mine", {"a": 1})
    assert stream["completed_at"] > stream["created_at"]
    assert (silent["session_id"], silent["content"]) == (str(silent_id), "")
    assert silent["latency_ms"] is None
    headers = {"X-Tenant-Id": "another"}
    assert ask(gateway, "GET", "history", headers=headers).json()["history"] == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_of_history_hold_each_once_also_of_those_made_at_once(
    gateway: GatewayProcess, database: Database, limit: int
) -> None:
    made = [complete_job(database) for _ in range(3)]
    made += [complete_stream(database, new_final(1)) for _ in range(4)]
    with database.transaction() as session:
        at = text("'2026-01-01 00:00:00+00'::timestamptz")
        for table, ids in ((Job, made[1:3]), (StreamSession, made[3:6])):
            session.execute(update(table).where(table.id.in_(ids)).values(created_at=at))
    newest_first = [made[6], made[0], *sorted(made[1:6], reverse=True)]

    listed: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = get(gateway, "history", limit=limit, **cursor)
        listed += [entry["session_id"] for entry in page["history"]]
        if page["next_cursor"] is None:
            break
        assert len(page["history"]) == limit
        cursor = {"cursor": page["next_cursor"]}
        complete_stream(database)  # what comes in meanwhile shifts nothing
    assert listed == [str(each) for each in newest_first]


# --- deleted --------------------------------------------------------------------------------------


def rows(database: Database, stream_id: UUID) -> dict[str, int]:
    """In which tables the stream still is, and how often."""
    found = {}
    with database.transaction() as session:
        for table in Base.metadata.sorted_tables:
            names = f'SELECT count(*) FROM "{table.name}" t WHERE t::text LIKE :id'  # noqa: S608
            if count := session.scalar(text(names), {"id": f"%{stream_id}%"}):
                found[table.name] = count
    return found


def test_a_deleted_stream_leaves_nothing_but_a_receipt(
    gateway: GatewayProcess, database: Database, streams: Streams
) -> None:
    stream_id, other = open_stream(database), open_stream(database)
    streams.add(stream_id, [new_final(1), new_final(2)])
    streams.add(other, [new_final(1)])
    assert rows(database, stream_id) == {"stream_sessions": 1, "stream_finals": 2}
    headers = {"X-Tenant-Id": "another"}
    ask(gateway, "DELETE", f"streams/{stream_id}", 404, headers=headers)

    with ThreadPoolExecutor(4) as pool:
        delete = [f"/api/v1/streams/{stream_id}"] * 4
        assert {answer.status_code for answer in pool.map(gateway.http.delete, delete)} == {204}

    assert rows(database, stream_id) == {"deletions": 1}
    get(gateway, f"streams/{stream_id}", 404)
    get(gateway, f"streams/{other}")
    ask(gateway, "DELETE", f"streams/{stream_id}", 204)
    ask(gateway, "DELETE", f"streams/{stream_id}", 404, headers=headers)
    ask(gateway, "DELETE", f"jobs/{stream_id}", 404)  # it never was one
    (receipt,) = get(gateway, "deletions", session_id=str(stream_id))["deletions"]
    assert (receipt["kind"], receipt["job_id"]) == ("stream", None)
    assert receipt["session_id"] == str(stream_id)
    assert (receipt["reason"], receipt["rows"], receipt["files"]) == ("request", 3, 0)
    assert receipt["erased_at"] == receipt["requested_at"]
    assert get(gateway, "deletions")["deletions"] == [receipt]
    assert get(gateway, "deletions", job_id=str(stream_id))["deletions"] == []


def test_a_deleted_job_is_no_stream(gateway: GatewayProcess, database: Database) -> None:
    job_id = submit_job(database)
    ask(gateway, "DELETE", f"jobs/{job_id}", 204)
    ask(gateway, "DELETE", f"streams/{job_id}", 404)
    (receipt,) = get(gateway, "deletions", session_id=str(job_id))["deletions"]
    assert (receipt["kind"], receipt["job_id"]) == ("job", str(job_id))


def test_only_streams_past_their_time_are_deleted(database: Database, cleanup: Cleanup) -> None:
    streams = Streams(database, TENANT, delete_after_s=60)
    over, early, lives = (new_stream() for _ in range(3))
    for stream in (over, early, lives):
        streams.open(stream)
        streams.add(stream.id, [new_final(1)])
    for stream in (over, early):
        assert streams.get(stream.id).delete_at is None
        streams.close(stream.id, audio_ms=1_000, outcome=COMPLETED)
        assert streams.get(stream.id).delete_at is not None
    kept = open_stream(database)
    Streams(database, TENANT).close(kept, audio_ms=1_000, outcome=COMPLETED)
    delete_now(database, over.id)

    cleanup.clean()

    for stream_id in (early.id, lives.id, kept):
        assert streams.get(stream_id)
    assert streams.get(kept).delete_at is None
    receipts = Deletions(database, TENANT).page(limit=9, after=None)
    (receipt,) = receipts.items
    assert (receipt.id, receipt.kind, receipt.reason) == (over.id, "stream", "retention")
    assert (receipt.rows, receipt.erased_at) == (3, receipt.requested_at)
    assert rows(database, over.id) == {"deletions": 1}


@pytest.mark.parametrize(
    ("tenants", "settings", "after_s"),
    [(None, None, None), (None, 60, 60), (120, 60, 120), (0, 60, None), (120, None, 120)],
)
def test_how_long_a_stream_is_kept_is_its_tenants_to_say_and_else_the_settings(
    database: Database, tenants: int | None, settings: int | None, after_s: int | None
) -> None:
    Tenants(database).put(TENANT, delete_after_s=tenants)
    stream = new_stream()
    streams = Streams(database, TENANT, delete_after_s=settings)
    streams.open(stream)
    streams.close(stream.id, audio_ms=1_000, outcome=COMPLETED)
    found = streams.get(stream.id)
    assert found.ended_at is not None
    lasts = found.delete_at and (found.delete_at - found.ended_at).total_seconds()
    assert lasts == after_s
