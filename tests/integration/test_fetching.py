"""Recordings submitted by URL: fetched whole, resumed after a cut, refused where they must be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from standardwebhooks.webhooks import Webhook

from common.db.endpoints import Webhooks
from common.db.jobs import Jobs
from common.db.steps import Claim, StaleClaim
from common.db.tables import Job, Recording
from common.db.vault import Vault
from common.domain.job import JobStatus
from common.domain.pipeline import StepKind
from common.errors import FetchFailed, FetchInterrupted, NotAudio, TooLarge, UrlRefused
from common.redis.events import Events
from common.redis.queue import connect
from tests.support.audio_files import make_wav
from tests.support.factories import TENANT, claim_next, new_job
from tests.support.file_server import FileServer, Served
from tests.support.service import Start, wait_until
from tests.support.speech import noise, pcm16, speak
from tests.system.receiver import Receiver
from worker.context import Context
from worker.steps.fetch import run as fetch

ETAG = {"etag": '"one"'}
WAV = make_wav(pcm16(noise(10)))
"""320 kB."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def worker_settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Short timeouts, and leave to reach this machine."""
    monkeypatch.setattr("worker.steps.fetch.FIRST_PAUSE_S", 0.01)
    return {
        "EGRESS_ALLOW": "127.0.0.1",
        "FETCH_STALL": "0.5",
        "FETCH_TIMEOUT": "20",
        "FETCH_TRIES": "2",
        "MAX_UPLOAD_SIZE_MB": "1",
    }


def submit(context: Context, url: str) -> Claim:
    """Submit a URL, and claim the step that fetches it."""
    job = new_job(source_url=url)
    Jobs(context.steps._database, TENANT).create(job)
    claim = claim_next(context.steps)
    assert (claim.job_id, claim.kind) == (job.id, StepKind.FETCH)
    return claim


def recording_of(context: Context, claim: Claim) -> tuple[Recording, bytes]:
    """The recording that the job has got."""
    with context.steps._database.transaction() as session:
        job = session.get_one(Job, claim.job_id)
        recording = session.scalars(select(Recording).where(Recording.id == job.recording_id)).one()
    with context.storage.open_recording(recording.id) as file:
        return recording, file.read()


def fetched(context: Context, url: str) -> bytes:
    """What a job stores that is submitted with a URL."""
    claim = submit(context, url)
    fetch(context, claim)
    return recording_of(context, claim)[1]


def left_behind(context: Context) -> list[Path]:
    return list(context.settings.storage.temp.glob("*.part"))


def ranges(server: FileServer) -> list[str | None]:
    return [it.headers.get("range") for it in server.asked]


def test_a_recording_is_fetched_as_if_it_had_been_sent(
    context: Context, server: FileServer
) -> None:
    claim = submit(context, server.put("/a%20talk.wav", Served(WAV)) + "?token=hush")
    following = fetch(context, claim)
    recording, stored = recording_of(context, claim)
    assert stored == WAV
    assert recording.filename == "a talk.wav"
    assert recording.sha256 == hashlib.sha256(WAV).hexdigest()
    assert (recording.container, recording.codec) == ("wav", "pcm_s16le")
    assert (recording.size_bytes, recording.duration_ms) == (len(WAV), 10_000)
    assert recording.tenant == TENANT
    assert left_behind(context) == []
    assert following is not None
    assert following.kind == StepKind.PLAN
    (asked,) = server.asked
    assert asked.path == "/a%20talk.wav?token=hush"
    assert not {"cookie", "authorization", "referer"} & set(asked.headers)
    with context.steps._database.transaction() as session:
        kept = session.get_one(Job, claim.job_id).source_url
    assert kept == f"{server.url}/a%20talk.wav"


def test_a_recording_has_the_name_that_its_server_gives(
    context: Context, server: FileServer
) -> None:
    named = {"content-disposition": "attachment; filename*=UTF-8''bu%E1%BB%95i%20h%E1%BB%8Dp.wav"}
    claim = submit(context, server.put("/get", Served(WAV, headers=named)))
    fetch(context, claim)
    assert recording_of(context, claim)[0].filename == "buổi họp.wav"


@pytest.mark.parametrize(
    "headers", [ETAG, {"etag": '"één"'}, {"last-modified": "Sat, 14 Mar 2026 15:09:26 GMT"}]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_after_each_cut_only_the_rest_is_asked_for(
    context: Context, server: FileServer, headers: dict[str, str], *, chunked: bool
) -> None:
    served = Served(WAV, headers=headers, cuts=[100_000, 50_000, 1], chunked=chunked)
    assert fetched(context, server.put("/cut.wav", served)) == WAV
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]
    assert [it.headers.get("if-range") for it in server.asked[1:]] == [*headers.values()] * 3


@pytest.mark.parametrize(
    "served",
    [
        Served(WAV, headers=ETAG, ranges=False, cuts=[100_000]),
        Served(WAV, headers=ETAG, cuts=[100_000], absurd=True),
        Served(WAV, headers={}, cuts=[100_000]),
        Served(WAV, headers={"etag": 'W/"weak"'}, cuts=[100_000]),
        Served(WAV, statuses=[503]),
    ],
    ids=["no ranges", "absurd size", "no validator", "weak validator", "busy for a moment"],
)
def test_a_fetch_that_cannot_be_resumed_begins_anew(
    context: Context, server: FileServer, served: Served
) -> None:
    assert fetched(context, server.put("/cut.wav", served)) == WAV


def test_a_file_that_changed_between_two_tries_is_not_mixed(
    context: Context, server: FileServer
) -> None:
    class Changing(dict[str, str]):
        """Another ETag, and another file, in each answer."""

        versions = 0

        def items(self):  # type: ignore[no-untyped-def]
            self.versions += 1
            served.content = bytes([self.versions]) * 44 if self.versions == 1 else WAV
            return {"etag": f'"{self.versions}"'}.items()

        def get(self, name, default=None):  # type: ignore[no-untyped-def]
            return f'"{self.versions + 1}"' if name == "etag" else default

    served = Served(b"x" * 400_000, headers=Changing(), cuts=[40])
    assert fetched(context, server.put("/changing.wav", served)) == WAV


@pytest.mark.parametrize(
    ("served", "error", "message"),
    [
        (Served(statuses=[503] * 9), FetchInterrupted, "it answered 503"),
        (Served(statuses=[429] * 9), FetchInterrupted, "it answered 429"),
        (Served(status=403), FetchFailed, "it answered 403"),
        (Served(status=404), FetchFailed, "it answered 404"),
        (Served(status=204), FetchFailed, "it answered 204"),
        (Served(status=206, content=b"part"), FetchFailed, "it answered 206"),
        (Served(status=302), FetchFailed, "it redirects to nowhere"),
        (Served(status=302, headers={"location": "http://["}), FetchFailed, "what is no URL"),
        (Served(status=302, headers={"location": "/odd"}), FetchFailed, "more than 5 times"),
        (Served(b"<html>please log in</html>"), NotAudio, "not a recording"),
        (Served(), NotAudio, "the file is empty"),
        (Served(b"RIFF", headers={"content-encoding": "gzip"}), FetchFailed, "compressed"),
        (Served(bytes(10), headers={"content-length": "1000001"}), TooLarge, "limited to 1 MB"),
        (Served(endless=True), TooLarge, "limited to 1 MB"),
        (Served(bytes(9_000), stall_after=500), FetchInterrupted, "it sent nothing for too long"),
        (Served(bytes(9_000), cuts=[0] * 9), FetchInterrupted, "peer closed connection"),
    ],
)
def test_a_fetch_that_cannot_be_ends_and_says_why_without_the_urls_secrets(
    context: Context, server: FileServer, served: Served, error: type[Exception], message: str
) -> None:
    claim = submit(context, server.put("/odd", served) + "?signature=hush")
    with pytest.raises(error, match=message) as caught:
        fetch(context, claim)
    assert "hush" not in str(caught.value)
    assert left_behind(context) == []


def test_a_server_that_sends_byte_by_byte_runs_into_the_total_timeout(
    context: Context, server: FileServer
) -> None:
    """Each byte comes in time: only the limit on all of them helps (slow loris)."""
    context.settings.fetch.timeout = 1
    slow = Served(bytes(10_000), headers=ETAG, cuts=[1] * 10_000)
    claim = submit(context, server.put("/slow", slow))
    with pytest.raises(FetchFailed, match=r"it took more than 1 s"):
        fetch(context, claim)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/inside",
        "http://2130706434:{port}/inside",
        "http://0x7f000002:{port}/inside",
        "http://[::1]:{port}/inside",
        "http://[::ffff:127.0.0.2]:{port}/inside",
        "http://169.254.169.254/latest/meta-data/",
        "http://0.0.0.0:{port}/inside",
        "//127.0.0.2:{port}/inside",
        "http://user:secret@127.0.0.1:{port}/inside",
        "http://127.0.0.1:{port}\\@127.0.0.2/inside",
        "file:///etc/passwd",
        "ftp://127.0.0.1/inside",
    ],
)
def test_a_redirect_is_checked_like_the_url_itself(
    context: Context, server: FileServer, location: str
) -> None:
    with FileServer("127.0.0.2") as victim:
        victim.put("/inside", Served(WAV))
        moved = {"location": location.format(port=victim.server_port)}
        server.put("/step", Served(status=302, headers=moved))
        begin = Served(status=301, headers={"location": "/step"})
        claim = submit(context, server.put("/begin", begin))
        with pytest.raises(UrlRefused):
            fetch(context, claim)
        assert victim.asked == []
    assert left_behind(context) == []


def test_a_redirect_to_where_it_may_go_is_followed(context: Context, server: FileServer) -> None:
    server.put("/moved%20to.wav", Served(WAV, headers=ETAG, cuts=[1_000]))
    moved = {"location": "moved to.wav", "set-cookie": "a=b"}
    assert fetched(context, server.put("/begin", Served(status=307, headers=moved))) == WAV
    assert [it.path for it in server.asked] == ["/begin", "/moved%20to.wav"] * 2
    assert ranges(server)[-1] == "bytes=1000-"
    assert all("cookie" not in it.headers for it in server.asked)


def test_a_late_attempt_leaves_nothing_and_does_no_harm_to_the_newer_one(
    context: Context, server: FileServer
) -> None:
    claim = submit(context, server.put("/talk.wav", Served(WAV)))
    Jobs(context.steps._database, TENANT).cancel(claim.job_id)
    with pytest.raises(StaleClaim):
        fetch(context, claim)
    assert left_behind(context) == []


def test_a_job_submitted_by_url_is_transcribed_by_a_real_worker(
    start: Start, server: FileServer, receiver: Receiver, redis_url: str, tmp_path: Path
) -> None:
    speech = make_wav(pcm16(speak("The quick brown fox.")))
    served = Served(speech, headers=ETAG, cuts=[10_000])
    service = start(EGRESS_ALLOW="127.0.0.1", AI_LOAD_MODELS="false")
    source = server.put("/speech.wav", served) + "?signature=hush"
    job = new_job(source_url=source, webhook_url=f"{receiver.url}/ok")
    service.jobs.create(job)
    service.start_worker()
    service.start_dispatcher()
    snapshot = service.ended(job.id)
    assert snapshot.status is JobStatus.COMPLETED, snapshot.error_message
    assert "quick brown fox" in service.text(job.id).lower()
    assert ranges(server) == [None, "bytes=10000-"]
    wait_until(receiver.arrivals, "the message about its end")
    (arrival,) = receiver.arrivals()
    (secret,) = Webhooks(service.database, TENANT, Vault()).secrets(None)
    event = Webhook(secret.text).verify(arrival.body, dict(arrival.headers))
    assert (event["type"], event["data"]["job_id"]) == ("transcription.completed", str(job.id))
    assert event["data"]["duration_seconds"] == snapshot.duration_ms / 1000  # type: ignore[operator]
    assert "hush" not in service.log()

    private = new_job(source_url=server.url.replace("127.0.0.1", "127.0.0.9") + "/a?b=hush")
    missing = new_job(source_url=f"{server.url}/nothing?signature=hush")
    stalled = new_job(source_url=server.put("/stalled", Served(bytes(99), stall_after=9)))
    for refused in (private, missing, stalled):
        service.jobs.create(refused)
    assert service.ended(private.id).error_code == "url_refused"
    assert service.ended(missing.id).error_message == (
        "The recording cannot be fetched from 127.0.0.1: it answered 404"
    )
    wait_until(lambda: "stalled" in server.asked[-1].path, "the fetch")
    assert service.jobs.snapshot(stalled.id).stage == "fetching"
    for worker, rq_job in service.jobs.cancel(stalled.id):
        Events(connect(redis_url)).stop(worker, rq_job)
    temp = tmp_path / "uploads" / ".incoming"
    wait_until(lambda: not list(temp.glob("*.part")), "the end of what was fetched")
    assert "hush" not in service.log()
