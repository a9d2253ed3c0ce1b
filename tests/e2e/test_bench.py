"""`steno bench` over everything that it measures: the real stack, both engines, spoken text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from common.settings import AsrSettings, Settings
from common.weights.convert import ct2_to_ggml
from common.weights.manifest import WHISPER_ENGINES
from scripts.bench.bench import OURS, PARTS, Bench, Size
from scripts.bench.corpus import read_corpus
from scripts.bench.direct import Way
from scripts.bench.report import BenchPart
from tests.support.service import write_wav
from tests.support.speech import speak

TALK = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. "
    "It is easy to tell the depth of a well. These days a chicken leg is a rare dish."
)
"""From the first of the Harvard sentences (IEEE, 1969)."""
CLIP = "The hogs were fed chopped corn and garbage."
TINY = Size(clips=1, sent=1, upload_mb=2, planned_s=30, chunks=6, warm_up=False)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A folder with a clip and a recording that is long, as far as this test goes."""
    folder = tmp_path / "speech"
    for name in ("en-read", "en-long"):
        (folder / name).mkdir(parents=True)
    write_wav(folder / "en-read" / "clip.wav", speak(CLIP))
    (folder / "en-read" / "refs.tsv").write_text(f"clip.wav\t{CLIP}\n")
    write_wav(folder / "en-long" / "talk.wav", speak(TALK))
    turns = [{"start": 0, "end": len(speak(TALK)) / 16_000, "sentences": [TALK]}]
    (folder / "en-long" / "talk.transcript.json").write_text(json.dumps({"turns": turns}))
    return folder


@pytest.fixture
def models(tmp_path: Path, weights_dir: Path) -> Path:
    """The same weights for both engines."""
    folder = tmp_path / "models"
    folder.mkdir()
    whisper = weights_dir / "faster-whisper-base"
    (folder / whisper.name).symlink_to(whisper.resolve())
    ct2_to_ggml(whisper, folder / "ggml-base.bin")
    return folder


def test_every_part_is_measured_and_the_ways_stand_side_by_side(
    speech: Path, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    bench = Bench(
        read_corpus(speech),
        Settings(asr=AsrSettings(models_dir=models)),
        tmp_path / "bench",
        cores=1,
        size=TINY,
        rounds=1,
        progress=lambda _: None,
    )
    found: list[BenchPart] = []
    bench.run(PARTS, found.append)
    parts = {part.name: part for part in found}
    assert list(parts) == ["long", "overhead", "latency", "clips en-read", "scaling", "memory"]
    figures = {figure.name: figure for part in found for figure in part.figures}
    assert all(math.isfinite(value) for figure in figures.values() for value in figure.values)

    long = parts["long"].comparison
    assert long is not None
    assert list(long.rows) == [OURS, *Way]
    transcribed = {way: row[-1].value for way, row in long.rows.items()}
    # A robot's voice; the text of any other recording would be all wrong.
    assert all(errors < 50 for errors in transcribed.values()), transcribed

    overhead = parts["overhead"].comparison
    assert overhead is not None
    not_inference = figures["not inference, of the wall time from upload to COMPLETED"].value
    assert sum(of_all.value for _, of_all in overhead.rows.values()) == pytest.approx(
        not_inference, abs=0.1
    )

    assert {f"en-read: WER above {engine}'s own" for engine in WHISPER_ENGINES} <= set(figures)
    assert figures["gateway's rise by a 2 MB upload"].value >= 0
    assert any(name.startswith("worker over ") for name in figures)
    json.dumps([part.document() for part in found])
