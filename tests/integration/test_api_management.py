"""What the gateway promises about jobs as a whole: made once, listed, retried, deleted."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import func, select, text, update

from common.audio.wav import wav_header
from common.db.database import Database
from common.db.retention import Retention
from common.db.tables import Base, Deletion, Job, Recording, Step
from common.domain.request import Options
from common.redis.events import Events
from common.storage.local import LocalStorage
from scripts.cli.cli import steno
from tests.support.api import Api
from tests.support.factories import offensive, published, stored_segment
from worker.dispatcher.cleanup import Cleanup

RECORDING = wav_header(16_000, 1, 16_000) + bytes(32_000)
KEPT = {"deletions", "usage_days", "tallies", "alembic_version"}
"""Tables that a deleted job leaves something in."""
OTHER = {"X-Tenant-Id": "another"}


@pytest.fixture
def cleanup(api: Api, events: Events) -> Cleanup:
    """One to whom nobody is at work any more."""
    folder = api.gateway.folder
    storage = LocalStorage(folder / "uploads", folder / "uploads" / ".incoming", folder / "results")
    return Cleanup(Retention(api.database, grace_s=0.0), storage, events, upload_wait_s=3600)


def upload(
    api: Api,
    *,
    key: str | None = None,
    status: int = 200,
    content: bytes = RECORDING,
    to: str = "upload",
    **options: str,
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    files = {"file": ("a.wav", content)}
    return api.ask("POST", to, status, data=options, files=files, headers=headers)


def uploaded(api: Api, **options: Any) -> str:
    """The id of a job with a recording."""
    job_id: str = upload(api, **options).json()["job_id"]
    return job_id


def created(api: Api, **options: object) -> str:
    """The id of a job whose recording is to come."""
    job_id: str = api.ask("POST", "jobs", 201, json=options).json()["job_id"]
    return job_id


def write_chunk(cleanup: Cleanup, job_id: UUID | str, pcm: bytes = bytes(320)) -> None:
    cleanup._storage.begin("chunks", UUID(str(job_id)))
    cleanup._storage.write_chunk(UUID(str(job_id)), 7, pcm)


def write_result(cleanup: Cleanup, job_id: str, content: bytes) -> None:
    cleanup._storage.begin("results", UUID(job_id))
    cleanup._storage.write_result(UUID(job_id), "transcript.txt", content)


def chunk_folders(api: Api) -> list[str]:
    """The jobs that have chunks."""
    return [path.name for path in (api.gateway.folder / "uploads" / "chunks").iterdir()]


# --- made once ------------------------------------------------------------------------------------


def test_an_upload_sent_twenty_times_at_once_with_one_key_makes_one_job(api: Api) -> None:
    def send(_: int) -> httpx.Response:
        return upload(api, key="once", language="en")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    replays = [answer.headers.get("Idempotent-Replayed") for answer in answers]
    assert (replays.count("true"), replays.count(None)) == (19, 1)
    assert [api.count(table) for table in (Job, Recording, Step)] == [1, 1, 1]
    assert (len(api.gateway.recordings), api.gateway.incoming) == (1, [])


def test_a_key_is_for_one_recording_one_set_of_options_and_one_endpoint(api: Api) -> None:
    first = uploaded(api, key="mine", language="en", metadata='{"a": 1, "b": [2]}')
    api.claim()
    again = upload(api, key="mine", metadata='{"b":[2],"a":1}', language="EN", model="").json()
    assert (again["job_id"], again["status"]) == (first, "PROCESSING")
    changes: list[dict[str, Any]] = [
        {"language": "vi"},
        {"language": "en", "metadata": '{"a": 2}'},
        {"language": "en", "content": RECORDING[:-2]},
    ]
    for changed in changes:
        answer = upload(api, key="mine", status=409, **changed).json()
        assert answer["code"] == "idempotency_conflict"
        assert (answer["field"], answer["value"]) == ("Idempotency-Key", "mine")
    headers = {"Idempotency-Key": "mine"}
    api.ask("POST", "jobs", 409, json={"language": "en"}, headers=headers)
    other = api.ask("POST", "jobs", 201, json={"language": "en"}, headers=headers | OTHER)
    assert other.json()["job_id"] != first
    assert api.count(Recording) == 1
    assert api.gateway.incoming == []


@pytest.mark.parametrize("key", ["", "k" * 201, "kl\u00e9"])
def test_a_key_that_cannot_be_one_is_refused_by_name(api: Api, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    upload_it: dict[str, Any] = {"files": {"file": ("a.wav", RECORDING)}}
    make_it: dict[str, Any] = {"json": {}}
    for path, request in (("upload", upload_it), ("jobs", make_it)):
        answer = api.ask("POST", path, 422, headers=headers, **request).json()
        assert (answer["code"], answer["field"]) == ("out_of_range", "Idempotency-Key")


def test_a_key_is_free_again_once_its_job_is_deleted(api: Api) -> None:
    first = uploaded(api, key="again")
    api.ask("DELETE", f"jobs/{first}", 204)
    answer = upload(api, key="again")
    assert answer.json()["job_id"] != first
    assert "Idempotent-Replayed" not in answer.headers


# --- made first, sent later -----------------------------------------------------------------------


def test_a_job_is_made_first_and_its_recording_sent_later(api: Api) -> None:
    made = api.ask("POST", "jobs", 201, json={"language": "en", "recording_id": "r-1"})
    body = made.json()
    job_id = body["job_id"]
    assert made.headers["Location"] == f"/api/v1/jobs/{job_id}"
    upload_url = f"/api/v1/jobs/{job_id}/upload"
    assert (body["status"], body["upload_url"]) == ("PENDING_UPLOAD", upload_url)
    waiting = api.get(f"jobs/{job_id}")
    assert (waiting["status"], waiting["filename"]) == ("PENDING_UPLOAD", None)
    assert waiting["recording_id"] == "r-1"
    assert published(api.steps) == []
    upload(api, to=f"jobs/{job_id}/upload", status=415, content=b"no audio")
    upload(api, to=f"jobs/{job_id}/upload", status=422, language="en")
    upload(api, to=f"jobs/{uuid4()}/upload", status=404)

    sent = upload(api, to=f"jobs/{job_id}/upload").json()

    assert (sent["job_id"], sent["status"]) == (job_id, "PENDING")
    job = api.get(f"jobs/{job_id}")
    assert (job["filename"], job["duration_seconds"]) == ("a.wav", 1.0)
    again = upload(api, to=f"jobs/{job_id}/upload", status=409).json()
    assert "PENDING" in again["detail"]
    assert api.gateway.incoming == []
    assert api.claim().kind == "plan"


def test_of_many_uploads_to_one_job_one_counts(api: Api) -> None:
    job_id = created(api)

    def send(_: int) -> int:
        files = {"file": ("a.wav", RECORDING)}
        return api.http.post(f"/api/v1/jobs/{job_id}/upload", files=files).status_code

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(send, range(5))) == [200, 409, 409, 409, 409]
    assert [api.count(table) for table in (Recording, Step)] == [1, 1]
    assert (len(api.gateway.recordings), api.gateway.incoming) == (1, [])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"language": "xx"}, "language"),
        ({"colour": "blue"}, "colour"),
        ({"beam_size": 99}, "beam_size"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"delete_after": 59}, "delete_after"),
        ({"recording_id": "a\u0000b"}, "recording_id"),
    ],
)
def test_wrong_options_of_a_job_to_come_are_named(
    api: Api, options: dict[str, Any], field: str
) -> None:
    assert api.ask("POST", "jobs", 422, json=options).json()["field"] == field


def test_a_job_whose_recording_never_comes_is_cancelled(api: Api, cleanup: Cleanup) -> None:
    late, early = created(api), created(api)
    with api.database.transaction() as session:
        age = text("UPDATE jobs SET created_at = now() - interval '2 hours' WHERE id = :id")
        session.execute(age, {"id": late})
    cleanup.clean()
    ended = api.get(f"jobs/{late}")
    assert (ended["status"], ended["error_code"]) == ("CANCELLED", "upload_missing")
    job = api.get(f"jobs/{early}")
    assert (job["status"], job["stage"]) == ("PENDING_UPLOAD", "queued")
    refused = upload(api, to=f"jobs/{late}/upload", status=409).json()
    assert "CANCELLED" in refused["detail"]
    assert api.count(Recording) == 0


# --- given back as it came ------------------------------------------------------------------------


@pytest.mark.parametrize("as_form", [True, False])
def test_metadata_and_names_come_back_as_they_were_sent(api: Api, as_form: bool) -> None:
    metadata = {"z": 1, "a": {"\u00e9": [None, True, 1.5, 10**20, "\u0000\U0001f600", {}]}, "": ""}
    sent = json.dumps(metadata)
    if as_form:
        job_id = uploaded(api, metadata=sent, recording_id="n\u01a1i 7")
    else:
        job_id = created(api, metadata=metadata, recording_id="n\u01a1i 7")
        upload(api, to=f"jobs/{job_id}/upload")
    api.complete()
    for document in (api.get(f"jobs/{job_id}"), api.get(f"result/{job_id}")):
        assert json.dumps(document["metadata"]) == sent
        assert document["recording_id"] == "n\u01a1i 7"
        assert document["delete_at"] is None
    (entry,) = api.get("history")["history"]
    assert json.dumps(entry["metadata"]) == sent


@pytest.mark.parametrize(
    "metadata",
    [
        "[1]",
        "7",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a":' * 40 + "1" + "}" * 40,
    ],
)
def test_metadata_that_could_not_be_given_back_is_refused(api: Api, metadata: str) -> None:
    assert upload(api, status=422, metadata=metadata).json()["field"] == "metadata"
    headers = {"Content-Type": "application/json"}
    content = f'{{"metadata": {metadata}}}'
    api.ask("POST", "jobs", 422, content=content, headers=headers)


@pytest.mark.parametrize("metadata", ["{", "{" * 10_000, "nothing"])
def test_metadata_that_is_no_json_is_refused(api: Api, metadata: str) -> None:
    assert upload(api, status=422, metadata=metadata).json()["field"] == "metadata"


def test_a_job_that_has_ended_has_the_time_of_its_deletion(api: Api) -> None:
    job_id = uploaded(api, delete_after="3600")
    assert api.get(f"jobs/{job_id}")["delete_at"] is None
    api.complete()
    with api.database.transaction() as session:
        job = session.get_one(Job, UUID(job_id))
        assert job.delete_at is not None
        assert job.completed_at is not None
        assert (job.delete_at - job.completed_at).total_seconds() == 3600
    assert api.get(f"jobs/{job_id}")["delete_at"]


# --- listed ---------------------------------------------------------------------------------------


def test_pages_hold_each_job_once_newest_first_also_while_jobs_come_in(api: Api) -> None:
    made = [str(api.submit()) for _ in range(7)]
    with api.database.transaction() as session:  # three at the same instant
        same = select(func.min(Job.created_at)).scalar_subquery()
        session.execute(update(Job).where(Job.id.in_(made[:3])).values(created_at=same))
    first = api.get("jobs", limit=3)
    api.submit()
    second = api.get("jobs", limit=3, cursor=first["next_cursor"])
    third = api.get("jobs", limit=3, cursor=second["next_cursor"])
    listed = [job["job_id"] for page in (first, second, third) for job in page["jobs"]]
    assert third["next_cursor"] is None
    assert listed[:4] == made[:2:-1]
    assert sorted(listed[4:]) == sorted(made[:3])


def test_a_job_in_a_list_is_as_its_status_shows_it(api: Api) -> None:
    api.submit()
    api.complete()
    api.submit(duration_ms=30_000)
    api.plan(2)
    api.transcribe()
    api.submit()
    api.submit()
    created(api)
    listed = api.get("jobs")["jobs"]
    expected = ["PENDING_UPLOAD", "PENDING", "PENDING", "PROCESSING", "COMPLETED"]
    assert [job["status"] for job in listed] == expected
    # The last chunk of the one that is PROCESSING goes first.
    assert [job["queue_position"] for job in listed] == [None, 2, 1, None, None]
    for job in listed:
        alone = api.get(f"jobs/{job['job_id']}")
        assert (alone["eta_seconds"] is None) == (job["eta_seconds"] is None)
        assert alone | {"eta_seconds": 0} == job | {"eta_seconds": 0}


def test_jobs_are_found_by_state_time_name_and_weights(api: Api) -> None:
    first = uploaded(api, recording_id="a", engine="whisper.cpp", model="tiny")
    api.fail()
    second = uploaded(api, recording_id="b", model="base")
    between = api.get(f"jobs/{second}")["created_at"]

    def found(**query: Any) -> list[str]:
        return [job["job_id"] for job in api.get("jobs", **query)["jobs"]]

    assert found(status="FAILED") == found(recording_id="a") == found(model="tiny") == [first]
    assert found(created_before=between) == [first]
    assert found(created_after=api.get(f"jobs/{first}")["created_at"]) == [second]
    assert found(status=["FAILED", "PENDING"]) == [second, first]
    assert found(status="FAILED", recording_id="b") == []
    assert api.ask("GET", "jobs", headers=OTHER).json() == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "MjAyNg=="}, "cursor"),
        ({"cursor": "\u00e9"}, "cursor"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"status": "DONE"}, "status"),
        ({"created_after": "2026-01-01T00:00:00"}, "created_after"),
        ({"recording_id": "a\u0000"}, "recording_id"),
    ],
)
def test_a_wrong_query_of_the_list_is_refused_by_name(
    api: Api, query: dict[str, Any], field: str
) -> None:
    assert api.get("jobs", 422, **query)["field"] == field


def test_history_has_how_each_text_begins_masked_where_that_was_asked_for(api: Api) -> None:
    finding = offensive(4, 8).to_json()
    segment = stored_segment(0, 10_000, " oh, fuck it all " + "and so on " * 50, verdict=finding)
    for options in (Options(), Options(moderation=True, filter_profanity=True)):
        api.submit(options=options)
        api.complete(0, segments=[segment] * 60, manifest={"moderation": []})
    api.submit()
    api.fail()
    masked, plain = api.get("history")["history"]
    assert plain["content"].startswith("oh, fuck it all and so on")
    assert masked["content"].startswith("oh, f**k it all and so on")
    assert len(plain["content"]) == len(masked["content"]) == 200
    assert plain["session_id"] == plain["job_id"]
    assert (plain["model_id"], plain["kind"]) == ("base", "job")
    assert plain["latency_ms"] >= 0
    first = api.get("history", limit=1)
    last = api.get("history", limit=1, cursor=first["next_cursor"])
    assert (first["history"], last["history"]) == ([masked], [plain])
    assert last["next_cursor"] is None


# --- tried again ----------------------------------------------------------------------------------


def test_a_failed_job_is_tried_again_and_completes(api: Api) -> None:
    job_id = api.submit()
    api.ask("POST", f"jobs/{job_id}/retry", 409)
    api.fail()
    assert api.get(f"jobs/{job_id}")["status"] == "FAILED"
    again = api.ask("POST", f"jobs/{job_id}/retry").json()
    shown = (again["status"], again["error_message"], again["completed_at"])
    assert shown == ("PENDING", None, None)
    api.complete()
    assert api.get(f"result/{job_id}")["text"] == "chunk 0"
    api.ask("POST", f"jobs/{job_id}/retry", 409)
    api.ask("POST", f"jobs/{uuid4()}/retry", 404)


# --- deleted --------------------------------------------------------------------------------------


def mentions(database: Database, job_id: str, recording_id: UUID) -> dict[str, int]:
    """In which tables the job or its recording still is, and how often."""
    found = {}
    with database.transaction() as session:
        for table in Base.metadata.sorted_tables:
            if table.name not in KEPT:
                row = text(
                    f'SELECT count(*) FROM "{table.name}" t'  # noqa: S608 - the table's own name
                    " WHERE t::text LIKE :job OR t::text LIKE :recording"
                )
                given = {"job": f"%{job_id}%", "recording": f"%{recording_id}%"}
                if rows := session.scalar(row, given):
                    found[table.name] = rows
    return found


def receipt_of(api: Api, job_id: str) -> Any:
    (receipt,) = api.get("deletions", job_id=job_id)["deletions"]
    return receipt


def test_a_deleted_job_leaves_nothing_but_a_receipt(api: Api, cleanup: Cleanup) -> None:
    job_id = uploaded(api, metadata='{"private": 1}', recording_id="mine")
    api.plan(2)
    api.transcribe()
    write_chunk(cleanup, job_id)
    write_result(cleanup, job_id, b"hello")
    with api.database.transaction() as session:
        recording_id = session.scalar(select(Job.recording_id))
    assert recording_id is not None
    assert mentions(api.database, job_id, recording_id)

    api.ask("DELETE", f"jobs/{job_id}", 204)

    assert mentions(api.database, job_id, recording_id) == {}
    names = {path.name for path in api.gateway.folder.rglob("*")}
    assert names.isdisjoint({job_id, str(recording_id)})
    for path in (f"jobs/{job_id}", f"result/{job_id}", f"download/{job_id}"):
        api.get(path, 404)
    api.ask("POST", f"jobs/{job_id}/cancel", 404)
    api.ask("POST", f"jobs/{job_id}/retry", 404)
    receipt = receipt_of(api, job_id)
    assert (receipt["reason"], receipt["erased_at"]) == ("request", None)
    assert (receipt["files"], receipt["bytes"]) == (3, len(RECORDING) + 320 + 5)
    assert receipt["rows"] >= 1 + 1 + 2 + 3  # the job, its recording, two chunks, three steps

    cleanup.clean()

    receipt = receipt_of(api, job_id)
    assert receipt["erased_at"] > receipt["requested_at"]


def test_what_a_late_worker_writes_is_erased_before_and_after_erasure_is_verified(
    api: Api, cleanup: Cleanup
) -> None:
    job_id = uploaded(api)
    api.claim()
    api.ask("DELETE", f"jobs/{job_id}", 204)
    write_chunk(cleanup, job_id)

    cleanup.clean()

    first = receipt_of(api, job_id)
    assert (first["files"], first["erased_at"]) == (2, None)
    assert job_id not in chunk_folders(api)
    cleanup.clean()
    verified = receipt_of(api, job_id)
    assert verified["erased_at"] is not None
    write_chunk(cleanup, job_id, b"123")
    write_result(cleanup, job_id, b"1")

    cleanup.tidy()

    last = receipt_of(api, job_id)
    assert (last["files"], last["bytes"]) == (verified["files"] + 2, verified["bytes"] + 4)
    assert last["erased_at"] > verified["erased_at"]
    assert [path for path in api.gateway.folder.rglob("*") if job_id in str(path)] == []


def test_chunks_written_after_a_job_has_ended_are_found(api: Api, cleanup: Cleanup) -> None:
    ended = api.submit()
    api.fail()
    processing = api.submit()
    cleanup.clean()
    for job_id in (ended, processing):
        write_chunk(cleanup, job_id)

    cleanup.tidy()
    cleanup.clean()

    assert chunk_folders(api) == [str(processing)]
    cleanup._storage.drop_chunks(processing)


def test_deleting_again_is_no_error_and_deleting_an_unknown_job_is(api: Api) -> None:
    job_id = uploaded(api)
    api.ask("DELETE", f"jobs/{job_id}", 404, headers=OTHER)

    def delete(_: int) -> int:
        return api.http.delete(f"/api/v1/jobs/{job_id}").status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(delete, range(8))) == {204}
    api.ask("DELETE", f"jobs/{job_id}", 204)
    api.ask("DELETE", f"jobs/{job_id}", 404, headers=OTHER)
    api.ask("DELETE", f"jobs/{uuid4()}", 404)
    assert api.count(Deletion) == 1
    assert api.ask("GET", "deletions", headers=OTHER).json()["deletions"] == []


def test_jobs_are_deleted_when_their_time_is_over_and_no_others(api: Api, cleanup: Cleanup) -> None:
    over = uploaded(api, delete_after="60")
    api.complete()
    retried = uploaded(api, delete_after="60")
    api.fail()
    kept = uploaded(api)
    with api.database.transaction() as session:
        session.execute(text("UPDATE jobs SET delete_at = now() WHERE delete_at IS NOT NULL"))
    api.ask("POST", f"jobs/{retried}/retry")

    cleanup.clean()
    cleanup.clean()

    assert {job["job_id"] for job in api.get("jobs")["jobs"]} == {retried, kept}
    (receipt,) = api.get("deletions")["deletions"]
    assert (receipt["job_id"], receipt["reason"], receipt["files"]) == (over, "retention", 1)
    assert receipt["erased_at"] is not None
    assert len(api.gateway.recordings) == 2


def test_the_chunks_of_a_job_that_has_ended_are_dropped_unless_it_is_retried(
    api: Api, cleanup: Cleanup
) -> None:
    ended, retried = api.submit(), api.submit()
    for job_id in (ended, retried):
        api.fail()
        write_chunk(cleanup, job_id)
    api.ask("POST", f"jobs/{retried}/retry")

    cleanup.clean()

    assert chunk_folders(api) == [str(retried)]
    with api.database.transaction() as session:
        assert session.scalars(select(Job.sweep_at)).all() == [None, None]


def test_the_request_that_made_a_job_is_known(api: Api) -> None:
    headers = {"X-Request-Id": "from-the-front"}
    api.ask("POST", "upload", files={"file": ("a.wav", RECORDING)}, headers=headers)
    api.ask("POST", "jobs", 201, headers=headers)
    with api.database.transaction() as session:
        assert session.scalars(select(Job.request_id)).all() == ["from-the-front"] * 2


# --- from the command line ------------------------------------------------------------------------


def test_jobs_are_listed_retried_and_deleted_from_the_command_line(api: Api) -> None:
    def output(*arguments: str) -> str:
        done = CliRunner().invoke(steno, [*arguments, "--server", api.gateway.url])
        assert done.exit_code == 0, done.output
        return done.output

    failed = uploaded(api)
    api.fail()
    waiting = created(api)

    table = output("jobs").splitlines()
    rows = [line.split()[:2] for line in table[1:]]
    assert rows == [[waiting, "PENDING_UPLOAD"], [failed, "FAILED"]]
    assert "a.wav" in table[2]
    assert "there are more" in output("jobs", "--limit", "1")
    listed = json.loads(output("jobs", "--status", "failed", "--json"))
    assert [job["job_id"] for job in listed] == [failed]

    assert output("retry", failed) == f"{failed} PENDING\n"
    assert output("delete", failed) == f"{failed} deleted\n"
    api.get(f"jobs/{failed}", 404)
