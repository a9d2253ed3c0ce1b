"""Models that a job needs are fetched while it waits: once, again after a loss, or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from filelock import FileLock

from common.db.jobs import Jobs
from common.db.tables import Job
from common.domain.models import ModelName
from common.domain.request import Options
from common.errors import ModelFetchFailed, Transient, WeightsCorrupt
from tests.support.factories import claim_next, new_job, new_recording
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.service import Service, Start, wait_until, write_wav
from tests.support.speech import speak
from worker.context import Context
from worker.steps import fetch_model, plan, transcribe
from worker.steps.audio import chosen_models

SENTENCE = "Please send me the report before Friday."
TINY = ModelName("faster-whisper", "tiny")
BASE = ModelName("faster-whisper", "base")
SMALL = ModelName("faster-whisper", "small")
NEEDS_TINY = Options(models={"*": (TINY,)}, fetch_model=True)


@pytest.fixture
def models(tmp_path: Path, weights_dir: Path) -> Path:
    """A folder with what faster-whisper's tiny can be converted from, without a network."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("faster-whisper-base", "ggml-tiny.bin"):
        (folder / name).symlink_to(weights_dir / name)
    return folder


@pytest.fixture
def settings(models: Path) -> dict[str, str]:
    """Of a service that may fetch, and cannot reach the hub."""
    return {"MODELS_DIR": str(models), "AUTO_FETCH": "true", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def worker_settings(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return settings


@pytest.fixture
def service(start: Start, settings: dict[str, str]) -> Service:
    return start(**settings, AI_LOAD_MODELS="false")


@pytest.fixture
def gateway(alone: StartGateway, settings: dict[str, str]) -> GatewayProcess:
    """Over the service's files and database."""
    return alone(**settings, AI_LOAD_MODELS="false")


def held(models: Path, name: ModelName) -> FileLock:
    """Locks the weights as a process that fetches them does."""
    staging = models / ".staging"
    staging.mkdir(exist_ok=True)
    return FileLock(staging / f"{name.engine}-{name.model}.lock")


def upload(gateway: GatewayProcess, folder: Path, **options: str) -> str:
    audio = write_wav(folder / "talk.wav", speak(SENTENCE))
    files = {"file": ("talk.wav", audio.read_bytes())}
    sent = gateway.http.post("/api/v1/upload", files=files, data={"language": "en"} | options)
    assert sent.status_code == 200, sent.text
    job_id: str = sent.json()["job_id"]
    return job_id


def status(gateway: GatewayProcess, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.http.get(f"/api/v1/status/{job_id}").json()
    return found


def ended(gateway: GatewayProcess, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = status(gateway, job_id)
        return found if found["status"] in ("COMPLETED", "FAILED") else None

    return wait_until(look, "the end of the job")


def text(gateway: GatewayProcess, job_id: str) -> str:
    found = gateway.http.get(f"/api/v1/result/{job_id}").json()
    return " ".join(segment["text"] for segment in found["segments"])


def test_jobs_wait_visibly_while_one_worker_fetches_their_model(
    service: Service, gateway: GatewayProcess, models: Path, tmp_path: Path
) -> None:
    service.serve(workers=2)
    with held(models, TINY):
        jobs = [upload(gateway, tmp_path, model="tiny") for _ in range(2)]
        wait_until(lambda: status(gateway, jobs[0])["stage"] == "fetching_model", "the fetch")
        other = upload(gateway, tmp_path, model="base")
        assert ended(gateway, other)["status"] == "COMPLETED", "other jobs go on"
        assert {status(gateway, job)["stage"] for job in jobs} <= {"fetching_model", "queued"}
        with gateway.http.stream("GET", f"/api/v1/jobs/{jobs[0]}/events") as events:
            first = next(line for line in events.iter_lines() if line.startswith("data:"))
        assert json.loads(first.removeprefix("data:"))["stage"] == "fetching_model"
    for job in jobs:
        found = ended(gateway, job)
        assert (found["status"], found["model"]) == ("COMPLETED", "tiny"), found
        assert "report" in text(gateway, job)
    log = (service.folder / "service.log").read_text()
    assert log.count("fetched faster-whisper/tiny") == 1


def test_a_killed_fetch_goes_on_in_another_attempt(
    service: Service, gateway: GatewayProcess, models: Path, tmp_path: Path
) -> None:
    service.serve()
    with held(models, TINY):
        job = upload(gateway, tmp_path, model="tiny")
        wait_until(lambda: status(gateway, job)["stage"] == "fetching_model", "the fetch")
        (worker,) = service.workers()
        for process in worker.children(recursive=True):
            process.kill()
    assert ended(gateway, job)["status"] == "COMPLETED"


def test_without_the_best_model_the_next_one_is_used_with_a_warning(
    start: Start, alone: StartGateway, settings: dict[str, str], tmp_path: Path
) -> None:
    auto = settings | {"AI_LOAD_MODELS": "false", "DEFAULT_MODEL": "auto"}
    auto |= {"MODEL_FOR": f"en = {SMALL}, {BASE}; * = {BASE}"}
    service, gateway = start(**auto).serve(), alone(**auto)
    first, second = (upload(gateway, tmp_path, initial_prompt=each) for each in ("A.", "B."))
    for job in (first, second):
        found = ended(gateway, job)
        assert (found["status"], found["model"]) == ("COMPLETED", "base"), found
        assert found["warnings"] == [
            f"fallback_model: {SMALL} is not installed; run: {SMALL.pull_command}"
        ]
        manifest = gateway.http.get(f"/api/v1/result/{job}").json()["manifest"]
        assert manifest["model"] == "base"
        assert manifest["options"]["models"] == {"en": [str(SMALL), str(BASE)]}
    third = upload(gateway, tmp_path, initial_prompt="C.")
    ended(gateway, third)
    with service.database.transaction() as session:
        row = session.get_one(Job, UUID(third))
        assert row.options["fetch_model"] is False, "it failed a moment ago"
    tried = (service.folder / "service.log").read_text().count("fetching faster-whisper/small")
    assert 1 <= tried <= 2
    (english,) = (
        each
        for each in gateway.http.get("/api/v1/models").json()["auto"]
        if each["language"] == "en"
    )
    assert english["model"] == str(BASE)
    assert english["reason"].startswith(f"{SMALL} is not installed, and cannot be fetched.")


def test_a_detected_language_decides_about_the_model(
    start: Start, alone: StartGateway, settings: dict[str, str], tmp_path: Path
) -> None:
    auto = settings | {"AI_LOAD_MODELS": "false", "DEFAULT_MODEL": "auto"}
    auto |= {"MODEL_FOR": f"en = {TINY}; * = {BASE}"}
    start(**auto).serve()
    gateway = alone(**auto)
    found = ended(gateway, job := upload(gateway, tmp_path, language="auto"))
    assert (found["status"], found["model"], found["warnings"]) == ("COMPLETED", "tiny", [])
    assert "report" in text(gateway, job)


def test_a_model_without_a_source_is_rejected_at_submission(
    gateway: GatewayProcess, models: Path
) -> None:
    shutil.copytree(models / "faster-whisper-base", models / "mine", symlinks=True)
    (models / "mine" / "model.bin").unlink()
    sent = gateway.http.post(
        "/api/v1/upload", files={"file": ("a.wav", b"RIFF")}, data={"model": "mine"}
    )
    assert (sent.status_code, sent.json()["field"]) == (422, "model")


# --- steps in this process ------------------------------------------------------------------------


def submit(context: Context, jobs: Jobs, **options: Any) -> None:
    recording = new_recording(None)
    path = context.storage.incoming(recording.id)
    write_wav(path, speak(SENTENCE))
    recording = replace(recording, size_bytes=path.stat().st_size, duration_ms=None)
    jobs.submit(recording, new_job(**{"language": "en"} | options))
    context.storage.keep(recording.id)


def test_a_model_that_is_lost_between_plan_and_chunk_is_fetched_again(
    context: Context, jobs: Jobs, models: Path
) -> None:
    submit(context, jobs, model="tiny", options=NEEDS_TINY)
    planned = fetch_model.run(context, claim_next(context.steps))
    assert planned is not None
    assert (models / "faster-whisper-tiny" / "model.bin").is_file()
    chunk = plan.run(context, planned)
    assert chunk is not None
    shutil.rmtree(models / "faster-whisper-tiny")
    assert transcribe.limit_s(context, chunk) > context.settings.chunk.timeout + 60
    transcribe.run(context, chunk)
    assert (models / "faster-whisper-tiny" / "model.bin").is_file()


def test_a_model_that_was_replaced_since_the_plan_is_rejected(
    context: Context, jobs: Jobs, models: Path, weights_dir: Path
) -> None:
    (models / "mine").mkdir()
    for path in (weights_dir / "faster-whisper-base").iterdir():
        (models / "mine" / path.name).symlink_to(path)
    submit(context, jobs, model="mine")
    chunk = plan.run(context, claim_next(context.steps))
    assert chunk is not None
    (models / "mine" / "model.bin").unlink()
    (models / "mine" / "model.bin").write_bytes(b"other weights")
    with pytest.raises(WeightsCorrupt, match="has the wrong hash"):
        transcribe.run(context, chunk)


def test_a_full_disk_fails_the_job_with_the_space_that_it_needs(
    context: Context, jobs: Jobs, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(context, jobs, model="tiny", options=NEEDS_TINY)
    full = shutil.disk_usage(models)._replace(free=1_000)
    monkeypatch.setattr("common.weights.pull.shutil.disk_usage", lambda _: full)
    claim = claim_next(context.steps)
    with pytest.raises(ModelFetchFailed, match="needs 78 MB of disk space, 0 MB are free"):
        fetch_model.run(context, claim)


def test_the_models_of_several_languages_are_fetched_or_named(
    context: Context, jobs: Jobs, models: Path
) -> None:
    better = (SMALL, BASE)
    several = Options(
        languages=("en", "fr", "de"),
        models={"en": (TINY,), "fr": better, "de": better, "*": (BASE,)},
        fetch_model=True,
    )
    submit(context, jobs, language="auto", options=several)
    planned = fetch_model.run(context, claim_next(context.steps))
    assert planned is not None
    assert (models / "faster-whisper-tiny" / "model.bin").is_file()
    chunk = plan.run(context, planned)
    assert chunk is not None
    used = {code: chosen.name for code, chosen in chosen_models(chunk.job).items()}
    assert used == {"en": TINY, "fr": BASE, "de": BASE, "*": BASE}
    assert chunk.job.model == "tiny"
    assert chunk.job.warnings == [
        f"fallback_model: {SMALL} is not installed; run: {SMALL.pull_command}"
    ]
    transcribe.run(context, chunk)


def test_what_failed_lately_is_tried_again_only_where_nothing_else_is_left(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr("worker.models._log", lambda _done, _total, what: tried.append(what))
    with pytest.raises(ModelFetchFailed, match="small"):
        context.models.have_one([SMALL])
    assert len(tried) == 1
    assert context.models.have_one([SMALL, BASE]) == BASE
    assert len(tried) == 1
    with pytest.raises(ModelFetchFailed, match="small"):
        context.models.have_one([SMALL])
    assert len(tried) == 2


def test_a_chunk_whose_model_cannot_be_fetched_here_is_tried_again(
    context: Context, jobs: Jobs, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(context, jobs, model="tiny", options=NEEDS_TINY)
    planned = fetch_model.run(context, claim_next(context.steps))
    assert planned is not None
    chunk = plan.run(context, planned)
    assert chunk is not None
    shutil.rmtree(models / "faster-whisper-tiny")
    full = shutil.disk_usage(models)._replace(free=1_000)
    monkeypatch.setattr("common.weights.pull.shutil.disk_usage", lambda _: full)
    with pytest.raises(Transient, match="tiny could not be fetched"):
        transcribe.run(context, chunk)
