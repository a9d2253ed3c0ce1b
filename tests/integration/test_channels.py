"""Jobs with ``channels``, by workers with the real engine, of voices of eSpeak NG."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import select

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.tables import Job, Part, Step, Transcription
from common.domain.job import JobStatus
from common.domain.pipeline import StepKind
from common.domain.request import Channels, Options
from common.domain.speakers import SpeakerCount
from common.errors import RecordingLost
from scripts.stack.embedded import EmbeddedValkey
from tests.support.audio_files import write_channels
from tests.support.factories import TENANT, claim_next, new_job, new_recording
from tests.support.service import Service, Start
from tests.support.speech import Samples, noise, silence, speak
from worker.context import Context
from worker.steps import plan
from worker.steps.audio import read_chunk

pytestmark = pytest.mark.usefixtures("weights_dir", "diarization_weights")

HIM, HER, THEM = "en", "en+f4", "en+m7"
HIS = speak("The weather will be warm and dry in the south of the country.", HIM)
HERS, LATER = (
    speak(text, HER)
    for text in (
        "They swarmed up in front of the palings as thick as they could jam.",
        "The captain walked along the beach and looked for shells.",
    )
)
A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"
SEPARATE, AUTO = Options(channels="separate"), Options(channels="auto")


def after(seconds: float, *voices: Samples) -> Samples:
    return np.concatenate([silence(seconds), *voices])


def call() -> tuple[Samples, Samples]:
    """She speaks on the second channel; he begins while she speaks, and she answers him."""
    hers = after(0.5, HERS, silence(len(HIS) / 16_000 + 1), LATER)
    return after(2.5, HIS), hers


@pytest.fixture(scope="module")
def service(
    module_database_url: str, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(module_database_url, valkey.url, folder) as service:
        yield service.serve(workers=2)


def submitted(service: Service, channels: tuple[Samples, ...], options: Options) -> UUID:
    return service.submit(write_channels(service.folder / "sent.wav", *channels), options=options)


def document(service: Service, job_id: UUID) -> dict[str, Any]:
    path = service.folder / "results" / str(job_id) / "transcript.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def done(
    service: Service, channels: tuple[Samples, ...], options: Options, *warnings: str
) -> tuple[UUID, dict[str, Any]]:
    """A job that has ended with these warnings, and its result."""
    job_id = submitted(service, channels, options)
    snapshot = service.ended(job_id)
    assert (snapshot.status, snapshot.warnings) == (JobStatus.COMPLETED, warnings), snapshot
    return job_id, document(service, job_id)


def said(body: dict[str, Any], channel: int | None) -> str:
    own = (it["text"] for it in body["segments"] if it["channel"] == channel)
    return " ".join(own).lower()


def parts_of(database: Database, job_id: UUID) -> list[Part]:
    with database.transaction() as session:
        return list(session.scalars(select(Part).where(Part.job_id == job_id).order_by(Part.index)))


def test_people_who_speak_at_the_same_time_are_both_understood(
    service: Service, start: Start
) -> None:
    job_id, body = done(service, call(), SEPARATE)

    assert "weather will be warm and dry in the south of the country" in said(body, 0)
    assert re.search("up in front of the paling.* jam.* captain walked .*shells", said(body, 1))
    assert [it["id"] for it in body["speakers"]] == [A, B]
    assert {it["channel"]: it["speaker"] for it in body["segments"]} == {1: A, 0: B}
    assert [it["id"] for it in body["segments"]] == list(range(len(body["segments"])))
    assert all(a["start"] <= b["start"] for a, b in pairwise(body["segments"]))
    assert any(a["end"] > b["start"] for a, b in pairwise(body["segments"]))
    assert any("overlap" in it["flags"] for it in body["segments"])
    assert (body["manifest"]["channels"], body["manifest"]["diarization"]) == ([0, 1], None)
    results = service.folder / "results" / str(job_id)
    assert f"{B}: " in (results / "transcript.txt").read_text()
    assert f" {B} " in (results / "transcript.rttm").read_text()
    with service.database.transaction() as session:
        stored = session.get_one(Job, job_id)
        assert stored.units_done == stored.units_total == body["duration_seconds"] * 1_000
        charged = select(Transcription.charged_ms).where(Transcription.job_id == job_id)
        assert session.scalar(charged) == stored.units_total  # once for all channels
    assert sum(part.units for part in parts_of(service.database, job_id)) == stored.units_total

    alone = start().serve(workers=1)
    assert done(alone, call(), SEPARATE)[1]["segments"] == body["segments"]


def test_channels_with_the_same_audio_are_transcribed_once(service: Service) -> None:
    mono = np.concatenate([HIS, silence(1), HERS])
    _, body = done(service, (mono, mono * np.float32(0.5)), SEPARATE, "identical_channels")
    assert body["text"].lower().count("weather") == 1
    assert body["speakers"] is None
    assert {(it["channel"], it["speaker"]) for it in body["segments"]} == {(None, None)}
    assert body["manifest"]["channels"] is None

    both = replace(SEPARATE, diarize=SpeakerCount())
    _, body = done(service, (mono, mono * np.float32(0.5)), both, "identical_channels")
    assert [it["id"] for it in body["speakers"]] == [A, B]

    _, body = done(service, (*call(), call()[0]), SEPARATE, "identical_channels")
    assert body["manifest"]["channels"] == [0, 1]


def test_a_mono_recording_is_transcribed_as_it_is_with_a_warning(service: Service) -> None:
    _, body = done(service, (HIS,), SEPARATE, "one_channel")
    assert "weather" in said(body, None)
    assert body["speakers"] is None


def test_each_of_three_channels_is_a_speaker_and_a_silent_one_is_nobody(service: Service) -> None:
    third = speak("Seven brown horses were waiting at the gate of the old farm.", THEM)
    channels = (HIS, after(1, HERS), silence(3), after(2, third))
    _, body = done(service, channels, SEPARATE)
    assert [it["speaker"] for it in body["segments"]] == [A, B, C]
    assert [it["channel"] for it in body["segments"]] == [0, 1, 3]
    assert "horses" in said(body, 3)


def test_channels_without_speech_have_no_speakers(service: Service) -> None:
    job_id, body = done(service, (silence(3), silence(3)), SEPARATE, "no_speech")
    assert (body["segments"], body["speakers"]) == ([], [])
    assert parts_of(service.database, job_id) == []


def test_too_many_channels_are_an_error_that_names_the_limit(service: Service) -> None:
    job_id = submitted(service, (HIS,) * 9, SEPARATE)
    ended = service.ended(job_id)
    assert (ended.status, ended.error_code) == (JobStatus.FAILED, "out_of_range")
    assert "channels" in (ended.error_message or "")
    assert "more than 8 channels; got 'separate, of 9 channels'" in (ended.error_message or "")
    done(service, (HIS,) * 9, AUTO)


def music() -> tuple[Samples, Samples]:
    """A chord that both channels have, in two other rooms."""
    at = np.arange(12 * 16_000) / 16_000
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * 2 * at)
    chord = sum(np.sin(2 * np.pi * hz * at) for hz in (440, 554, 659, 1_100)) * beat / 8
    left, right = (np.convolve(chord, noise(0.05, level=1) * s)[: len(at)] for s in (0.1, 0.12))
    return (chord + left).astype(np.float32), (chord - right).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "separate"),
    [
        (call(), True),
        ((np.concatenate([HIS, HERS]) * 0.8, np.concatenate([HIS, HERS]) * 0.3), False),
        ((np.concatenate([HIS, HERS]), noise(6, level=0.001)), False),
        ((HIS,), False),
    ],
    ids=["a call", "panned", "a channel of noise", "mono"],
)
def test_auto_separates_channels_of_different_people(
    service: Service, channels: tuple[Samples, ...], separate: bool
) -> None:
    _, body = done(service, channels, AUTO)
    assert body["manifest"]["channels"] == ([0, 1] if separate else None)
    assert {it["channel"] for it in body["segments"]} == ({0, 1} if separate else {None})
    assert "weather" in body["text"].lower()


def test_auto_mixes_stereo_music(service: Service) -> None:
    job_id = submitted(service, music(), AUTO)
    assert service.ended(job_id).status == JobStatus.COMPLETED
    assert document(service, job_id)["manifest"]["channels"] is None


def test_channels_that_are_the_speakers_are_not_diarized(service: Service) -> None:
    options = replace(AUTO, diarize=SpeakerCount(), identify=True)
    job_id, body = done(service, call(), options, "channels_not_identified")
    assert {it["channel"]: it["speaker"] for it in body["segments"]} == {1: A, 0: B}
    with service.database.transaction() as session:
        steps = select(Step).where(Step.job_id == job_id, Step.kind == StepKind.DIARIZE)
        found = [(it.status, it.result, it.elapsed_ms) for it in session.scalars(steps)]
    assert found
    assert set(found) == {("done", None, 0)}

    mono = np.concatenate([HIS, silence(1), HERS])
    _, body = done(service, (mono, mono), options, "nobody_enrolled")
    assert [it["id"] for it in body["speakers"]] == [A, B]
    assert body["manifest"]["diarization"]


@pytest.fixture
def context(context: Context) -> Context:
    """What a worker has that does not go on with what follows a plan."""
    return replace(context, may_continue=lambda: False)


@pytest.mark.parametrize("channels", ["separate", "auto"])
def test_a_retry_plans_the_same_chunks_and_cuts_lost_ones_again(
    context: Context, channels: Channels
) -> None:
    recording = new_recording()
    write_channels(context.storage.incoming(recording.id), *call())
    job = new_job(options=Options(channels=channels))
    database = context.steps._database
    jobs = Jobs(database, TENANT)
    jobs.submit(recording, job)
    context.storage.keep(recording.id)
    plan.run(context, claim_next(context.steps))
    planned = parts_of(database, job.id)
    assert {part.data[0] for part in planned} == {0, 1}

    claim = claim_next(context.steps)
    audio = read_chunk(context, claim)
    context.storage.drop_chunks(job.id)
    assert read_chunk(context, claim) == audio

    context.steps.fail(claim.step_id, claim.attempt, RecordingLost())
    jobs.retry(job.id)
    plan.run(context, claim_next(context.steps))
    again = parts_of(database, job.id)
    assert [(it.data, it.content_hash, it.units) for it in again] == [
        (it.data, it.content_hash, it.units) for it in planned
    ]
    with database.transaction() as session:
        assert session.get_one(Job, job.id).parts_total == len(planned)
    assert read_chunk(context, claim_next(context.steps)) == audio
