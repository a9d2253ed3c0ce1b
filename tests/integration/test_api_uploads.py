"""What the gateway promises to those who send recordings, and to those who send other things."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import psutil
import psycopg
import pytest
from sqlalchemy import func, select

from common.db.database import Database
from common.db.migrate import upgrade
from common.db.tables import Job, Outbox, Recording
from scripts.stack.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.support.audio_files import FILMS, silence, tone, write
from tests.support.gateway import GatewayProcess
from tests.support.proxy import LosesTheCommit

UPLOAD = "/api/v1/upload"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds of a tone, as a WAV."""
    path = tmp_path_factory.mktemp("recording") / "tone.wav"
    return wav(path, 2.0).read_bytes()


@pytest.fixture
def untouched(gateway: GatewayProcess, gateway_database: Database) -> Iterator[None]:
    """Checks that the test leaves nothing behind: no row, no file."""
    before = traces(gateway, gateway_database)
    yield
    eventually(lambda: traces(gateway, gateway_database) == before)
    assert gateway.incoming == []


def wav(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone(seconds).tobytes())
    return path


def wav_header(size: int) -> bytes:
    """The first 44 bytes of a recording with ``size`` bytes of sound."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    riff = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + form
    return riff + b"data" + struct.pack("<I", size)


def traces(gateway: GatewayProcess, database: Database) -> tuple[int, ...]:
    with database.transaction() as session:
        rows = [
            session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Recording, Job, Outbox)
        ]
    return len(gateway.incoming), len(gateway.recordings), *rows


def eventually(holds: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def send(gateway: GatewayProcess, content: bytes, name: str = "a.wav", **options: str) -> Any:
    return gateway.http.post(UPLOAD, data=options, files={"file": (name, content)})


def check_problem(answer: httpx.Response, status: int, **members: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= set(body)
    assert {name: body.get(name) for name in members} == members
    return body


# --- taken --------------------------------------------------------------------------------------


def test_the_predecessors_upload_is_answered_with_a_pending_job(
    gateway: GatewayProcess, recording: bytes
) -> None:
    answer = gateway.http.post(
        UPLOAD,
        files={"file": ("talk.wav", recording, "audio/wav")},
        data={"language": "vi", "priority": "normal"},
    )
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"job_id", "status", "message", "estimated_time_seconds"}
    assert body["status"] == "PENDING"
    status = gateway.http.get(f"/api/v1/status/{body['job_id']}").json()
    assert (status["status"], status["progress"], status["error_message"]) == ("PENDING", 0, None)


def test_what_was_sent_is_what_is_stored(
    gateway: GatewayProcess, gateway_database: Database, recording: bytes
) -> None:
    job_id = UUID(send(gateway, recording, "Bài nói.wav").json()["job_id"])
    with gateway_database.transaction() as session:
        job = session.get_one(Job, job_id)
        stored = session.get_one(Recording, job.recording_id)
    assert stored.filename == "Bài nói.wav"
    assert (stored.container, stored.size_bytes, stored.duration_ms) == (
        "wav",
        len(recording),
        2_000,
    )
    assert stored.sha256 == hashlib.sha256(recording).hexdigest()
    place = gateway.folder / "uploads" / "recordings" / str(stored.id)
    assert place.read_bytes() == recording
    assert gateway.incoming == []


def test_the_resolved_request_is_stored_with_the_job(
    gateway: GatewayProcess, gateway_database: Database, recording: bytes
) -> None:
    job_id = send(
        gateway,
        recording,
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
    ).json()["job_id"]
    with gateway_database.transaction() as session:
        job = session.get_one(Job, UUID(job_id))
    assert (job.language, job.priority, job.engine, job.model) == (
        "en",
        0,
        "whisper.cpp",
        "tiny",
    )
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
    }


def after_the_file(size: int, *options: tuple[str, str]) -> dict[str, Any]:
    """A form in which the options follow a file of ``size`` bytes, and depend on each other."""
    clip = wav_header(size) + bytes(size)
    sent: list[tuple[str, Any]] = [("file", ("a.wav", clip))]
    return {"files": sent + [(name, (None, value)) for name, value in options]}


@pytest.mark.parametrize("place", ["before", "after", "around"])
def test_options_may_come_in_any_order(
    gateway: GatewayProcess, gateway_database: Database, place: str
) -> None:
    # Each depends on one after it: tiny is here for whisper.cpp alone.
    file, *options = after_the_file(
        200_000,
        ("model", "tiny"),
        ("engine", "whisper.cpp"),
        ("chunk_overlap", "5"),
        ("chunk_duration", "20"),
    )["files"]
    cut = {"before": 0, "after": 4, "around": 1}[place]
    answer = gateway.http.post(UPLOAD, files=[*options[:cut], file, *options[cut:]])
    assert answer.status_code == 200, answer.text
    with gateway_database.transaction() as session:
        job = session.get_one(Job, UUID(answer.json()["job_id"]))
    assert (job.model, job.engine) == ("tiny", "whisper.cpp")
    assert job.options["cutting"]["overlap_ms"] == 5_000


def test_the_sound_of_a_film_is_taken(gateway: GatewayProcess, tmp_path: Path) -> None:
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
def test_no_file_name_leaves_the_folder(
    gateway: GatewayProcess, recording: bytes, name: str, shown: str
) -> None:
    answer = send(gateway, recording, name)
    assert answer.status_code == 200
    status = gateway.http.get(f"/api/v1/status/{answer.json()['job_id']}").json()
    assert status["filename"] == shown
    names = [place.name for place in gateway.recordings]
    assert [str(UUID(name)) for name in names] == names


def test_a_nul_in_a_file_name_is_dropped(gateway: GatewayProcess, recording: bytes) -> None:
    body = (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a\0b.wav"\r\n\r\n'
        + recording
        + b"\r\n--edge--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    answer = gateway.http.post(UPLOAD, content=body, headers=headers)
    status = gateway.http.get(f"/api/v1/status/{answer.json()['job_id']}").json()
    assert status["filename"] == "ab.wav"


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
    gateway: GatewayProcess, recording: bytes, option: str, value: str, allowed: str
) -> None:
    body = check_problem(
        send(gateway, recording, **{option: value}),
        422,
        field=option,
        value=value,
        code="unknown_option",
    )
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
        ("chunk_duration", "31", "at most 30"),
        ("chunk_overlap", "7.6", "at most 7.5"),
        ("silence_threshold", "3", "at most 0"),
        ("min_silence_duration", "5", "at least 10"),
        ("hotwords", "x" * 2001, "at most 2000 characters long"),
        ("initial_prompt", "a\0b", "text without control characters"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_limit(
    gateway: GatewayProcess, recording: bytes, option: str, value: str, limit: str
) -> None:
    answer = send(gateway, recording, **{option: value})
    body = check_problem(answer, 422, field=option, code="out_of_range")
    assert body["limit"].startswith(limit)


@pytest.mark.usefixtures("untouched")
def test_an_unsupported_option_is_refused_by_name(
    gateway: GatewayProcess, recording: bytes
) -> None:
    check_problem(send(gateway, recording, diarize="true"), 422, field="diarize")


@pytest.mark.usefixtures("untouched")
def test_masks_without_moderation_are_refused_by_name(
    gateway: GatewayProcess, recording: bytes
) -> None:
    answer = send(gateway, recording, filter_profanity="true", moderation="false")
    body = check_problem(answer, 422, field="filter_profanity", code="option_conflict")
    assert body["detail"] == "filter_profanity=true needs moderation=true"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("name", "value"), [("language", "xx"), ("engine", "kaldi"), ("x", "y")])
def test_a_wrong_option_after_the_file_leaves_nothing_behind(
    gateway: GatewayProcess, name: str, value: str
) -> None:
    form = after_the_file(3_000_000, ("model", "tiny"), (name, value))
    check_problem(gateway.http.post(UPLOAD, **form), 422, field=name)


def test_a_wrong_name_is_refused_before_the_file_is_sent(gateway: GatewayProcess) -> None:
    for option, value in (("language", "klingon"), ("model", "enormous"), ("beam_size", "0")):
        part = f'--edge\r\nContent-Disposition: form-data; name="{option}"\r\n\r\n{value}\r\n'
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as line:
            line.sendall(
                b"POST /api/v1/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n"
                b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
                + form_start(part.encode())
            )
            answer = read_all(line)
        assert answer.startswith(b"HTTP/1.1 422 "), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["field"] == option


@pytest.mark.usefixtures("untouched")
def test_known_weights_that_are_not_here_are_refused_with_the_way_to_get_them(
    gateway: GatewayProcess, recording: bytes
) -> None:
    body = check_problem(send(gateway, recording, model="large-v3"), 422, field="model")
    assert "steno models pull large-v3 --engine faster-whisper" in body["detail"]


@pytest.mark.usefixtures("untouched")
def test_a_form_without_a_file_is_refused(gateway: GatewayProcess) -> None:
    answer = gateway.http.post(UPLOAD, files={"language": (None, b"vi")})
    check_problem(answer, 422, field="file")


@pytest.mark.usefixtures("untouched")
def test_a_second_file_is_refused(gateway: GatewayProcess, recording: bytes) -> None:
    parts = [("file", ("a.wav", recording)), ("file", ("b.wav", recording))]
    check_problem(gateway.http.post(UPLOAD, files=parts), 400)


@pytest.mark.usefixtures("untouched")
def test_a_body_that_is_no_form_is_refused(gateway: GatewayProcess) -> None:
    check_problem(gateway.http.post(UPLOAD, json={"file": "x"}), 400)
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    check_problem(gateway.http.post(UPLOAD, content=b"nonsense", headers=headers), 400)


def test_what_holds_no_sound_is_refused(
    gateway: GatewayProcess, gateway_database: Database, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.wav"
    wav(secret, 1.0)
    mute = write(tmp_path / "mute.mp4", silence(0), FILMS["mp4"], film_seconds=1.0)
    nine_hours = 9 * 3600 * 32_000
    files = {
        "text": b"Dear Sir or Madam,\n" * 100,
        "empty": b"",
        "noise": np.random.default_rng(1).bytes(100_000),
        "film without sound": mute.read_bytes(),
        "nine hours and no data": wav_header(nine_hours),
        "play list": f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n".encode(),
        "list of files": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
    }
    before = traces(gateway, gateway_database)
    for name, content in files.items():
        answer = send(gateway, content, f"{name}.mp3")
        check_problem(answer, 415, code="not_audio")
    assert traces(gateway, gateway_database) == before


# --- too large, broken off ------------------------------------------------------------------------


@pytest.fixture
def small_gateway(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path, database_url, redis_url, MAX_UPLOAD_SIZE_MB="1") as running:
        yield running


def form_start(options: bytes = b"") -> bytes:
    return options + (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    )


def test_too_large_is_refused_by_its_announced_size_before_it_is_sent(
    small_gateway: GatewayProcess, recording: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", small_gateway.port), timeout=30) as line:
        line.sendall(
            b"POST /api/v1/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000000\r\n"
            b"Expect: 100-continue\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
        )
        answer = read_all(line)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["field"] == "file"
    assert small_gateway.incoming == []
    assert send(small_gateway, recording).status_code == 200


def test_too_large_is_cut_off_while_it_streams(small_gateway: GatewayProcess) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield form_start()
        while True:
            sent += 100_000
            yield bytes(100_000)

    answer = small_gateway.http.post(
        UPLOAD,
        content=endless(),
        headers={"Content-Type": "multipart/form-data; boundary=edge"},
    )
    body = check_problem(answer, 413, field="file", limit="1 MB", code="too_large")
    assert "file" in body["detail"]
    assert sent > 1_000_000
    assert small_gateway.incoming == []
    assert small_gateway.recordings == []


def test_a_large_recording_is_never_held_in_memory(
    tmp_path: Path, database_url: str, redis_url: str, recording: bytes
) -> None:
    size = 200_000_000
    with GatewayProcess(tmp_path, database_url, redis_url) as gateway:
        assert send(gateway, recording).status_code == 200
        assert gateway.process is not None
        process = psutil.Process(gateway.process.pid)
        before = process.memory_info().rss
        largest = 0

        def long_recording() -> Iterator[bytes]:
            nonlocal largest
            yield form_start() + wav_header(size)
            for _ in range(0, size, 1_000_000):
                yield bytes(1_000_000)
                largest = max(largest, process.memory_info().rss)
            yield b"\r\n--edge--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        answer = gateway.http.post(UPLOAD, content=long_recording(), headers=headers)
        assert answer.status_code == 200
        assert largest - before < 64_000_000


@pytest.mark.usefixtures("untouched")
def test_a_client_that_leaves_half_way_leaves_nothing_behind(
    gateway: GatewayProcess, recording: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        line.sendall(
            b"POST /api/v1/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
        )
        line.sendall(form_start() + recording + bytes(3 << 20))
        eventually(lambda: len(gateway.incoming) == 1)


@pytest.mark.usefixtures("untouched")
def test_a_form_that_ends_in_the_middle_leaves_nothing_behind(
    gateway: GatewayProcess, recording: bytes
) -> None:
    answer = gateway.http.post(
        UPLOAD,
        content=form_start() + recording,
        headers={"Content-Type": "multipart/form-data; boundary=edge"},
    )
    check_problem(answer, 400, code="malformed")


def read_all(line: socket.socket) -> bytes:
    received = b""
    while data := line.recv(65_536):
        received += data
    return received


# --- parts that are out -------------------------------------------------------------------------


def test_a_full_disk_is_answered_with_503_and_leaves_nothing_behind(
    tmp_path: Path, database_url: str, redis_url: str, recording: bytes
) -> None:
    with (
        GatewayProcess(tmp_path, database_url, redis_url, 1 << 20) as gateway,
        Database(database_url) as database,
    ):
        before = traces(gateway, database)
        answer = send(gateway, wav(tmp_path / "long.wav", 120.0).read_bytes())
        check_problem(answer, 503, code="storage_full")
        assert "retry-after" in answer.headers
        assert traces(gateway, database) == before
        assert send(gateway, recording).status_code == 200


def test_without_redis_an_upload_is_answered_with_503_and_leaves_nothing_behind(
    tmp_path: Path, database_url: str, recording: bytes
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        url = valkey.url
        with (
            GatewayProcess(tmp_path, database_url, url) as gateway,
            Database(database_url) as database,
        ):
            before = traces(gateway, database)
            valkey.stop()
            answer = send(gateway, recording)
            check_problem(answer, 503, code="unavailable")
            assert "retry-after" in answer.headers
            assert traces(gateway, database) == before
            valkey.start()
            assert send(gateway, recording).status_code == 200


def test_without_postgres_an_upload_is_answered_with_503_and_leaves_nothing_behind(
    tmp_path: Path, redis_url: str, recording: bytes
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"}) as postgres:
        upgrade(postgres.url)
        with (
            GatewayProcess(tmp_path, postgres.url, redis_url) as gateway,
            Database(postgres.url) as database,
        ):
            before = traces(gateway, database)

            def goes_out_half_way() -> Iterator[bytes]:
                yield form_start() + wav(tmp_path / "long.wav", 120.0).read_bytes()
                eventually(lambda: len(gateway.incoming) == 1)
                postgres.stop()
                yield b"\r\n--edge--\r\n"

            headers = {"Content-Type": "multipart/form-data; boundary=edge"}
            answer = gateway.http.post(UPLOAD, content=goes_out_half_way(), headers=headers)
            check_problem(answer, 503, code="unavailable")
            answer = send(gateway, recording)
            check_problem(answer, 503, code="unavailable")
            assert "retry-after" in answer.headers
            assert (gateway.incoming, gateway.recordings) == ([], [])
            postgres.start()
            assert traces(gateway, database) == before
            assert send(gateway, recording).status_code == 200


def test_a_commit_that_postgres_breaks_off_promises_nothing_and_loses_nothing(
    tmp_path: Path, database_url: str, redis_url: str, recording: bytes
) -> None:
    """Whether it took effect is not known then, so the file stays for the reconciler to judge."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON jobs "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
        )
    with (
        GatewayProcess(tmp_path, database_url, redis_url) as gateway,
        Database(database_url) as database,
    ):
        check_problem(send(gateway, recording), 503, code="unavailable")
        assert traces(gateway, database) == (1, 0, 0, 0, 0)


def test_a_commit_whose_answer_is_lost_is_still_a_commit(
    tmp_path: Path, database_url: str, redis_url: str, recording: bytes
) -> None:
    with (
        LosesTheCommit(database_url) as proxy,
        GatewayProcess(tmp_path, proxy.url, redis_url) as gateway,
        Database(database_url) as database,
    ):
        proxy.armed = True
        answer = send(gateway, recording)
        assert not proxy.armed
        assert answer.status_code == 200
        assert traces(gateway, database) == (0, 1, 1, 1, 1)
