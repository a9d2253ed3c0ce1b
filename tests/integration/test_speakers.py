"""Jobs with ``diarize``, by workers with the real networks, of voices of eSpeak NG."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select

from common.db.tables import Step
from common.domain.job import JobStatus
from common.domain.moderation import Label
from common.domain.pipeline import StepKind
from common.domain.request import Cutting, Options
from common.domain.speakers import Diarization, SpeakerCount, Turn
from common.domain.values import SAMPLE_RATE, Segment, Span, Word
from common.weights.store import WeightsStore
from scripts.stack.embedded import EmbeddedValkey
from tests.support.factories import offensive
from tests.support.service import Service, Start
from tests.support.speech import Samples, silence, speak
from worker.context import Context
from worker.steps.merge import attributed

pytestmark = pytest.mark.usefixtures("weights_dir", "diarization_weights")

HIM, HER = "en", "en+f4"
SAID = (
    "The weather will be warm and dry in the south of the country.",
    "They swarmed up in front of the palings as thick as they could jam.",
)
DIARIZED = Options(diarize=SpeakerCount())
A, B = "SPEAKER_00", "SPEAKER_01"


@pytest.fixture(scope="module")
def service(
    module_database_url: str, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(module_database_url, valkey.url, folder) as service:
        yield service.serve(workers=2)


def document(service: Service, job_id: UUID) -> dict[str, Any]:
    path = service.folder / "results" / str(job_id) / "transcript.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def conversation(turns: int) -> Samples:
    """Two voices in turn."""
    pieces = [silence(0.4)]
    for at in range(turns):
        pieces += [speak(SAID[at // 2 % 2], (HIM, HER)[at % 2]), silence(0.7)]
    return np.concatenate(pieces)


def elapsed(service: Service, job_id: UUID, kind: StepKind) -> list[int | None]:
    with service.database.transaction() as session:
        steps = select(Step.elapsed_ms).where(Step.job_id == job_id, Step.kind == kind)
        return list(session.scalars(steps.order_by(Step.part)))


def test_each_says_their_own_words_whatever_the_chunks(service: Service) -> None:
    audio = conversation(6)
    found = []
    for window_ms in (30_000, 10_000):
        options = Options(diarize=SpeakerCount(), cutting=Cutting(window_ms=window_ms))
        job_id = service.submit(audio, options=options)
        snapshot = service.ended(job_id)
        assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ())
        body = document(service, job_id)
        assert [it["id"] for it in body["speakers"]] == [A, B]
        in_turn = [who for who, _ in groupby(it["speaker"] for it in body["segments"])]
        assert in_turn == [A, B, A, B, A, B]
        of_both = [it["speaker"] for it in body["segments"] if "warm" in it["text"].lower()]
        assert set(of_both) == {A, B}
        assert all(it["speaker"] in (A, B) for it in body["words"])
        networks = body["manifest"]["diarization"][0]["weights"]
        assert networks.keys() == {"pyannote-segmentation-3.0", "campplus-zh-en"}
        found.append([it["seconds"] for it in body["speakers"]])
    assert np.allclose(found[0], found[1], rtol=0.15)


def test_one_person_is_one_speaker_and_silence_is_nobody(service: Service) -> None:
    alone = np.concatenate([speak(said, HIM) for said in SAID * 2])
    job_id = service.submit(alone, options=DIARIZED)
    quiet = service.submit(silence(5), options=DIARIZED)
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert [it["id"] for it in document(service, job_id)["speakers"]] == [A]
    assert service.ended(quiet).warnings == ("no_speech",)
    assert document(service, quiet)["speakers"] == []


def test_more_speakers_than_there_are_is_a_warning(service: Service) -> None:
    options = Options(diarize=SpeakerCount(30, 30))
    snapshot = service.ended(service.submit(conversation(2), options=options))
    assert snapshot.status == JobStatus.COMPLETED
    assert "fewer_speakers" in snapshot.warnings


def test_a_recording_of_a_moment_has_at_most_one_speaker(service: Service) -> None:
    moment = speak("Yes.", HIM)[: round(0.4 * SAMPLE_RATE)]
    job_id = service.submit(np.concatenate([silence(1), moment, silence(1)]), options=DIARIZED)
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert len(document(service, job_id)["speakers"]) <= 1


def test_who_comes_last_is_a_speaker_of_their_own(service: Service) -> None:
    audio = np.concatenate(
        [*(speak(said, HIM) for said in SAID * 4), silence(0.7), speak(SAID[0], HER)]
    )
    options = Options(diarize=SpeakerCount(), cutting=Cutting(window_ms=10_000))
    job_id = service.submit(audio, options=options)
    assert service.ended(job_id).status == JobStatus.COMPLETED
    body = document(service, job_id)
    assert [it["id"] for it in body["speakers"]] == [A, B]
    assert body["segments"][-1]["speaker"] == B


def test_the_same_audio_is_diarized_once_for_all_its_jobs(service: Service) -> None:
    audio = conversation(3)
    first, second = (service.submit(audio, options=DIARIZED) for _ in range(2))
    assert service.ended(first).status == JobStatus.COMPLETED
    third = service.submit(audio, options=DIARIZED)
    assert service.ended(third).status == JobStatus.COMPLETED
    assert service.ended(second).status == JobStatus.COMPLETED
    assert elapsed(service, third, StepKind.DIARIZE) == [0]
    assert document(service, third)["segments"] == document(service, first)["segments"]


def test_networks_that_do_not_load_cost_a_warning_and_a_retry_finds_the_speakers(
    start: Start, tmp_path: Path, weights_dir: Path, diarization_weights: WeightsStore
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for path in weights_dir.iterdir():
        if not path.name.startswith(("diarization-", ".")):
            (models / path.name).symlink_to(path)
    service = start(MODELS_DIR=str(models)).serve()

    job_id = service.submit(conversation(3), options=DIARIZED)

    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ("diarization_failed",))
    body = document(service, job_id)
    assert "weather" in body["text"].lower()
    assert (body["speakers"], {it["speaker"] for it in body["segments"]}) == ([], {None})
    transcribed = elapsed(service, job_id, StepKind.TRANSCRIBE)
    for model in ("pyannote-segmentation-3.0", "campplus-zh-en"):
        place = diarization_weights.resolve("diarization", model).path
        (models / place.name).symlink_to(place)

    service.retry(job_id)

    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, ())
    assert [it["id"] for it in document(service, job_id)["speakers"]] == [A, B]
    assert elapsed(service, job_id, StepKind.TRANSCRIBE) == transcribed


def test_the_parts_of_an_offensive_segment_are_labelled_each_for_itself(context: Context) -> None:
    said = (
        (" have", 0),
        (" a", 300),
        (" nice", 600),
        (" day", 900),
        (" fuck", 2_000),
        (" off", 2_400),
    )
    words = tuple(Word(text, Span(at, at + 250), 0.9) for text, at in said)
    segment = Segment(Span(0, 2_650), "".join(text for text, _ in said), words)
    (finding,) = context.moderation.get().classify([segment.text])
    assert finding.label is Label.OFFENSIVE
    turns = (Turn(Span(0, 1_200), A), Turn(Span(1_900, 2_700), B))
    parts = attributed(context, [replace(segment, finding=finding)], Diarization(turns))
    assert [(it.speaker, it.finding and it.finding.label) for it in parts] == [
        (A, Label.CLEAN),
        (B, Label.OFFENSIVE),
    ]


def test_without_moderation_the_parts_keep_the_label_of_the_whole(context: Context) -> None:
    words = (Word(" hello", Span(0, 500), 0.9), Word(" fuck", Span(2_000, 2_300), 0.9))
    segment = Segment(Span(0, 2_300), " hello fuck", words, finding=offensive(7, 11))
    context.settings.moderation.ai_load_models = False
    turns = (Turn(Span(0, 600), A), Turn(Span(1_900, 2_400), B))
    parts = attributed(context, [segment], Diarization(turns))
    assert [it.finding and it.finding.label for it in parts] == [Label.OFFENSIVE] * 2
