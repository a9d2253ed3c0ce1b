"""Where an engine's name becomes an engine; only here are the heavy libraries imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.domain.stream import Style
from common.errors import UnknownOption, WeightsMissing

if TYPE_CHECKING:
    from pathlib import Path

    from common.asr.engine import SpeechEngine
    from common.asr.streaming import Recognizer

ENGINES: Final = ("faster-whisper", "whisper.cpp")
STYLES: Final = {
    # It hears all of an utterance anew each time, at the end with what came before.
    "faster-whisper": Style(first_ms=416, step_ms=640, ahead=True, context_ms=14_000),
    # It goes on where it was, some 400 ms at a time.
    "zipformer": Style(first_ms=0, step_ms=128, ahead=False),
}
"""The engines for live streams, and how each wants to be asked."""
_CT2_FILES: Final = ("model.bin", "config.json", "tokenizer.json")


def load_engine(
    engine: str, weights: Path, *, threads: int = 1, device: str = "cpu", compute_type: str = "int8"
) -> SpeechEngine:
    """Load ``weights`` (a CTranslate2 folder, or a ggml file for ``whisper.cpp``) into an engine.

    It hears again what it has left out (`common.asr.redecoding`).

    Call it in the process that will use it, never before a fork. ``device`` (``cpu``, ``cuda``)
    and ``compute_type`` are for faster-whisper; a ggml file carries its own precision, and the
    whisper.cpp of PyPI runs on the CPU.

    Raises:
        UnknownOption: No such engine.
        WeightsMissing: There is nothing at ``weights``, or a part is missing.
        EngineFailed: The weights do not load, or the device is not there.
    """
    loaded: SpeechEngine
    if engine == "faster-whisper":
        _require(engine, weights, [weights / name for name in _CT2_FILES])
        from common.asr.faster_whisper import FasterWhisper

        loaded = FasterWhisper(weights, threads=threads, device=device, compute_type=compute_type)
    elif engine == "whisper.cpp":
        _require(engine, weights, [weights])
        from common.asr.whisper_cpp import WhisperCpp

        loaded = WhisperCpp(weights, threads=threads)
    else:
        raise UnknownOption(field="engine", allowed=", ".join(ENGINES), value=engine)
    from common.asr.redecoding import Redecoding
    from common.audio.silero import SileroNetwork

    return Redecoding(loaded, SileroNetwork())


def style_of(engine: str) -> Style:
    """How the engine of this name wants to be asked about a live stream.

    Raises:
        UnknownOption: It hears no live streams.
    """
    if engine not in STYLES:
        raise UnknownOption(field="engine", allowed=", ".join(STYLES), value=engine)
    return STYLES[engine]


def load_recognizer(
    engine: str, weights: Path, *, threads: int = 1, device: str = "cpu", compute_type: str = "int8"
) -> Recognizer:
    """Load ``weights`` (a folder) into an engine for live streams; else as `load_engine`.

    Raises:
        UnknownOption: No such engine.
        WeightsMissing, EngineFailed: As of `load_engine`.
    """
    style_of(engine)
    if engine == "zipformer":
        from common.asr.zipformer import Zipformer

        return Zipformer(weights, threads=threads)
    _require(engine, weights, [weights / name for name in _CT2_FILES])
    from common.asr.streaming_whisper import StreamingWhisper

    return StreamingWhisper(weights, threads=threads, device=device, compute_type=compute_type)


def _require(engine: str, weights: Path, parts: list[Path]) -> None:
    if not all(part.is_file() for part in parts):
        raise WeightsMissing(model=weights.name, engine=engine)
