"""The protocol of engines for live streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.asr.engine import Samples
from common.domain.stream import Hypothesis


@dataclass(frozen=True, slots=True)
class PrecedingAudio:
    """The audio just before an utterance, up to its start, and its text."""

    samples: Samples
    text: str


@dataclass(frozen=True, slots=True)
class RecognitionRequest:
    """One utterance to recognize.

    Args:
        stream: the id of its stream; ``utterance`` is its number there.
        samples: the utterance from its first sample until now; it only grows from call to call.
        language: the spoken language, a Whisper code.
        before: what precedes it, for engines that profit from it.
        full: decode at full quality, with the words' times; else as fast as possible.
        final: the utterance is complete.
    """

    stream: str
    utterance: int
    samples: Samples
    language: str
    before: PrecedingAudio | None = None
    full: bool = False
    final: bool = False


class Recognizer(Protocol):
    """Loaded weights that recognize several streams at once. Not thread-safe."""

    name: str

    def recognize(self, wanted: Sequence[RecognitionRequest]) -> list[Hypothesis]:
        """A hypothesis for each request, in order; in one batch where the engine can.

        Times count from the utterance's start.

        Raises:
            common.errors.EngineFailed: the engine failed.
        """

    def forget(self, stream: str) -> None:
        """Drop all state of a stream that has ended."""
