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

from common.db.database import Database
from common.db.retention import Retention
from common.db.steps import Steps
from common.db.tables import Base, Deletion, Job, Recording
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.errors import DecodeFailed
from common.redis.events import Events
from common.redis.queue import connect
from common.storage.local import LocalStorage
from scripts.cli.cli import steno
from tests.support.audio_files import wav_header
from tests.support.factories import (
    claim_next,
    finish_chunk,
    finish_merge,
    finish_moderation,
    make_steps,
    offensive,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess
from worker.dispatcher.cleanup import Cleanup

RECORDING = wav_header(1.0) + bytes(32_000)
KEPT = {"deletions", "usage_days", "tallies", "alembic_version"}
"""Tables that a deleted job leaves something in."""


@pytest.fixture
def steps(gateway: GatewayProcess, gateway_database: Database) -> Steps:
    """The worker's side, with nothing of earlier tests to do."""
    with gateway_database.transaction() as session:
        session.execute(text("TRUNCATE jobs, recordings, deletions CASCADE"))
    for path in (*gateway.incoming, *gateway.recordings):
        path.unlink()
    return make_steps(gateway_database)


@pytest.fixture
def cleanup(gateway: GatewayProcess, gateway_database: Database) -> Cleanup:
    """One to whom nobody is at work any more."""
    folder = gateway.folder
    storage = LocalStorage(folder / "uploads", folder / "uploads" / ".incoming", folder / "results")
    retention = Retention(gateway_database, grace_s=0.0)
    return Cleanup(retention, storage, Events(connect(gateway.redis_url)), upload_wait_s=3600)


def ask(
    gateway: GatewayProcess, method: str, path: str, status: int = 200, **request: Any
) -> httpx.Response:
    answer = gateway.http.request(method, f"/api/v1/{path}", **request)
    assert answer.status_code == status, answer.text
    return answer


def get(gateway: GatewayProcess, path: str, answer: int = 200, /, **query: Any) -> Any:
    return ask(gateway, "GET", path, answer, params=query or None).json()


def upload(
    gateway: GatewayProcess,
    *,
    key: str | None = None,
    status: int = 200,
    content: bytes = RECORDING,
    to: str = "upload",
    **options: str,
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    files = {"file": ("a.wav", content)}
    return ask(gateway, "POST", to, status, data=options, files=files, headers=headers)


def count(database: Database, table: type) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def fail(steps: Steps) -> None:
    claim = claim_next(steps)
    assert steps.fail(claim.step_id, claim.attempt, DecodeFailed(reason="made up"))


def complete(steps: Steps) -> None:
    """Do the one job there is to do."""
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    claim = claim_next(steps)
    if claim.kind == StepKind.MODERATE:
        finish_moderation(steps, claim)
        claim = claim_next(steps)
    finish_merge(steps, claim, segments=[stored_segment(0, 10_000, " hello")])


# --- made once ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("steps")
def test_an_upload_sent_twenty_times_at_once_with_one_key_makes_one_job(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    def send(_: int) -> httpx.Response:
        return upload(gateway, key="once", language="en")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    replays = [answer.headers.get("Idempotent-Replayed") for answer in answers]
    assert (replays.count("true"), replays.count(None)) == (19, 1)
    assert [count(gateway_database, table) for table in (Job, Recording)] == [1, 1]
    assert (len(gateway.recordings), gateway.incoming) == (1, [])


@pytest.mark.usefixtures("steps")
def test_a_key_is_for_one_recording_one_set_of_options_and_one_endpoint(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    first = upload(gateway, key="mine", language="en", metadata='{"a": 1, "b": [2]}').json()
    again = upload(gateway, key="mine", metadata='{"b":[2],"a":1}', language="EN", model="")
    assert again.json()["job_id"] == first["job_id"]
    changes: list[dict[str, Any]] = [
        {"language": "vi"},
        {"language": "en", "metadata": '{"a": 2}'},
        {"language": "en", "content": RECORDING[:-2]},
    ]
    for changed in changes:
        answer = upload(gateway, key="mine", status=409, **changed).json()
        assert answer["code"] == "idempotency_conflict"
        assert (answer["field"], answer["value"]) == ("Idempotency-Key", "mine")
    headers = {"Idempotency-Key": "mine"}
    ask(gateway, "POST", "jobs", 409, json={"language": "en"}, headers=headers)
    assert count(gateway_database, Recording) == 1
    assert gateway.incoming == []


@pytest.mark.parametrize("key", ["", "k" * 201, "kl\u00e9"])
def test_a_key_that_cannot_be_one_is_refused_by_name(gateway: GatewayProcess, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    upload_it: dict[str, Any] = {"files": {"file": ("a.wav", RECORDING)}}
    make_it: dict[str, Any] = {"json": {}}
    for path, request in (("upload", upload_it), ("jobs", make_it)):
        answer = ask(gateway, "POST", path, 422, headers=headers, **request).json()
        assert (answer["code"], answer["field"]) == ("out_of_range", "Idempotency-Key")


@pytest.mark.usefixtures("steps")
def test_a_key_is_free_again_once_its_job_is_deleted(gateway: GatewayProcess) -> None:
    first = upload(gateway, key="again").json()["job_id"]
    ask(gateway, "DELETE", f"jobs/{first}", 204)
    answer = upload(gateway, key="again")
    assert answer.json()["job_id"] != first
    assert "Idempotent-Replayed" not in answer.headers


# --- made first, sent later -----------------------------------------------------------------------


@pytest.mark.usefixtures("steps")
def test_a_job_is_made_first_and_its_recording_sent_later(gateway: GatewayProcess) -> None:
    made = ask(gateway, "POST", "jobs", 201, json={"language": "en", "recording_id": "r-1"})
    body = made.json()
    job_id = body["job_id"]
    assert made.headers["Location"] == f"/api/v1/jobs/{job_id}"
    assert (body["status"], body["upload_url"]) == (
        "PENDING_UPLOAD",
        f"/api/v1/jobs/{job_id}/upload",
    )
    waiting = get(gateway, f"jobs/{job_id}")
    assert (waiting["status"], waiting["filename"], waiting["recording_id"]) == (
        "PENDING_UPLOAD",
        None,
        "r-1",
    )

    sent = upload(gateway, to=f"jobs/{job_id}/upload").json()

    assert (sent["job_id"], sent["status"]) == (job_id, "PENDING")
    assert get(gateway, f"jobs/{job_id}")["filename"] == "a.wav"
    again = upload(gateway, to=f"jobs/{job_id}/upload", status=409).json()
    assert "PENDING" in again["detail"]
    assert gateway.incoming == []


@pytest.mark.usefixtures("steps")
def test_of_many_uploads_to_one_job_one_counts(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    job_id = ask(gateway, "POST", "jobs", 201).json()["job_id"]

    def send(_: int) -> int:
        files = {"file": ("a.wav", RECORDING)}
        return gateway.http.post(f"/api/v1/jobs/{job_id}/upload", files=files).status_code

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(send, range(5))) == [200, 409, 409, 409, 409]
    assert count(gateway_database, Recording) == 1
    assert (len(gateway.recordings), gateway.incoming) == (1, [])


@pytest.mark.usefixtures("steps")
def test_a_recording_to_come_is_checked_as_any_other_and_may_be_sent_again(
    gateway: GatewayProcess,
) -> None:
    job_id = ask(gateway, "POST", "jobs", 201).json()["job_id"]
    upload(gateway, to=f"jobs/{job_id}/upload", status=415, content=b"no sound")
    upload(gateway, to=f"jobs/{job_id}/upload", status=422, language="en")
    upload(gateway, to=f"jobs/{uuid4()}/upload", status=404)
    upload(gateway, to=f"jobs/{job_id}/upload")
    assert gateway.incoming == []


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
    gateway: GatewayProcess, options: dict[str, Any], field: str
) -> None:
    assert ask(gateway, "POST", "jobs", 422, json=options).json()["field"] == field


@pytest.mark.usefixtures("steps")
def test_a_recording_that_never_comes_ends_its_job(
    gateway: GatewayProcess, gateway_database: Database, cleanup: Cleanup
) -> None:
    late, early = (ask(gateway, "POST", "jobs", 201).json()["job_id"] for _ in range(2))
    with gateway_database.transaction() as session:
        age = text("UPDATE jobs SET created_at = now() - interval '2 hours' WHERE id = :id")
        session.execute(age, {"id": late})
    cleanup.clean()
    ended = get(gateway, f"jobs/{late}")
    assert (ended["status"], ended["error_code"]) == ("CANCELLED", "upload_missing")
    job = get(gateway, f"jobs/{early}")
    assert (job["status"], job["stage"]) == ("PENDING_UPLOAD", "queued")
    upload(gateway, to=f"jobs/{late}/upload", status=409)


# --- given back as it came ------------------------------------------------------------------------


@pytest.mark.parametrize("as_form", [True, False])
def test_metadata_and_names_come_back_as_they_were_sent(
    gateway: GatewayProcess, steps: Steps, as_form: bool
) -> None:
    metadata = {"z": 1, "a": {"\u00e9": [None, True, 1.5, 10**20, "\u0000\U0001f600", {}]}, "": ""}
    told = json.dumps(metadata)
    if as_form:
        job_id = upload(gateway, metadata=told, recording_id="n\u01a1i 7").json()["job_id"]
    else:
        job = {"metadata": metadata, "recording_id": "n\u01a1i 7"}
        job_id = ask(gateway, "POST", "jobs", 201, json=job).json()["job_id"]
        upload(gateway, to=f"jobs/{job_id}/upload")
    complete(steps)
    for document in (get(gateway, f"jobs/{job_id}"), get(gateway, f"result/{job_id}")):
        assert json.dumps(document["metadata"]) == told
        assert document["recording_id"] == "n\u01a1i 7"
        assert document["delete_at"] is None
    (entry,) = get(gateway, "history")["history"]
    assert json.dumps(entry["metadata"]) == told


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
def test_metadata_that_could_not_be_given_back_is_refused(
    gateway: GatewayProcess, metadata: str
) -> None:
    answer = upload(gateway, status=422, metadata=metadata).json()
    assert answer["field"] == "metadata"
    headers = {"Content-Type": "application/json"}
    content = f'{{"metadata": {metadata}}}'
    answer = gateway.http.post("/api/v1/jobs", content=content, headers=headers)
    assert answer.status_code == 422, answer.text


def test_metadata_that_is_no_json_is_refused(gateway: GatewayProcess) -> None:
    for metadata in ("{", "{" * 10_000, "nothing"):
        assert upload(gateway, status=422, metadata=metadata).json()["field"] == "metadata"


def test_a_job_tells_when_it_will_be_deleted_once_it_has_ended(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = upload(gateway, delete_after="3600").json()["job_id"]
    assert get(gateway, f"jobs/{job_id}")["delete_at"] is None
    complete(steps)
    with gateway_database.transaction() as session:
        job = session.get_one(Job, UUID(job_id))
        assert job.delete_at is not None
        assert job.completed_at is not None
        assert (job.delete_at - job.completed_at).total_seconds() == 3600
    assert get(gateway, f"jobs/{job_id}")["delete_at"]


# --- listed ---------------------------------------------------------------------------------------


def pages(gateway: GatewayProcess, path: str, of: str, **query: Any) -> list[list[Any]]:
    found = []
    cursor = None
    while True:
        page = get(gateway, path, **query, **({"cursor": cursor} if cursor else {}))
        found.append(page[of])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.usefixtures("steps")
def test_pages_hold_each_job_once_newest_first_also_while_jobs_come_in(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    made = [str(submit_job(gateway_database)) for _ in range(7)]
    with gateway_database.transaction() as session:  # three at the same instant
        same = select(func.min(Job.created_at)).scalar_subquery()
        session.execute(update(Job).where(Job.id.in_(made[:3])).values(created_at=same))
    first = get(gateway, "jobs", limit=3)
    submit_job(gateway_database)
    second = get(gateway, "jobs", limit=3, cursor=first["next_cursor"])
    third = get(gateway, "jobs", limit=3, cursor=second["next_cursor"])
    listed = [job["job_id"] for page in (first, second, third) for job in page["jobs"]]
    assert third["next_cursor"] is None
    assert listed[:4] == made[:2:-1]
    assert sorted(listed[4:]) == sorted(made[:3])


@pytest.mark.usefixtures("steps")
def test_a_listed_job_is_told_as_its_status_is(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    complete(steps) if submit_job(gateway_database) else None
    submit_job(gateway_database, duration_ms=30_000)
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    submit_job(gateway_database)
    submit_job(gateway_database)
    ask(gateway, "POST", "jobs", 201)
    listed = get(gateway, "jobs")["jobs"]
    assert [job["status"] for job in listed] == [
        "PENDING_UPLOAD",
        "PENDING",
        "PENDING",
        "PROCESSING",
        "COMPLETED",
    ]
    # The last chunk of the one that is PROCESSING goes first.
    assert [job["queue_position"] for job in listed] == [None, 2, 1, None, None]
    for job in listed:
        alone = get(gateway, f"jobs/{job['job_id']}")
        assert (alone["eta_seconds"] is None) == (job["eta_seconds"] is None)
        assert alone | {"eta_seconds": 0} == job | {"eta_seconds": 0}


def test_jobs_are_found_by_state_time_name_and_weights(
    gateway: GatewayProcess, steps: Steps
) -> None:
    first = upload(gateway, recording_id="a", engine="whisper.cpp", model="tiny").json()["job_id"]
    fail(steps)
    second = upload(gateway, recording_id="b", model="base").json()["job_id"]
    between = get(gateway, f"jobs/{second}")["created_at"]

    def found(**query: Any) -> list[str]:
        return [job["job_id"] for job in get(gateway, "jobs", **query)["jobs"]]

    assert found(status="FAILED") == found(recording_id="a") == found(model="tiny") == [first]
    assert found(created_before=between) == [first]
    assert found(created_after=get(gateway, f"jobs/{first}")["created_at"]) == [second]
    assert found(status=["FAILED", "PENDING"]) == [second, first]
    assert found(status="FAILED", recording_id="b") == []
    headers = {"X-Tenant-Id": "another"}
    assert ask(gateway, "GET", "jobs", headers=headers).json() == {"jobs": [], "next_cursor": None}


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
def test_a_list_that_makes_no_sense_is_refused_by_name(
    gateway: GatewayProcess, query: dict[str, Any], field: str
) -> None:
    assert get(gateway, "jobs", 422, **query)["field"] == field


def test_history_tells_how_each_text_begins_masked_where_that_was_asked_for(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    finding = offensive(4, 8).to_json()
    options = Options(moderation=True, filter_profanity=True)
    for given in (Options(), options):
        submit_job(gateway_database, options=given)
        plan_chunks(steps, 0)
        said = stored_segment(0, 10_000, " oh, fuck it all " + "and so on " * 50, finding=finding)
        finish_merge(steps, claim_next(steps), segments=[said] * 60, manifest={"moderation": []})
    submit_job(gateway_database)
    fail(steps)
    masked, plain = get(gateway, "history")["history"]
    assert plain["content"].startswith("oh, fuck it all and so on")
    assert masked["content"].startswith("oh, f**k it all and so on")
    assert len(plain["content"]) == len(masked["content"]) == 200
    assert plain["session_id"] == plain["job_id"]
    assert (plain["model_id"], plain["kind"]) == ("base", "job")
    assert plain["latency_ms"] >= 0
    assert [len(page) for page in pages(gateway, "history", "history", limit=1)] == [1, 1]


# --- tried again ----------------------------------------------------------------------------------


def test_a_failed_job_is_tried_again_and_completes(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps
) -> None:
    job_id = submit_job(gateway_database)
    ask(gateway, "POST", f"jobs/{job_id}/retry", 409)
    fail(steps)
    assert get(gateway, f"jobs/{job_id}")["status"] == "FAILED"
    again = ask(gateway, "POST", f"jobs/{job_id}/retry").json()
    assert (again["status"], again["error_message"], again["completed_at"]) == (
        "PENDING",
        None,
        None,
    )
    complete(steps)
    assert get(gateway, f"result/{job_id}")["text"] == "hello"
    ask(gateway, "POST", f"jobs/{job_id}/retry", 409)
    ask(gateway, "POST", f"jobs/{uuid4()}/retry", 404)


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


def test_a_deleted_job_leaves_nothing_but_a_receipt(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, cleanup: Cleanup
) -> None:
    job_id = upload(gateway, metadata='{"private": 1}', recording_id="mine").json()["job_id"]
    plan_chunks(steps, 2)
    finish_chunk(steps, claim_next(steps))
    cleanup._storage.begin("chunks", UUID(job_id))
    cleanup._storage.write_chunk(UUID(job_id), 1, bytes(320))
    cleanup._storage.begin("results", UUID(job_id))
    cleanup._storage.write_result(UUID(job_id), "transcript.txt", b"hello")
    with gateway_database.transaction() as session:
        recording_id = session.scalar(select(Job.recording_id))
    assert recording_id is not None
    assert mentions(gateway_database, job_id, recording_id)

    ask(gateway, "DELETE", f"jobs/{job_id}", 204)

    assert mentions(gateway_database, job_id, recording_id) == {}
    named = [path for path in gateway.folder.rglob("*") if path.name in {job_id, str(recording_id)}]
    assert named == []
    for path in (f"jobs/{job_id}", f"result/{job_id}", f"download/{job_id}"):
        get(gateway, path, 404)
    ask(gateway, "POST", f"jobs/{job_id}/cancel", 404)
    ask(gateway, "POST", f"jobs/{job_id}/retry", 404)
    (receipt,) = get(gateway, "deletions", job_id=job_id)["deletions"]
    assert (receipt["reason"], receipt["files"], receipt["bytes"], receipt["erased_at"]) == (
        "request",
        3,
        len(RECORDING) + 320 + 5,
        None,
    )
    assert receipt["rows"] >= 1 + 1 + 2 + 3  # the job, its recording, two chunks, three steps

    cleanup.clean()

    (receipt,) = get(gateway, "deletions", job_id=job_id)["deletions"]
    assert receipt["erased_at"] > receipt["requested_at"]


def test_what_a_late_worker_writes_is_erased_before_erasure_is_verified(
    gateway: GatewayProcess, steps: Steps, cleanup: Cleanup
) -> None:
    job_id = upload(gateway).json()["job_id"]
    claim_next(steps)
    ask(gateway, "DELETE", f"jobs/{job_id}", 204)
    cleanup._storage.begin("chunks", UUID(job_id))
    cleanup._storage.write_chunk(UUID(job_id), 7, bytes(320))

    cleanup.clean()

    (receipt,) = get(gateway, "deletions", job_id=job_id)["deletions"]
    assert (receipt["files"], receipt["erased_at"]) == (2, None)
    assert not (gateway.folder / "uploads" / "chunks" / job_id).exists()
    cleanup.clean()
    (receipt,) = get(gateway, "deletions", job_id=job_id)["deletions"]
    assert receipt["erased_at"] is not None


def test_what_is_written_after_the_proof_is_found_and_the_receipt_put_right(
    gateway: GatewayProcess, steps: Steps, cleanup: Cleanup
) -> None:
    job_id = upload(gateway).json()["job_id"]
    claim_next(steps)
    ask(gateway, "DELETE", f"jobs/{job_id}", 204)
    cleanup.clean()
    (before,) = get(gateway, "deletions", job_id=job_id)["deletions"]
    assert before["erased_at"] is not None
    cleanup._storage.begin("chunks", UUID(job_id))
    cleanup._storage.write_chunk(UUID(job_id), 7, b"123")
    cleanup._storage.begin("results", UUID(job_id))
    cleanup._storage.write_result(UUID(job_id), "transcript.txt", b"1")

    cleanup.tidy()

    (after,) = get(gateway, "deletions", job_id=job_id)["deletions"]
    assert (after["files"], after["bytes"]) == (before["files"] + 2, before["bytes"] + 4)
    assert after["erased_at"] > before["erased_at"]
    assert [path for path in gateway.folder.rglob("*") if job_id in str(path)] == []


def test_chunks_of_a_job_that_had_ended_are_found(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, cleanup: Cleanup
) -> None:
    ended = submit_job(gateway_database)
    fail(steps)
    going_on = submit_job(gateway_database)
    cleanup.clean()
    for job_id in (ended, going_on):
        cleanup._storage.begin("chunks", job_id)
        cleanup._storage.write_chunk(job_id, 0, bytes(320))

    cleanup.tidy()
    cleanup.clean()

    chunks = gateway.folder / "uploads" / "chunks"
    assert [path.name for path in chunks.iterdir()] == [str(going_on)]
    cleanup._storage.drop_chunks(going_on)


@pytest.mark.usefixtures("steps")
def test_deleting_again_is_no_error_and_deleting_what_never_was_is(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    job_id = upload(gateway).json()["job_id"]
    other = {"X-Tenant-Id": "another"}
    ask(gateway, "DELETE", f"jobs/{job_id}", 404, headers=other)

    def delete(_: int) -> int:
        return gateway.http.delete(f"/api/v1/jobs/{job_id}").status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(delete, range(8))) == {204}
    ask(gateway, "DELETE", f"jobs/{job_id}", 204)
    ask(gateway, "DELETE", f"jobs/{job_id}", 404, headers=other)
    ask(gateway, "DELETE", f"jobs/{uuid4()}", 404)
    assert count(gateway_database, Deletion) == 1
    assert ask(gateway, "GET", "deletions", headers=other).json()["deletions"] == []


def test_jobs_are_deleted_when_their_time_is_over_and_no_others(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, cleanup: Cleanup
) -> None:
    over = upload(gateway, delete_after="60").json()["job_id"]
    complete(steps)
    retried = upload(gateway, delete_after="60").json()["job_id"]
    fail(steps)
    kept = upload(gateway).json()["job_id"]
    with gateway_database.transaction() as session:
        session.execute(text("UPDATE jobs SET delete_at = now() WHERE delete_at IS NOT NULL"))
    ask(gateway, "POST", f"jobs/{retried}/retry")

    cleanup.clean()
    cleanup.clean()

    assert {job["job_id"] for job in get(gateway, "jobs")["jobs"]} == {retried, kept}
    (receipt,) = get(gateway, "deletions")["deletions"]
    assert (receipt["job_id"], receipt["reason"], receipt["files"]) == (over, "retention", 1)
    assert receipt["erased_at"] is not None
    assert len(gateway.recordings) == 2


def test_the_sound_of_a_job_that_has_ended_is_dropped_unless_it_is_retried(
    gateway: GatewayProcess, gateway_database: Database, steps: Steps, cleanup: Cleanup
) -> None:
    ended, retried = submit_job(gateway_database), submit_job(gateway_database)
    for job_id in (ended, retried):
        fail(steps)
        cleanup._storage.begin("chunks", job_id)
        cleanup._storage.write_chunk(job_id, 0, bytes(320))
    ask(gateway, "POST", f"jobs/{retried}/retry")

    cleanup.clean()

    chunks = gateway.folder / "uploads" / "chunks"
    assert [path.name for path in chunks.iterdir()] == [str(retried)]
    with gateway_database.transaction() as session:
        assert session.scalars(select(Job.sweep_at)).all() == [None, None]


@pytest.mark.usefixtures("steps")
def test_the_request_that_made_a_job_is_known(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    files = {"file": ("a.wav", RECORDING)}
    headers = {"X-Request-Id": "from-the-front"}
    ask(gateway, "POST", "upload", files=files, headers=headers)
    ask(gateway, "POST", "jobs", 201, headers=headers)
    with gateway_database.transaction() as session:
        assert session.scalars(select(Job.request_id)).all() == ["from-the-front"] * 2


# --- from the command line ------------------------------------------------------------------------


def steno_says(gateway: GatewayProcess, *arguments: str) -> str:
    done = CliRunner().invoke(steno, [*arguments, "--server", gateway.url])
    assert done.exit_code == 0, done.output
    return done.output


def test_jobs_are_listed_retried_and_deleted_from_the_command_line(
    gateway: GatewayProcess, steps: Steps
) -> None:
    failed = upload(gateway).json()["job_id"]
    fail(steps)
    waiting = ask(gateway, "POST", "jobs", 201).json()["job_id"]

    table = steno_says(gateway, "jobs").splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        [waiting, "PENDING_UPLOAD"],
        [failed, "FAILED"],
    ]
    assert "a.wav" in table[2]
    assert "there are more" in steno_says(gateway, "jobs", "--limit", "1")
    told = json.loads(steno_says(gateway, "jobs", "--status", "failed", "--json"))
    assert [job["job_id"] for job in told] == [failed]

    assert steno_says(gateway, "retry", failed) == f"{failed} PENDING\n"
    assert steno_says(gateway, "delete", failed) == f"{failed} deleted\n"
    get(gateway, f"jobs/{failed}", 404)
