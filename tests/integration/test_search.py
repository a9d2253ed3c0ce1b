"""Searching what was said: what is found, in which order, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, insert, literal, select, text, update

from common.db import search as module
from common.db.database import Database
from common.db.deletions import Deletions
from common.db.jobs import Jobs
from common.db.migrate import downgrade, upgrade
from common.db.retention import Retention
from common.db.revisions import Author, Revisions
from common.db.search import Hit, Search, SearchFilter, SearchPage
from common.db.streams import COMPLETED, Streams
from common.db.tables import Deletion, Job, Kind, StoredPassage, StreamSession, Unindexed
from common.db.transcriptions import refined
from common.domain.request import Options
from common.domain.searching import Wanted
from common.domain.speakers import Diarization, Turn
from common.domain.transcript import Origin, Transcript
from common.domain.values import Span
from common.redis.events import Events
from common.redis.queue import connect
from common.storage.local import LocalStorage
from scripts.bench.search import HUGE, QUICK, SMALL, Explained, Words, fill, sequential_scans
from tests.support.api import Api
from tests.support.factories import (
    DIARIZED,
    TENANT,
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    new_final,
    offensive,
    open_stream,
    plan_chunks,
    stored_segment,
    submit_job,
)
from worker.dispatcher.cleanup import Cleanup

HOTEL = "Cái khách sạn gần biển đó đẹp lắm."
ANYTHING = SearchFilter()
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def transcribe(database: Database, *texts: str, tenant: str = TENANT, **fields: Any) -> UUID:
    """A COMPLETED job with segments of 5 s; ``fields`` as of `submit_job` and `finish_merge`."""
    merge = {name: fields.pop(name) for name in ("segments", "diarization") if name in fields}
    steps = make_steps(database)
    job_id = submit_job(database, tenant=tenant, **fields)
    plan_chunks(steps, 1)
    while (claim := claim_next(steps)).kind != "merge":
        finish_chunk(steps, claim)
    segments = [stored_segment(at * 5_000, at * 5_000 + 5_000, it) for at, it in enumerate(texts)]
    finish_merge(steps, claim, **{"segments": segments, **merge})
    return job_id


def search(
    database: Database,
    query: str,
    which: SearchFilter = ANYTHING,
    *,
    tenant: str = TENANT,
    limit: int = 200,
    after: module.SearchCursor | None = None,
) -> SearchPage:
    return Search(database, tenant).page(Wanted.parse(query), which, limit=limit, after=after)


def ids(page: SearchPage) -> list[UUID]:
    return [hit.id for hit in page.hits]


def marked(hit: Hit) -> list[str]:
    return [hit.found.text[it.start : it.end] for it in hit.found.matches]


@pytest.mark.parametrize("query", ["khach san", "KHÁCH SẠN", "biển khách", '"khach san gan"'])
def test_vietnamese_is_found_with_and_without_marks(database: Database, query: str) -> None:
    job_id = transcribe(database, "Hôm nay trời mưa.", HOTEL)

    [hit] = search(database, query).hits

    assert (hit.id, hit.kind, hit.filename) == (job_id, Kind.JOB, "talk.mp3")
    assert hit.found.segment.span == Span(5_000, 10_000)
    assert hit.found.text == HOTEL
    assert set(marked(hit)) <= {"khách", "sạn", "gần", "biển"}


def test_a_text_in_review_is_found_until_its_job_is_cancelled(database: Database) -> None:
    job_id = transcribe(database, HOTEL, options=Options(review=True))
    other = transcribe(database, HOTEL)
    assert ids(search(database, "khach san")) == [other, job_id]

    Jobs(database, TENANT).cancel(job_id)

    assert ids(search(database, "khach san")) == [other]


@pytest.mark.parametrize("query", ["khach sanh", "san khach san", '"san khach"', '"khach gan"'])
def test_what_lacks_a_word_or_the_phrase_is_not_found(database: Database, query: str) -> None:
    transcribe(database, "Một khách.", HOTEL, "San.", segments=[stored_segment(0, 5, "khách sạn")])
    expected = 1 if query == "san khach san" else 0

    assert len(search(database, query).hits) == expected


def test_words_in_a_row_come_first_and_then_those_with_the_marks_as_typed(
    database: Database,
) -> None:
    apart = transcribe(database, "Bạn bán cái áo này cho ai, và nhà ở đâu?")
    other = transcribe(database, "Bạn nhà ai đó?")
    exact = transcribe(database, "Bán nhà.")
    later = transcribe(database, "Ban nha.")

    assert ids(search(database, "bán nhà")) == [exact, later, other, apart]
    assert ids(search(database, "ban nha"))[-1] == apart
    assert set(ids(search(database, "bán"))[:2]) == {exact, apart}


def test_a_phrase_across_two_passages_is_found_once(database: Database) -> None:
    texts = [f"câu {number}" for number in range(30)]
    texts[11], texts[12] = "có một khách", "sạn ở đây"
    transcribe(database, *texts)

    with database.transaction() as session:
        assert (session.scalar(select(func.count(StoredPassage.id))) or 0) > 1
    [hit] = search(database, '"khách sạn"').hits
    assert hit.found.segment.span.start_ms == 55_000


def test_another_tenants_texts_are_not_found(database: Database) -> None:
    ours = transcribe(database, HOTEL)
    theirs = transcribe(database, HOTEL, tenant="0.acme")

    assert ids(search(database, "khách sạn")) == [ours]
    assert ids(search(database, "khách sạn", tenant="0.acme")) == [theirs]
    # Names that look like the stored form of a tenant and its block.
    for tenant in ("acme", "62.0.default", "0.default", "fault", "nobody"):
        assert search(database, "khách sạn", tenant=tenant).hits == []


def test_a_new_revision_replaces_what_is_found(database: Database) -> None:
    diarization = Diarization((Turn(Span(0, 5_000), "SPEAKER_00"),))
    segments = [stored_segment(0, 5_000, HOTEL, speaker="SPEAKER_00")]
    job_id = transcribe(database, segments=segments, diarization=diarization, options=DIARIZED)
    [before] = search(database, "khách sạn", SearchFilter(speaker="speaker_00")).hits

    Revisions(database, TENANT).change_speakers(job_id, {"SPEAKER_00": "Lan Trần"}, Author())
    assert search(database, "khách sạn").hits == [before]
    steps = make_steps(database)
    newest = Revisions(database, TENANT).get(job_id)
    steps.write(claim_next(steps), refined(newest.transcript, newest.row.manifest))

    [hit] = search(database, "khách sạn").hits
    assert (before.found.segment.speaker, hit.found.segment.speaker) == ("SPEAKER_00", "Lan Trần")
    assert search(database, "khách sạn", SearchFilter(speaker="lan tran")).hits == [hit]
    assert search(database, "khách sạn", SearchFilter(speaker="speaker_00")).hits == []


def test_an_edit_replaces_the_passages_that_it_changes_and_no_others(database: Database) -> None:
    texts = [f"word{at}" for at in range(40)]  # more than a minute: several passages
    job_id = transcribe(database, *texts)

    def stored() -> dict[int, Any]:
        with database.transaction() as session:
            rows = session.execute(select(StoredPassage.id, StoredPassage.segments))
            return {row.id: row.segments for row in rows}

    def say(text: str) -> None:
        def change(transcript: Transcript) -> Transcript:
            last = replace(transcript.segments[-1], text=text)
            return replace(transcript, segments=(*transcript.segments[:-1], last))

        revisions = Revisions(database, TENANT)
        revisions.change(job_id, change, origin=Origin.EDIT, author=Author())
        newest = revisions.get(job_id)
        steps.finish(claim_next(steps), within=refined(newest.transcript, newest.row.manifest))

    steps = make_steps(database)
    before = stored()
    say("quite another")
    after = stored()
    assert len(before) > 2
    assert list(before) == list(after)
    assert [at for at in before if before[at] != after[at]] == [max(before)]
    assert len(search(database, "quite another").hits) == 1
    assert search(database, "word39").hits == []
    assert len(search(database, "word3").hits) == 1
    say(" ".join(f"longer{at}" for at in range(1_000)))  # other passages than before
    assert len(stored()) > len(before)
    assert search(database, "quite another").hits == []
    assert len(search(database, "longer999").hits) == 1


def test_masked_texts_are_found_as_they_are_shown(database: Database) -> None:
    finding = offensive(4, 8).to_json()
    segments = [stored_segment(0, 5_000, "You damn fool", verdict=finding)]
    options = Options(moderation=True, filter_profanity=True)
    steps = make_steps(database)
    masked = submit_job(database, options=options)
    plan_chunks(steps, 0)
    finish_merge(steps, claim_next(steps), segments=segments)
    shown = transcribe(database, segments=segments)

    assert ids(search(database, "damn")) == [shown]
    [_, hit] = search(database, "fool").hits
    assert (hit.id, hit.found.text) == (masked, "You d*** fool")


def test_a_stream_is_found_once_it_has_ended(database: Database) -> None:
    streams = Streams(database, TENANT)
    stream_id = open_stream(database)
    streams.add(stream_id, [new_final(1, "Một khách"), new_final(2, "sạn ở biển")])
    assert search(database, "khách sạn").hits == []

    streams.close(stream_id, audio_ms=4_000, outcome=COMPLETED)

    [hit] = search(database, "khách sạn").hits
    assert (hit.id, hit.kind, hit.filename) == (stream_id, Kind.STREAM, None)
    assert hit.found.segment.span.start_ms == 1_000
    streams.delete(stream_id)
    assert search(database, "khách sạn").hits == []
    with database.transaction() as session:
        assert session.get_one(Deletion, stream_id).rows == 4


def test_a_stream_that_was_silent_is_found_too(database: Database) -> None:
    stream_id = open_stream(database)
    Streams(database, TENANT).add(stream_id, [new_final(1, HOTEL)])
    with database.transaction() as session:
        session.execute(update(StreamSession).values(seen_at=func.now() - timedelta(hours=1)))

    Retention(database, grace_s=30).end_silent_streams()

    assert ids(search(database, "khách sạn")) == [stream_id]


@pytest.mark.parametrize("retention", [False, True])
def test_a_deleted_job_is_not_found_and_its_passages_are_counted(
    database: Database, retention: bool
) -> None:
    kept = transcribe(database, HOTEL)
    rows = []
    for texts in ((), (HOTEL,)):
        job_id = transcribe(database, *texts)
        if retention:
            with database.transaction() as session:
                session.execute(update(Job).where(Job.id == job_id).values(delete_at=func.now()))
            Retention(database, grace_s=30).expire(job_id)
        else:
            Deletions(database, TENANT).delete(job_id)
        with database.transaction() as session:
            rows.append(session.get_one(Deletion, job_id).rows)

    assert ids(search(database, "khách sạn")) == [kept]
    assert rows[1] == rows[0] + 1


def test_filters_choose_texts(database: Database) -> None:
    english = transcribe(database, "The hotel")
    mixed = transcribe(
        database,
        segments=[
            stored_segment(0, 5_000, "hotel", language="vi"),
            stored_segment(5_000, 9_000, "hotel", language="en"),
        ],
    )
    stream_id = open_stream(database)
    streams = Streams(database, TENANT)
    streams.add(stream_id, [new_final(1, "hotel", language="de")])
    streams.close(stream_id, audio_ms=4_000, outcome=COMPLETED)

    def found(**which: Any) -> set[UUID]:
        return set(ids(search(database, "hotel", SearchFilter(**which))))

    everything = {english, mixed, stream_id}
    assert found() == everything
    assert found(kind=Kind.JOB) == {english, mixed}
    assert found(kind=Kind.STREAM) == {stream_id}
    assert found(language="vi") == {mixed}
    assert found(language="en") == {english, mixed}
    assert found(source_id=mixed) == {mixed}
    assert found(source_id=uuid4()) == set()
    at = created(database, mixed)
    assert found(created_after=at) == {stream_id}
    assert found(created_before=at) == {english}


def created(database: Database, job_id: UUID) -> datetime:
    with database.transaction() as session:
        return session.get_one(Job, job_id).created_at


def pages(database: Database, query: str, limit: int) -> Iterator[SearchPage]:
    page = search(database, query, limit=limit)
    yield page
    while page.next is not None:
        page = search(database, query, limit=limit, after=module.SearchCursor.parse(str(page.next)))
        yield page


def test_pages_have_every_result_once_while_texts_come_and_go(database: Database) -> None:
    jobs = [transcribe(database, "hotel " * (1 + at % 3), "more") for at in range(11)]
    expected = ids(search(database, "hotel"))
    assert sorted(expected) == sorted(jobs)

    seen: list[UUID] = []
    for page in pages(database, "hotel", limit=2):
        seen += ids(page)
        assert len(page.hits) == 2 or page.next is None
        transcribe(database, "hotel hotel hotel hotel")
        if len(seen) == 4:
            Deletions(database, TENANT).delete(seen[0])
            Deletions(database, TENANT).delete(expected[6])

    assert seen == [it for it in expected if it != expected[6]]


def test_the_newest_passages_are_ranked_and_the_answer_says_that_there_are_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RANKED", 3)
    monkeypatch.setattr(module, "SHIFTS", (1, 2, 62))
    exact = transcribe(database, "Bán nhà.")
    jobs = [transcribe(database, "Ban và nha") for _ in range(9)]

    assert ids(search(database, "ban nhà")) == [exact, jobs[8], jobs[7]]
    assert not search(database, "ban nhà").is_complete
    assert [ids(page) for page in pages(database, "va", 2)] == [jobs[:-3:-1], [jobs[6]]]
    assert search(database, "bán").is_complete is False
    transcribe(database, "Một hai ba")
    assert search(database, "hai").is_complete
    assert search(database, "không").is_complete


@pytest.fixture
def dated(database: Database) -> dict[UUID, datetime]:
    """Jobs with the same text, created 3 s after one another; the newest is a minute old."""
    jobs = [transcribe(database, "hotel") for _ in range(12)]
    newest = datetime.now(UTC) - timedelta(minutes=1)
    times = {it: newest - timedelta(seconds=3 * at) for at, it in enumerate(reversed(jobs))}
    with database.transaction() as session:
        for job_id, created_at in times.items():
            session.execute(update(Job).where(Job.id == job_id).values(created_at=created_at))
    return times


def index_again(database: Database) -> None:
    """As the dispatcher does after an update that changes what is indexed."""
    with database.transaction() as session:
        session.execute(text("DELETE FROM passages"))
        ids_of_jobs = select(Job.id, literal(Kind.JOB), Job.created_at)
        session.execute(
            insert(Unindexed).from_select(["source_id", "kind", "created_at"], ids_of_jobs)
        )
    while Retention(database, grace_s=0).index():
        pass


@pytest.mark.parametrize("shift", range(1, 5))
@pytest.mark.parametrize("most", [2, 500])
def test_blocks_hide_no_passage_of_any_range_of_time(
    database: Database,
    dated: dict[UUID, datetime],
    monkeypatch: pytest.MonkeyPatch,
    shift: int,
    most: int,
) -> None:
    monkeypatch.setattr(module, "SHIFTS", (shift, shift + 2, 62))
    monkeypatch.setattr(module, "MOST_RANKED", most)
    index_again(database)
    # No job's block begins with it, and a second has blocks on both sides.
    edges = [None, *(it + timedelta(seconds=1) for it in list(dated.values())[::3]), LONG_AGO]
    for after in edges:
        for before in edges:
            expected = [
                job_id
                for job_id, created_at in dated.items()
                if (after is None or created_at > after) and (before is None or created_at < before)
            ]
            which = SearchFilter(created_after=after, created_before=before)
            page = search(database, "hotel", which)
            assert set(ids(page)) == set(expected[:most]), (after, before)
            assert page.is_complete == (len(expected) < most)
    oldest = list(dated)[-1]
    assert ids(search(database, "hotel", SearchFilter(source_id=oldest))) == [oldest]


QUERIES = (
    *("'", "''", "\\", "a'b", "a\\'b", "x' | '@62.0.other", "a & b", "a | b", "!a", "a:*", "(a"),
    *("a <-> b", "%", "a;DROP TABLE passages", "$1", ":x", "{0}", "a\0b", '"', '"a', 'a""b', "=á"),
    *("~lan", "#vi", "@62", "ﷺ", "🙂 a", "a" * 200, "á" * 200, " ".join("a" * 100), '"a" ' * 50),
)


@pytest.mark.parametrize("query", QUERIES)
def test_whatever_is_typed_is_safe(database: Database, query: str) -> None:
    transcribe(database, query.replace("\0", " "), tenant="other")
    if not any(map(str.isalnum, query)):
        return

    assert search(database, query).hits == []
    assert len(search(database, query, tenant="other").hits) == 1


def test_the_plans_read_no_table_from_end_to_end(database_url: str) -> None:
    words = Words(1)
    fill(database_url, QUICK, words, lambda _: None)
    frequent, rare = words.words[0], words.words[5_000]

    with Explained(database_url) as database:
        for tenant in (HUGE, SMALL):
            for query in (frequent, rare, f"{frequent} {rare}", f'"{frequent} {rare}"', "own20"):
                for which in (ANYTHING, SearchFilter(language="vi", created_after=LONG_AGO)):
                    search(database, query, which, tenant=tenant)
                    assert database.plans
                    assert sum(map(sequential_scans, database.plans)) == 0
        assert len(search(database, "own20", tenant=SMALL).hits) == 1


def test_earlier_texts_are_indexed_by_the_dispatcher(
    database_url: str, redis_url: str, tmp_path: Any
) -> None:
    with Database(database_url) as database:
        job_id = transcribe(database, HOTEL)
        transcribe(database)  # without text
        submit_job(database)  # not transcribed yet
        stream_id = open_stream(database)
        Streams(database, TENANT).add(stream_id, [new_final(1, HOTEL)])
        Streams(database, TENANT).close(stream_id, audio_ms=1, outcome=COMPLETED)
        downgrade(database_url, "0015")
        upgrade(database_url)
        assert search(database, "khách sạn").hits == []
        retention = Retention(database, grace_s=0)
        assert (retention.next_due_s(60, 0) or 0) <= 0

        events = Events(connect(redis_url))
        storage = LocalStorage(tmp_path / "a", tmp_path / "b", tmp_path / "c")
        Cleanup(retention, storage, events, upload_wait_s=60).clean()

        assert ids(search(database, "khách sạn")) == [stream_id, job_id]
        with database.transaction() as session:
            assert session.scalar(select(func.count()).select_from(Unindexed)) == 0
        assert retention.index() is None


def test_an_update_that_changes_what_is_indexed_has_all_texts_indexed_again(
    database_url: str,
) -> None:
    with Database(database_url) as database:
        job_id = transcribe(database, HOTEL)
        downgrade(database_url, "0018")
        upgrade(database_url)
        assert search(database, "khách sạn").hits == []

        assert Retention(database, grace_s=0).index() == job_id

        assert ids(search(database, "khách sạn")) == [job_id]


def test_a_text_that_is_deleted_before_it_is_indexed_is_never_found(database: Database) -> None:
    job_id = transcribe(database, HOTEL)
    with database.transaction() as session:
        session.execute(text("DELETE FROM passages"))
        session.add(Unindexed(source_id=job_id, kind=Kind.JOB, created_at=func.now()))

    Deletions(database, TENANT).delete(job_id)

    assert Retention(database, grace_s=0).index() is None
    assert search(database, "khách sạn").hits == []


# --- over HTTP ----------------------------------------------------------------------------------


def test_the_api_answers_with_the_second_and_the_words(api: Api) -> None:
    job_id = transcribe(api.database, "Mưa.", HOTEL)

    document = api.get("search", q="khach san")

    [result] = document["results"]
    assert result.pop("created_at")
    assert result.pop("rank") > 1
    assert result == {
        "kind": "job",
        "job_id": str(job_id),
        "session_id": str(job_id),
        "filename": "talk.mp3",
        "start": 5.0,
        "end": 10.0,
        "speaker": None,
        "language": "en",
        "text": HOTEL,
        "matches": [{"start": 4, "end": 9}, {"start": 10, "end": 13}],
        "recording_id": None,
    }
    assert document["is_complete"] is True
    assert document["next_cursor"] is None


def test_the_pages_of_the_api_follow_one_another(api: Api) -> None:
    jobs = [transcribe(api.database, HOTEL) for _ in range(3)]

    first = api.get("search", q="bien", limit=2)
    second = api.get("search", q="bien", limit=2, cursor=first["next_cursor"])

    found = [it["job_id"] for page in (first, second) for it in page["results"]]
    assert found == [str(job_id) for job_id in reversed(jobs)]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "field", "limit"),
    [
        ({}, "q", None),
        ({"q": ""}, "q", "text with at least one letter or digit"),
        ({"q": "?!"}, "q", "text with at least one letter or digit"),
        ({"q": "a" * 201}, "q", "at most 200 characters long"),
        ({"q": "a", "limit": 0}, "limit", "at least 1"),
        ({"q": "a", "language": "xx"}, "language", None),
        ({"q": "a", "kind": "voice"}, "kind", None),
        ({"q": "a", "lang": "vi"}, "lang", None),
        ({"q": "a", "session_id": "1"}, "session_id", "a UUID"),
        ({"q": "a", "created_after": "soon"}, "created_after", None),
        ({"q": "a", "cursor": "abc"}, "cursor", "a next_cursor of this search"),
        # "9223372036854775808 0 0.5 1", "1 0 nan 1"
        ({"q": "a", "cursor": "OTIyMzM3MjAzNjg1NDc3NTgwOCAwIDAuNSAx"}, "cursor", None),
        ({"q": "a", "cursor": "MSAwIG5hbiAx"}, "cursor", None),
    ],
)
def test_a_wrong_search_is_rejected_by_name(
    api: Api, query: dict[str, Any], field: str, limit: str | None
) -> None:
    problem = api.get("search", 422, **query)

    assert problem["field"] == field
    assert limit is None or problem["limit"] == limit
