"""`steno listen` as people run it: the real command and gateway, real weights, spoken text."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.bench.corpus import write_wav
from scripts.stack.running import find_running
from tests.support.gateway import GatewayProcess
from tests.support.speech import pcm16, silence, speak

ROOT = Path(__file__).resolve().parents[2]
FOX = "The quick brown fox jumps over the lazy dog."
RICE = "Rice is often served in round bowls."
"""A robot says it, so not every word is told for sure."""
SOUND = pcm16(np.concatenate([speak(FOX), silence(1.2), speak(RICE)]))


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "talk.wav", [np.frombuffer(SOUND, "<i2")])


def steno(data_dir: Path, *arguments: str | Path, sound: bytes = b"") -> subprocess.Popen[bytes]:
    ours = {"DATABASE_URL", "REDIS_URL", "REDIS_HOST", "API_PORT", "API_HOST", "STENO_SERVER"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    settings = {
        "DATA_DIR": str(data_dir),
        "MODELS_DIR": str(ROOT / "models"),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts", "listen", "-l", "en", *map(str, arguments)],
        cwd=ROOT,
        env=kept | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if sound:
        assert process.stdin is not None
        process.stdin.write(sound)
        process.stdin.flush()
    return process


def test_words_are_shown_utterance_by_utterance_and_kept(
    serving: GatewayProcess, talk: Path, tmp_path: Path
) -> None:
    with steno(tmp_path, talk, "--server", serving.url, "--recording-id", "call 17") as process:
        out, err = (text.decode() for text in process.communicate(timeout=300))
    assert process.returncode == 0, err
    fox, rice = out.splitlines()
    assert "brown fox" in fox
    assert "served" in rice
    assert re.fullmatch(
        r"talk\.wav: \d\.\d s of audio, 1\d words, language en, session [0-9a-f-]{36}\n", err
    )
    session_id = err.split()[-1]
    kept = serving.http.get(f"/api/v1/streams/{session_id}").json()
    assert " ".join(out.split()) == " ".join(kept["text"].split())


def test_a_pipe_is_heard_until_ctrl_c(serving: GatewayProcess, tmp_path: Path) -> None:
    with steno(tmp_path, "-", "--server", serving.url, "-f", "json", sound=SOUND) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["is_final"]:
                break
        process.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert any("served" in message["text"] for message in rest if message["is_final"])
    assert rest[-1]["status"] == "closed"


def test_an_option_that_the_gateway_refuses_is_one_line(
    serving: GatewayProcess, talk: Path, tmp_path: Path
) -> None:
    with steno(tmp_path, talk, "--server", serving.url, "--endpointing", "10") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"steno: endpointing must be ")
    assert len(err.splitlines()) == 1


def test_where_nothing_runs_a_gateway_is_started_for_as_long_as_it_takes(
    talk: Path, tmp_path: Path
) -> None:
    with steno(tmp_path / "data", talk, "--speed", "0") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"brown fox" in out
    assert find_running(tmp_path / "data") is None
