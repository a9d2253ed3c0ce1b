"""`steno` as people run it: the real command, the real stack, real weights, spoken text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from scripts.bench.scripted_chat import ChatScript
from scripts.stack.running import find_running
from tests.support.cli import start_steno
from tests.support.frozen import SENTENCE
from tests.support.obedient_chat import obedient
from tests.support.service import wait_until, write_wav
from tests.support.speech import silence, speak

HARVARD = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. "
    "It is easy to tell the depth of a well. These days a chicken leg is a rare dish. "
    "Rice is often served in round bowls. The juice of lemons makes fine punch. "
    "The box was thrown beside the parked truck. The hogs were fed chopped corn and garbage. "
    "Four hours of steady work faced us. A large size in stockings is hard to sell."
)
"""The first of the Harvard sentences (IEEE, 1969). Whisper takes endless repetition badly."""
UP_WITHIN_S = 120


def steno(data_dir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    process = start_steno(data_dir, *arguments)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@contextmanager
def started(
    data_dir: Path, *arguments: str | Path, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    process = start_steno(data_dir, *arguments, settings=settings)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a stack is up, with the server of a language model."""
    data_dir = tmp_path_factory.mktemp("data")
    with (
        ChatScript(obedient) as chat,
        started(
            data_dir,
            *("up", "--port", "0", "--workers", "1"),
            ENHANCED_AI_BASE_URL=f"{chat.url}/v1",
            ENHANCED_AI_MODEL="m-1",
        ) as up,
    ):
        wait_until(lambda: find_running(data_dir), "the stack", UP_WITHIN_S)
        yield data_dir
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "talk.wav", speak(SENTENCE))


def test_a_recording_becomes_text_and_every_kind_of_file(data_dir: Path, talk: Path) -> None:
    done = steno(data_dir, "transcribe", talk, "-l", "en", "-f", "json,txt,srt,vtt,tsv")
    assert done.returncode == 0, done.stderr
    assert "quick brown fox" in done.stdout
    assert talk.with_suffix(".txt").read_text() == done.stdout
    document = json.loads(talk.with_suffix(".json").read_text())
    assert "quick brown fox" in document["text"]
    assert document["manifest"]["model"] == "base"
    assert re.match(r"1\n00:00:0\d,\d{3} --> ", talk.with_suffix(".srt").read_text())
    assert talk.with_suffix(".vtt").read_text().startswith("WEBVTT\n")
    assert talk.with_suffix(".tsv").read_text().startswith("start\tend\ttext\n")


def test_a_finished_job_can_be_read_later(data_dir: Path, talk: Path, tmp_path: Path) -> None:
    sent = steno(data_dir, "transcribe", talk, "-l", "en")
    found = re.search(r"job ([0-9a-f-]{36})", sent.stderr)
    assert found is not None, sent.stderr
    job_id = found[1]
    assert "COMPLETED" in steno(data_dir, "status", job_id).stdout
    assert json.loads(steno(data_dir, "status", job_id, "--json").stdout)["progress"] == 100
    assert steno(data_dir, "result", job_id).stdout == sent.stdout
    assert json.loads(steno(data_dir, "result", job_id, "--json").stdout)["language"] == "en"
    saved = steno(data_dir, "download", job_id, "--format", "srt", "-o", tmp_path)
    assert saved.stdout == f"{tmp_path / 'talk.srt'}\n"
    assert (tmp_path / "talk.srt").read_text().startswith("1\n")
    cancelled = steno(data_dir, "cancel", job_id)
    assert cancelled.returncode == 1
    assert cancelled.stderr == "steno: The job is COMPLETED and cannot be cancelled\n"


def test_a_finished_text_is_found_transcribed_again_in_part_and_enhanced(
    data_dir: Path, talk: Path
) -> None:
    sent = steno(data_dir, "transcribe", talk, "-l", "en")
    job_id = re.findall(r"job ([0-9a-f-]{36})", sent.stderr)[0]

    found = steno(data_dir, "search", "BRÓWN", "fox", "--in", job_id)
    assert found.stderr == ""
    place, excerpt = found.stdout.splitlines()
    assert place.startswith(f"{job_id}  0:0")
    assert "quick brown fox" in excerpt
    [hit] = json.loads(steno(data_dir, "search", "fox", "--in", job_id, "--json").stdout)
    assert hit["job_id"] == job_id
    nothing = steno(data_dir, "search", "walrus", "--in", job_id)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert nothing.stderr == "steno: nobody said that in these texts\n"

    again = steno(data_dir, "rerun", job_id, "0", "0:02.5", "--beam-size", "2")
    assert again.returncode == 0, again.stderr
    assert "quick brown fox" in again.stdout
    revised = json.loads(steno(data_dir, "result", job_id, "--json").stdout)
    assert revised["revision"] == 2
    beyond = steno(data_dir, "rerun", job_id, "1:00", "2:00")
    assert beyond.returncode == 1
    assert re.fullmatch(r"steno: end must be at most .*; got 120.0\n", beyond.stderr)

    summary = steno(data_dir, "enhance", job_id, "summary")
    assert summary.returncode == 0, summary.stderr
    assert "quick brown fox" in summary.stdout
    translated = steno(data_dir, "enhance", job_id, "translate", "-l", "vi", "-f", "srt")
    assert translated.stdout.startswith("1\n00:00:0")
    assert "prompt is missing" in steno(data_dir, "enhance", job_id, "prompt").stderr


def test_bad_recordings_are_named_and_good_ones_are_transcribed(
    data_dir: Path, talk: Path, tmp_path: Path
) -> None:
    letter = tmp_path / "letter.mp3"
    letter.write_text("Dear reader, this is no recording.\n" * 100)
    empty = tmp_path / "empty.wav"
    empty.touch()
    quiet = write_wav(tmp_path / "quiet.wav", silence(3))
    done = steno(data_dir, "transcribe", letter, talk, empty, quiet, "-l", "en")
    assert done.returncode == 1
    assert "quick brown fox" in done.stdout
    assert f"==> {quiet} <==" in done.stdout
    assert "quiet.wav: warning: nobody speaks in it" in done.stderr
    assert done.stderr.splitlines()[-1] == f"steno: 2 of 4 failed: {letter}, {empty}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--language", "xx"), ("--model", "enormous"), ("--beam-size", "99"), ("--temperature", "3")],
)
def test_a_wrong_option_is_named(data_dir: Path, talk: Path, option: str, value: str) -> None:
    done = steno(data_dir, "transcribe", talk, option, value)
    assert done.returncode in {1, 2}
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert option.removeprefix("--").replace("-", "_") in done.stderr


def test_without_a_stack_one_is_started_and_nothing_of_it_stays(talk: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    done = steno(data_dir, "transcribe", talk, "-l", "en", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "quick brown fox" in done.stdout
    assert find_running(data_dir) is None
    assert processes_over(data_dir) == []


def test_an_interrupt_ends_the_stack_that_was_started(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    long = write_wav(tmp_path / "long.wav", np.tile(speak(SENTENCE), 100))
    with started(data_dir, "transcribe", long, "-l", "en", "--workers", "1") as command:
        wait_until(lambda: at_work(data_dir), "work", UP_WITHIN_S)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=90)
    assert command.returncode == 130
    assert out == ""
    assert "long.wav: cancelled" in err
    assert processes_over(data_dir) == []


def test_a_stack_that_is_killed_meanwhile_is_replaced_and_no_word_is_lost(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    long = write_wav(tmp_path / "long.wav", speak(HARVARD))
    soon = {"WORKER_LEASE": "3"}  # what the first stack had in hand is taken back after it
    with started(data_dir, "up", "--port", "0", "--workers", "1", **soon) as up:
        wait_until(lambda: find_running(data_dir), "the stack", UP_WITHIN_S)
        send = ("transcribe", long, "-l", "en", "--workers", "1")
        with started(data_dir, *send, **soon) as command:
            wait_until(lambda: at_work(data_dir), "work", 30)
            up.send_signal(signal.SIGKILL)
            up.communicate()
            out, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    assert "depth of a well" in out
    assert "hard to sell" in out
    assert "trying again" in err
    assert processes_over(data_dir) == []


def at_work(data_dir: Path) -> bool:
    """Whether a job is planned: its first chunk is stored."""
    return any((data_dir / "uploads" / "chunks").glob("*/*.pcm"))


def processes_over(data_dir: Path) -> list[str]:
    """What still runs with this data."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(data_dir) in [process.environ().get("DATA_DIR"), *process.cmdline()]:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
