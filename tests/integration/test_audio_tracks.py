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
from tests.support.api import Api
from tests.support.audio_files import write_tracks
from tests.support.factories import TENANT, claim_next, new_job, new_recording
from tests.support.speech import silence, speak
from worker.context import Context
from worker.steps import plan
from worker.steps.audio import cut_again

VOICE = speak("The captain walked along the beach.")
TWO = tuple(
    Track(index, language, None, "aac", 1, default=index == 0)
    for index, language in enumerate(["eng", "vie"])
)


@pytest.fixture
def context(context: Context) -> Context:
    """What a worker has that does not go on with what follows a plan."""
    return replace(context, may_continue=lambda: False)


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


@pytest.mark.parametrize(
    ("asked", "voices", "track", "warnings"),
    [
        (None, (VOICE, VOICE), 0, ()),
        (None, (silence(4), silence(4)), 0, ("no_speech",)),
        ("1", (VOICE, silence(4)), 1, ("no_speech",)),
        ("vi", (VOICE, silence(4)), 1, ("no_speech",)),
    ],
    ids=["default", "silence on both", "by index", "by language"],
)
def test_the_default_track_or_the_requested_one_is_transcribed(
    context: Context,
    asked: str | None,
    voices: tuple[NDArray[Any], ...],
    track: int,
    warnings: tuple[str, ...],
) -> None:
    found = planned(context, Options(audio_track=asked), *voices)
    assert (found.audio_track, found.warnings) == (track, warnings)


def test_the_status_lists_the_tracks_and_an_unknown_one_is_refused_by_name(
    api: Api, tmp_path: Path
) -> None:
    film = write_tracks(tmp_path / "film.mkv", ("eng", silence(2)), ("vie", VOICE)).read_bytes()
    files = {"file": ("film.mkv", film)}
    sent = api.ask("POST", "upload", files=files, data={"audio_track": "vi"}).json()
    status = api.get(f"status/{sent['job_id']}")
    usual = {"title": None, "codec": "aac", "channels": 1}
    assert status["audio_tracks"] == [
        {"index": 0, "language": "eng", "default": True, **usual},
        {"index": 1, "language": "vie", "default": False, **usual},
    ]
    assert status["audio_track"] is None
    problem = api.ask("POST", "upload", 422, files=files, data={"audio_track": "fr"}).json()
    assert (problem["field"], problem["value"]) == ("audio_track", "fr")
    assert "0 (eng), 1 (vie)" in problem["detail"]
    assert api.gateway.incoming == []
    created = api.ask("POST", "jobs", 201, json={"audio_track": 2}).json()
    late = api.ask("POST", f"jobs/{created['job_id']}/upload", 422, files=files).json()
    assert late["field"] == "audio_track"
