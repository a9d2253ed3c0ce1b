"""Where an engine's name becomes an engine; only here are the heavy libraries imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.errors import UnknownOption, WeightsMissing

if TYPE_CHECKING:
    from pathlib import Path

    from common.asr.engine import Engine

ENGINES: Final = ("faster-whisper", "whisper.cpp")


def load_engine(
    engine: str, weights: Path, *, threads: int = 1, device: str = "cpu", compute_type: str = "int8"
) -> Engine:
    """Load ``weights`` (a CTranslate2 folder, or a ggml file for ``whisper.cpp``) into an engine.

    Call it in the process that will use it, never before a fork. ``device`` (``cpu``, ``cuda``)
    and ``compute_type`` are for faster-whisper; a ggml file carries its own precision, and the
    whisper.cpp of PyPI runs on the CPU.

    Raises:
        UnknownOption: No such engine.
        WeightsMissing: There is nothing at ``weights``, or a part is missing.
        EngineFailed: The weights do not load, or the device is not there.
    """
    if engine == "faster-whisper":
        parts = [weights / name for name in ("model.bin", "config.json", "tokenizer.json")]
        _require(engine, weights, parts)
        from common.asr.faster_whisper import FasterWhisper

        return FasterWhisper(weights, threads=threads, device=device, compute_type=compute_type)
    if engine == "whisper.cpp":
        _require(engine, weights, [weights])
        from common.asr.whisper_cpp import WhisperCpp

        return WhisperCpp(weights, threads=threads)
    raise UnknownOption(field="engine", allowed=", ".join(ENGINES), value=engine)


def _require(engine: str, weights: Path, parts: list[Path]) -> None:
    if not all(part.is_file() for part in parts):
        raise WeightsMissing(model=weights.name, engine=engine)
