"""The headers for browsers and proxies, and how large a request may be."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from uuid import UUID

import httpx
import pytest

from tests.support.audio_files import make_wav, tone
from tests.support.gateway import GatewayProcess, StartGateway

STATUS = f"/api/v1/status/{UUID(int=0)}"
KEYS = "/api/v1/keys"
CSS = "/docs/assets/swagger-ui.css"
VITE = "http://localhost:5173"
STRANGER = "https://stranger.example"
OPERATOR = "the-operators-own-key-0123456789"


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"GATEWAY_API_KEY": OPERATOR, "API_MAX_BODY_KB": "100", "API_HEAD_TIMEOUT": "2"}


@pytest.fixture(scope="module", autouse=True)
def shown(gateway: GatewayProcess) -> None:
    gateway.http.headers["X-API-Key"] = OPERATOR


# --- pages of other origins -------------------------------------------------------------------


def test_the_development_page_may_read_the_headers_it_needs(gateway: GatewayProcess) -> None:
    answer = gateway.http.get(STATUS, headers={"Origin": VITE})
    assert answer.headers["access-control-allow-origin"] == VITE
    assert "access-control-allow-credentials" not in answer.headers
    exposed = answer.headers["access-control-expose-headers"].lower()
    for name in ("x-request-id", "ratelimit-remaining", "retry-after", "content-disposition"):
        assert name in exposed


def test_a_page_asks_before_it_sends_a_key(gateway: GatewayProcess) -> None:
    asked = {
        "Origin": VITE,
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization,x-tenant-id,idempotency-key",
    }
    answer = httpx.options(f"{gateway.url}{KEYS}", headers=asked, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == VITE
    assert "DELETE" in answer.headers["access-control-allow-methods"]


def test_a_page_of_an_unknown_origin_may_not(gateway: GatewayProcess) -> None:
    answer = gateway.http.get(STATUS, headers={"Origin": STRANGER})
    assert "access-control-allow-origin" not in answer.headers
    asked = {"Origin": STRANGER, "Access-Control-Request-Method": "GET"}
    assert gateway.http.options(STATUS, headers=asked).status_code == 400


def test_a_page_can_read_why_it_was_refused(gateway: GatewayProcess) -> None:
    wrong = {"Origin": VITE, "X-API-Key": "wrong"}
    answer = gateway.http.get(STATUS, headers=wrong)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, VITE)


# --- browsers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/docs", 200), ("/healthz", 200), (STATUS, 404), (KEYS, 200), ("/nowhere", 404)],
)
def test_every_answer_has_the_security_headers(
    gateway: GatewayProcess, path: str, status: int
) -> None:
    answer = gateway.http.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "strict-transport-security" not in answer.headers
    assert "server" not in answer.headers


def test_the_documentation_may_run_its_own_script_and_no_other(gateway: GatewayProcess) -> None:
    page = gateway.http.get("/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = page.headers["content-security-policy"]
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert "validatorUrl" in script
    assert re.search(r'"validatorUrl": null', script)


def test_the_documentations_files_may_be_cached(gateway: GatewayProcess) -> None:
    asset = gateway.http.get(CSS)
    assert "cache-control" not in asset.headers
    assert asset.headers["x-content-type-options"] == "nosniff"
    again = gateway.http.get(CSS, headers={"If-None-Match": asset.headers["etag"]})
    assert again.status_code == 304


def test_the_description_names_the_ways_to_send_a_key(gateway: GatewayProcess) -> None:
    description = gateway.http.get("/openapi.json").json()
    schemes = description["components"]["securitySchemes"]
    assert {(each["type"], each.get("scheme")) for each in schemes.values()} == {
        ("http", "bearer"),
        ("http", "basic"),
        ("apiKey", None),
    }
    asks = description["paths"]["/api/v1/status/{job_id}"]["get"]
    assert {name for way in asks["security"] for name in way} == set(schemes)
    assert {"401", "403", "429"} <= set(asks["responses"])
    assert "security" not in description["paths"]["/healthz"]["get"]


# --- behind a proxy ---------------------------------------------------------------------------


def test_links_have_the_public_address(alone: StartGateway) -> None:
    proxied = alone(
        GATEWAY_API_KEY=OPERATOR,
        API_PUBLIC_URL="https://steno.example.org/speech/",
        API_ROOT_PATH="/speech",
        CORS_ORIGINS="*",
    )
    description = proxied.http.get("/openapi.json")
    assert description.json()["servers"] == [{"url": "https://steno.example.org/speech"}]
    assert description.headers["strict-transport-security"] == "max-age=31536000"
    page = proxied.http.get("/docs")
    for link in re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text):
        assert link.startswith("/speech/docs/assets/")
        # The proxy takes /speech off.
        assert proxied.http.get(link.removeprefix("/speech")).status_code == 200
    assert "'/speech/openapi.json'" in page.text
    policy = page.headers["content-security-policy"]
    assert "connect-src 'self' https://steno.example.org;" in policy
    made = proxied.http.post("/api/v1/jobs", json={}, headers={"X-API-Key": OPERATOR}).json()
    path = f"/api/v1/jobs/{made['job_id']}/upload"
    assert made["upload_url"] == f"https://steno.example.org/speech{path}"
    home = proxied.http.get("/", headers={"Accept": "text/html"}).text
    assert "curl -F file=@talk.mp3 -F language=vi https://steno.example.org/speech/api" in home
    assert proxied.http.get("/").json()["docs"] == "/speech/docs"
    asked = proxied.http.get(STATUS, headers={"Origin": STRANGER, "X-API-Key": OPERATOR})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (404, "*")


# --- sizes ------------------------------------------------------------------------------------


def test_a_head_that_is_too_large_is_refused(gateway: GatewayProcess) -> None:
    answer = gateway.http.get(STATUS, headers={"X-Long": "x" * 17_000})
    assert (answer.status_code, answer.json()["field"]) == (431, "headers")
    assert answer.headers["content-type"] == "application/problem+json"
    assert gateway.http.get(STATUS, headers={"X-Long": "x" * 10_000}).status_code == 404


def test_a_url_that_is_too_long_is_refused(gateway: GatewayProcess) -> None:
    answer = gateway.http.get(STATUS, params={"wait": "0" * 9_000})
    assert (answer.status_code, answer.json()["field"]) == (414, "url")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_before_all_of_it_is_here(
    gateway: GatewayProcess, kind: str, chunked: bool
) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 10_000
            yield b" " * 10_000

    headers = {"Content-Type": kind} | ({} if chunked else {"Content-Length": "10000000"})
    answer = gateway.http.post(KEYS, content=pieces(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert answer.json()["limit"] == "100000 bytes"


def test_uploads_and_moderation_have_limits_of_their_own(gateway: GatewayProcess) -> None:
    clip = make_wav(tone(10.0).tobytes())
    assert len(clip) > 100_000
    sent = gateway.http.post("/api/v1/upload", files={"file": ("a.wav", clip)})
    assert sent.status_code == 200, sent.text
    long = gateway.http.post("/moderation", json={"texts": ["a" * 40_000] * 4})
    assert long.status_code in {200, 503}, long.text


def test_an_upload_without_a_key_is_refused_before_it_is_sent(gateway: GatewayProcess) -> None:
    answer = gateway.answer_to(
        b"POST /api/v1/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    assert b" 401 " in answer.splitlines()[0]
    assert b"connection: close" in answer.lower()


def test_a_head_that_never_ends_runs_into_a_timeout(gateway: GatewayProcess) -> None:
    answer = gateway.answer_to(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Never: ")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 422),
        (b"", 422),
        (b'{"name": "\\ud800"}', 422),
        (b"\xff", 400),
        (b'{"name": NaN}', 422),
        (b'{"name": "a", "expires_in_seconds": 1e999}', 422),
    ],
)
def test_a_wrong_body_is_a_problem_as_documented(
    gateway: GatewayProcess, content: bytes, status: int
) -> None:
    kind = {"Content-Type": "application/json"}
    answer = gateway.http.post(KEYS, content=content, headers=kind)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.text, parse_constant=pytest.fail)


# --- methods and encodings --------------------------------------------------------------------


def test_head_ends_also_where_the_body_never_would(gateway: GatewayProcess) -> None:
    job_id = gateway.http.post("/api/v1/jobs", json={}).json()["job_id"]
    for path in (events := f"/api/v1/jobs/{job_id}/events", "/docs", CSS, "/"):
        answer = gateway.http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert "text/event-stream" in gateway.http.head(events).headers["content-type"]
    assert int(gateway.http.head(CSS).headers["content-length"]) > 1_000
    refused = gateway.http.head("/api/v1/upload")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "POST", b"")
    assert "Traceback" not in gateway.log_file.read_text()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP, identity"])
@pytest.mark.parametrize("path", [KEYS, "/api/v1/upload", "/v1/audio/transcriptions"])
def test_an_encoded_body_is_refused_by_the_name_of_its_encoding(
    gateway: GatewayProcess, path: str, encoding: str
) -> None:
    sent = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    answer = gateway.http.post(path, content=gzip.compress(b"{}"), headers=sent)
    assert (answer.status_code, answer.json()["value"]) == (415, encoding)
    assert answer.headers["accept-encoding"] == "identity"


def test_an_identity_encoding_is_accepted(gateway: GatewayProcess) -> None:
    sent = {"Content-Encoding": "identity"}
    answer = gateway.http.post("/api/v1/jobs", json={}, headers=sent)
    assert answer.status_code == 201, answer.text
    assert gateway.http.get(KEYS, headers={"Content-Encoding": "gzip"}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "heeded"),
    [
        ("bytes=0-0", True),
        ("Bytes=0-1, -5", True),
        ("bytes=7-", True),
        ("seconds=0-5", False),
        ("bytes=5-2", False),
        ("bytes=", False),
        ("bytes=-", False),
        ("bytes=a-b", False),
        ("bytes=1-2,x", False),
        ("bytes", False),
        (f"bytes={'9' * 5_000}-", False),
    ],
)
def test_a_malformed_range_is_ignored(gateway: GatewayProcess, sent: str, heeded: bool) -> None:
    answer = gateway.http.get(CSS, headers={"Range": sent})
    assert answer.status_code == (206 if heeded else 200)
