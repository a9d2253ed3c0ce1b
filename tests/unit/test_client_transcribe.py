"""`steno transcribe` against a real HTTP server that does what gateways rarely do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from api.jobs.schemas import UploadOptions
from common.domain.subtitles import LIMITS
from common.errors import OptionConflict
from common.settings import ROOT, Settings
from scripts.cli import transcribe as module
from scripts.cli.cli import steno
from scripts.cli.client import WARNINGS, who_speaks
from scripts.cli.transcribe import targets, transcribe
from tests.support.scripted_gateway import DONE, WORKING, ScriptedGateway
from tests.support.service import wait_until

pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp3", "b.wav", "c.ogg"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


def run(server: ScriptedGateway, *arguments: str | Path) -> Result:
    words = ["transcribe", "--server", server.address, *map(str, arguments)]
    return CliRunner().invoke(steno, words)


# --- the text ---------------------------------------------------------------------------------


def test_stdout_has_the_text_and_nothing_else(server: ScriptedGateway, folder: Path) -> None:
    done = run(server, folder / "a.mp3")
    assert done.exit_code == 0, done.output
    assert done.stdout == "This is a.mp3.\nOver.\n"
    assert re.search(r"8\.0 s of audio in \d\.\d s \(\d+\.\dx\), 4 words", done.stderr)
    assert "\x1b" not in done.stderr


def test_the_time_shown_is_the_time_waited(server: ScriptedGateway, folder: Path) -> None:
    server.states = [WORKING, DONE | {"completed_at": "2026-01-01T10:30:00+00:00"}]
    began = time.monotonic()
    done = run(server, folder / "a.mp3", folder / "b.wav")
    waited_s = time.monotonic() - began
    shown = re.findall(r"(\S+): \S+ s of audio in (\S+) s", done.stderr)
    assert [what for what, _ in shown] == ["a.mp3", "b.wav", "recordings"]
    assert all(float(each_s) <= waited_s + 0.05 for _, each_s in shown)


def test_several_texts_come_in_order_with_names(server: ScriptedGateway, folder: Path) -> None:
    names = ["c.ogg", "a.mp3", "b.wav"]
    done = run(server, *(folder / name for name in names))
    assert done.exit_code == 0, done.output
    assert done.stdout == "\n".join(
        f"==> {folder / name} <==\nThis is {name}.\nOver.\n" for name in names
    )


def test_all_recordings_are_sent_at_once(server: ScriptedGateway, folder: Path) -> None:
    server.states = [WORKING]
    with start(server, folder / "a.mp3", folder / "b.wav", folder / "c.ogg") as command:
        wait_until(lambda: len(server.jobs) == 3, "uploads")
        command.kill()


def test_warnings_come_in_human_words(server: ScriptedGateway, folder: Path) -> None:
    server.warnings = ["truncated", "unheard_of"]
    done = run(server, folder / "a.mp3")
    assert f"a.mp3: warning: {WARNINGS['truncated']}\n" in done.stderr
    assert "a.mp3: warning: unheard_of\n" in done.stderr


def test_a_text_that_awaits_its_review_is_printed_and_waited_for_no_longer(
    server: ScriptedGateway, folder: Path
) -> None:
    server.states = [WORKING, DONE | {"status": "REVIEW", "stage": "review", "completed_at": None}]
    done = run(server, folder / "a.mp3", "--review")
    assert (done.exit_code, done.stdout) == (0, "This is a.mp3.\nOver.\n")
    (job_id,) = server.jobs
    assert f"a.mp3: awaits review; to approve it: steno approve {job_id}\n" in done.stderr


def test_where_to_find_what_a_language_model_makes_of_the_text(
    server: ScriptedGateway, folder: Path
) -> None:
    done = run(server, folder / "a.mp3", "--enhance", "summary")
    (job_id,) = server.jobs
    hint = f"a.mp3: for what the language model makes of it: steno status {job_id}\n"
    assert hint in done.stderr
    assert "language model" not in run(server, folder / "a.mp3").stderr


def test_the_default_language_is_named(server: ScriptedGateway, folder: Path) -> None:
    assert "language vi (the default; --language" in run(server, folder / "a.mp3").stderr
    for named in (("--language", "en"), ("--languages", "vi,en")):
        assert "the default" not in run(server, folder / "a.mp3", *named).stderr


# --- options ----------------------------------------------------------------------------------


def test_the_options_are_those_of_the_upload_form() -> None:
    ours = {"files", "recursive", "endings", "output", "flag", "workers"}
    ours |= {"server", "key", "data_dir", "diarize", *LIMITS}
    options = {parameter.name for parameter in transcribe.params} - ours
    of_speakers = {"diarize", "num_speakers", "min_speakers", "max_speakers"}
    assert options - {"speakers"} == set(UploadOptions.model_fields) - of_speakers


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("", {}),
        (
            "-l en --no-word-timestamps --beam-size 2",
            {"language": "en", "word_timestamps": "false", "beam_size": "2"},
        ),
        ("-l English", {"language": "en"}),
        ("--languages Vietnamese,en-US", {"languages": "vi,en"}),
        ("--no-moderation", {"moderation": "false"}),
        ("--speakers", {"diarize": "true"}),
        ("--speakers auto --no-moderation", {"diarize": "true", "moderation": "false"}),
        ("--speakers 2", {"diarize": "true", "num_speakers": "2"}),
        ("--speakers auto --identify", {"diarize": "true", "identify": "true"}),
        ("--speakers 2-4", {"diarize": "true", "min_speakers": "2", "max_speakers": "4"}),
        ("--channels separate", {"channels": "separate"}),
        ("--review", {"review": "true"}),
        ("--no-review", {"review": "false"}),
        ("--channels auto --speakers", {"channels": "auto", "diarize": "true"}),
        ("--moderation --filter-profanity", {"moderation": "true", "filter_profanity": "true"}),
        (
            '--recording-id call-17 --metadata {"team":"sales"} --delete-after 3600',
            {"recording_id": "call-17", "metadata": '{"team":"sales"}', "delete_after": "3600"},
        ),
        ("--webhook-url https://example.com/done", {"webhook_url": "https://example.com/done"}),
    ],
)
def test_the_options_that_were_given_are_sent_and_no_others(
    server: ScriptedGateway, folder: Path, words: str, sent: dict[str, str]
) -> None:
    done = run(server, folder / "a.mp3", *words.split())
    assert done.exit_code == 0, done.output
    assert [job.options for job in server.jobs.values()] == [sent]


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        *((each, "auto, a number or a range") for each in ("two", "2-", "a.mp3")),
        *((each, "between 1 and 30") for each in ("0", "99", "2-31", "4-2")),
    ],
)
def test_a_number_of_speakers_that_is_none_is_named(value: str, limit: str, folder: Path) -> None:
    done = CliRunner().invoke(transcribe, [f"--speakers={value}", str(folder / "a.mp3")])
    assert done.exit_code == 2
    assert f"Invalid value for '--speakers': {value!r} is not {limit}" in done.stderr


def test_the_api_s_name_for_speakers_is_answered_with_ours(folder: Path) -> None:
    done = CliRunner().invoke(transcribe, [str(folder / "a.mp3"), "--diarize"])
    assert done.exit_code == 2
    assert "No such option '--diarize'. Did you mean '--speakers'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("--identify", "--identify"),
        ("--identify --speakers", "--identify"),
        ("--speakers 2", "the number of --speakers"),
    ],
)
def test_what_separate_channels_exclude_is_named_with_what_is_possible(
    folder: Path, words: str, wrong: str
) -> None:
    given = [str(folder / "a.mp3"), "--channels", "separate", *words.split()]
    done = CliRunner().invoke(transcribe, given)
    assert done.exit_code == 2
    assert f"leave {wrong} out, or pass --channels auto --speakers" in done.stderr


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ({}, []),
        ({"speakers": []}, ["0 speakers"]),
        ({"speakers": [{}], "manifest": {"options": {}, "channels": None}}, ["1 speaker"]),
        (
            {"manifest": {"options": {"channels": "auto"}, "channels": None}},
            ["channels mixed"],
        ),
        (
            {
                "speakers": [{}, {}],
                "manifest": {"options": {"channels": "auto"}, "channels": [0, 1]},
            },
            ["2 speakers", "2 channels"],
        ),
        ({"manifest": {"options": {"channels": "mix"}, "channels": None}}, []),
    ],
)
def test_the_summary_has_speakers_and_channels_where_they_were_asked_for(
    more: dict[str, Any], facts: list[str]
) -> None:
    assert list(who_speaks(more)) == facts


def test_networks_that_may_not_be_fetched_are_missed_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("AUTO_FETCH", "false")
    module._check(Settings(), {"language": "vi"})
    with pytest.raises(OptionConflict, match="steno models pull campplus-zh-en --engine"):
        module._check(Settings(), {"language": "vi", "diarize": "true"})
    monkeypatch.setenv("AUTO_FETCH", "true")
    module._check(Settings(), {"language": "vi", "diarize": "true"})


def test_turns_of_speakers_need_speakers(folder: Path) -> None:
    done = CliRunner().invoke(transcribe, [str(folder / "a.mp3"), "-f", "rttm"])
    assert done.exit_code == 2
    assert "add --speakers" in done.stderr


def test_separate_channels_are_speakers(server: ScriptedGateway, folder: Path) -> None:
    done = run(server, folder / "a.mp3", "-f", "rttm", "--channels", "separate")
    assert done.exit_code == 0, done.output


def test_known_voices_are_those_of_speakers(folder: Path) -> None:
    done = CliRunner().invoke(transcribe, [str(folder / "a.mp3"), "--identify"])
    assert done.exit_code == 2
    assert "--identify names speakers; add --speakers" in done.stderr


def test_a_flag_marks_the_files_that_have_cues(server: ScriptedGateway, folder: Path) -> None:
    done = run(server, folder / "a.mp3", "-f", "srt,txt,vtt", "--flag")
    assert done.exit_code == 0, done.output
    assert [query for what, query in server.queries if what == "download"] == [
        {"format": "srt", "flag": "true"},
        {"format": "txt"},
        {"format": "vtt", "flag": "true"},
    ]
    (job,) = server.jobs.values()
    assert job.options == {"moderation": "true"}


def test_the_limits_of_cues_are_those_of_the_files_that_have_cues(
    server: ScriptedGateway, folder: Path
) -> None:
    limits = "--max-line-width 42 --max-line-count 2 --min-cue-seconds 1 --max-cps 17.5"
    done = run(server, folder / "a.mp3", "-f", "srt,html", *limits.split())
    assert done.exit_code == 0, done.output
    asked = {"max_line_width": "42", "max_line_count": "2", "min_cue_seconds": "1.0"}
    assert [query for what, query in server.queries if what == "download"] == [
        {"format": "srt", "max_cps": "17.5", **asked},
        {"format": "html"},
    ]
    (job,) = server.jobs.values()
    assert job.options == {}


def test_flagged_segments_are_shown_with_their_times(server: ScriptedGateway, folder: Path) -> None:
    server.moderation = {"results": [{"start": 12.0, "label": "OFFENSIVE"}]}
    done = run(server, folder / "a.mp3")
    assert done.stdout == "This is a.mp3.\nOver.\n"
    assert "a.mp3: 1 segment flagged: 0:12 OFFENSIVE\n" in done.stderr


@pytest.mark.parametrize("code", [415, 422])
def test_a_rejection_is_final_in_one_line(server: ScriptedGateway, folder: Path, code: int) -> None:
    body = b'{"detail": "beam_size must be at most 16; got 99"}'
    server.reject["/upload"] = (code, body, "application/problem+json")
    done = run(server, folder / "a.mp3", "--beam-size", "99")
    assert done.exit_code == 1
    assert done.stderr == f"steno: {folder / 'a.mp3'}: beam_size must be at most 16; got 99\n"
    assert server.asked["upload"] == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--languages vi,klingon", 2, "'klingon' is not a Whisper language"),
        ("--language klingon", 2, "'klingon' is not a Whisper language"),
        ("--language vietnam", 2, "Did you mean vietnamese?"),
        ("--engine whisper", 2, "'whisper' is not one of"),
        ("--priority urgent", 2, "'urgent' is not one of"),
        ("--prioritty high", 2, "Did you mean '--priority'?"),
        ("--format txt,pdf", 2, "'pdf' is not one of json, txt, srt, vtt, tsv"),
        ("--model bas", 1, "Did you mean base?"),
        ("--beam-size 99", 1, "beam_size must be at most 16"),
        ("--chunk-overlap 5 --chunk-duration 10", 1, "a quarter of chunk_duration"),
        ("--filter-profanity --no-moderation", 1, "filter_profanity=true needs moderation=true"),
        ("--metadata {", 1, "metadata"),
        ("--webhook-url http://10.0.0.1/", 1, "10.0.0.1"),
        # Of what could mark nothing.
        ("--flag", 2, "--flag"),
        ("--flag --format txt", 2, "--flag"),
        ("--flag --format srt --no-moderation", 2, "--flag"),
        ("--max-cps 20", 2, "--max-cps is of the cues of srt and vtt"),
        ("--max-cps 20 -f html", 2, "--max-cps is of the cues of srt and vtt"),
        ("--max-cps 2 -f srt", 2, "max_cps must be from 5 to 100; got 2"),
        ("--max-line-count 2 -f srt", 2, "max_line_count=2 needs max_line_width"),
    ],
)
def test_a_wrong_option_is_rejected_before_anything_is_fetched_or_started(
    folder: Path, tmp_path: Path, options: str, code: int, message: str
) -> None:
    data_dir, models = tmp_path / "data", tmp_path / "models"
    env = {"DATA_DIR": str(data_dir), "MODELS_DIR": str(models), "STENO_SERVER": None}
    words = ["transcribe", str(folder / "a.mp3"), *options.split()]
    done = CliRunner().invoke(steno, words, env=env)
    assert done.exit_code == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not data_dir.exists()
    assert not models.exists()


def test_a_rejected_value_comes_with_a_likely_one(server: ScriptedGateway, folder: Path) -> None:
    problem = {"detail": "model must be ...; got 'bsae'", "value": "bsae", "allowed": "tiny, base"}
    server.reject["/upload"] = (422, json.dumps(problem).encode(), "application/problem+json")
    assert "Did you mean base?" in run(server, folder / "a.mp3", "-m", "bsae").stderr


# --- files ------------------------------------------------------------------------------------


def test_formats_are_written_beside_the_recording(server: ScriptedGateway, folder: Path) -> None:
    (folder / "a.srt").write_text("old")
    done = run(server, folder / "a.mp3", "-f", "srt,json", "-f", "srt")
    assert done.exit_code == 0, done.output
    assert (folder / "a.srt").read_text().startswith("srt of a.mp3")
    assert (folder / "a.json").read_text().startswith("json of a.mp3")
    assert f"wrote {folder / 'a.srt'}, {folder / 'a.json'}" in done.stderr


def test_output_is_a_folder_that_is_made(server: ScriptedGateway, folder: Path) -> None:
    out = folder / "x" / "y"
    run(server, folder / "a.mp3", folder / "b.wav", "-f", "vtt", "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["a.vtt", "b.vtt"]


def test_output_may_be_one_file(server: ScriptedGateway, folder: Path) -> None:
    run(server, folder / "a.mp3", "-o", folder / "mine.srt")
    assert (folder / "mine.srt").read_text().startswith("srt of a.mp3")


def test_a_folder_is_taken_as_its_recordings(server: ScriptedGateway, folder: Path) -> None:
    (folder / "b.wav").rename(folder / "B.WAV")
    (folder / "notes.txt").write_text("no recording")
    (folder / ".hidden.mp3").write_bytes(b"left out")
    (folder / "more").mkdir()
    (folder / "more" / "d.flac").write_bytes(b"d" * 100)
    done = run(server, folder)
    assert done.exit_code == 0, done.output
    found = "3 recordings; skipped: 1 other file (notes.txt) and 1 folder (see --recursive)"
    assert f"{folder}: {found}\n" in done.stderr
    assert re.findall(r"==> .*/(\S+) <==", done.stdout) == ["B.WAV", "a.mp3", "c.ogg"]
    done = run(server, folder, folder / "a.mp3", "--recursive")
    assert re.findall(r"==> .*/(\S+) <==", done.stdout) == ["B.WAV", "a.mp3", "c.ogg", "d.flac"]


def test_a_pattern_stands_for_what_matches(server: ScriptedGateway, folder: Path) -> None:
    (folder / "[x].mp3").write_bytes(b"x")
    done = run(server, folder / "[ab]*", folder / "[x].mp3")
    assert re.findall(r"==> .*/(\S+) <==", done.stdout) == ["a.mp3", "b.wav", "[x].mp3"]
    done = run(server, folder / "*.doc")
    assert done.exit_code == 2
    assert f"{folder / '*.doc'} has no recordings" in done.stderr


def test_nothing_is_sent_if_no_text_can_be_written(server: ScriptedGateway, folder: Path) -> None:
    (folder / "file").write_text("")
    done = run(server, folder / "a.mp3", "-f", "srt", "-o", folder / "file" / "texts")
    assert done.exit_code == 1
    assert str(folder / "file" / "texts") in done.stderr
    assert not server.jobs


@pytest.mark.parametrize(
    ("paths", "endings", "output"),
    [
        (["a.mp3", "a.wav"], ["srt"], None),
        (["x/a.mp3", "y/a.mp3"], ["srt"], "out"),
        (["a.txt"], ["txt"], None),
        (["a.mp3", "a.srt"], ["srt"], None),
        (["a.mp3"], [], "a.mp3"),
    ],
)
def test_no_text_overwrites_a_recording_or_another_text(
    paths: list[str], endings: list[str], output: str | None, tmp_path: Path
) -> None:
    recordings = [tmp_path / path for path in paths]
    with pytest.raises(click.UsageError):
        targets(recordings, endings, tmp_path / output if output else None)


def test_a_text_that_cannot_be_written_is_printed(server: ScriptedGateway, folder: Path) -> None:
    (folder / "a.srt").mkdir()
    done = run(server, folder / "a.mp3", "-f", "srt")
    assert done.exit_code == 1
    assert done.stdout == "This is a.mp3.\nOver.\n"
    assert "a.srt" in done.stderr.splitlines()[-1]


# --- failures ---------------------------------------------------------------------------------


def test_one_bad_recording_does_not_stop_the_others(server: ScriptedGateway, folder: Path) -> None:
    done = run(server, folder / "no.mp3", folder / "a.mp3", folder / "lost.mp3")
    assert done.exit_code == 1
    assert "This is a.mp3." in done.stdout
    assert "no.mp3: failed: No such file or directory\n" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"steno: 2 of 3 failed: {folder / 'no.mp3'}, {folder / 'lost.mp3'}"


def test_a_job_that_fails_says_why(server: ScriptedGateway, folder: Path) -> None:
    server.states = [WORKING, {"status": "FAILED", "error_message": "The engine failed: boom"}]
    done = run(server, folder / "a.mp3")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"steno: {folder / 'a.mp3'}: The engine failed: boom\n"


def test_nothing_is_started_for_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    environment = {"DATA_DIR": str(tmp_path / "data")}
    done = CliRunner().invoke(steno, ["transcribe", str(tmp_path / "no.mp3")], env=environment)
    assert done.exit_code == 1
    assert not (tmp_path / "data").exists()


def test_a_short_outage_costs_nothing(server: ScriptedGateway, folder: Path) -> None:
    server.hang_up, server.unavailable = 2, 2
    done = run(server, folder / "a.mp3")
    assert done.exit_code == 0, done.output
    assert done.stdout == "This is a.mp3.\nOver.\n"
    assert "trying again" in done.stderr


def test_a_long_outage_is_an_error(
    server: ScriptedGateway, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    server.hang_up = 1_000_000
    done = run(server, folder / "a.mp3")
    assert done.exit_code == 1
    assert f"The gateway at {server.address} cannot be reached" in done.stderr.splitlines()[-1]


# --- Ctrl-C -----------------------------------------------------------------------------------


def test_a_missing_server_is_tried_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 1e6)
    words = ["transcribe", "--server", "http://127.0.0.1:1", str(folder / "a.mp3")]
    done = CliRunner().invoke(steno, words)
    assert done.exit_code == 1
    assert done.stderr.startswith("steno: The gateway at http://127.0.0.1:1 cannot be reached: ")


def start(server: ScriptedGateway, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scripts", "transcribe", "--server", server.address]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_cancels_what_was_begun(
    server: ScriptedGateway, folder: Path, number: signal.Signals
) -> None:
    server.states = [WORKING]
    command = start(server, folder / "a.mp3", folder / "b.wav")
    wait_until(lambda: server.asked["status"] > 4, "jobs at work")
    command.send_signal(number)
    out, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert all(job.cancelled for job in server.jobs.values())
    assert len(server.jobs) == 2
    assert "a.mp3: cancelled (job 00000000-" in err
    assert err.endswith("steno: stopped\n")
    assert out == ""


def test_an_interrupt_leaves_finished_jobs_alone(server: ScriptedGateway, folder: Path) -> None:
    server.states_of["b.wav"] = [WORKING]
    command = start(server, folder / "a.mp3", folder / "b.wav")
    wait_until(lambda: len(server.jobs) == 2 and server.asked["result"], "a result")
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=30)
    cancelled = {job.filename: job.cancelled for job in server.jobs.values()}
    assert cancelled == {"a.mp3": False, "b.wav": True}
    assert "a.mp3: cancelled" not in err
