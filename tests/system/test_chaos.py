"""Kill anything at any time: the short form of ``scripts/test --system chaos``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.service import write_wav
from tests.support.speech import speak
from tests.system.chaos import ChaosPlan, FaultKind, chaos, report

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "The birch canoe slid on the smooth planks.",
    "These days a chicken leg is a rare dish.",
)
VOICES = ("en", "en+f4")


@pytest.mark.usefixtures("weights_dir", "diarization_weights")
def test_every_accepted_recording_is_transcribed_once_and_alike_while_every_part_is_killed(
    tmp_path: Path,
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number, sentence in enumerate(SENTENCES):
        write_wav(clips / f"clip-{number}.wav", speak(sentence, VOICES[number % 2]))
    asked = ChaosPlan(jobs=8, talk_parts=3, seconds=24, outage_s=4, speakers=True)

    run = chaos(asked, clips, tmp_path / "stack", print)

    lines = "\n".join(report(run))
    assert not run.finding.violations, lines
    assert set(run.faults) == set(FaultKind)
    assert len(run.accepted) - run.undisturbed == asked.jobs
    speakers = {len(found.speakers or ()) for found in run.expected_text.values()}
    assert speakers == {1, 2}, "clips have one, talks two"
    assert run.finding.equal_texts == sum(run.finding.jobs.values()) >= len(run.accepted)
