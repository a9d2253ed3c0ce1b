"""The one protocol behind which every speech engine stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.domain.values import Segment

Samples = NDArray[np.float32]
"""Mono audio at 16 kHz in [-1, 1], shape (samples,), at most 30 s (480,000 samples)."""

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The fallback ladder of openai/whisper: a failing window is decoded again one step hotter."""


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How to decode, fully resolved: nothing here is left to an engine's own default.

    ``language`` is a Whisper code (``vi``, ``en``, ...); detection happens before, once a job.
    ``beam_size`` in [1, 16]. ``temperatures`` ascend in [0, 1]; the first is tried first.
    """

    language: str
    task: Literal["transcribe", "translate"] = "transcribe"
    beam_size: int = 5
    temperatures: tuple[float, ...] = TEMPERATURES
    initial_prompt: str | None = None
    hotwords: str | None = None
    word_timestamps: bool = True

    @property
    def context(self) -> str:
        """What the decoder is told was said before: hotwords and initial prompt, or nothing."""
        return " ".join(part.strip() for part in (self.hotwords, self.initial_prompt) if part)


class SpeechEngine(Protocol):
    """Loaded weights that turn audio into text. Not thread-safe; one per process."""

    name: str
    """``faster-whisper`` or ``whisper.cpp``."""

    def languages(self, windows: Sequence[Samples]) -> list[Mapping[str, float]]:
        """How probable each language is in each window, in [0, 1]; of English-only weights: en.

        Raises:
            common.errors.EngineFailed: the engine refused or broke (transient).
        """
        ...

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """The segments of each window, in order; times count from that window's own start.

        The same windows and options give the same text whatever the grouping into calls.

        Raises:
            common.errors.EngineFailed: the engine refused or broke (transient).
        """
        ...
