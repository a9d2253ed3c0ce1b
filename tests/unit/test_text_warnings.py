"""The warnings of a text that is missing or doubtful (worker.steps.merge)."""

from __future__ import annotations

import pytest

from common.asr import guards
from common.domain.transcript import Transcript
from common.domain.values import Chunk, Segment, Span, Window
from worker.steps.merge import DOUBTFUL_TEXT, NO_TEXT, TOO_SHORT, text_warnings

SURE = Segment(Span(0, 400), " Yes.", flags=(guards.RETRIED,))
DOUBTFUL = Segment(Span(0, 400), " Yes.", flags=(guards.LOW_CONFIDENCE,))


@pytest.mark.parametrize(
    ("speech_ms", "segments", "warnings"),
    [
        (96, (), [TOO_SHORT]),
        (96, (SURE,), [TOO_SHORT]),
        (96, (DOUBTFUL,), [TOO_SHORT, DOUBTFUL_TEXT]),
        (300, (), [NO_TEXT]),
        (300, (SURE,), []),
        (300, (DOUBTFUL,), [DOUBTFUL_TEXT]),
        (300, (DOUBTFUL, SURE), []),
        (9_000, (), [NO_TEXT]),
        (0, (), []),  # the plan found no speech
    ],
)
def test_a_text_that_is_missing_or_doubtful_has_a_warning(
    speech_ms: int, segments: tuple[Segment, ...], warnings: list[str]
) -> None:
    whole = Span(0, 10_000)
    parts = [(Chunk(0, (Window(whole, whole, speech_ms),)), [segments])] if speech_ms else []
    transcript = Transcript("en", whole.duration_ms, segments)
    assert list(text_warnings(transcript, parts, speech_ms)) == warnings
