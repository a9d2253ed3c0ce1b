"""What the gateway promises about speakers: options, results, files, and changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import update

from api.transcripts.schemas import Result
from common.db.flow import NewPart
from common.db.jobs import Jobs
from common.db.tables import Step, TranscriptRevision
from common.domain.job import JobStatus
from common.domain.request import Options
from common.domain.speakers import Diarization, SpeakerCount, Turn
from common.domain.values import Span
from common.errors import DecodeFailed, WeightsUnusable
from common.transcripts import GrowingTranscript
from tests.support.api import Api
from tests.support.audio_files import make_wav, write_channels
from tests.support.factories import (
    BY,
    DIARIZED,
    TENANT,
    do_step,
    finish_merge,
    finish_plan,
    offensive,
    stored_segment,
)
from tests.support.gateway import StartGateway

A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"
TURNS = (
    Turn(Span(0, 9_000), A),
    Turn(Span(9_500, 13_000), B),
    Turn(Span(12_000, 15_000), C),
    Turn(Span(15_000, 20_000), A),
)
SAID = [
    stored_segment(0, 9_000, " hello there", words=[[" hello", 0, 500, 0.9]], speaker=A),
    stored_segment(9_500, 13_000, " hi", speaker=B, flags=["overlap"]),
    stored_segment(13_000, 15_000, " me too", speaker=C),
    stored_segment(15_000, 20_000, " so <we> go", speaker=A),
]


def diarized(api: Api, options: Options = DIARIZED, **merged: Any) -> UUID:
    """A completed job with three speakers."""
    job_id = api.submit(options=options)
    api.complete(2, **{"segments": SAID, "diarization": Diarization(TURNS)} | merged)
    return job_id


@pytest.fixture
def job_id(api: Api) -> UUID:
    return diarized(api)


def change(api: Api, job_id: UUID, changes: object, status: int = 200) -> Any:
    return api.ask("PATCH", f"jobs/{job_id}/speakers", status, json=changes).json()


def asked_for(api: Api, job_id: UUID) -> list[Any]:
    status = api.get(f"status/{job_id}")
    return [status["diarize"], status["identify"], status["channels"]]


def test_a_status_says_whether_speakers_were_asked_for(api: Api) -> None:
    assert asked_for(api, api.submit()) == [False, False, "mix"]
    options = replace(DIARIZED, channels="auto", identify=True)
    assert asked_for(api, api.submit(options=options)) == [True, True, "auto"]


def test_a_result_says_who_says_what_and_how_long(api: Api, job_id: UUID) -> None:
    body = api.get(f"result/{job_id}")
    nobody = {"name": None, "voice_id": None, "similarity": None}
    assert body["speakers"] == [
        {"id": A, "seconds": 14.0, "words": 5, **nobody},
        {"id": B, "seconds": 3.5, "words": 1, **nobody},
        {"id": C, "seconds": 3.0, "words": 2, **nobody},
    ]
    assert [it["speaker"] for it in body["segments"]] == [A, B, C, A]
    assert [it["speaker"] for it in body["words"]] == [A]
    assert body["segments"][1]["flags"] == ["overlap"]
    assert Result.model_validate(body).model_dump(mode="json").keys() == body.keys()
    assert api.get(f"jobs/{job_id}/speakers") == {"speakers": body["speakers"]}


def test_files_name_the_speakers(api: Api, job_id: UUID) -> None:
    change(api, job_id, {A: "Lan & <Co>"})
    endings = ("txt", "srt", "vtt", "tsv", "rttm")
    files = {it: api.download(job_id, format=it).text for it in endings}
    assert files["txt"].splitlines()[:2] == ["Lan & <Co>: hello there", f"{B}: hi"]
    assert "\nLan & <Co>: hello there\n" in files["srt"]
    assert "\n<v Lan &amp; &lt;Co&gt;>hello there\n" in files["vtt"]
    assert f"\n<v {B}>hi\n" in files["vtt"]
    assert files["tsv"].splitlines()[:2] == [
        "start\tend\ttext\tspeaker",
        "0\t9000\thello there\tLan & <Co>",
    ]
    assert files["rttm"].splitlines()[:2] == [
        "SPEAKER talk 1 0.000 9.000 <NA> <NA> Lan_&_<Co> <NA> <NA>",
        f"SPEAKER talk 1 9.500 3.500 <NA> <NA> {B} <NA> <NA>",
    ]


def test_a_job_without_speakers_has_none(api: Api) -> None:
    job_id = api.submit()
    api.complete()
    body = api.get(f"result/{job_id}")
    assert body["speakers"] is None
    assert "speaker" not in api.download(job_id, format="tsv").text
    refused = api.download(job_id, 422, format="rttm").json()
    assert (refused["field"], refused["needed"]) == (
        "format",
        "a job with diarize=true, or whose channels were separated",
    )
    assert "diarize=true" in api.get(f"jobs/{job_id}/speakers", 409)["detail"]
    assert "diarize=true" in change(api, job_id, {A: "Lan"}, 409)["detail"]


def test_moderation_is_summed_up_for_each_speaker(api: Api) -> None:
    finding = offensive(1, 3).to_json()
    segments = [SAID[0], {**SAID[1], "verdict": finding}, *SAID[2:]]
    options = Options(moderation=True, diarize=SpeakerCount())
    job_id = diarized(api, options, segments=segments, manifest={"moderation": [BY.to_json()]})
    speakers = api.get(f"result/{job_id}")["moderation"]["speakers"]
    assert [(who, it["label"], it["counts"]["OFFENSIVE"]) for who, it in speakers.items()] == [
        (A, None, 0),
        (B, "OFFENSIVE", 1),
        (C, None, 0),
    ]


def test_names_are_kept_taken_away_and_replaced(api: Api, job_id: UUID) -> None:
    for changes, names in (
        ({A: "  Lan \n Anh ", B: "Minh"}, ["Lan Anh", "Minh", None]),
        ({B: None}, ["Lan Anh", None, None]),
        ({A: "Hoa", C: "Hoa"}, ["Hoa", None, "Hoa"]),
    ):
        found = change(api, job_id, changes)
        assert [it["name"] for it in found["speakers"]] == names
    assert api.count(TranscriptRevision) == 4


def test_no_change_is_no_revision(api: Api, job_id: UUID) -> None:
    assert change(api, job_id, {}) == api.get(f"jobs/{job_id}/speakers")
    assert api.count(TranscriptRevision) == 1


def test_two_speakers_become_one_everywhere(api: Api, job_id: UUID) -> None:
    found = change(api, job_id, {C: B, B: "Minh"})
    assert [(it["id"], it["name"], it["seconds"], it["words"]) for it in found["speakers"]] == [
        (A, None, 14.0, 5),
        (B, "Minh", 5.5, 3),
    ]
    assert [it["speaker"] for it in api.get(f"result/{job_id}")["segments"]] == [A, B, B, A]
    assert "SPEAKER_02" not in api.download(job_id, format="rttm").text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SPEAKER_09": "Lan"}, "SPEAKER_00, SPEAKER_01, SPEAKER_02"),
        ({A: B, B: C}, "SPEAKER_01 to stay"),
        ({A: "SPEAKER_07"}, "a name, null, or another speaker (SPEAKER_01, SPEAKER_02)"),
        ({A: " "}, "must be not empty"),
        ({A: "a" * 201}, "200"),
        ({A: 7}, "must be text"),
        ({f"SPEAKER_{at}": "x" for at in range(101)}, "100"),
        ([A], "body must be an object"),
    ],
)
def test_an_impossible_change_is_refused_by_name_and_nothing_is_changed(
    api: Api, job_id: UUID, changes: object, message: str
) -> None:
    refused = change(api, job_id, changes, 422)
    assert message in refused["detail"], refused
    assert api.count(TranscriptRevision) == 1


def test_speakers_of_others_and_of_unfinished_jobs_cannot_be_changed(api: Api) -> None:
    job_id = api.submit(options=DIARIZED)
    api.plan(1)
    assert change(api, job_id, {A: "Lan"}, 409)["code"] == "not_ready"
    assert api.get(f"jobs/{job_id}/speakers", 409)["code"] == "not_ready"
    others = api.submit(options=DIARIZED, tenant="another")
    for unknown in (others, uuid4()):
        change(api, unknown, {A: "Lan"}, 404)
        api.get(f"jobs/{unknown}/speakers", 404)


def test_diarization_that_failed_leaves_the_text_and_can_be_retried_by_itself(api: Api) -> None:
    job_id = failed_diarization(api)
    assert api.get(f"result/{job_id}")["warnings"] == ["diarization_failed"]

    again = api.ask("POST", f"jobs/{job_id}/retry").json()

    assert (again["status"], again["warnings"]) == (JobStatus.PENDING, [])
    assert api.get(f"result/{job_id}")["text"] == "chunk 0"  # meanwhile
    assert api.download(job_id).text == "chunk 0\n"
    api.complete(1, segments=SAID, diarization=Diarization(TURNS))
    assert api.get(f"result/{job_id}")["speakers"][0]["id"] == A
    assert api.get(f"status/{job_id}")["status"] == JobStatus.COMPLETED
    assert api.ask("POST", f"jobs/{job_id}/retry", 409).json()["code"] == "conflict"


def failed_diarization(api: Api) -> UUID:
    """A COMPLETED job without its speakers."""
    job_id = api.submit(options=DIARIZED)
    api.plan(1)
    api.transcribe()
    api.fail(WeightsUnusable(model="a", engine="diarization", reason="made up"))
    api.merge(1, diarization=Diarization(()), warnings=["diarization_failed"])
    return job_id


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_retry_for_the_speakers_that_is_in_vain_leaves_the_job_as_it_was(
    api: Api, how: str, started: bool
) -> None:
    job_id = failed_diarization(api)
    api.ask("POST", f"jobs/{job_id}/retry")
    if started:
        api.plan(1)
    if how == "cancelled":
        api.ask("POST", f"jobs/{job_id}/cancel")
    else:
        while (status := api.get(f"status/{job_id}"))["status"] != JobStatus.COMPLETED:
            api.fail(DecodeFailed(reason="made up"))
            if started:
                api.merge(1, diarization=Diarization(()), warnings=["diarization_failed"])
        assert (status["error_code"], status["error_message"]) == (None, None)
    status = api.get(f"status/{job_id}")
    assert (status["status"], status["warnings"]) == ("COMPLETED", ["diarization_failed"])
    assert api.get(f"result/{job_id}")["text"] == "chunk 0"
    assert str(job_id) in {it["job_id"] for it in api.get("history")["history"]}
    assert api.ask("POST", f"jobs/{job_id}/retry").json()["status"] == JobStatus.PENDING


def test_speakers_are_not_changed_while_they_are_found_anew(api: Api) -> None:
    job_id = diarized(api)
    with api.database.transaction() as session:
        session.execute(update(Step).where(Step.kind == "diarize").values(status="failed"))
    api.ask("POST", f"jobs/{job_id}/retry")
    assert change(api, job_id, {A: "Lan"}, 409)["code"] == "not_ready"


def test_a_watcher_that_comes_back_after_the_split_gets_no_word_twice(api: Api) -> None:
    words = [[" one", 0, 500, 0.9], [" two", 600, 900, 0.9], [" three", 10_000, 10_500, 0.9]]
    job_id = api.submit(options=DIARIZED)
    segments = [
        stored_segment(0, 500, " one", words=words[:1], speaker=A),
        stored_segment(600, 900, " two", words=words[1:2], speaker=B),
        stored_segment(10_000, 10_500, " three", words=words[2:], speaker=A),
    ]
    api.complete(2, segments=segments, diarization=Diarization(TURNS))
    # Both words came in one segment, before the speakers were known.
    path, headers = f"jobs/{job_id}/events", {"Last-Event-ID": "2"}
    sent = api.ask("GET", path, headers=headers).text
    assert "three" in sent
    assert '"one"' not in sent
    assert '"two"' not in sent
    assert "id: 3-end" in sent


def test_watchers_get_each_word_once_though_segments_are_split_at_the_end(api: Api) -> None:
    words = [[" chunk", 0, 500, 0.9], [" zero", 600, 900, 0.9], [" one", 10_000, 10_500, 0.9]]
    job_id = api.submit(options=DIARIZED)
    growing = GrowingTranscript(Jobs(api.database, TENANT), job_id)
    api.plan(2)
    first = api.claim()
    assert (first.kind, first.part_index) == ("transcribe", 0)
    segment = stored_segment(0, 10_000, " chunk zero", words=words[:2])
    api.steps.finish(first, result=[[segment]])
    assert [it.text for it in growing.read()[1]] == [" chunk zero"]
    while (claim := api.claim()).kind != "merge":
        do_step(api.steps, claim)
    segments = [
        stored_segment(0, 500, " chunk", words=words[:1], speaker=A),
        stored_segment(600, 900, " zero", words=words[1:2], speaker=B),
        stored_segment(10_000, 10_500, " one", words=words[2:], speaker=A),
    ]
    finish_merge(api.steps, claim, segments=segments, diarization=Diarization(TURNS))
    assert [(it.text, it.speaker) for it in growing.read()[1]] == [(" one", A)]
    assert growing.read()[1] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_speakers": "2"}, "num_speakers=2 needs diarize=true"),
        ({"identify": "true"}, "identify=true needs diarize=true"),
        ({"diarize": "true", "min_speakers": "5", "max_speakers": "3"}, "min_speakers=5 needs"),
        ({"diarize": "true", "num_speakers": "31"}, "num_speakers must be at most 30"),
        ({"diarize": "true", "max_speakers": "0"}, "max_speakers must be at least 1"),
        ({"diarize": "perhaps"}, "diarize"),
        ({"channels": "left"}, "channels must be one of mix, separate, auto; got 'left'"),
        (
            {"channels": "separate", "diarize": "true", "num_speakers": "2"},
            "num_speakers=2 needs channels=mix or channels=auto",
        ),
        ({"channels": "separate", "max_speakers": "2"}, "max_speakers=2 needs channels=mix"),
        ({"channels": "auto", "min_speakers": "2"}, "min_speakers=2 needs diarize=true"),
    ],
)
def test_options_that_cannot_be_are_named(api: Api, options: dict[str, str], message: str) -> None:
    refused = api.ask(
        "POST", "upload", 422, data=options, files={"file": ("talk.wav", b"RIFF", "audio/wav")}
    )
    assert message in refused.json()["detail"]


def test_channels_are_requested_on_every_front(api: Api, tmp_path: Path) -> None:
    voices = [np.full(1_600, level / 100, np.float32) for level in range(9)]
    wide = write_channels(tmp_path / "wide.wav", *voices).read_bytes()
    stereo = write_channels(tmp_path / "stereo.wav", *voices[:2]).read_bytes()

    def upload(path: str, status: int, content: bytes, **options: str) -> Any:
        files = {"file": ("talk.wav", content, "audio/wav")}
        return api.ask("POST", path, status, data=options, files=files).json()

    def stored(job_id: str) -> str:
        return Jobs(api.database, TENANT).snapshot(UUID(job_id)).options.channels

    refused = upload("upload", 422, wide, channels="separate")
    assert (refused["field"], refused["value"]) == ("channels", "separate, of 9 channels")
    assert "more than 8 channels" in refused["limit"]
    assert stored(upload("upload", 200, wide, channels="auto")["job_id"]) == "auto"
    assert stored(upload("upload", 200, stereo, channels="separate")["job_id"]) == "separate"
    assert stored(upload("upload", 200, stereo)["job_id"]) == "mix"
    waiting = api.ask("POST", "jobs", 201, json={"channels": "separate"}).json()["job_id"]
    assert upload(f"jobs/{waiting}/upload", 422, wide)["field"] == "channels"
    assert stored(upload(f"jobs/{waiting}/upload", 200, stereo)["job_id"]) == "separate"
    fetched = {"url": "https://8.8.8.8/call.wav", "channels": "auto"}
    assert stored(api.ask("POST", "transcribe", json=fetched).json()["job_id"]) == "auto"


def test_watchers_of_a_call_get_each_segment_once_in_order_with_its_speaker(api: Api) -> None:
    job_id = api.submit(options=Options(channels="separate"))
    growing = GrowingTranscript(Jobs(api.database, TENANT), job_id)
    claim = api.claim()
    starts = [(1, 0), (0, 4_000), (1, 30_000), (0, 50_000)]
    parts = [
        NewPart(at, 0, [channel, [start, start + 20_000, start, start + 20_000, 9]], f"{at}")
        for at, (channel, start) in enumerate(starts)
    ]
    api.steps.add_parts(claim, parts)
    finish_plan(api.steps, claim, 70_000)
    chunks = [api.claim() for _ in parts]

    def transcribe(at: int, *segments: tuple[int, int]) -> list[tuple[int, str | None, int | None]]:
        found = [stored_segment(start, end, f" {at}") for start, end in segments]
        api.steps.finish(chunks[at], result=[found])
        fresh = growing.read()[1]
        return [(it.span.start_ms, it.speaker, it.channel) for it in fresh]

    def partial() -> list[tuple[float, str]]:
        found = api.get(f"result/{job_id}", partial="true")["segments"]
        return [(it["start"], it["speaker"]) for it in found]

    assert transcribe(1, (0, 2_000), (2_000, 9_000)) == []
    assert transcribe(0, (500, 3_000), (3_500, 8_000), (8_000, 9_000)) == [
        (500, A, 1),
        (3_500, A, 1),
    ]
    assert partial() == [(0.5, A), (3.5, A)]
    assert transcribe(2, (0, 5_000)) == [(4_000, B, 0), (6_000, B, 0), (8_000, A, 1)]
    assert partial() == [(0.5, A), (3.5, A), (4.0, B), (6.0, B), (8.0, A)]
    assert transcribe(3, (0, 5_000)) == [(30_000, A, 1)]
    merge = api.claim()
    said = [(500, A, 1), (3_500, A, 1), (4_000, B, 0), (6_000, B, 0), (8_000, A, 1)]
    said += [(30_000, A, 1), (50_000, B, 0)]
    segments = [
        stored_segment(start, start + 1_000, " it", speaker=who, channel=channel)
        for start, who, channel in said
    ]
    finish_merge(api.steps, merge, segments=segments, diarization=Diarization(TURNS))
    assert [(it.span.start_ms, it.speaker) for it in growing.read()[1]] == [(50_000, B)]
    assert [it["channel"] for it in api.get(f"result/{job_id}")["segments"]] == [
        channel for *_, channel in said
    ]


def test_where_the_networks_are_missing_a_job_is_refused_with_what_installs_them(
    alone: StartGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("models")
    (empty / "ggml-own.bin").write_bytes(b"lmgg" + bytes(60))
    gateway = alone(MODELS_DIR=str(empty), DEFAULT_ENGINE="whisper.cpp", DEFAULT_MODEL="own")
    answer = gateway.http.post("/api/v1/jobs", json={"diarize": True})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "diarize"
    pulls = (
        "run: steno models pull pyannote-segmentation-3.0 --engine diarization"
        " && steno models pull campplus-zh-en --engine diarization"
    )
    assert answer.json()["detail"].endswith(pulls)
    talk = {"audio_file": make_wav(bytes(64_000))}
    asked = gateway.http.post("/asr?diarize=true", files=talk)
    assert (asked.status_code, asked.json()["detail"]) == (422, answer.json()["detail"])
