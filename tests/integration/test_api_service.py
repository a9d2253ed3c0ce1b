"""What the gateway tells operators and developers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from scripts.stack.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.support.api import Api
from tests.support.audio_files import make_wav
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.service import Start, shut, wait_until

FILES = {"file": ("a.wav", make_wav(bytes(32_000)))}
NO_POSTGRES = "postgresql://nobody:x@127.0.0.1:9/none"


def test_a_gateway_with_all_its_parts_is_ready(gateway: GatewayProcess) -> None:
    assert gateway.http.get("/healthz").json() == {"status": "ok"}
    ready = gateway.http.get("/readyz")
    assert ready.status_code == 200
    parts = ready.json()["parts"]
    assert parts.pop("moderation") in {"ok", "loading"}
    assert set(parts.values()) == {"ok"}
    health = gateway.http.get("/health").json()
    assert health["status"] == "healthy"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", health["version"])


def not_ready(gateway: GatewayProcess) -> httpx.Response:
    """Its answer once it says so: what was found is good for a second."""
    asked = partial(gateway.http.get, "/readyz")
    return wait_until(lambda: None if (answer := asked()).is_success else answer, "not ready")


def bad_parts(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    return {name for name, state in answer.json()["parts"].items() if state != "ok"}


def test_readiness_names_the_part_that_fails_until_it_works_again(
    own_valkey: EmbeddedValkey, alone: StartGateway, postgres: EmbeddedPostgres, database_url: str
) -> None:
    gateway = alone(redis_url=own_valkey.url, AI_LOAD_MODELS="false")
    incoming = gateway.folder / "uploads" / ".incoming"

    def rename(table: str, name: str) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO {name}")

    faults: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "redis": (own_valkey.stop, own_valkey.start),
        "storage": (incoming.rmdir, incoming.mkdir),
        "migrations": (
            partial(rename, "alembic_version", "renamed"),
            partial(rename, "renamed", "alembic_version"),
        ),
        "postgres": (
            partial(shut, postgres, database_url, allow=False),
            partial(shut, postgres, database_url, allow=True),
        ),
    }
    for part, (break_it, repair_it) in faults.items():
        break_it()
        bad = bad_parts(not_ready(gateway)) - {"moderation"}
        assert bad == ({"postgres", "migrations"} if part == "postgres" else {part})
        health = gateway.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert gateway.http.get("/healthz").status_code == 200
        repair_it()
        wait_until(lambda: gateway.http.get("/readyz").is_success, "ready")


def test_a_gateway_starts_without_postgres_and_is_not_ready(alone: StartGateway) -> None:
    gateway = alone(database_url=NO_POSTGRES)
    assert "postgres" in bad_parts(not_ready(gateway))
    assert gateway.http.get("/healthz").status_code == 200


def test_missing_weights_are_named_until_a_worker_has_them(
    tmp_path: Path, alone: StartGateway, start: Start, weights_dir: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    pull = "steno models pull base --engine faster-whisper"

    def ready() -> httpx.Response | None:
        return answer if (answer := gateway.http.get("/readyz")).is_success else None

    def names() -> list[str]:
        return [each["id"] for each in gateway.http.get("/v1/models").json()["data"]]

    gateway = alone(MODELS_DIR=str(tmp_path / "none"), DEFAULT_MODEL="base")
    assert gateway.http.get("/readyz").is_success, "without workers it cannot be known"
    start(MODELS_DIR=str(models)).start_worker()
    answer = not_ready(gateway)
    assert pull in answer.json()["parts"]["weights"]
    listed = gateway.http.get("/api/v1/models").json()["models"]
    assert {model["state"] for model in listed if model["default"]} == {"missing"}
    assert names() == []

    sent = gateway.http.post("/api/v1/upload", files=FILES)
    assert (sent.status_code, sent.json()["code"]) == (422, "weights_missing")
    assert pull in sent.json()["detail"]
    form = {"model": "whisper-1"}
    sent = gateway.http.post("/v1/audio/transcriptions", data=form, files=FILES)
    assert (sent.status_code, sent.json()["error"]["code"]) == (404, "model_not_found")
    assert pull in sent.json()["error"]["message"]

    (models / "ggml-tiny.bin").symlink_to(weights_dir / "ggml-tiny.bin")
    answer = wait_until(ready, "weights that can be named")
    assert pull in answer.json()["parts"]["weights"]
    assert gateway.http.get("/health").json()["status"] == "degraded"

    (models / "faster-whisper-base").symlink_to(weights_dir / "faster-whisper-base")
    wait_until(lambda: gateway.http.get("/health").json()["status"] == "healthy", "all")
    assert names() == ["whisper-1", "base", "whisper.cpp/tiny"]
    assert gateway.http.post("/api/v1/upload", files=FILES).status_code == 200
    sent = gateway.http.post("/api/v1/upload", files=FILES, data={"model": "small"})
    assert (sent.status_code, sent.json()["code"]) == (422, "weights_missing")


# --- pages and descriptions -----------------------------------------------------------------------


def test_the_documentation_needs_no_network(gateway: GatewayProcess) -> None:
    page = gateway.http.get("/docs").text
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert links
    for link in links:
        assert link.startswith("/")
        assert gateway.http.get(link).status_code == 200
    assert "://" not in page


@pytest.fixture
def paths(gateway: GatewayProcess) -> Any:
    """What the description says of each path."""
    return gateway.http.get("/openapi.json").json()["paths"]


def test_the_description_has_the_form_with_all_its_options_and_fills_in_none(paths: Any) -> None:
    upload = paths["/api/v1/upload"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {"file", "language", "priority", "model", "engine"} <= set(form)
    assert form["language"]["examples"] == ["vi"]
    assert {"200", "413", "415", "422", "503"} <= set(upload["responses"])
    for name in ("engine", "temperature", "initial_prompt", "chunk_overlap", "moderation"):
        assert form[name]["examples"] == [""]
        assert "anyOf" not in form[name]


def test_every_error_in_the_description_is_of_its_status(paths: Any) -> None:
    examples = [
        (int(status), content["example"])
        for methods in paths.values()
        for route in methods.values()
        for status, answer in route["responses"].items()
        for kind, content in answer.get("content", {}).items()
        if kind == "application/problem+json"
    ]
    assert len(examples) > 20
    assert all(example["status"] == status for status, example in examples)


def test_the_front_page_is_for_people_and_for_programs(gateway: GatewayProcess) -> None:
    assert gateway.http.get("/").json()["name"] == "stenopool"
    page = gateway.http.get("/", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    for link in re.findall(r"href=\"([^\"]+)\"", page.text):
        assert gateway.http.get(link).status_code == 200
    for line in re.findall(r"<pre>curl (.*)</pre>", page.text):
        assert gateway.url in line


def test_models_are_listed_with_their_state(gateway: GatewayProcess) -> None:
    models = gateway.http.get("/api/v1/models").json()["models"]
    states = {(model["engine"], model["model"]): model["state"] for model in models}
    assert states["faster-whisper", "base"] == "present"
    assert states["faster-whisper", "large-v3"] == "missing"
    assert [model["model"] for model in models if model["default"]] == ["base"]


def test_a_request_keeps_the_name_its_client_gave_it(gateway: GatewayProcess) -> None:
    named = gateway.http.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert named.headers["x-request-id"] == "abc-1"
    forged = gateway.http.get("/healthz", headers={"X-Request-Id": "abc 1; DROP"})
    assert re.fullmatch(r"[0-9a-f]{32}", forged.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/api/v1/upload", 405), ("POST", "/healthz", 405)],
)
def test_every_error_is_a_problem_document(
    gateway: GatewayProcess, method: str, path: str, status: int
) -> None:
    answer = gateway.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_an_unforeseen_error_reveals_nothing_of_the_inside(api: Api) -> None:
    job_id = api.submit()
    with api.database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE transcripts RENAME TO renamed")
    try:
        answer = api.http.get(f"/api/v1/result/{job_id}", params={"partial": "true"})
    finally:
        with api.database.transaction() as session:
            session.connection().exec_driver_sql("ALTER TABLE renamed RENAME TO transcripts")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail", "code"}
    request_id = answer.headers["x-request-id"]
    assert f"request {request_id} failed" in api.gateway.log_file.read_text()
    for inside in ("SELECT", "transcripts", "psycopg", "Traceback"):
        assert inside not in answer.text


def test_a_gateway_without_a_database_url_says_what_to_do(alone: StartGateway) -> None:
    with pytest.raises(AssertionError, match="DATABASE_URL is not set"):
        alone(database_url="")
