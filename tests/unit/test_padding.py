"""The decoder gets the encoder's output for the speech, and little of that for the padding."""

from __future__ import annotations

import numpy as np
import pytest

from common.asr.faster_whisper import view, without_padding


@pytest.mark.parametrize(
    ("samples", "kept_s"),
    [(0, 8), (16_000, 8), (96_000, 8), (96_001, 12), (352_000, 24), (352_001, 30), (480_000, 30)],
)
def test_the_middle_of_the_padding_is_left_out(samples: int, kept_s: int) -> None:
    encoded = np.arange(1500, dtype=np.float32).reshape(1, 1500, 1)
    kept = np.asarray(without_padding(view(encoded), samples)).ravel().tolist()
    end = range(1350, 1500) if kept_s < 30 else ()
    assert kept == [*range(50 * kept_s), *end]
