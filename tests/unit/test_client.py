"""The gateway's client and the commands about one job, against a real HTTP server."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from common.audio import channels, decode
from common.domain.detection import LANGUAGE_MISMATCH, LANGUAGE_UNCERTAIN, MIXED_LANGUAGES
from common.domain.glossary import GLOSSARY_TRUNCATED
from common.domain.job import (
    MODERATION_FAILED,
    OF_IDENTIFICATION,
    REVIEW_TIMED_OUT,
)
from common.domain.pipeline import PIPELINES
from common.domain.tracks import OTHER_AUDIO_TRACK
from common.errors import GatewayLost, RequestRejected
from common.transcripts import SEVERAL_MODELS
from scripts.cli.cli import steno
from scripts.cli.client import WARNINGS, Gateway, clock, flagged, spoken, warning
from tests.support.scripted_gateway import DONE, WORKING, ScriptedGateway
from worker.steps import merge


@pytest.fixture
def gateway(server: ScriptedGateway) -> Iterator[Gateway]:
    with Gateway(server.address) as gateway:
        yield gateway


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.mp3"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


@pytest.fixture
def job_id(gateway: Gateway, talk: Path) -> str:
    accepted = gateway.upload(talk, {"language": "en"})
    return str(accepted["job_id"])


def run(server: ScriptedGateway, *arguments: str) -> Result:
    return CliRunner().invoke(steno, list(arguments), env={"STENO_SERVER": server.address})


# --- the client -------------------------------------------------------------------------------


def test_an_upload_arrives_whole(gateway: Gateway, server: ScriptedGateway, talk: Path) -> None:
    sent: list[int] = []
    accepted = gateway.upload(talk, {"language": "en", "hotwords": "Hà Nội"}, sent.append)
    job = server.jobs[accepted["job_id"]]
    assert job.sha256 == hashlib.sha256(talk.read_bytes()).hexdigest()
    assert job.filename == "talk.mp3"
    assert job.options == {"language": "en", "hotwords": "Hà Nội"}
    assert sum(sent) == talk.stat().st_size
    assert len(sent) > 3


def test_uploads_are_streamed(gateway: Gateway, server: ScriptedGateway, tmp_path: Path) -> None:
    server.forget_uploads = True
    server.reject["/upload"] = (200, b"{}", "application/json")
    big = tmp_path / "big.wav"
    with big.open("wb") as file:
        file.truncate(50_000_000)
    tracemalloc.start()
    try:
        gateway.upload(big, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("code", [400, 404, 409, 413, 415, 422, 500, 503])
def test_a_problem_becomes_its_detail(
    gateway: Gateway, server: ScriptedGateway, talk: Path, code: int
) -> None:
    body = json.dumps({"detail": "file is not audio", "code": "x"}).encode()
    server.reject["/upload"] = (code, body, "application/problem+json")
    with pytest.raises(RequestRejected, match=r"^file is not audio$") as caught:
        gateway.upload(talk, {})
    assert caught.value.details["status"] == code


@pytest.mark.parametrize(
    ("code", "message"),
    [(502, "^The gateway answered 502 Bad Gateway$"), (200, "does not answer like a gateway")],
)
def test_a_page_in_the_place_of_an_answer_becomes_one_line(
    gateway: Gateway, server: ScriptedGateway, code: int, message: str
) -> None:
    server.reject["/status"] = (code, b"<html>Bad gateway</html>", "text/html")
    with pytest.raises(RequestRejected, match=message):
        gateway.status("1")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://no.such.host.invalid"])
def test_an_address_without_a_gateway_is_named(address: str) -> None:
    with Gateway(address) as gateway, pytest.raises(GatewayLost, match=address):
        gateway.status("1")


@pytest.mark.parametrize(
    "address", ["localhost", "ftp://x", "http://a:b", "http://xn--/", "http://[::1"]
)
def test_what_is_no_address_is_rejected(address: str) -> None:
    with pytest.raises(RequestRejected, match="is no"), Gateway(address) as gateway:
        gateway.status("1")


def test_a_gateway_that_hangs_up_is_lost(gateway: Gateway, server: ScriptedGateway) -> None:
    server.hang_up = 1
    with pytest.raises(GatewayLost):
        gateway.status("1")


def test_a_download_is_whole_or_not_at_all(
    gateway: Gateway, server: ScriptedGateway, job_id: str, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "talk.srt"
    target.parent.mkdir()
    target.write_text("what was there")
    server.cut_downloads = True
    with pytest.raises(GatewayLost):
        gateway.save(job_id, "srt", target)
    assert target.read_text() == "what was there"
    assert list(target.parent.iterdir()) == [target]
    server.cut_downloads = False
    gateway.save(job_id, "srt", target)
    assert target.read_text() == "srt of talk.mp3\n" * 1000


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (
            "attachment; filename=\"x.srt\"; filename*=UTF-8''H%C3%A0%20N%E1%BB%99i.srt",
            "Hà Nội.srt",
        ),
        ('attachment; filename="../../../etc/x.srt"', "x.srt"),
        ('attachment; filename="..\\\\..\\\\x.srt"', "x.srt"),
        ('attachment; filename="/"', None),
        ('attachment; filename=".."', None),
        ("attachment", None),
    ],
)
def test_the_gateways_name_for_a_file_cannot_leave_the_folder(
    gateway: Gateway, server: ScriptedGateway, job_id: str, disposition: str, name: str | None
) -> None:
    server.disposition = disposition
    with gateway.download(job_id, "srt") as (found, _):
        assert found == (name or f"{job_id}.srt")


def test_every_warning_there_is_has_human_words() -> None:
    codes = {"no_speech", OTHER_AUDIO_TRACK, MODERATION_FAILED, SEVERAL_MODELS}
    codes |= {merge.NO_TEXT, merge.TOO_SHORT, merge.DOUBTFUL_TEXT}
    codes |= {merge.FEWER_SPEAKERS, REVIEW_TIMED_OUT, *OF_IDENTIFICATION, GLOSSARY_TRUNCATED}
    codes |= {warning for pipeline in PIPELINES.values() for warning in pipeline.warnings}
    codes |= {LANGUAGE_MISMATCH, MIXED_LANGUAGES, LANGUAGE_UNCERTAIN}
    codes |= {decode.TRUNCATED, decode.DAMAGED, decode.GAPS, decode.CLOCK_JUMPED}
    codes |= {channels.ONE_CHANNEL, channels.IDENTICAL_CHANNELS}
    codes |= {decode.HEADER_SIZE_WRONG, decode.CHANNELS_INVERTED, decode.CHANNELS_LEFT_OUT}
    assert codes == set(WARNINGS)
    guide = (Path(__file__).parents[2] / "api" / "README.md").read_text()
    assert {code for code in codes if f"`{code}`" not in guide} == set()


def test_a_warning_about_languages_names_those_that_were_found() -> None:
    found = {"language_probabilities": {"th": 0.01, "en": 0.953, "cy": 0.02, "la": 0.004}}
    named = " (en 95 %, cy 2 %, th 1 %)"
    assert warning(LANGUAGE_MISMATCH, found) == WARNINGS[LANGUAGE_MISMATCH] + named
    assert warning(LANGUAGE_MISMATCH, {}) == WARNINGS[LANGUAGE_MISMATCH]
    assert warning("truncated", found) == WARNINGS["truncated"]
    assert warning("something_new", found) == "something_new"


def test_several_languages_are_named_with_their_shares_of_the_time() -> None:
    def result(*codes: str) -> dict[str, Any]:
        segments = [{"start": at, "end": at + 1, "language": code} for at, code in enumerate(codes)]
        return {"language": "vi", "segments": segments}

    assert spoken(result()) == spoken(result("vi", "vi")) == "vi"
    assert spoken(result("vi", "en", "en", "vi", "en")) == "en 60 %, vi 40 %"


def test_flagged_segments_are_shown_with_their_times_but_never_all_of_many() -> None:
    def moderated(*labels: str) -> dict[str, Any]:
        results = [{"start": 65.0 * at, "label": label} for at, label in enumerate(labels)]
        return {"moderation": {"results": results}}

    assert flagged({"moderation": None}) is None
    assert flagged(moderated("CLEAN", "CLEAN")) is None
    assert flagged(moderated("CLEAN", "HATE")) == "1 segment flagged: 1:05 HATE"
    assert flagged(moderated("OFFENSIVE", "CLEAN", *["HATE"] * 6)) == (
        "7 segments flagged: 0:00 OFFENSIVE, 2:10 HATE, 3:15 HATE, 4:20 HATE, 5:25 HATE and 2 more"
    )


def test_a_clock_has_hours_only_where_there_are_any() -> None:
    shown = [clock(seconds) for seconds in (0, 7.4, 65, 3599.6, 3725)]
    assert shown == ["0:00", "0:07", "1:05", "1:00:00", "1:02:05"]


# --- the commands -----------------------------------------------------------------------------


def test_status_shows_how_far_a_job_is(server: ScriptedGateway, job_id: str) -> None:
    server.jobs[job_id].states[:] = [WORKING]
    done = run(server, "status", job_id)
    assert done.exit_code == 0, done.output
    assert "recording  talk.mp3 (0:08)" in done.stdout
    assert "progress   50 %, transcribing, 1 of 2 chunks" in done.stdout
    assert "left       about 0:02" in done.stdout
    assert json.loads(run(server, "status", job_id, "--json").stdout)["progress"] == 50


def test_status_shows_why_a_job_failed(server: ScriptedGateway, job_id: str) -> None:
    server.jobs[job_id].states[:] = [{"status": "FAILED", "error_message": "it is no audio"}]
    assert "error      it is no audio" in run(server, "status", job_id).stdout


def test_status_shows_what_a_language_model_makes_of_the_text(
    server: ScriptedGateway, job_id: str
) -> None:
    made = {"enhanced_job_id": "7a", "task": "summary", "status": "COMPLETED"}
    server.jobs[job_id].states[:] = [{**DONE, "enhancements": [made]}]
    shown = run(server, "status", job_id).stdout
    assert "enhanced   summary COMPLETED, at /api/v1/enhanced-ai/7a" in shown


def test_status_shows_warnings_in_words(server: ScriptedGateway, job_id: str) -> None:
    server.jobs[job_id].states[:] = [DONE]
    server.jobs[job_id].warnings = ["no_speech", "something_new"]
    shown = run(server, "status", job_id).stdout
    assert "nobody speaks in it" in shown
    assert "warning    something_new" in shown


def test_result_prints_the_text_alone(server: ScriptedGateway, job_id: str) -> None:
    server.jobs[job_id].warnings = ["truncated"]
    done = run(server, "result", job_id)
    assert done.stdout == "This is talk.mp3.\nOver.\n"
    assert done.stderr == f"steno: warning: {WARNINGS['truncated']}\n"


def test_result_as_json_keeps_the_letters(server: ScriptedGateway, job_id: str) -> None:
    server.jobs[job_id].texts = ["Xin chào."]
    done = run(server, "result", job_id, "--json", "--partial")
    assert json.loads(done.stdout)["text"] == "Xin chào."
    assert "chào" in done.stdout


def test_download_names_the_file_as_the_gateway_does(
    server: ScriptedGateway, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(server, "download", job_id).stdout == "talk.txt\n"
    assert (tmp_path / "talk.txt").read_text().startswith("txt of")


def test_the_file_name_sets_the_format(
    server: ScriptedGateway, job_id: str, tmp_path: Path
) -> None:
    done = run(server, "download", job_id, "-o", str(tmp_path / "a.vtt"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.vtt").read_text().startswith("vtt of")
    assert run(server, "download", job_id, "-o", str(tmp_path)).exit_code == 0
    assert (tmp_path / "talk.txt").exists()
    assert run(server, "download", job_id, "--format", "tsv", "-o", "-").stdout.startswith("tsv of")


def test_recordings_may_be_redacted(server: ScriptedGateway, job_id: str, tmp_path: Path) -> None:
    run(server, "download", job_id, "--format", "wav", "-o", str(tmp_path / "a"))
    run(server, "download", job_id, "--redact", "-o", str(tmp_path / "b"))
    run(server, "download", job_id, "--redact", "-o", str(tmp_path / "c.WAV"))
    assert (tmp_path / "a").read_text().startswith("wav of")
    assert server.queries == [
        ("download", {"format": "wav"}),
        ("download", {"format": "wav", "redact": "true"}),
        ("download", {"format": "wav", "redact": "true"}),
    ]


def test_no_recording_is_overwritten(server: ScriptedGateway, job_id: str, tmp_path: Path) -> None:
    server.disposition = 'attachment; filename="talk.wav"'
    recording = tmp_path / "talk.wav"
    recording.write_text("mine")
    done = run(server, "download", job_id, "--format", "wav", "-o", str(tmp_path))
    assert done.exit_code != 0
    assert "talk.wav" in done.stderr
    assert recording.read_text() == "mine"
    run(server, "download", job_id, "-o", str(recording))
    assert recording.read_text().startswith("wav of")


def test_masks_and_flags_are_options(server: ScriptedGateway, job_id: str, tmp_path: Path) -> None:
    run(server, "result", job_id)
    run(server, "result", job_id, "--filter-profanity", "--partial")
    run(server, "result", job_id, "--no-filter-profanity")
    output = ("-o", str(tmp_path / "a.srt"))
    run(server, "download", job_id, *output)
    run(server, "download", job_id, *output, "--flag", "--filter-profanity")
    run(server, "download", job_id, *output, "--max-line-width", "42")
    assert server.queries == [
        ("result", {}),
        ("result", {"partial": "true", "filter_profanity": "true"}),
        ("result", {"filter_profanity": "false"}),
        ("download", {"format": "srt"}),
        ("download", {"format": "srt", "flag": "true", "filter_profanity": "true"}),
        ("download", {"format": "srt", "max_line_width": "42"}),
    ]


def test_result_shows_what_was_flagged(server: ScriptedGateway, job_id: str) -> None:
    server.jobs[job_id].moderation = {"results": [{"start": 12.3, "label": "OFFENSIVE"}]}
    done = run(server, "result", job_id)
    assert done.stdout == "This is talk.mp3.\nOver.\n"
    assert done.stderr == "steno: 1 segment flagged: 0:12 OFFENSIVE\n"


def test_cancel_cancels(server: ScriptedGateway, job_id: str) -> None:
    assert run(server, "cancel", job_id).stdout == f"{job_id} CANCELLED\n"
    assert server.jobs[job_id].cancelled


@pytest.mark.parametrize("command", ["status", "result", "download", "cancel"])
def test_an_unknown_job_is_one_line(server: ScriptedGateway, command: str) -> None:
    done = run(server, command, "7")
    assert (done.exit_code, done.stderr) == (1, "steno: There is no job 7\n")


@pytest.mark.parametrize("command", ["status", "result", "download", "cancel"])
def test_a_missing_gateway_is_named_with_what_starts_one(command: str, tmp_path: Path) -> None:
    environment = {"DATA_DIR": str(tmp_path), "STENO_SERVER": ""}
    done = CliRunner().invoke(steno, [command, "7"], env=environment)
    assert done.exit_code == 1
    assert "steno up" in done.stderr
    assert len(done.stderr.splitlines()) == 1
