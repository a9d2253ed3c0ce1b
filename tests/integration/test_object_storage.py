"""The whole service with its recordings in S3."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.frozen import SENTENCE
from tests.support.gateway import GatewayProcess
from tests.support.s3 import BUCKET, CutLine, S3Server
from tests.support.service import Service, wait_until, write_wav
from tests.support.speech import noise, speak

Alone = Callable[..., GatewayProcess]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("audio") / "fox.wav", speak(SENTENCE))


@pytest.fixture
def line(s3_server: S3Server) -> Iterator[CutLine]:
    with CutLine(s3_server.port) as whole:
        yield whole


@pytest.fixture
def gateway(alone: Alone, s3_server: S3Server, line: CutLine) -> GatewayProcess:
    return alone(**s3_server.settings(line.url), S3_PUBLIC_URL=s3_server.url)


@pytest.fixture
def proxying(alone: Alone, s3_server: S3Server, line: CutLine) -> GatewayProcess:
    """A gateway whose clients cannot reach the S3 server."""
    return alone(**s3_server.settings(line.url), S3_LINKS="false")


@pytest.fixture
def service(
    tmp_path: Path, database_url: str, redis_url: str, s3_server: S3Server, line: CutLine
) -> Iterator[Service]:
    folder = tmp_path / "workers"  # that have no folder in common with the gateway
    folder.mkdir()
    with Service(database_url, redis_url, folder, **s3_server.settings(line.url)) as running:
        yield running


def upload(gateway: GatewayProcess, recording: Path) -> httpx.Response:
    return gateway.http.post(
        "/api/v1/upload",
        files={"file": ("fox.wav", recording.read_bytes())},
        data={"language": "en", "model": "base", "moderation": "false"},
    )


def status(gateway: GatewayProcess, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = gateway.http.get(f"/api/v1/status/{job_id}").json()
    return document


@pytest.mark.usefixtures("weights_dir")
def test_a_job_on_s3_outlives_an_outage_and_leaves_nothing_when_it_is_deleted(
    gateway: GatewayProcess, service: Service, s3_server: S3Server, line: CutLine, recording: Path
) -> None:
    job_id = upload(gateway, recording).json()["job_id"]
    assert list((gateway.folder / "uploads" / ".incoming").iterdir()) == []
    line.cut()
    service.serve()
    wait_until(lambda: "retrying in" in service.log(), "a step that waits for the storage")
    line.mend()
    wait_until(lambda: status(gateway, job_id)["status"] == "COMPLETED", "the end of the job")
    assert status(gateway, job_id)["warnings"] == []

    download = f"/api/v1/download/{job_id}"
    assert "fox" in gateway.http.get(download).text
    wav = gateway.http.get(download, params={"format": "wav"})
    assert wav.content[44:].startswith(recording.read_bytes()[44:])

    original = gateway.http.get(download, params={"format": "original"})
    assert original.status_code == HTTPStatus.TEMPORARY_REDIRECT
    link = original.headers["location"]
    assert link.startswith(s3_server.url)
    fetched = httpx.get(link, trust_env=False)
    assert fetched.content == recording.read_bytes()
    assert fetched.headers["content-disposition"].startswith('attachment; filename="fox.wav"')
    assert fetched.headers["content-type"] == "audio/wav"

    names = {re.sub(r"[0-9a-f-]{36}", "ID", name) for name in s3_server.names()}
    assert "steno/results/ID/transcript.srt" in names
    assert "steno/recordings/ID" in names
    gateway.http.delete(f"/api/v1/jobs/{job_id}").raise_for_status()
    wait_until(lambda: not s3_server.names(), "an empty bucket")


def test_an_upload_to_an_unavailable_storage_is_rejected_and_may_be_retried(
    gateway: GatewayProcess, s3_server: S3Server, line: CutLine, recording: Path
) -> None:
    line.cut()
    refused = upload(gateway, recording)
    assert refused.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert int(refused.headers["retry-after"]) > 0
    assert gateway.incoming == []
    # It may answer once more what it found a moment ago.
    wait_until(lambda: not gateway.http.get("/readyz").is_success, "a gateway that is not ready")
    ready = gateway.http.get("/readyz")
    assert ready.json()["parts"]["storage"] != "ok"
    assert ready.json()["parts"]["postgres"] == "ok"
    line.mend()
    assert upload(gateway, recording).status_code == HTTPStatus.OK
    assert len(s3_server.names()) == 1
    wait_until(lambda: gateway.http.get("/readyz").is_success, "a gateway that is ready again")


def test_an_upload_that_is_rejected_leaves_no_object(
    gateway: GatewayProcess, s3_server: S3Server, tmp_path: Path
) -> None:
    no_audio = tmp_path / "fox.wav"
    no_audio.write_bytes(b"no audio at all")
    refused = upload(gateway, no_audio)
    assert refused.status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert s3_server.names() == []
    assert gateway.incoming == []


def test_a_recording_is_proxied_where_clients_cannot_reach_its_server(
    proxying: GatewayProcess, s3_server: S3Server, recording: Path
) -> None:
    sent = recording.read_bytes()
    job_id = upload(proxying, recording).json()["job_id"]

    def ask(**headers: str) -> httpx.Response:
        path = f"/api/v1/download/{job_id}?format=original"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return proxying.http.get(path, headers=named)

    whole = ask()
    assert whole.status_code == HTTPStatus.OK
    assert whole.content == sent
    assert whole.headers["content-type"] == "audio/wav"
    assert whole.headers["content-disposition"].startswith('attachment; filename="fox.wav"')
    assert whole.headers["accept-ranges"] == "bytes"
    tag = whole.headers["etag"]
    for wanted, start, stop in (
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, len(sent)),
        ("bytes=-7", len(sent) - 7, len(sent)),
        (f"bytes=5-{10 * len(sent)}", 5, len(sent)),
    ):
        part = ask(range=wanted, if_range=tag)
        assert part.status_code == HTTPStatus.PARTIAL_CONTENT
        assert part.content == sent[start:stop]
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(sent)}"
    assert ask(range="bytes=100-199", if_range='"another"').content == sent
    assert ask(range="bytes=0-0,5-9").content == sent
    beyond = ask(range=f"bytes={len(sent)}-")
    assert beyond.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    assert beyond.headers["content-range"] == f"bytes */{len(sent)}"

    (name,) = s3_server.names()
    s3_server.client.delete_object(Bucket=BUCKET, Key=name)
    assert ask().status_code == HTTPStatus.NOT_FOUND


def test_a_recording_that_breaks_off_while_it_is_proxied_does_not_look_whole(
    proxying: GatewayProcess, s3_server: S3Server, tmp_path: Path
) -> None:
    long = write_wav(tmp_path / "long.wav", noise(600))
    job_id = upload(proxying, long).json()["job_id"]
    path = f"/api/v1/download/{job_id}?format=original"
    with proxying.http.stream("GET", path) as answer:
        pieces = answer.iter_bytes(1000)
        next(pieces)
        (name,) = s3_server.names()
        s3_server.client.delete_object(Bucket=BUCKET, Key=name)
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
