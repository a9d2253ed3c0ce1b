"""A link to a download needs no key, is answered only as it was made, and ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.db.database import Database
from common.db.keys import Keys
from common.domain.keys import KeyText, Scope
from tests.support.audio_files import FILMS, KINDS, AudioKind, tone, write
from tests.support.factories import (
    claim_next,
    finish_chunk,
    finish_merge,
    make_steps,
    plan_chunks,
    stored_segment,
    submit_job,
)
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.service import wait_until, write_wav
from tests.support.speech import noise

OPERATOR = "the-operators-own-key-0123456789"
TENANT = "acme"

Make = Callable[..., KeyText]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    none = {f"LIMIT_REQUESTS_PER_{each}": "0" for each in ("SECOND", "MINUTE")}
    return {"GATEWAY_API_KEY": OPERATOR, **none}


@pytest.fixture
def make(gateway_database: Database) -> Make:
    def make_key(tenant: str = TENANT, scopes: Any = (Scope.READ,), **more: Any) -> KeyText:
        return Keys(gateway_database, tenant).create("a test's", scopes, **more)[1]

    return make_key


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_wav(tmp_path_factory.mktemp("audio") / "noise.wav", noise(1.0)).read_bytes()


@pytest.fixture(scope="module")
def job_id(gateway: GatewayProcess, sent: bytes) -> str:
    """A job of the tenant, with a recording and no text yet."""
    return uploaded(gateway, sent)


def uploaded(gateway: GatewayProcess, sent: bytes) -> str:
    answer = gateway.http.post(
        "/api/v1/upload",
        files={"file": ("a.wav", sent)},
        data={"model": "base"},
        headers={"X-API-Key": OPERATOR, "X-Tenant-Id": TENANT},
    )
    return str(answer.raise_for_status().json()["job_id"])


@pytest.fixture
def completed(gateway_database: Database) -> UUID:
    steps = make_steps(gateway_database)
    job = submit_job(gateway_database, tenant=TENANT, priority=0)
    plan_chunks(steps, 1)
    finish_chunk(steps, claim_next(steps))
    finish_merge(steps, claim_next(steps), segments=[stored_segment(0, 10_000, " Xin chào.")])
    return job


def ask(
    gateway: GatewayProcess, job: object, key: KeyText | str, tenant: str = TENANT, **body: Any
) -> httpx.Response:
    """Ask for a link."""
    text = key if isinstance(key, str) else key.reveal()
    headers = {"X-API-Key": text, "X-Tenant-Id": tenant}
    return gateway.http.post(f"/api/v1/jobs/{job}/links", json=body, headers=headers)


def made(gateway: GatewayProcess, job: object, key: KeyText | str, **body: Any) -> str:
    """The URL of a link."""
    answer = ask(gateway, job, key, **body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"])


def rejected(gateway: GatewayProcess, url: str) -> tuple[int, str]:
    answer = gateway.http.get(url)
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_it_plays_and_seeks_without_a_key(
    gateway: GatewayProcess, job_id: str, sent: bytes, make: Make
) -> None:
    url = made(gateway, job_id, make(), format="original")
    assert url.startswith(f"/api/v1/download/{job_id}?format=original&link=")
    whole = gateway.http.get(url)
    assert (whole.content, whole.headers["content-type"]) == (sent, "audio/wav")
    assert whole.headers["accept-ranges"] == "bytes"
    part = gateway.http.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, sent[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(sent)}"
    assert gateway.http.head(url).headers["content-length"] == str(len(sent))
    for answer in (whole, part):
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
    plain = f"/api/v1/download/{job_id}?format=original"
    assert rejected(gateway, plain) == (401, "unauthorised")


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        (KINDS["mp3"], "audio/mpeg"),
        (KINDS["m4a"], "video/mp4"),
        (KINDS["webm"], "video/webm"),
        (FILMS["webm"], "video/webm"),
        (FILMS["mp4"], "video/mp4"),
        (KINDS["mkv"], "video/x-matroska"),
        (KINDS["opus"], "audio/ogg"),
    ],
)
def test_browsers_learn_what_they_play(
    gateway: GatewayProcess, tmp_path: Path, kind: AudioKind, media_type: str
) -> None:
    path = tmp_path / "recording"
    write(path, tone(2.0), kind)
    job = uploaded(gateway, path.read_bytes())
    url = made(gateway, job, OPERATOR, format="original")
    part = gateway.http.get(url, headers={"Range": "bytes=0-"})
    assert (part.status_code, part.headers["content-type"]) == (206, media_type)
    assert part.headers["accept-ranges"] == "bytes"
    assert part.content == path.read_bytes()


def test_it_is_of_the_file_with_these_options(
    gateway: GatewayProcess, completed: UUID, make: Make
) -> None:
    key = make()
    options: dict[str, Any] = {
        "format": "srt",
        "max_line_width": 20,
        "max_cue_seconds": 2.5,
        "flag": False,
    }
    by_link = gateway.http.get(made(gateway, completed, key, **options))
    by_key = gateway.http.get(
        f"/api/v1/download/{completed}", params=options, headers={"X-API-Key": key.reveal()}
    )
    assert by_link.status_code == 200
    assert by_link.content == by_key.content
    assert gateway.http.get(made(gateway, completed, key)).text == "Xin chào.\n"


def test_it_is_answered_as_the_download_is_where_there_is_no_text(
    gateway: GatewayProcess, job_id: str, make: Make
) -> None:
    assert rejected(gateway, made(gateway, job_id, make(), format="txt")) == (409, "not_ready")


def test_it_expires_after_an_hour_or_as_asked(
    gateway: GatewayProcess, job_id: str, make: Make
) -> None:
    key = make()
    wanted: tuple[tuple[dict[str, Any], int], ...] = (({}, 3600), ({"expires_in_seconds": 60}, 60))
    for body, lasts_s in wanted:
        answer = ask(gateway, job_id, key, format="original", **body).json()
        left = datetime.fromisoformat(answer["expires_at"]) - datetime.now(UTC)
        assert timedelta(0) < left <= timedelta(seconds=lasts_s)
    brief = made(gateway, job_id, key, format="original", expires_in_seconds=1)
    wait_until(lambda: gateway.http.get(brief).status_code == 403, "expired")
    answer = gateway.http.get(brief)
    assert (answer.status_code, answer.json()["code"]) == (403, "link_expired")
    assert "request a new one" in answer.json()["detail"]


@pytest.mark.parametrize("seconds", [0, -1, 86_401, 1.5, "long"])
def test_how_long_it_lasts_is_bounded(
    gateway: GatewayProcess, job_id: str, make: Make, seconds: Any
) -> None:
    answer = ask(gateway, job_id, make(), expires_in_seconds=seconds)
    assert (answer.status_code, answer.json()["field"]) == (422, "expires_in_seconds")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"format": "pdf"}, "format"),
        ({"format": "txt", "flag": True}, "flag"),
        ({"format": "original", "redact": True}, "redact"),
        ({"format": "txt", "max_cps": 20}, "max_cps"),
        ({"format": "srt", "max_line_count": 2}, "max_line_count"),
        ({"format": "srt", "max_cps": 1}, "max_cps"),
        ({"formt": "srt"}, "formt"),
    ],
)
def test_options_that_no_download_has_are_rejected_at_once(
    gateway: GatewayProcess, job_id: str, make: Make, body: dict[str, Any], field: str
) -> None:
    answer = ask(gateway, job_id, make(), **body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_link_to_anothers_job_cannot_be_made(
    gateway: GatewayProcess, job_id: str, make: Make
) -> None:
    assert ask(gateway, uuid4(), make()).status_code == 404
    assert ask(gateway, job_id, make("other"), tenant="other").status_code == 404
    assert ask(gateway, job_id, make(scopes=[Scope.TRANSCRIBE])).status_code == 403


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_one_that_was_altered_is_not_valid(
    gateway: GatewayProcess, job_id: str, data: st.DataObject
) -> None:
    url = made(gateway, job_id, OPERATOR, format="wav", redact=True)
    parts = urlsplit(url)
    query = parse_qsl(parts.query)
    link = dict(query)["link"]
    at = data.draw(st.integers(0, len(link) - 1))
    letter = data.draw(st.sampled_from("0123456789abcdefXYZ~._-").filter(lambda it: it != link[at]))
    altered = link[:at] + letter + link[at + 1 :]
    other_query = data.draw(
        st.sampled_from(
            [
                [("format", "wav"), ("redact", "true"), ("link", altered)],
                [("format", "wav"), ("redact", "true"), ("link", link[:at])],
                [("format", "wav"), ("redact", "true"), ("link", link + letter)],
                [("format", "wav"), ("link", link)],
                [("format", "original"), ("link", link)],
                [("format", "wav"), ("redact", "false"), ("link", link)],
                [*query, ("flag", "false")],
                [*query, ("redact", "true")],
                [*query, ("link", altered)],
                [("link", altered), *query],
            ]
        )
    )
    assert rejected(gateway, f"{parts.path}?{urlencode(other_query)}") == (403, "link_invalid")


def test_one_of_another_job_or_another_route_is_not_valid(
    gateway: GatewayProcess, job_id: str, completed: UUID, make: Make
) -> None:
    url = made(gateway, job_id, make(), format="original")
    assert rejected(gateway, url.replace(job_id, str(completed))) == (403, "link_invalid")
    link = dict(parse_qsl(urlsplit(url).query))["link"]
    for path in (f"result/{job_id}", f"jobs/{job_id}/transcript", "history", "jobs"):
        answer = gateway.http.get(f"/api/v1/{path}", params={"link": link})
        assert answer.status_code in {401, 422}, path


def test_it_ends_with_the_key_that_made_it(
    gateway: GatewayProcess, job_id: str, make: Make, gateway_database: Database
) -> None:
    revoked, expiring, admin = make(), make(lasts_s=1), make("other", [Scope.ADMIN])
    urls = {key.id: made(gateway, job_id, key, format="original") for key in (revoked, expiring)}
    lasting = made(gateway, job_id, admin, format="original")
    Keys(gateway_database, TENANT).revoke(revoked.id)
    for key, state in ((revoked, "revoked"), (expiring, "expired")):
        url = urls[key.id]
        wait_until(lambda: gateway.http.get(url).status_code == 403, state)  # noqa: B023
        assert gateway.http.get(url).json()["code"] == "link_invalid"
        assert state in gateway.http.get(url).json()["detail"]
    assert gateway.http.get(lasting).status_code == 200


def test_it_ends_with_the_job(gateway: GatewayProcess, completed: UUID, make: Make) -> None:
    url = made(gateway, completed, make())
    assert gateway.http.get(url).status_code == 200
    headers = {"X-API-Key": OPERATOR, "X-Tenant-Id": TENANT}
    gateway.http.delete(f"/api/v1/jobs/{completed}", headers=headers).raise_for_status()
    assert rejected(gateway, url) == (404, "not_found")


def test_no_log_has_a_signature(gateway: GatewayProcess, job_id: str, make: Make) -> None:
    url = made(gateway, job_id, make(), format="original")
    for each in (url, url[:-1], url + "0"):
        gateway.http.get(each)
    log = gateway.log_file.read_text()
    assert f"GET /api/v1/download/{job_id} 200" in log
    assert "link=" not in log
    assert url[-64:] not in log


def test_requests_by_it_count_as_those_of_its_key(alone: StartGateway, database: Database) -> None:
    gateway = alone(GATEWAY_API_KEY=OPERATOR)
    job = submit_job(database, tenant=TENANT)
    _, key = Keys(database, TENANT).create("slow", [Scope.READ], limits={"requests_per_minute": 2})
    url = made(gateway, job, key)
    wait_until(lambda: gateway.http.get(url).status_code == 429, "limited")


def test_all_gateways_know_it_also_after_a_restart_and_while_the_secret_is_rotated(
    alone: StartGateway, database: Database
) -> None:
    old, new = "o" * 32, "n" * 32
    job = submit_job(database, tenant=TENANT)
    _, key = Keys(database, TENANT).create("a test's", [Scope.READ])
    own = {"GATEWAY_API_KEY": OPERATOR}
    plain, sealed = alone(**own), alone(**own, SECRETS_KEY=old)
    url, sealed_url = made(plain, job, key), made(sealed, job, key)
    by_operator = made(plain, job, OPERATOR)
    plain.__exit__()
    again = alone(GATEWAY_API_KEY="another-key-of-the-operator")
    assert rejected(again, url) == (409, "not_ready")
    assert rejected(again, by_operator) == (403, "link_invalid")
    rotated = alone(**own, SECRETS_KEY=f"{new},{old}")
    assert rejected(rotated, sealed_url) == (409, "not_ready")
    assert rejected(rotated, url) == (403, "link_invalid")
    done = alone(**own, SECRETS_KEY=new)
    assert rejected(done, sealed_url) == (403, "link_invalid")
    assert rejected(done, made(rotated, job, key)) == (409, "not_ready")


def test_without_a_key_it_works_on_this_machine_until_there_is_one(
    alone: StartGateway, database: Database
) -> None:
    gateway = alone()
    job = submit_job(database, tenant=TENANT)
    url = made(gateway, job, "")
    assert rejected(gateway, url) == (409, "not_ready")
    assert rejected(gateway, f"{url}0") == (403, "link_invalid")
    for header in ({"X-Forwarded-For": "192.0.2.1"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = gateway.http.get(url, headers=header)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    Keys(database, TENANT).create("the first", [Scope.READ])
    wait_until(lambda: gateway.http.get(url).status_code == 403, "closed")
    assert "no API key was required" in gateway.http.get(url).json()["detail"]


def test_it_has_the_path_under_which_a_proxy_serves_the_gateway(
    alone: StartGateway, database: Database
) -> None:
    job = submit_job(database, tenant=TENANT)
    public = alone(GATEWAY_API_KEY=OPERATOR, API_PUBLIC_URL="https://steno.example.org/speech")
    assert made(public, job, OPERATOR).startswith(f"/speech/api/v1/download/{job}?")
