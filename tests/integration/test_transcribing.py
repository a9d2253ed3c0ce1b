"""What becomes of recordings, whatever is in them: text, files, labels, languages, warnings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from common.domain.detection import LANGUAGE_MISMATCH, LANGUAGE_UNCERTAIN, MIXED_LANGUAGES
from common.domain.job import JobStatus
from common.domain.request import Cutting, Options
from common.domain.values import SAMPLE_RATE
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import truncate
from tests.support.frozen import SENTENCE
from tests.support.service import PATIENCE_S, Service, write_wav
from tests.support.speech import Samples, noise, silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir")

OF_LANGUAGE = {LANGUAGE_MISMATCH, LANGUAGE_UNCERTAIN, MIXED_LANGUAGES}
FRENCH = "Bonjour, je voudrais une tasse de café et un morceau de pain, s'il vous plaît."
ENGLISH = "The weather will be warm and dry in the south, with some rain in the mountains."
RUDE = "Good morning everybody. What the fuck is this shit?"


@pytest.fixture(scope="module")
def service(
    module_database_url: str, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(module_database_url, valkey.url, folder, REUSE_RESULTS="false") as service:
        yield service.serve()


def document(service: Service, job_id: UUID) -> dict[str, Any]:
    path = service.folder / "results" / str(job_id) / "transcript.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def music(seconds: float) -> Samples:
    """A chord that swells four times a second."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (262, 330, 392))
    return np.asarray(0.1 * chord * (1 + np.sin(8 * np.pi * time)), dtype=np.float32)


def test_a_recording_becomes_text_and_files(service: Service) -> None:
    job_id = service.submit(speak(SENTENCE))

    snapshot = service.ended(job_id)
    assert snapshot.status == JobStatus.COMPLETED, snapshot
    assert "fox" in service.text(job_id)
    results = service.folder / "results" / str(job_id)
    assert {path.suffix for path in results.iterdir()} == {".json", ".txt", ".srt", ".vtt", ".tsv"}
    assert "fox" in (results / "transcript.txt").read_text()
    assert not (service.folder / "uploads" / "chunks" / str(job_id)).exists()


@pytest.mark.parametrize("audio", [silence(3), noise(3, level=0.001)], ids=["silence", "noise"])
def test_silence_is_completed_with_no_text_and_a_warning(service: Service, audio: Samples) -> None:
    job_id = service.submit(audio)
    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ("no_speech",))
    assert service.text(job_id) == ""


def test_a_truncated_recording_is_transcribed_to_its_end(service: Service, tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "talk.wav", speak(f"{SENTENCE} {SENTENCE} {SENTENCE}"))

    job_id = service.submit(truncate(whole, 0.5))

    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ("truncated",))
    assert "fox" in service.text(job_id)


def test_missing_weights_fail_a_job_with_advice_and_it_can_be_retried(service: Service) -> None:
    job_id = service.submit(speak(SENTENCE), model="large-v3")
    failed = service.ended(job_id)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "weights_missing")
    assert failed.error_message is not None
    assert "steno models pull large-v3" in failed.error_message
    with service.database.transaction() as session:
        session.connection().exec_driver_sql("UPDATE jobs SET model = 'base'")

    service.retry(job_id)

    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert "fox" in service.text(job_id)


@pytest.mark.usefixtures("vietnamese_weights")
def test_a_network_of_sherpa_onnx_transcribes_a_recording(service: Service) -> None:
    job_id = service.submit(
        speak("một hai ba bốn năm sáu bảy tám chín mười", "vi"),
        engine="sherpa-onnx",
        model="viet-wenet",
        language="vi",
    )
    snapshot = service.ended(job_id)
    assert snapshot.status == JobStatus.COMPLETED, snapshot
    assert "năm bảy tám chín" in service.text(job_id)
    manifest = service.jobs.text(job_id).manifest
    assert manifest is not None
    assert manifest["decoding"]["engine"] == "sherpa-onnx"
    assert manifest["decoding"]["options"]["beam_size"] == 1


def test_a_run_can_be_repeated_from_its_manifest(service: Service) -> None:
    audio = speak(SENTENCE)
    first = service.submit(audio)
    service.ended(first)
    manifest = service.jobs.text(first).manifest
    assert manifest is not None

    again = service.submit(
        audio,
        engine=manifest["decoding"]["engine"],
        model=manifest["model"],
        language=manifest["decoding"]["options"]["language"],
        options=Options.from_json(manifest["options"]),
    )

    service.ended(again)
    assert service.text(again) == service.text(first)
    repeated = service.jobs.text(again).manifest
    assert repeated is not None
    assert repeated["chunks"] == manifest["chunks"]


def test_a_job_reports_the_languages_found_and_any_mismatch(service: Service) -> None:
    french, english = speak(FRENCH, "fr"), speak(ENGLISH)
    by_length = Options(cutting=Cutting(strategy="fixed"))

    after_music = service.submit(
        np.concatenate([music(40), french]), language="auto", options=by_length
    )
    mixed = service.submit(np.concatenate([french, silence(8), english]), language="auto")
    wrong = service.submit(english, language="vi")

    for job_id, language, found, warnings in (
        (after_music, "fr", {"fr"}, set()),
        (mixed, None, {"fr", "en"}, {MIXED_LANGUAGES}),
        (wrong, "vi", {"en"}, {LANGUAGE_MISMATCH}),
    ):
        snapshot = service.ended(job_id, 3 * PATIENCE_S)
        assert snapshot.status == JobStatus.COMPLETED
        assert set(snapshot.warnings) & OF_LANGUAGE == warnings
        assert language in {None, snapshot.language}
        manifest = service.jobs.text(job_id).manifest
        assert manifest is not None
        assert {code for code, p in manifest["language_probabilities"].items() if p > 0.3} == found
    assert "pain" in service.text(after_music)


def test_a_recording_is_labelled_on_its_time_line_and_files_have_masks(service: Service) -> None:
    masked = Options(moderation=True, filter_profanity=True)

    job_id = service.submit(speak(RUDE), options=masked)

    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ())
    found = document(service, job_id)
    moderation = found["moderation"]
    assert [each["id"] for each in moderation["results"]] == list(range(len(found["segments"])))
    assert moderation["summary"]["label"] in {"OFFENSIVE", "HATE"}
    assert moderation["model"] == found["manifest"]["moderation"][0]["model"]
    spans = [(each, span) for each in moderation["results"] for span in each["spans"]]
    assert spans
    for segment, span in spans:
        assert segment["start"] <= span["start"] <= span["end"] <= segment["end"]
    srt = (service.folder / "results" / str(job_id) / "transcript.srt").read_text()
    assert "f***" in srt
    assert "fuck" not in srt + json.dumps(found["segments"]) + json.dumps(found["words"])
    assert "fuck" in service.text(job_id)
