"""What the gateway promises to those who send recordings, and to those who send other things."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psutil
import psycopg
import pytest
from sqlalchemy import func, select

from common.audio.wav import wav_header
from common.db.database import Database
from common.db.tables import Job, Outbox, Recording
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.support.audio_files import FILMS, make_wav, silence, tone, write
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.proxy import LosesTheCommit
from tests.support.service import wait_until

UPLOAD = "/api/v1/upload"
RECORDING = make_wav(tone(2.0).tobytes())
LONG = make_wav(tone(120.0).tobytes())
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
FILE_PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
FORM_END = b"\r\n--edge--\r\n"


@pytest.fixture
def untouched(gateway: GatewayProcess, gateway_database: Database) -> Iterator[None]:
    """Checks that the test leaves nothing behind: no row, no file."""
    before = traces(gateway, gateway_database)
    yield
    wait_until(lambda: traces(gateway, gateway_database) == before, "the end of all traces")
    assert gateway.incoming == []


def traces(gateway: GatewayProcess, database: Database) -> tuple[int, ...]:
    with database.transaction() as session:
        rows = [
            session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Recording, Job, Outbox)
        ]
    return len(gateway.incoming), len(gateway.recordings), *rows


def send(
    gateway: GatewayProcess, content: bytes = RECORDING, name: str = "a.wav", /, **options: Any
) -> httpx.Response:
    return gateway.http.post(UPLOAD, data=options, files={"file": (name, content)})


def job_of(database: Database, answer: httpx.Response) -> Job:
    """The job that an accepted upload has made."""
    assert answer.status_code == 200, answer.text
    with database.transaction() as session:
        return session.get_one(Job, UUID(answer.json()["job_id"]))


def filename_of(gateway: GatewayProcess, answer: httpx.Response) -> str:
    """The name that an accepted upload is shown with."""
    assert answer.status_code == 200, answer.text
    status = gateway.http.get(f"/api/v1/status/{answer.json()['job_id']}").json()
    return str(status["filename"])


def check_problem(answer: httpx.Response, status: int, **members: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= set(body)
    assert {name: body.get(name) for name in members} == members
    return body


def raw_head(size: int, more: str = "") -> bytes:
    """The head of an upload that announces ``size`` bytes."""
    return (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n{more}"
        f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
    ).encode()


# --- taken --------------------------------------------------------------------------------------


def test_an_upload_is_stored_as_it_was_sent_and_answered_with_a_pending_job(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    answer = send(gateway, RECORDING, "Bài nói.wav")
    job = job_of(gateway_database, answer)
    assert set(answer.json()) == {"job_id", "status", "message", "estimated_time_seconds"}
    assert answer.json()["status"] == "PENDING"
    with gateway_database.transaction() as session:
        stored = session.get_one(Recording, job.recording_id)
    assert (stored.filename, stored.container) == ("Bài nói.wav", "wav")
    assert (stored.size_bytes, stored.duration_ms) == (len(RECORDING), 2_000)
    assert stored.sha256 == hashlib.sha256(RECORDING).hexdigest()
    place = gateway.folder / "uploads" / "recordings" / str(stored.id)
    assert place.read_bytes() == RECORDING
    assert gateway.incoming == []


def test_the_resolved_request_is_stored_with_the_job(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    answer = send(
        gateway,
        language="EN",
        priority="high",
        model="tiny",
        engine="whisper.cpp",
        beam_size="3",
        temperature="0.2",
        hotwords="Hà Nội",
        word_timestamps="false",
        chunk_strategy="fixed",
        chunk_duration="20",
        initial_prompt="",
        filter_profanity="true",
    )
    job = job_of(gateway_database, answer)
    assert (job.language, job.priority) == ("en", 0)
    assert (job.engine, job.model) == ("whisper.cpp", "tiny")
    assert job.options == {
        "cutting": {
            "strategy": "fixed",
            "window_ms": 20_000,
            "overlap_ms": 2_000,
            "silence_dbfs": -40.0,
            "min_silence_ms": 500,
        },
        "decoding": {
            "task": "transcribe",
            "beam_size": 3,
            "temperature": 0.2,
            "initial_prompt": None,
            "hotwords": "Hà Nội",
            "word_timestamps": False,
        },
        "moderation": True,
        "filter_profanity": True,
        "audio_track": None,
        "detect_in": None,
        "diarize": None,
        "channels": "mix",
        "identify": False,
        "glossaries": [],
        "glossary_truncated": False,
        "review": False,
        "span": None,
        "enhance": [],
        "languages": [],
        "models": {},
        "fetch_model": False,
    }


def form(size: int, place: int, *options: tuple[str, str]) -> dict[str, Any]:
    """A form with a file of ``size`` bytes after ``place`` of its options."""
    parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in options]
    parts.insert(place, ("file", ("a.wav", make_wav(bytes(size)))))
    return {"files": parts}


@pytest.mark.parametrize("place", [0, 1, 4])
def test_options_may_come_in_any_order(
    gateway: GatewayProcess, gateway_database: Database, place: int
) -> None:
    # Each depends on one after it: tiny is here for whisper.cpp alone.
    sent = form(
        200_000,
        place,
        ("model", "tiny"),
        ("engine", "whisper.cpp"),
        ("chunk_overlap", "5"),
        ("chunk_duration", "20"),
    )
    job = job_of(gateway_database, gateway.http.post(UPLOAD, **sent))
    assert (job.model, job.engine) == ("tiny", "whisper.cpp")
    assert job.options["cutting"]["overlap_ms"] == 5_000


def test_the_audio_of_a_film_is_taken(gateway: GatewayProcess, tmp_path: Path) -> None:
    film = write(tmp_path / "film.mp4", tone(1.0), FILMS["mp4"])
    assert send(gateway, film.read_bytes(), "film").status_code == 200


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../etc/cron.d/x.wav", "x.wav"),
        ("a\0b.wav", "a%00b.wav"),  # httpx writes it that way
        ("ế" * 300, "ế" * 85),
        ("..", "recording"),
    ],
)
def test_no_file_name_leaves_the_folder(gateway: GatewayProcess, name: str, shown: str) -> None:
    assert filename_of(gateway, send(gateway, RECORDING, name)) == shown
    names = [place.name for place in gateway.recordings]
    assert [str(UUID(name)) for name in names] == names


def test_a_nul_in_a_file_name_is_dropped(gateway: GatewayProcess) -> None:
    body = FILE_PART.replace(b"a.wav", b"a\0b.wav") + RECORDING + FORM_END
    answer = gateway.http.post(UPLOAD, content=body, headers=FORM)
    assert filename_of(gateway, answer) == "ab.wav"


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("language", "klingon", "vi"),
        ("model", "enormous", "base"),
        ("engine", "kaldi", "whisper.cpp"),
        ("priority", "urgent", "high, normal, low"),
        ("task", "summarize", "translate"),
        ("chunk_strategy", "random", "vad"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_allowed(
    gateway: GatewayProcess, option: str, value: str, allowed: str
) -> None:
    answer = send(gateway, **{option: value})
    body = check_problem(answer, 422, field=option, value=value, code="unknown_option")
    assert allowed in body["allowed"]
    assert option in body["detail"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [
        ("beam_size", "0", "at least 1"),
        ("beam_size", "many", "a whole number"),
        ("temperature", "1.5", "at most 1"),
        ("temperature", "nan", "a finite number"),
        ("word_timestamps", "perhaps", "true or false"),
        ("moderation", "perhaps", "true or false"),
        ("chunk_duration", "31", "at most 30 for Whisper"),
        ("chunk_duration", "61", "at most 60"),
        ("chunk_overlap", "7.6", "at most 7.5"),
        ("silence_threshold", "3", "at most 0"),
        ("min_silence_duration", "5", "at least 10"),
        ("hotwords", "x" * 2001, "at most 2000 characters long"),
        ("initial_prompt", "a\0b", "text without control characters"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_limit(
    gateway: GatewayProcess, option: str, value: str, limit: str
) -> None:
    answer = send(gateway, **{option: value})
    body = check_problem(answer, 422, field=option, code="out_of_range")
    assert body["limit"].startswith(limit)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("options", "field", "detail"),
    [
        ({"denoise": "true"}, "denoise", "denoise is not supported"),
        (
            {"filter_profanity": "true", "moderation": "false"},
            "filter_profanity",
            "filter_profanity=true needs moderation=true",
        ),
        ({"model": "large-v3"}, "model", "steno models pull large-v3 --engine faster-whisper"),
    ],
    ids=["not supported", "masks without moderation", "weights that are missing"],
)
def test_an_option_that_cannot_be_heeded_is_refused_by_name(
    gateway: GatewayProcess, options: dict[str, str], field: str, detail: str
) -> None:
    assert detail in check_problem(send(gateway, **options), 422, field=field)["detail"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("name", "value"), [("language", "xx"), ("engine", "kaldi"), ("x", "y")])
def test_a_wrong_option_after_the_file_leaves_nothing_behind(
    gateway: GatewayProcess, name: str, value: str
) -> None:
    sent = form(3_000_000, 0, ("model", "tiny"), (name, value))
    check_problem(gateway.http.post(UPLOAD, **sent), 422, field=name)


@pytest.mark.parametrize(
    ("option", "value"), [("language", "klingon"), ("model", "enormous"), ("beam_size", "0")]
)
def test_a_wrong_option_is_refused_before_the_file_is_sent(
    gateway: GatewayProcess, option: str, value: str
) -> None:
    part = f'--edge\r\nContent-Disposition: form-data; name="{option}"\r\n\r\n{value}\r\n'
    answer = gateway.answer_to(raw_head(100_000_000) + part.encode() + FILE_PART)
    assert answer.startswith(b"HTTP/1.1 422 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["field"] == option


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"files": {"language": (None, b"vi")}}, 422),
        ({"files": [("file", ("a.wav", RECORDING)), ("file", ("b.wav", RECORDING))]}, 400),
        ({"json": {"file": "x"}}, 400),
        ({"content": b"nonsense", "headers": FORM}, 400),
        ({"content": FILE_PART + RECORDING, "headers": FORM}, 400),
    ],
    ids=["no file", "two files", "no form", "no parts", "no end"],
)
def test_a_form_without_exactly_one_file_is_refused(
    gateway: GatewayProcess, request_: dict[str, Any], status: int
) -> None:
    expected = {"field": "file"} if status == 422 else {"code": "malformed"}
    check_problem(gateway.http.post(UPLOAD, **request_), status, **expected)


@pytest.mark.usefixtures("untouched")
def test_a_file_without_audio_is_refused(gateway: GatewayProcess, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(RECORDING)
    mute = write(tmp_path / "mute.mp4", silence(0), FILMS["mp4"], film_seconds=1.0)
    files = {
        "text": b"Dear Sir or Madam,\n" * 100,
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(100_000),
        "film without sound": mute.read_bytes(),
        "nine hours and no data": wav_header(16_000, 1, 9 * 3_600 * 16_000),
        "play list": f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n".encode(),
        "list of files": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
    }
    for name, content in files.items():
        check_problem(send(gateway, content, f"{name}.mp3"), 415, code="not_audio")


# --- too large, broken off ------------------------------------------------------------------------


def test_too_large_is_refused_by_its_announced_size_and_while_it_streams(
    alone: StartGateway,
) -> None:
    gateway = alone(MAX_UPLOAD_SIZE_MB="1")
    answer = gateway.answer_to(raw_head(3_000_000_000, "Expect: 100-continue\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["field"] == "file"
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield FILE_PART
        while True:
            sent += 100_000
            yield bytes(100_000)

    streamed = gateway.http.post(UPLOAD, content=endless(), headers=FORM)
    body = check_problem(streamed, 413, field="file", limit="1 MB", code="too_large")
    assert "file" in body["detail"]
    assert sent > 1_000_000
    assert (gateway.incoming, gateway.recordings) == ([], [])
    assert send(gateway).status_code == 200


def test_a_large_recording_is_never_held_in_memory(gateway: GatewayProcess) -> None:
    size = 128_000_000
    assert send(gateway).status_code == 200
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    largest = 0

    def long_recording() -> Iterator[bytes]:
        nonlocal largest
        yield FILE_PART + wav_header(16_000, 1, size // 2)
        for _ in range(0, size, 1_000_000):
            yield bytes(1_000_000)
            largest = max(largest, process.memory_info().rss)
        yield FORM_END

    answer = gateway.http.post(UPLOAD, content=long_recording(), headers=FORM)
    assert answer.status_code == 200
    assert largest - before < 64_000_000


@pytest.mark.usefixtures("untouched")
def test_a_client_that_disconnects_half_way_leaves_nothing_behind(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        line.sendall(raw_head(50_000_000) + FILE_PART + RECORDING + bytes(3 << 20))
        wait_until(lambda: len(gateway.incoming) == 1, "the file")


# --- parts that fail ----------------------------------------------------------------------------


def check_refused_for_now(answer: httpx.Response, code: str) -> None:
    check_problem(answer, 503, code=code)
    assert "retry-after" in answer.headers


def test_a_full_disk_is_answered_with_503_and_leaves_nothing_behind(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    before = traces(gateway, gateway_database)
    process = psutil.Process(gateway.process.pid)
    # The system refuses it to write further than this, as it does where no space is left.
    process.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, psutil.RLIM_INFINITY))
    refused = send(gateway, LONG)
    process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    check_refused_for_now(refused, "storage_full")
    assert traces(gateway, gateway_database) == before
    assert send(gateway).status_code == 200


def test_without_redis_an_upload_is_answered_with_503_and_leaves_nothing_behind(
    own_valkey: EmbeddedValkey, alone: StartGateway, database: Database
) -> None:
    gateway = alone(redis_url=own_valkey.url)
    before = traces(gateway, database)
    own_valkey.stop()
    check_refused_for_now(send(gateway), "unavailable")
    assert traces(gateway, database) == before
    own_valkey.start()
    assert send(gateway).status_code == 200


def test_without_postgres_an_upload_is_answered_with_503_and_leaves_nothing_behind(
    own_postgres: EmbeddedPostgres, alone: StartGateway
) -> None:
    gateway = alone(database_url=own_postgres.url)
    with Database(own_postgres.url) as database:
        before = traces(gateway, database)

        def stopped_half_way() -> Iterator[bytes]:
            yield FILE_PART + LONG
            wait_until(lambda: len(gateway.incoming) == 1, "the file")
            own_postgres.stop()
            yield FORM_END

        answer = gateway.http.post(UPLOAD, content=stopped_half_way(), headers=FORM)
        check_problem(answer, 503, code="unavailable")
        check_refused_for_now(send(gateway), "unavailable")
        assert (gateway.incoming, gateway.recordings) == ([], [])
        own_postgres.start()
        assert traces(gateway, database) == before
        assert send(gateway).status_code == 200


def test_a_commit_that_postgres_breaks_off_promises_nothing_and_loses_nothing(
    alone: StartGateway, database_url: str, database: Database
) -> None:
    """Whether it took effect is not known then, so the file is kept for the cleanup to check."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON jobs "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
        )
    gateway = alone()
    check_problem(send(gateway), 503, code="unavailable")
    assert traces(gateway, database) == (1, 0, 0, 0, 0)


def test_a_commit_whose_answer_is_lost_is_still_a_commit(
    alone: StartGateway, database_url: str, database: Database
) -> None:
    with LosesTheCommit(database_url) as proxy, alone(database_url=proxy.url) as gateway:
        proxy.armed = True
        answer = send(gateway)
        assert not proxy.armed
        assert answer.status_code == 200
        assert traces(gateway, database) == (0, 1, 1, 1, 1)
