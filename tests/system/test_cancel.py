"""The measurement of cancelling runs, and its promise holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.support.service import write_wav
from tests.support.speech import speak
from tests.system.cancel import main


@pytest.mark.usefixtures("weights_dir")
def test_cancelling_frees_the_workers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    said = speak("The quick brown fox jumps over the lazy dog. And it does so again.")
    file = write_wav(tmp_path / "lecture.wav", np.tile(said, 150 * 16_000 // len(said)))

    done = CliRunner().invoke(
        main, [str(file), "--engine", "faster-whisper base", "--rest", "0"], catch_exceptions=False
    )

    assert "4 of 4 ok" in done.output, done.output
