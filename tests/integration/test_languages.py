"""Several languages in one recording: each part is transcribed in its own, by its own model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.asr.faster_whisper import FasterWhisper
from common.asr.multilingual import parts_by_language
from common.audio.silero import SileroNetwork
from common.db.jobs import Jobs
from common.db.steps import Claim
from common.domain.models import ModelName
from common.domain.request import Options
from common.domain.values import SAMPLE_RATE, Span
from common.errors import WeightsCorrupt
from common.settings import ROOT
from tests.support.factories import claim_next, new_job, new_recording
from tests.support.gateway import GatewayProcess, StartGateway
from tests.support.service import Start, wait_until, write_wav
from tests.support.speech import Samples, noise, silence, speak
from worker.context import Context
from worker.engines import Engines
from worker.steps import plan, transcribe

BASE = ModelName("faster-whisper", "base")
VIET = ModelName("sherpa-onnx", "viet-wenet")
VIETNAMESE = "việt nam là một nước đông nam á"
ENGLISH = "The weather will be warm and dry in the south, with some rain in the mountains."
PAUSE_S = 1.0


def in_turn(times: int) -> Samples:
    """The Vietnamese and the English sentence, so many times each."""
    turn = [speak(VIETNAMESE, "vi"), silence(PAUSE_S), speak(ENGLISH), silence(PAUSE_S)]
    return np.concatenate(turn * times)


@pytest.fixture
def models(tmp_path: Path, vietnamese_weights: Path, weights_dir: Path) -> Path:
    """A folder with a model of each language."""
    folder = tmp_path / "models"
    folder.mkdir()
    for path in (vietnamese_weights, weights_dir / "faster-whisper-base"):
        (folder / path.name).symlink_to(path)
    return folder


# --- a job ----------------------------------------------------------------------------------------


@pytest.fixture
def gateway(start: Start, alone: StartGateway, models: Path) -> GatewayProcess:
    """Over a worker that prefers sherpa-onnx for Vietnamese, and Whisper for the rest."""
    settings = {
        "MODELS_DIR": str(models),
        "MODEL_FOR": f"vi = {VIET}; * = {BASE}",
        "AI_LOAD_MODELS": "false",
    }
    start(**settings).serve()
    return alone(**settings)


def result(gateway: GatewayProcess, audio: Path, **options: str) -> dict[str, Any]:
    """That of a job with these options, and its status."""
    files = {"file": ("talk.wav", audio.read_bytes())}
    sent = gateway.http.post("/api/v1/upload", files=files, data=options)
    assert sent.status_code == 200, sent.text
    job_id = sent.json()["job_id"]

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = gateway.http.get(f"/api/v1/status/{job_id}").json()
        return found if found["status"] in ("COMPLETED", "FAILED") else None

    status = wait_until(look, "the end of the job")
    assert status["status"] == "COMPLETED", status
    found: dict[str, Any] = gateway.http.get(f"/api/v1/result/{job_id}").json()
    return found | {"state": status}


def test_each_language_is_transcribed_by_its_best_model(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    audio = in_turn(2)
    found = result(gateway, write_wav(tmp_path / "a.wav", audio), languages="vi,en", model="auto")
    languages = [segment["language"] for segment in found["segments"]]
    changes = [languages[0], *(b for a, b in pairwise(languages) if a != b)]
    assert changes == ["vi", "en", "vi", "en"]
    texts = {
        code: " ".join(each["text"] for each in found["segments"] if each["language"] == code)
        for code in ("vi", "en")
    }
    assert texts["en"].count("mountains") == 2
    assert texts["vi"].count("nam á") == 2
    turn_s = len(audio) / SAMPLE_RATE / 2
    second_s = len(speak(VIETNAMESE, "vi")) / SAMPLE_RATE + PAUSE_S
    for segment in found["segments"]:
        in_english = segment["start"] % turn_s >= second_s - PAUSE_S
        assert segment["language"] == ("en" if in_english else "vi"), segment
    assert found["warnings"] == []

    manifest = found["manifest"]
    assert {code: used["model"] for code, used in manifest["models"].items()} == {
        "vi": str(VIET),
        "en": str(BASE),
        "*": str(BASE),
    }
    assert manifest["decoding"]["languages"]["vi"]["options"]["beam_size"] == 1
    assert manifest["decoding"]["languages"]["en"]["options"]["language"] == "en"
    assert len(manifest["encoders"]) == 2
    state = found["state"]
    assert state["languages"] == manifest["options"]["languages"] == ["vi", "en"]
    assert state["language"] == found["language"] == manifest["decoding"]["first"]
    used = manifest["models"][state["language"]]
    assert f"{state['engine']}/{state['model']}" == used["model"]
    assert manifest["weights_sha256"] == used["weights_sha256"]

    job_id = found["job_id"]
    vtt = gateway.http.get(f"/api/v1/download/{job_id}", params={"format": "vtt"}).text
    other = "en" if found["language"] == "vi" else "vi"
    assert f"<lang {other}>" in vtt
    assert f"<lang {found['language']}>" not in vtt
    events = gateway.http.get(f"/api/v1/jobs/{job_id}/events").text
    sent = [json.loads(it[6:]) for it in events.splitlines() if it.startswith('data: {"id"')]
    assert [segment["language"] for segment in sent] == languages


def test_a_named_model_transcribes_all_languages(gateway: GatewayProcess, tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "a.wav", in_turn(1))
    found = result(gateway, audio, languages="en,vi", model="base")
    assert {segment["language"] for segment in found["segments"]} == {"vi", "en"}
    assert {used["model"] for used in found["manifest"]["models"].values()} == {str(BASE)}
    translated = result(gateway, audio, languages="en,vi", model="base", task="translate")
    assert {segment["language"] for segment in translated["segments"]} == {"en"}
    translated = result(gateway, audio, language="vi", model="base", task="translate")
    assert translated["language"] == "vi"
    assert {segment["language"] for segment in translated["segments"]} == {"en"}


def test_a_language_that_is_not_declared_is_a_warning(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    french = speak("Bonjour, je voudrais une tasse de café et un morceau de pain.", "fr")
    audio = write_wav(tmp_path / "a.wav", french)
    found = result(gateway, audio, languages="en,de", model="base")
    assert "language_uncertain" in found["warnings"]
    assert "mixed_languages" not in found["warnings"]
    assert found["language"] in ("en", "de")


# --- steps in this process ------------------------------------------------------------------------


@pytest.fixture
def worker_settings(models: Path) -> dict[str, str]:
    """Of a worker in which one engine has room."""
    return {"MODELS_DIR": str(models), "ENGINES_MB": "1", "REUSE_RESULTS": "false"}


SEVERAL = Options(
    languages=("vi", "en"),
    models={"vi": (VIET,), "en": (BASE,), "*": (BASE,)},
)


def planned(context: Context, jobs: Jobs, audio: Samples, **options: Any) -> Claim:
    """The claim of the first chunk of a job."""
    recording = new_recording(None)
    path = context.storage.incoming(recording.id)
    write_wav(path, audio)
    recording = replace(recording, size_bytes=path.stat().st_size, duration_ms=None)
    jobs.submit(recording, new_job(**{"language": "auto", "options": SEVERAL} | options))
    context.storage.keep(recording.id)
    chunk = plan.run(context, claim_next(context.steps))
    assert chunk is not None
    return chunk


def test_a_chunk_loads_each_model_once(
    context: Context, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Counter[str] = Counter()
    load = Engines._load

    def counted(engines: Engines, weights: Any) -> Any:
        loaded[weights.model] += 1
        return load(engines, weights)

    chunk = planned(context, jobs, in_turn(2))
    monkeypatch.setattr(Engines, "_load", counted)
    transcribe._transcribe(context, chunk)
    assert loaded["viet-wenet"] == 1
    assert loaded["base"] <= 1, "the plan has loaded it"


def test_a_chunk_that_is_transcribed_again_has_the_same_text(context: Context, jobs: Jobs) -> None:
    chunk = planned(context, jobs, in_turn(2))
    first = transcribe._transcribe(context, chunk)
    assert {each["language"] for window in first for each in window} == {"vi", "en"}
    context.engines._loaded.clear()
    assert transcribe._transcribe(context, chunk) == first


@pytest.mark.parametrize("model", [VIET, BASE])
def test_each_model_must_be_that_of_the_plan(
    context: Context, jobs: Jobs, models: Path, model: ModelName
) -> None:
    chunk = planned(context, jobs, in_turn(1))
    folder = models / f"{model.engine}-{model.model}"
    source = folder.resolve()
    folder.unlink()
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    weights = folder / ("model.onnx" if model == VIET else "model.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match="has the wrong hash"):
        transcribe._transcribe(context, chunk)


def test_what_a_text_depends_on_is_part_of_its_address(context: Context, jobs: Jobs) -> None:
    def address(**options: Any) -> str:
        part = planned(context, jobs, in_turn(1), **options).part
        assert part is not None
        return part.content_hash

    alone = {"language": "vi", "engine": VIET.engine, "model": VIET.model}
    one = address(**alone, options=replace(SEVERAL, languages=(), models={}))
    several = address()
    assert address() == several
    other_models = {"vi": (BASE,), "en": (BASE,), "*": (BASE,)}
    others = [
        address(options=replace(SEVERAL, languages=("vi", "en", "fr"))),
        address(options=replace(SEVERAL, models=other_models)),
    ]
    assert len({one, several, *others}) == 4


# --- parts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> FasterWhisper:
    return FasterWhisper(ROOT / "models" / "faster-whisper-base")


@pytest.fixture(scope="module")
def network() -> SileroNetwork:
    return SileroNetwork()


def test_a_window_of_one_language_stays_whole(
    detector: FasterWhisper, network: SileroNetwork
) -> None:
    window = np.concatenate([silence(1), speak(ENGLISH), silence(2), speak(ENGLISH), silence(1)])
    whole = Span(0, len(window) // 16)
    assert parts_by_language([window], detector, network, ("vi", "en"), "vi") == [[(whole, "en")]]


def test_windows_without_speech_are_in_the_language_before(
    detector: FasterWhisper, network: SileroNetwork
) -> None:
    windows = [noise(3), speak(VIETNAMESE, "vi"), silence(2)]
    found = parts_by_language(windows, detector, network, ("vi", "en"), "vi")
    assert [[language for _, language in parts] for parts in found] == [["vi"]] * 3
    assert parts_by_language([], detector, network, ("vi", "en"), "vi") == []


def test_parts_are_in_order_inside_their_window_and_change_the_language(
    detector: FasterWhisper, network: SileroNetwork
) -> None:
    window = in_turn(2)
    (parts,) = parts_by_language([window], detector, network, ("vi", "en"), "en")
    assert [language for _, language in parts] == ["vi", "en", "vi", "en"]
    for (left, _), (right, _) in pairwise(parts):
        assert left.end_ms <= right.start_ms
    assert parts[-1][0].end_ms <= len(window) // 16
