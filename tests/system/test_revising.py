"""Edit while anything is killed: the short form of ``scripts/test --system revising``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.service import write_wav
from tests.support.speech import speak
from tests.system.chaos import ChaosPlan, FaultKind
from tests.system.revising import report, revise
from tests.system.test_chaos import SENTENCES


@pytest.mark.usefixtures("weights_dir")
def test_no_revision_is_lost_or_doubled_while_every_part_is_killed(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number, sentence in enumerate(SENTENCES):
        write_wav(clips / f"clip-{number}.wav", speak(sentence, "en"))
    asked = ChaosPlan(jobs=3, talk_parts=2, seconds=20, outage_s=2)

    found, done, run = revise(asked, clips, tmp_path / "stack", print)

    lines = "\n".join(report(found, done, run))
    assert not found.violations, lines
    assert set(run.faults) == set(FaultKind)
    assert done.approved == asked.jobs
    assert {"merge", "edit", "restore", "rerun"} <= set(found.of)
