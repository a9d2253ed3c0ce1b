"""`steno bench speakers`: conversations are as described, and words are counted rightly."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from common.audio.planning import PlannedChunk
from common.domain.speakers import Turn
from common.domain.values import Chunk, Span, Window, Word
from common.errors import SetupProblem
from scripts.bench.conversations import (
    GAP_MS,
    MAX_CLIPS,
    PAUSE_MS,
    Said,
    converse,
    read_readers,
)
from scripts.bench.corpus import Clip, ClipSet, LongRecording, write_wav
from scripts.bench.identification import QUIET, measure_identification
from scripts.bench.speakers import measure_cost, right_words, said
from tests.support.speech import pcm16, silence, speak
from tests.support.voices import tone_diarizer, voice, write_networks


def tone(hz: float, seconds: float) -> Said:
    """A clip with silence around what is said."""
    samples = np.concatenate([silence(0.3), voice(seconds, 2, hz=hz), silence(0.2)])
    return Said(samples, (Span(300, 300 + round(seconds * 1000)),))


READERS = {
    name: [tone(300 * (at + 1), 1 + number / 4) for number in range(12)]
    for at, name in enumerate("abcd")
}


def test_a_seed_makes_the_same_conversation_always_and_another_a_different_one() -> None:
    one, again, other = converse(READERS, 3, 1), converse(READERS, 3, 1), converse(READERS, 3, 2)
    assert one.turns == again.turns
    np.testing.assert_array_equal(one.samples, again.samples)
    assert one.turns != other.turns


@pytest.mark.parametrize("count", [2, 4])
def test_readers_take_turns_with_gaps_and_overlaps(count: int) -> None:
    made = converse(READERS, count, 7)
    assert made.speakers == count
    assert len(made.turns) <= count * MAX_CLIPS
    assert all(one != other for (_, one), (_, other) in pairwise(made.turns))
    gaps = [two.start_ms - one.end_ms for (one, _), (two, _) in pairwise(made.turns)]
    assert all(GAP_MS[0] <= gap < GAP_MS[1] for gap in gaps)
    assert min(gaps) < 0 < max(gaps)


def test_who_speaks_when_is_where_the_audio_is_loud() -> None:
    made = converse(READERS, 2, 5)
    level = np.abs(made.samples)
    spoken = np.zeros(len(level), bool)
    for span, _ in made.turns:
        spoken[span.start_ms * 16 : span.end_ms * 16] = True
    assert level[spoken].mean() > 5 * level[~spoken].mean() > 0
    assert level.max() <= 1


def test_a_clips_reader_is_in_its_name_and_its_pauses_are_no_speech(tmp_path: Path) -> None:
    talk = speak("The birch canoe slid on the smooth planks.")
    for name in ("17-2-a.wav", "17-2-b.wav", "SPK01_R1.wav"):
        write_wav(
            tmp_path / name,
            [np.frombuffer(pcm16(np.concatenate([talk, silence(2), talk])), "<i2")],
        )
    clips = tuple(Clip(path, "") for path in sorted(tmp_path.iterdir()))
    readers = read_readers([ClipSet("en-read", "en", clips)])
    assert {name: len(clips) for name, clips in readers.items()} == {"17": 2, "SPK01": 1}
    speech = readers["17"][0].speech
    assert len(speech) == 2
    assert speech[1].start_ms - speech[0].end_ms > PAUSE_MS


def test_words_count_as_right_under_the_best_names() -> None:
    reference = [("0", "one"), ("0", "two"), ("1", "three"), ("1", "four")]
    words = [
        Word(f" {text}", Span(at * 1_000, at * 1_000 + 500), 0.9)
        for at, text in enumerate(["One", "two,", "tree", "four"])
    ]
    turns = [Turn(Span(0, 2_500), "SPEAKER_00"), Turn(Span(2_900, 4_000), "SPEAKER_01")]
    assert right_words(reference, words, turns, "vi") == 0.75
    in_time = [Turn(Span(0, 1_900), "SPEAKER_00"), Turn(Span(1_900, 4_000), "SPEAKER_01")]
    assert right_words(reference, words, in_time, "vi") == 1
    assert right_words(reference, words, [], "vi") == 0.5, "all are nobody's"


def test_the_references_words_have_the_speakers_of_their_turns(tmp_path: Path) -> None:
    turns = [
        {"start": 0, "end": 2, "speaker": 1, "sentences": ["Yes, sir."]},
        {"start": 5, "end": 6, "speaker": 0, "sentences": ["No."]},
    ]
    transcript = tmp_path / "talk.transcript.json"
    transcript.write_text(json.dumps({"turns": turns}))
    recording = LongRecording(tmp_path / "talk.wav", "vi", "", 0)
    assert said(recording, 4) == [("1", "yes"), ("1", "sir")]
    assert said(recording, 9) == [("1", "yes"), ("1", "sir"), ("0", "no")]
    transcript.write_text(json.dumps({"turns": [turns[0] | {"speaker": 1}, {"start": 3}]}))
    with pytest.raises(SetupProblem, match="does not say who speaks"):
        said(recording, 9)


def test_the_cost_is_measured_on_stretches_repeated_to_ten_hours(tmp_path: Path) -> None:
    span = Span(0, 6_000)
    pcm = pcm16(np.concatenate([voice(3, 1), voice(3, 2, hz=1_500)]))
    chunk = PlannedChunk(Chunk(0, (Window(span, span, 0),)), pcm, span.duration_ms)
    cost = measure_cost(write_networks(tmp_path), [chunk])
    assert cost.segmenting_s > 0
    assert 0 < cost.diarizing_s < cost.clustering_s < 10
    assert 0 < cost.diarizing_mb <= cost.clustering_mb


def test_readers_are_enrolled_by_some_clips_and_named_in_others(tmp_path: Path) -> None:
    readers = {
        name: [tone(hz, 3) for _ in range(8)] for name, hz in (("a", 300), ("b", 900), ("c", 2_700))
    }
    part = measure_identification(tone_diarizer(tmp_path), readers, 8)
    assert part.comparison is not None
    for row in (f"{QUIET}, 3 s", f"{QUIET}, 6 s"):
        pieces, own, other, missed, taken = (it.value for it in part.comparison.rows[row])
        assert pieces >= 6
        assert own > 0.99 > 0.5 > other
        assert (missed, taken) == (0, 0)
    same = {name: [tone(300, 3) for _ in range(8)] for name in ("a", "b")}
    part = measure_identification(tone_diarizer(tmp_path / "same"), same, 8)
    figures = {it.name: it for it in part.figures}
    assert not figures["named as another"].met, "who is not enrolled is taken for the other"
