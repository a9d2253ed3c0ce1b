"""The protocol of all speech engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.domain.values import Segment, Word

Samples = NDArray[np.float32]
"""Mono audio at 16 kHz in [-1, 1], shape (samples,); for Whisper at most 30 s (480,000 samples)."""

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The fallback temperatures of openai/whisper: a failed window is decoded at the next one."""


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How to decode, fully resolved: no option is left to an engine's default.

    ``language`` is a Whisper code (``vi``, ``en``, ...), never auto: it has been detected before.
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
        """The decoder's prompt: hotwords and initial prompt, or nothing."""
        return " ".join(part.strip() for part in (self.hotwords, self.initial_prompt) if part)


class SpeechEngine(Protocol):
    """Loaded weights that turn audio into text. Not thread-safe; one per process."""

    name: str
    """``faster-whisper``, ``whisper.cpp`` or ``sherpa-onnx``."""
    encoder: str
    """What encodes the audio, and in which precision; texts of unlike encoders differ a little."""

    def languages(
        self, windows: Sequence[Samples], *, quick: bool = False
    ) -> list[Mapping[str, float]]:
        """The probability of each language in each window, in [0, 1]; English-only weights give en.

        Empty where the engine detects no languages. ``quick`` is for short windows, and enough to
        tell a few languages apart: engines that can, take less time.

        Raises:
            common.errors.EngineFailed: the engine failed (transient).
        """

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """The segments of each window, in order; times count from the window's start.

        The text depends on the window and the options only, not on the grouping into calls.

        Raises:
            common.errors.EngineFailed: the engine failed (transient).
        """

    def align(
        self,
        windows: Sequence[Samples],
        texts: Sequence[Sequence[str]],
        options: DecodingOptions,
    ) -> list[tuple[Word, ...] | None]:
        """When the words of a known text are said in each window; times count from its start.

        ``texts`` are the words of each window. Each becomes one `Word` with the same text, in
        order, inside the window, at least 1 ms long. Its probability is that of its least probable
        token: the later ones of a syllable are probable whatever is said. Of the options only the
        language and the task count. The text is taken for what is said: where it is not, its
        probabilities are low and its times mean nothing.

        None: this engine cannot align a text (``whisper.cpp`` and ``sherpa-onnx`` have no function
        for it), or the text is too long for the window.

        Raises:
            common.errors.EngineFailed: the engine failed (transient).
        """
