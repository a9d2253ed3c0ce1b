"""`steno bench stream` over everything that it measures: real stack and engines, spoken text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from common.settings import AsrSettings, Settings
from scripts.bench.corpus import read_corpus
from scripts.bench.report import BenchPart
from scripts.bench.stream import PARTS, StreamBench, StreamSize
from tests.support.service import write_wav
from tests.support.speech import speak

FOX = "The quick brown fox jumps over the lazy dog."
RICE = "Rice is often served in round bowls."
VIETNAMESE = "xin chào các bạn hôm nay trời đẹp"
TINY = StreamSize(
    stream_s=4, several_s=3, steps=(1,), pause_s=5, fast_s=2, unread=False, sessions=2
)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A folder with clips in two languages, and a recording that is long, as far as it goes."""
    folder = tmp_path / "speech"
    for name, texts in {"en-read": (FOX, RICE), "vi-read": (VIETNAMESE,)}.items():
        (folder / name).mkdir(parents=True)
        for number, text in enumerate(texts):
            write_wav(folder / name / f"{number}.wav", speak(text, name[:2]))
        table = "".join(f"{number}.wav\t{text}\n" for number, text in enumerate(texts))
        (folder / name / "refs.tsv").write_text(table)
    talk = [FOX, RICE] * 4
    audio = np.concatenate([speak(text) for text in talk])
    (folder / "en-long").mkdir()
    write_wav(folder / "en-long" / "talk.wav", audio)
    turns = [{"start": 0, "end": len(audio) / 16_000, "sentences": talk}]
    (folder / "en-long" / "talk.transcript.json").write_text(json.dumps({"turns": turns}))
    return folder


def test_every_part_is_measured(speech: Path, streaming_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    bench = StreamBench(
        read_corpus(speech),
        Settings(asr=AsrSettings(models_dir=streaming_weights.parent)),
        tmp_path / "bench",
        cores=1,
        size=TINY,
        progress=lambda _: None,
    )
    found: list[BenchPart] = []
    bench.run(PARTS, found.append)
    assert bench.skipped == []
    parts = {part.name: part for part in found}
    assert list(parts) == [
        "english",
        "vietnamese",
        "several faster-whisper",
        "several zipformer",
        "batch",
        "limit faster-whisper",
        "limit zipformer",
        "clients",
        "sessions",
    ]
    figures = {figure.name: figure for part in found for figure in part.figures}
    for part in ("english", "vietnamese"):
        mine = [figure for figure in parts[part].figures if figure.name.startswith(part)]
        assert all(math.isfinite(figure.value) for figure in mine), mine
    english = parts["english"].comparison
    assert english is not None
    # A robot's voice; the text of any other recording would be all wrong.
    assert all(row[0].value < 50 for row in english.rows.values())
    for engine in ("faster-whisper", "zipformer"):
        assert figures[f"{engine}, one too many: refused"].met
    wrong = "misbehaving clients with an unexpected response"
    broken = [remark for remark in parts["clients"].remarks if "UNEXPECTED" in remark]
    assert figures[wrong].met, "\n".join(broken)
    assert figures["sessions that did not end as they should"].met
    assert figures["processes left over"].met
    beside = parts["batch"].comparison
    assert beside is not None
    assert list(beside.rows) == ["the stream alone", "beside the job"]
    json.dumps([part.document() for part in found])
