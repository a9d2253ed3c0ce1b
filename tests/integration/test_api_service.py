"""What the gateway tells operators and developers."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from common.db.database import Database
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import KINDS, tone, write
from tests.support.gateway import GatewayProcess
from tests.support.service import Service, wait_until

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


@pytest.mark.parametrize("missing", ["postgres", "redis", "migrations"])
def test_readiness_names_the_part_that_is_out(
    tmp_path: Path, empty_database_url: str, database_url: str, missing: str
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        database = {"postgres": NO_POSTGRES, "migrations": empty_database_url}.get(missing)
        with GatewayProcess(tmp_path, database or database_url, valkey.url) as gateway:
            if missing == "redis":
                valkey.stop()
            answer = not_ready(gateway)
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            out = {name for name, said in answer.json()["parts"].items() if said != "ok"}
            assert missing in out
            assert "redis" not in out or missing == "redis"
            health = gateway.http.get("/health")
            assert (health.status_code, health.json()["status"]) == (200, "degraded")
            assert gateway.http.get("/healthz").status_code == 200


def test_readiness_notices_a_storage_that_takes_no_files(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    with GatewayProcess(tmp_path, database_url, redis_url) as gateway:
        incoming = tmp_path / "uploads" / ".incoming"
        incoming.rmdir()
        parts = not_ready(gateway).json()["parts"]
        assert parts["storage"] != "ok"
        assert parts["postgres"] == "ok"


def test_missing_weights_are_said_wherever_they_are_asked_for(
    tmp_path: Path, database_url: str, redis_url: str, weights_dir: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    pull = "steno models pull base --engine faster-whisper"

    def ready() -> httpx.Response | None:
        return answer if (answer := gateway.http.get("/readyz")).is_success else None

    with (
        GatewayProcess(tmp_path, database_url, redis_url, MODELS_DIR=str(models)) as gateway,
        Service(database_url, redis_url, tmp_path, MODELS_DIR=str(models)) as service,
    ):
        assert gateway.http.get("/readyz").is_success, "without workers it cannot be known"
        service.start_worker()
        answer = not_ready(gateway)
        assert pull in answer.json()["parts"]["weights"]
        listed = gateway.http.get("/api/v1/models").json()["models"]
        assert {model["state"] for model in listed if model["default"]} == {"missing"}
        assert gateway.http.get("/v1/models").json()["data"] == []

        files = {"file": write(tmp_path / "a.wav", tone(1.0), KINDS["wav"]).read_bytes()}
        sent = gateway.http.post("/api/v1/upload", files=files)
        assert (sent.status_code, sent.json()["code"]) == (422, "weights_missing")
        assert pull in sent.json()["detail"]
        spoken = gateway.http.post(
            "/v1/audio/transcriptions", data={"model": "whisper-1"}, files=files
        )
        assert (spoken.status_code, spoken.json()["error"]["code"]) == (404, "model_not_found")
        assert pull in spoken.json()["error"]["message"]

        (models / "ggml-tiny.bin").symlink_to(weights_dir / "ggml-tiny.bin")
        answer = wait_until(ready, "weights that can be named")
        assert pull in answer.json()["parts"]["weights"]
        assert gateway.http.get("/health").json()["status"] == "degraded"

        (models / "faster-whisper-base").symlink_to(weights_dir / "faster-whisper-base")
        wait_until(lambda: gateway.http.get("/health").json()["status"] == "healthy", "all")
        sent = gateway.http.post("/api/v1/upload", files=files)
        assert sent.status_code == 200


def test_weights_that_only_workers_have_can_be_asked_for(
    tmp_path: Path, database_url: str, redis_url: str, weights_dir: Path
) -> None:
    models = tmp_path / "models"
    with (
        GatewayProcess(tmp_path, database_url, redis_url, MODELS_DIR=str(models)) as gateway,
        Service(database_url, redis_url, tmp_path, MODELS_DIR=str(weights_dir)) as service,
    ):
        service.start_worker()

        def named() -> bool:
            names = [each["id"] for each in gateway.http.get("/v1/models").json()["data"]]
            return names == ["whisper-1", "base", "whisper.cpp/tiny"]

        wait_until(named, "the workers' weights")
        assert gateway.http.get("/readyz").is_success
        files = {"file": write(tmp_path / "a.wav", tone(1.0), KINDS["wav"]).read_bytes()}
        sent = gateway.http.post("/api/v1/upload", files=files, data={"model": "small"})
        assert (sent.status_code, sent.json()["code"]) == (422, "weights_missing")


def test_the_documentation_needs_no_network(gateway: GatewayProcess) -> None:
    page = gateway.http.get("/docs").text
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert links
    for link in links:
        assert link.startswith("/")
        assert gateway.http.get(link).status_code == 200
    assert "://" not in page


def test_the_description_has_the_form_with_all_its_options(gateway: GatewayProcess) -> None:
    description = gateway.http.get("/openapi.json").json()
    upload = description["paths"]["/api/v1/upload"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"file", "language", "priority", "model", "engine"} <= set(form["properties"])
    assert form["properties"]["language"]["examples"] == ["vi"]
    assert {"200", "413", "415", "422", "503"} <= set(upload["responses"])


def test_the_form_is_filled_with_nothing_that_nobody_asked_for(gateway: GatewayProcess) -> None:
    description = gateway.http.get("/openapi.json").json()
    upload = description["paths"]["/api/v1/upload"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    for name in ("engine", "temperature", "initial_prompt", "chunk_overlap", "moderation"):
        assert form[name]["examples"] == [""]
        assert "anyOf" not in form[name]


def test_every_error_in_the_description_is_of_its_status(gateway: GatewayProcess) -> None:
    routes = [
        route
        for methods in gateway.http.get("/openapi.json").json()["paths"].values()
        for route in methods.values()
    ]
    examples = [
        (int(status), content["example"])
        for route in routes
        for status, answer in route["responses"].items()
        for kind, content in answer.get("content", {}).items()
        if kind == "application/problem+json"
    ]
    assert len(examples) > 20
    assert all(example["status"] == status for status, example in examples)


def test_the_front_page_speaks_to_people_and_to_programs(gateway: GatewayProcess) -> None:
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


def test_an_unforeseen_error_tells_nothing_of_the_inside(
    gateway: GatewayProcess, gateway_database: Database
) -> None:
    with gateway_database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE transcripts RENAME TO gone")
    try:
        job_id = "00000000-0000-0000-0000-000000000000"
        with psycopg.connect(gateway.database_url) as connection:
            connection.execute(
                "INSERT INTO recordings (id, tenant, filename, container, codec, size_bytes, "
                "sha256, upload_ms) VALUES (%s, 'default', 'a', 'wav', 'pcm', 1, '', 1)",
                [job_id],
            )
            connection.execute(
                "INSERT INTO jobs (id, tenant, recording_id, status, priority, engine, model, "
                "language, options) VALUES "
                "(%(id)s, 'default', %(id)s, 'PENDING', 1, 'e', 'm', 'en', '{}')",
                {"id": job_id},
            )
        answer = gateway.http.get(f"/api/v1/result/{job_id}", params={"partial": "true"})
    finally:
        with gateway_database.transaction() as session:
            session.connection().exec_driver_sql("ALTER TABLE gone RENAME TO transcripts")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail", "code"}
    request_id = answer.headers["x-request-id"]
    assert f"request {request_id} failed" in gateway.log_file.read_text()
    for inside in ("SELECT", "transcripts", "psycopg", "Traceback"):
        assert inside not in answer.text


def test_several_gateway_processes_serve_one_port(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    with GatewayProcess(tmp_path, database_url, redis_url, API_WORKERS="2") as gateway:
        for _ in range(4):
            assert httpx.get(f"{gateway.url}/readyz", trust_env=False).status_code == 200


def test_a_gateway_without_a_database_url_says_what_to_do(tmp_path: Path, redis_url: str) -> None:
    with (
        pytest.raises(AssertionError, match="DATABASE_URL is not set"),
        GatewayProcess(tmp_path, "", redis_url),
    ):
        pass
