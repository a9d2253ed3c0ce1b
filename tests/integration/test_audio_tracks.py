"""Recordings with several audio tracks: the one with speech, or the one that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.db.jobs import Jobs
from common.db.snapshots import Snapshot
from common.domain.chunks import windows_from_json
from common.domain.request import Cutting, Options, Strategy
from common.domain.tracks import OTHER_AUDIO_TRACK, Track
from common.domain.values import Chunk
from common.redis.queue import connect
from common.settings import Settings
from tests.support.audio_tracks import write_tracks
from tests.support.factories import TENANT, claim_next, new_job, new_recording
from tests.support.gateway import GatewayProcess
from tests.support.speech import silence, speak
from worker.compose import build_context
from worker.context import Context
from worker.steps import plan
from worker.steps.audio import cut_again

VOICE = speak("The captain walked along the beach.")
TWO = tuple(
    Track(index, language, None, "aac", 1, default=index == 0)
    for index, language in enumerate(["eng", "vie"])
)


@pytest.fixture
def context(
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Context:
    """What a worker has."""
    for name, value in {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DATA_DIR": str(tmp_path),
        "MODELS_DIR": str(weights_dir),
    }.items():
        monkeypatch.setenv(name, value)
    return build_context(Settings(), connect(redis_url), may_continue=lambda: False)


def planned(context: Context, options: Options, *voices: NDArray[Any]) -> Snapshot:
    """A job after planning, of a recording with a track a voice."""
    recording = replace(new_recording(), tracks=TWO)
    write_tracks(
        context.storage.incoming(recording.id),
        *((track.language or "", voice) for track, voice in zip(TWO, voices, strict=True)),
    )
    job = new_job(options=options)
    jobs = Jobs(context.steps._database, TENANT)
    jobs.submit(recording, job)
    context.storage.keep(recording.id)
    plan.run(context, claim_next(context.steps))
    return jobs.snapshot(job.id)


@pytest.mark.parametrize("strategy", ["vad", "silence", "fixed"])
def test_the_track_with_speech_is_chosen_where_the_default_one_is_silent(
    context: Context, strategy: Strategy
) -> None:
    found = planned(context, Options(cutting=Cutting(strategy)), silence(4), VOICE)
    assert (found.audio_track, found.warnings) == (1, (OTHER_AUDIO_TRACK,))
    assert found.chunks_total == 1
    stored = claim_next(context.steps).part
    assert stored is not None
    chunk = Chunk(stored.index, windows_from_json(stored.data))
    recording_id = Jobs(context.steps._database, TENANT).recording(found.job_id).id
    with context.storage.open_recording(recording_id) as recording:
        pcm = cut_again(recording, chunk.audio, found.audio_track)
    assert context.storage.read_chunk(found.job_id, 0) == pcm
    assert np.abs(np.frombuffer(pcm, "<i2")).max() > 3_000


def test_the_default_track_is_transcribed_where_it_has_speech(context: Context) -> None:
    found = planned(context, Options(), VOICE, VOICE)
    assert (found.audio_track, found.warnings) == (0, ())


def test_silence_on_all_tracks_is_no_speech(context: Context) -> None:
    found = planned(context, Options(), silence(4), silence(4))
    assert (found.audio_track, found.warnings) == (0, ("no_speech",))


@pytest.mark.parametrize("asked", ["1", "vi"])
def test_the_track_that_is_asked_for_is_transcribed(context: Context, asked: str) -> None:
    found = planned(context, Options(audio_track=asked), VOICE, silence(4))
    assert (found.audio_track, found.warnings) == (1, ("no_speech",))


def test_the_status_lists_the_tracks_and_an_unknown_one_is_refused_by_name(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    film = write_tracks(tmp_path / "film.mkv", ("eng", silence(2)), ("vie", VOICE)).read_bytes()
    files = {"file": ("film.mkv", film)}
    answer = gateway.http.post("/api/v1/upload", files=files, data={"audio_track": "vi"})
    assert answer.status_code == 200, answer.text
    status = gateway.http.get(f"/api/v1/status/{answer.json()['job_id']}").json()
    usual = {"title": None, "codec": "aac", "channels": 1}
    assert status["audio_tracks"] == [
        {"index": 0, "language": "eng", "default": True, **usual},
        {"index": 1, "language": "vie", "default": False, **usual},
    ]
    assert status["audio_track"] is None
    refused = gateway.http.post("/api/v1/upload", files=files, data={"audio_track": "fr"})
    assert refused.status_code == 422
    problem = refused.json()
    assert (problem["field"], problem["value"]) == ("audio_track", "fr")
    assert "0 (eng), 1 (vie)" in problem["detail"]
    assert gateway.incoming == []
    created = gateway.http.post("/api/v1/jobs", json={"audio_track": 2})
    assert created.status_code in (200, 201), created.text
    url = f"/api/v1/jobs/{created.json()['job_id']}/upload"
    assert gateway.http.post(url, files=files).json()["field"] == "audio_track"
