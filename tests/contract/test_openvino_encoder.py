"""Whisper's encoder on OpenVINO, which scripts/setup.sh installs where the processor profits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from common.asr.engine import DecodingOptions
from common.asr.faster_whisper import FasterWhisper
from common.asr.loading import load_engine
from tests.support.programs import run_python
from tests.support.speech import speak

SENTENCE = "Please send me the report before Friday."


@pytest.fixture
def weights(weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return weights_dir / "faster-whisper-base"


def test_its_output_is_that_of_float32_within_three_percent(weights: Path) -> None:
    from common.asr.openvino_encoder import OpenVinoEncoder

    exact = FasterWhisper(weights, compute_type="float32")
    features = exact._features(speak(SENTENCE))
    (expected,) = (np.asarray(each) for each in exact._encode([features]))
    found = OpenVinoEncoder(weights)(features[np.newaxis])
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_the_engine_names_it_and_finds_the_text(weights: Path) -> None:
    engine = load_engine("faster-whisper", weights, encoder="openvino")
    assert engine.encoder == "openvino bfloat16"
    (segments,) = engine.transcribe([speak(SENTENCE)], DecodingOptions(language="en"))
    assert "report before Friday" in "".join(segment.text for segment in segments)


def test_the_compiled_encoder_is_kept_on_disk(weights: Path, tmp_path: Path) -> None:
    load_engine("faster-whisper", weights, encoder="openvino")
    assert list((tmp_path / "stenopool" / "openvino").iterdir())


def test_it_connects_to_nothing(weights: Path) -> None:
    watched = f"""
import socket, sys
from pathlib import Path
def watch(event, arguments):
    if event in {{"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.fork"}}:
        print(event, arguments[1:], flush=True)
sys.addaudithook(watch)
from common.asr.openvino_encoder import OpenVinoEncoder
OpenVinoEncoder(Path({str(weights)!r}))
assert sys.modules["openvino_telemetry"] is None
"""
    assert run_python("-c", watched, env=dict(os.environ)).stdout == ""


def test_ctranslate2_encodes_where_openvino_does_not_load(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "common.asr.openvino_encoder", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine = load_engine("faster-whisper", weights, encoder="openvino")
    assert engine.encoder.startswith("ctranslate2 int8")
