"""`steno bench stream`: what is played, and how the waits in it are counted."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from common.settings import Settings
from scripts.bench.corpus import Clip, ClipSet, Corpus, write_wav
from scripts.bench.report import BenchPart, Figure, Target
from scripts.bench.run import Findings, chosen
from scripts.bench.stream import PROMISES, QUICK, StreamBench
from scripts.bench.stream_clients import Encounter, Met
from scripts.bench.stream_play import (
    PAUSE_S,
    Played,
    Waits,
    median,
    p95,
    pieces_of,
    string_together,
    waits_of,
)
from scripts.cli.cli import steno
from scripts.cli.streaming import PIECE_BYTES, PIECE_MS, Message

MS = 16


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Four clips of half a second, each of one value."""
    return [
        Clip(
            write_wav(tmp_path / f"{number}.wav", [np.full(500 * MS, number, np.int16)]),
            f"clip {number}",
        )
        for number in (1, 2, 3, 4)
    ]


def runs(pcm: bytes) -> list[tuple[int, float]]:
    """Each value and how many seconds it lasts."""
    samples = np.frombuffer(pcm, "<i2")
    return [(int(value), len(list(same)) / 16_000) for value, same in groupby(samples)]


# --- what is played ---------------------------------------------------------------------------


def test_pauses_are_before_between_and_after_the_clips(clips: list[Clip]) -> None:
    programme = string_together(clips, "en", seconds=100)
    found = runs(programme.pcm)
    assert [value for value, _ in found[0::2]] == [0] * 5
    assert all(PAUSE_S[0] <= seconds <= PAUSE_S[1] for _, seconds in found[0::2])
    assert [f"clip {value}" for value, _ in found[1::2]] == [
        f"clip {number}" for number in programme.reference.split() if number != "clip"
    ]
    assert all(seconds == 0.5 for _, seconds in found[1::2])
    assert programme.duration_s == sum(seconds for _, seconds in found)


def test_it_ends_with_the_clip_in_which_it_is_long_enough(clips: list[Clip]) -> None:
    assert len(runs(string_together(clips, "en", seconds=0.1).pcm)) == 3
    programme = string_together(clips, "en", seconds=3)
    assert 3 <= programme.duration_s < 3 + 0.5 + PAUSE_S[1]


def test_a_seed_always_means_the_same(clips: list[Clip]) -> None:
    first, again, other = (string_together(clips, "en", 9, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.pcm != other.pcm


def test_pieces_are_the_whole() -> None:
    pcm = bytes(range(256)) * 30
    pieces = list(pieces_of(pcm))
    assert b"".join(pieces) == pcm
    assert {len(piece) for piece in pieces[:-1]} == {PIECE_BYTES}


# --- how waits are counted --------------------------------------------------------------------


PIECE_S = PIECE_MS / 1000
SENT = tuple(100 + PIECE_S * (number + 1) for number in range(100))
"""When pieces were sent, at their own pace from the time 100 on."""


def partial(start: float, at: float) -> Message:
    return Message({"type": "partial", "start": start, "text": "some"}, "", at)


def final(start: float, end: float, at: float, *words: tuple[float, float]) -> Message:
    document: dict[str, Any] = {
        "type": "final",
        "start": start,
        "end": end,
        "text": "some words",
        "words": [{"start": begun, "end": over} for begun, over in words],
    }
    return Message(document, "", at)


def waits(*messages: Message) -> Waits:
    found = waits_of(Played(messages, SENT, 1000))
    rounded = (
        [round(each, 3) for each in all_] for all_ in (found.firsts, found.finals, found.words)
    )
    return Waits(*rounded)


def test_audio_counts_as_sent_with_the_piece_that_has_its_end() -> None:
    played = Played((), SENT[:10], 1000)
    pieces = (0, 1, 1.01, 10, 50)
    found = [played.sent_at(PIECE_MS * number) for number in pieces]
    assert found == [SENT[0], SENT[0], SENT[1], SENT[9], SENT[9]]


def test_waits_count_from_when_that_audio_was_sent() -> None:
    found = waits(
        partial(1.0, 102.0), partial(1.0, 102.6), final(1.0, 3.0, 103.7, (1.2, 1.5), (2.0, 2.8))
    )
    assert found == Waits(firsts=[0.8], finals=[0.7], words=[0.9])


def test_an_utterance_without_a_partial_was_first_read_as_a_final() -> None:
    assert waits(final(1.0, 2.0, 102.5, (1.0, 1.8))).firsts == [1.5]


def test_nobody_waits_for_the_first_word_behind_a_cut() -> None:
    found = waits(
        partial(1.0, 102.0),
        final(1.0, 3.0, 104.0, (1.0, 3.0)),
        final(3.0, 4.0, 104.5, (3.0, 3.9)),
        final(5.0, 6.0, 106.5, (5.0, 5.9)),
    )
    assert len(found.firsts) == 2
    assert len(found.finals) == 3


def test_a_final_without_words_or_text_is_no_wait_for_words() -> None:
    empty = Message({"type": "final", "start": 1, "end": 2, "text": "", "words": []}, "", 103)
    assert waits(empty) == Waits()
    assert waits(final(1.0, 2.0, 102.5)) == Waits(finals=[0.5])


def test_the_text_is_that_of_the_finals_in_order() -> None:
    played = Played((final(1, 2, 3), partial(3, 4), final(3, 4, 5)), SENT, 1000)
    assert played.text == "some words some words"


def test_nothing_recognized_meets_no_target() -> None:
    assert (median([]), p95([])) == (math.inf, math.inf)
    assert not any(promise.kept_by(Waits()) for promise in PROMISES.values())
    good = Waits([0.5], [0.5], [0.5])
    assert all(promise.kept_by(good) for promise in PROMISES.values())


# --- what is reported -------------------------------------------------------------------------


def test_an_answer_that_was_not_promised_is_marked() -> None:
    met = Met(("idle (Nothing came)", "idle (Nothing came)"), 2, 4408)
    assert str(Encounter("it sleeps", str(met), True)) == (
        "it sleeps: 2 finals, idle (Nothing came), closed with 4408"
    )
    assert str(Encounter("it sleeps", "nothing", False)) == "it sleeps: nothing - UNEXPECTED"


def test_a_missed_target_is_named_and_fails_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    findings = Findings(Console(), cores=64, quick=False, as_json=tmp_path / "found.json")
    findings.take(BenchPart("a", "A", (Figure("too slow", (2.0,), target=Target(1)),)))
    assert not findings.sum_up()
    assert "missed: too slow" in capsys.readouterr().out
    assert '"too slow"' in (tmp_path / "found.json").read_text()


def test_what_cannot_be_measured_is_reported(tmp_path: Path) -> None:
    corpus = Corpus(None, (ClipSet("fr-read", "fr", ()),))
    bench = StreamBench(corpus, Settings(), tmp_path, cores=1, size=QUICK, progress=lambda _: None)
    bench.run(("english", "vietnamese", "several", "clients", "batch"), lambda _: None)
    assert bench.skipped == [
        "english: the folder has no clips in en",
        "vietnamese: the folder has no clips in vi",
    ]
    assert list(tmp_path.iterdir()) == []


# --- the command ------------------------------------------------------------------------------


def test_parts_come_in_their_own_order() -> None:
    assert chosen("c, a", ("a", "b", "c")) == ("a", "c")
    assert chosen(None, ("a", "b")) == ("a", "b")
    for wrong in ("d", "", "a,d"):
        with pytest.raises(click.BadParameter):
            chosen(wrong, ("a", "b"))


def test_stream_is_a_command_of_its_own_and_a_folder_is_still_a_folder(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "Measure live streams" in runner.invoke(steno, ["bench", "stream", "--help"]).output
    assert "accuracy and memory" in runner.invoke(steno, ["bench", "--help"]).output
    for words in (["bench", str(tmp_path)], ["bench", "stream", str(tmp_path)]):
        done = runner.invoke(steno, words)
        assert done.exit_code == 1
        assert f"{tmp_path} has no recordings with references" in done.stderr
    wrong = runner.invoke(steno, ["bench", "stream", str(tmp_path), "--parts", "long"])
    assert wrong.exit_code == 2
    assert "see steno bench stream --help" in wrong.stderr
