"""`steno bench` over everything that it measures: the real stack and engines, spoken text.

Runs on demand, after a change to benchmarks: ``scripts/test -m system tests/e2e/test_bench.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from common.domain.models import WHISPER_ENGINES
from common.settings import AsrSettings, Settings
from common.weights.convert import ct2_to_ggml
from common.weights.store import WeightsStore
from scripts.bench.bench import OURS, PARTS, Bench, Size
from scripts.bench.corpus import read_corpus
from scripts.bench.direct import Way
from scripts.bench.enhancing import EnhancingBench, EnhancingSize
from scripts.bench.report import BenchPart
from scripts.bench.revisions import RevisionsBench, RevisionsSize
from scripts.bench.search import PAGE, SearchBench, Words, fill
from scripts.bench.search import QUICK as QUICK_SEARCH
from scripts.bench.speakers import PARTS as SPEAKER_PARTS
from scripts.bench.speakers import SHERPA, WHOLE, SpeakersBench, SpeakersSize
from scripts.bench.stream import PARTS as STREAM_PARTS
from scripts.bench.stream import StreamBench, StreamSize
from tests.support.service import write_wav
from tests.support.speech import silence, speak

pytestmark = pytest.mark.system

TALK = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. "
    "It is easy to tell the depth of a well. These days a chicken leg is a rare dish."
)
"""From the first of the Harvard sentences (IEEE, 1969)."""
CLIP = "The hogs were fed chopped corn and garbage."
FOX = "The quick brown fox jumps over the lazy dog."
BREAKFAST = "Bonjour, je voudrais une tasse de café et un morceau de pain, s'il vous plaît."
RICE = "Rice is often served in round bowls."
VIETNAMESE = "xin chào các bạn hôm nay trời đẹp"
VIETNAMESE_MODEL = "sherpa-onnx/viet-wenet"
TINY = Size(clips=1, sent=1, upload_mb=2, planned_s=30, chunks=6, warm_up=False)
TINY_STREAMS = StreamSize(
    stream_s=4, several_s=3, steps=(1,), pause_s=5, fast_s=2, unread=False, sessions=2
)


def write_folder(folder: Path, talk: str, clips: Mapping[str, Sequence[str]]) -> Path:
    """A folder with clips, by language, and a recording that is long, as far as a test goes."""
    for language, texts in clips.items():
        place = folder / f"{language}-read"
        place.mkdir(parents=True)
        for number, text in enumerate(texts):
            write_wav(place / f"{number}.wav", speak(text, language))
        lines = (f"{number}.wav\t{text}\n" for number, text in enumerate(texts))
        (place / "refs.tsv").write_text("".join(lines))
    audio = speak(talk)
    place = folder / "en-long"
    place.mkdir()
    write_wav(place / "talk.wav", audio)
    turns = [{"start": 0, "end": len(audio) / 16_000, "sentences": [talk]}]
    (place / "talk.transcript.json").write_text(json.dumps({"turns": turns}))
    return folder


@pytest.fixture
def models(tmp_path: Path, weights_dir: Path, vietnamese_weights: Path) -> Path:
    """The same weights for both Whisper engines, and a Vietnamese network."""
    folder = tmp_path / "models"
    folder.mkdir()
    whisper = weights_dir / "faster-whisper-base"
    for weights in (whisper, vietnamese_weights):
        (folder / weights.name).symlink_to(weights.resolve())
    ct2_to_ggml(whisper, folder / "ggml-base.bin")
    return folder


def test_every_part_is_measured_and_the_ways_stand_side_by_side(
    models: Path, tmp_path: Path
) -> None:
    clips = {"en": [CLIP], "fr": [BREAKFAST], "vi": [VIETNAMESE]}
    speech = write_folder(tmp_path / "speech", TALK, clips)
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
    of_clips = ["clips en-read", "clips fr-read", "clips vi-read", "clips in turn"]
    assert list(parts) == ["long", "overhead", "latency", *of_clips, "scaling", "memory", "mixed"]
    figures = {figure.name: figure for part in found for figure in part.figures}
    assert all(math.isfinite(value) for figure in figures.values() for value in figure.values)

    long = parts["long"].comparison
    assert long is not None
    assert list(long.rows) == [OURS, *Way]
    transcribed = {way: row[-1].value for way, row in long.rows.items()}
    # A robot's voice; the text of any other recording would be all wrong.
    assert all(errors < 50 for errors in transcribed.values()), transcribed

    overhead = figures["not inference, of the wall time from upload to COMPLETED"]
    assert 0 < overhead.value < 100
    assert {f"en-read: WER above {engine}'s own" for engine in WHISPER_ENGINES} <= set(figures)
    assert figures["text in the language of its clip"].value > 90
    assert figures["gateway's rise by a 2 MB upload"].value >= 0
    assert any(name.startswith("worker over ") for name in figures)
    assert f"vi-read: WER of {VIETNAMESE_MODEL}" in figures
    mixed = parts["mixed"].comparison
    assert mixed is not None
    ((peak, loaded, unloaded),) = mixed.rows.values()
    # The default of ENGINES_MB has room for both.
    assert peak.value > 200
    assert (loaded.value, unloaded.value) == (2, 0)
    json.dumps([part.document() for part in found])


def test_every_part_of_live_streams_is_measured(streaming_weights: Path, tmp_path: Path) -> None:
    clips = {"en": [FOX, RICE], "vi": [VIETNAMESE]}
    speech = write_folder(tmp_path / "speech", " ".join([FOX, RICE] * 4), clips)
    (tmp_path / "bench").mkdir()
    bench = StreamBench(
        read_corpus(speech),
        Settings(asr=AsrSettings(models_dir=streaming_weights.parent)),
        tmp_path / "bench",
        cores=1,
        size=TINY_STREAMS,
        progress=lambda _: None,
    )
    found: list[BenchPart] = []
    bench.run(STREAM_PARTS, found.append)
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


def test_every_part_of_diarization_is_measured(
    diarization_weights: WeightsStore, tmp_path: Path
) -> None:
    voices = {"1": "en", "2": "en+f4"}
    place = tmp_path / "speech" / "en-read"
    place.mkdir(parents=True)
    lines = []
    for reader, voice in voices.items():
        for number, text in enumerate((FOX, RICE, CLIP)):
            write_wav(place / f"{reader}-{number}.wav", speak(text, voice))
            lines.append(f"{reader}-{number}.wav\t{text}\n")
    (place / "refs.tsv").write_text("".join(lines))
    said = [(reader, text) for text in (FOX, RICE, CLIP, TALK) for reader in voices]
    pieces, turns, now = [], [], 0.0
    for reader, text in said:
        pieces += [speak(text, voices[reader]), silence(1)]
        length = (len(pieces[-2]) + len(pieces[-1])) / 16_000
        turns.append({"start": now, "end": now + length, "speaker": reader, "sentences": [text]})
        now += length
    write_wav(place / "talk.wav", np.concatenate(pieces))
    (place / "talk.transcript.json").write_text(json.dumps({"turns": turns}))
    (tmp_path / "bench").mkdir()
    found: list[BenchPart] = []
    SpeakersBench(
        read_corpus(tmp_path / "speech"),
        Settings(asr=AsrSettings(models_dir=diarization_weights.root)),
        tmp_path / "bench",
        cores=1,
        size=SpeakersSize(conversations=1),
        progress=lambda _: None,
    ).run(SPEAKER_PARTS, found.append)
    parts = {part.name: part for part in found}
    assert list(parts) == list(SPEAKER_PARTS)
    for part in ("conversations", "long"):
        table = parts[part].comparison
        assert table is not None
        assert list(table.rows) == [OURS, WHOLE, SHERPA]
    figures = {figure.name: figure for part in found for figure in part.figures}
    # In the noise of a room the network takes a robot's two voices for one.
    assert figures["DER, collar 0.25 s"].value < 60
    assert figures["speakers found"].value == 2
    assert figures["words given to the right one"].value > 90
    assert figures["clustering 20,000 stretches (10 h)"].met
    job = parts["job"].comparison
    assert job is not None
    assert list(job.rows) == ["without", "with speakers"]
    json.dumps([part.document() for part in found])


def test_edits_and_reruns_of_a_transcript_are_measured(weights_dir: Path, tmp_path: Path) -> None:
    recording = read_corpus(write_folder(tmp_path / "speech", TALK, {"en": [CLIP]})).recording
    assert recording is not None
    (tmp_path / "bench").mkdir()
    bench = RevisionsBench(
        recording,
        Settings(asr=AsrSettings(models_dir=weights_dir)),
        tmp_path / "bench",
        cores=1,
        size=RevisionsSize(refined=2, edits=2, reads=1, reruns=1),
        progress=lambda _: None,
    )

    parts = {part.name: part for part in bench.run()}

    assert list(parts) == ["edits", "rerun", "size"]
    figures = {figure.name: figure.value for part in parts.values() for figure in part.figures}
    assert all(value >= 0 for value in figures.values())
    assert figures["words written as they are said"] == 5
    assert figures["of them not aligned"] == 0
    steps = parts["rerun"].comparison
    assert steps is not None
    assert {name.split()[0] for name in steps.rows} == {"plan", "transcribe", "moderate", "splice"}
    json.dumps([part.document() for part in parts.values()])


def test_every_part_of_the_search_is_measured(database_url: str) -> None:
    words = Words(1)
    fill(database_url, QUICK_SEARCH, words, lambda _: None)

    parts = list(SearchBench(database_url, QUICK_SEARCH, words, lambda _: None).run(1.0))

    assert [part.name for part in parts] == ["stored", "searches", "indexing"]
    searches = parts[1].comparison
    assert searches is not None
    pages = {name: figures[1].value for name, figures in searches.rows.items()}
    assert pages.pop("nothing that was said") == 0
    assert pages.pop("the most frequent word, streams") == 0
    assert pages.pop("a word of one text") == 1
    assert pages["the most frequent word"] == PAGE
    figures = {figure.name: figure.value for part in parts for figure in part.figures}
    assert figures["passages"] == 500
    assert figures["tables read from end to end"] == 0


def test_summaries_by_workers_that_are_killed_are_measured(
    weights_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    bench = EnhancingBench(
        Settings(asr=AsrSettings(models_dir=weights_dir)),
        tmp_path / "bench",
        size=EnhancingSize(minutes=20, answer_s=3.0),
        progress=lambda _: None,
    )

    (part,) = bench.run()

    assert [it.name for it in part.figures if it.met is False] == []
    table = part.comparison
    assert table is not None
    assert list(table.rows) == ["one worker", "two workers", "two workers, one killed"]
    for name, (_, parts, once, twice, more, cut, _) in table.rows.items():
        assert parts.value >= 3
        assert (once.value + twice.value, more.value) == (parts.value, 0)
        if name == "two workers, one killed":
            assert min(twice.value, cut.value) >= 1
    json.dumps(part.document())
