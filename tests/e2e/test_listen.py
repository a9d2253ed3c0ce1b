"""`steno listen` as people run it: the real command and gateway, real weights, spoken text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scripts.stack.running import find_running
from tests.support.cli import start_steno
from tests.support.frozen import SENTENCE
from tests.support.gateway import GatewayProcess
from tests.support.service import write_wav
from tests.support.speech import pcm16, silence, speak

RICE = "Rice is often served in round bowls."
"""A robot says it, so not every word is recognized."""
AUDIO = np.concatenate([speak(SENTENCE), silence(1.2), speak(RICE)])


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "talk.wav", AUDIO)


def listen(data_dir: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return start_steno(data_dir, "listen", "-l", "en", *arguments, text=False)


def test_words_are_shown_utterance_by_utterance_and_stored(
    serving: GatewayProcess, talk: Path, tmp_path: Path
) -> None:
    with listen(tmp_path, talk, "--server", serving.url, "--recording-id", "call 17") as process:
        out, err = (text.decode() for text in process.communicate(timeout=300))
    assert process.returncode == 0, err
    fox, rice = out.splitlines()
    assert "brown fox" in fox
    assert "served" in rice
    assert re.fullmatch(
        r"talk\.wav: \d\.\d s of audio, 1\d words, language en, session [0-9a-f-]{36}\n", err
    )
    session_id = err.split()[-1]
    stored = serving.http.get(f"/api/v1/streams/{session_id}").json()
    assert " ".join(out.split()) == " ".join(stored["text"].split())


def test_a_pipe_is_transcribed_until_ctrl_c(serving: GatewayProcess, tmp_path: Path) -> None:
    with listen(tmp_path, "-", "--server", serving.url, "-f", "json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pcm16(AUDIO))
        process.stdin.flush()
        for line in process.stdout:
            if json.loads(line)["is_final"]:
                break
        process.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert any("served" in message["text"] for message in rest if message["is_final"])
    assert rest[-1]["status"] == "closed"


def test_an_option_that_the_gateway_rejects_is_one_line(
    serving: GatewayProcess, talk: Path, tmp_path: Path
) -> None:
    with listen(tmp_path, talk, "--server", serving.url, "--endpointing", "10") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"steno: endpointing must be ")
    assert len(err.splitlines()) == 1


def test_where_nothing_runs_a_gateway_is_started_meanwhile(talk: Path, tmp_path: Path) -> None:
    with listen(tmp_path / "data", talk, "--speed", "0") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"brown fox" in out
    assert find_running(tmp_path / "data") is None
