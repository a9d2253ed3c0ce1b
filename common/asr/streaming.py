"""The protocol behind which engines for live streams stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.asr.engine import Samples
from common.domain.stream import Hypothesis


@dataclass(frozen=True, slots=True)
class PrecedingAudio:
    """What came just before an utterance: its sound until that begins, and what was said there."""

    samples: Samples
    text: str


@dataclass(frozen=True, slots=True)
class RecognitionRequest:
    """What to hear.

    Args:
        stream: which stream it is of, and ``utterance`` which of its utterances.
        samples: the utterance from its first sample until now; from call to call it only grows.
        language: what is spoken, a Whisper code.
        before: what came before it, for who hears an utterance better that way.
        full: hear it as well as the engine can, with the words' times; else as fast as it can.
        final: nothing more of this utterance will come.
    """

    stream: str
    utterance: int
    samples: Samples
    language: str
    before: PrecedingAudio | None = None
    full: bool = False
    final: bool = False


class Recognizer(Protocol):
    """Loaded weights that hear several streams at once. Not thread-safe."""

    name: str

    def recognize(self, wanted: Sequence[RecognitionRequest]) -> list[Hypothesis]:
        """What is said in each, in order: in one batch where the engine can.

        Times count from an utterance's start.

        Raises:
            common.errors.EngineFailed: the engine refused or broke.
        """
        ...

    def forget(self, stream: str) -> None:
        """The stream is over: keep nothing of it."""
        ...
