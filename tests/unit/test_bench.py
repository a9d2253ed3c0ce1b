"""The bench: references are read as they are written, and figures say what was measured."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from common.errors import NotAudio, SetupProblem, Unavailable
from scripts.bench.corpus import DecodedRecording, beginning, read_corpus, wer, write_wav
from scripts.bench.direct import apart, peak_mb, plan, reset_peak
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, show, summary
from scripts.cli.cli import steno

SECOND = np.zeros(16_000, np.int16)


def clip_set(folder: Path, name: str, lines: str, *files: str) -> Path:
    place = folder / name
    place.mkdir()
    (place / "refs.tsv").write_text(lines, encoding="utf-8")
    for file in files:
        write_wav(place / file, [SECOND])
    return place


def turn(start: float, end: float, *sentences: str) -> dict[str, object]:
    return {"start": start, "end": end, "sentences": list(sentences)}


# --- what is measured on ----------------------------------------------------------------------


def test_a_folder_is_read_by_its_languages_and_references(tmp_path: Path) -> None:
    clip_set(tmp_path, "en-read", "a.wav\tone two\n\nb.wav\t three \n", "a.wav", "b.wav")
    clip_set(tmp_path, "vi-read", "c.wav\tkhách sạn\n", "c.wav")
    clip_set(tmp_path, "unknown", "d.wav\tnobody's language\n")
    long = tmp_path / "en-long"
    long.mkdir()
    write_wav(long / "talk.v2.wav", [SECOND])
    (long / "talk.v2.txt").write_text("notes")
    (long / "talk.v2.transcript.json").write_text(json.dumps({"turns": [turn(0, 1, "Hello.")]}))
    corpus = read_corpus(tmp_path)
    assert [
        (s.name, s.language, [(c.path.name, c.reference) for c in s.clips])
        for s in corpus.clip_sets
    ] == [
        ("en-read", "en", [("a.wav", "one two"), ("b.wav", "three")]),
        ("vi-read", "vi", [("c.wav", "khách sạn")]),
    ]
    assert corpus.recording is not None
    assert corpus.recording.path.name == "talk.v2.wav"
    assert (corpus.recording.language, corpus.recording.reference) == ("en", "Hello.")


def test_a_reference_without_its_recording_is_named(tmp_path: Path) -> None:
    clip_set(tmp_path, "en-read", "missing.wav\tone\n")
    with pytest.raises(SetupProblem, match=r"names missing\.wav"):
        read_corpus(tmp_path)


def test_a_transcript_without_its_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "en-long").mkdir()
    (tmp_path / "en-long" / "talk.transcript.json").write_text('{"turns": []}')
    with pytest.raises(SetupProblem, match=r"talk.*has no recording"):
        read_corpus(tmp_path)


def test_a_folder_with_nothing_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match=r"no recordings with references.*refs\.tsv"):
        read_corpus(tmp_path)


def test_the_reference_ends_with_the_last_turn_that_ends_in_time() -> None:
    turns = [turn(1, 8, "One.", "Two."), turn(8, 562, "Three."), turn(562, 763, "Four.")]
    assert beginning(turns) == ("One. Two. Three.", 562.0)
    assert beginning(turns, within_s=5) == ("", 0.0)


def test_errors_count_over_all_words_after_whispers_normalisation() -> None:
    assert wer(["Mister Hale's colour, twenty"], ["mr hale is COLOR 20"], "en") == 0
    # one error in four words, not the mean of 0 % and 100 %
    assert wer(["the red house", "stands"], ["the red house", "falls"], "en") == 25


def test_vietnamese_keeps_its_diacritics_in_whatever_unicode_form() -> None:
    assert wer(["khách sạn"], ["Khách sạn!"], "vi") == 0
    assert wer(["kha\u0301ch sa\u0323n"], ["khách sạn"], "vi") == 0
    assert wer(["khách sạn"], ["khach sạn"], "vi") == 50


def test_silence_instead_of_words_is_all_wrong_and_no_reference_is_no_figure() -> None:
    assert wer(["one two"], [""], "en") == 100
    assert wer(["one", "[laughs]"], ["one", "noise"], "en") == 0
    with pytest.raises(ValueError, match="no reference"):
        wer(["[laughs]"], ["noise"], "en")


def test_a_cut_is_exact_and_starts_over_at_the_end(tmp_path: Path) -> None:
    samples = np.arange(32_000, dtype=np.int16)
    recording = DecodedRecording(write_wav(tmp_path / "two.wav", [samples]), tmp_path / "pcm")
    assert recording.duration_s == 2
    with wave.open(str(recording.cut(tmp_path / "cut.wav", 1.5, 3)), "rb") as file:
        transcribed = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.array_equal(transcribed, np.concatenate([samples[24_000:], samples, samples[:8_000]]))


# --- how it is measured -----------------------------------------------------------------------


def test_planning_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    planned = plan(write_wav(tmp_path / "silent.wav", [SECOND] * 5), tmp_path)
    assert planned.chunks == 0
    assert 20 < planned.peak_mb < 400


def test_an_error_in_the_process_is_raised_here(tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"no audio")
    with pytest.raises(NotAudio):
        plan(tmp_path / "no.wav", tmp_path)


def test_an_error_keeps_its_details_between_processes() -> None:
    sent = pickle.dumps(Unavailable(what="Postgres", reason="down", final=True))
    error = pickle.loads(sent)  # noqa: S301 - our own
    assert (error.details, error.final) == ({"what": "Postgres"}, True)
    assert str(error) == "Postgres is unavailable: down"


def peaks() -> tuple[float, float, float]:
    """The peak, the same with 50 MB in use, and once these are freed and it was reset."""
    pid = os.getpid()
    before = peak_mb(pid)
    big = np.ones(50_000_000, np.uint8)
    high = peak_mb(pid)
    del big
    return before, high, reset_peak(pid)


def test_a_peak_counts_from_its_reset() -> None:
    # In a process of its own: one that has run other tests may keep what is freed.
    before, high, reset = apart(peaks)
    assert high > before + 40
    assert reset < high - 40


# --- what is shown ----------------------------------------------------------------------------


def shown(part: BenchPart) -> str:
    out = io.StringIO()
    show(part, Console(file=out, width=110))
    return out.getvalue()


def test_the_median_of_the_rounds_counts_and_the_spread_is_shown() -> None:
    figure = Figure("speed", (2.0, 3.5, 3.0), "x", 2, Target(3.0, at_least=True))
    assert (str(figure), figure.spread, figure.met) == ("3.00 x", "2.00..3.50", True)
    assert Figure("speed", (2.0,), "x").spread == ""


def test_a_missed_target_is_named_in_the_table_and_in_the_last_line() -> None:
    kept = Figure("kept", (8.0,), "s", 1, Target(8.0))
    missed = Figure("missed", (8.04,), "s", 1, Target(8.0))
    part = BenchPart("p", "A part", (kept, missed, Figure("only shown", (1.0,))))
    assert "<= 8  met" in shown(part)
    assert "<= 8  MISSED" in shown(part)
    assert summary([part]) == "1 of 2 targets met; missed: missed"


def test_ways_stand_side_by_side() -> None:
    comparison = Comparison((Column("wall", "s", 1),))
    comparison.add("ours", (1.0, 3.0))
    comparison.add("theirs", 9.0)
    lines = shown(BenchPart("p", "A part", (), comparison, ("A remark.",))).splitlines()
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "wall",
        "ours 2.0 s (1.0..3.0)",
        "theirs 9.0 s",
        "A remark.",
    ]


def test_json_holds_every_round() -> None:
    part = BenchPart("p", "A part", (Figure("f", (1.0, 2.0), "s", 1, Target(1.0)),))
    assert json.loads(json.dumps(part.document()))["figures"] == [
        {
            "name": "f",
            "value": 1.5,
            "values": [1.0, 2.0],
            "unit": "s",
            "target": "<= 1",
            "met": False,
        }
    ]


# --- the command ------------------------------------------------------------------------------


def test_what_is_missing_to_score_texts_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    done = CliRunner().invoke(steno, ["bench", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "sh scripts/setup.sh requirements-dev.lock" in done.stderr
