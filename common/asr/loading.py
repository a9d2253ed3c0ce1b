"""Loads engines by name, and imports their heavy libraries only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.domain.models import BATCH_ENGINES
from common.domain.stream import Style
from common.errors import UnknownOption, WeightsMissing

if TYPE_CHECKING:
    from pathlib import Path

    from common.asr.encoders import Encoder
    from common.asr.engine import SpeechEngine
    from common.asr.openvino_encoder import OpenVinoEncoder
    from common.asr.streaming import Recognizer

STYLES: Final = {
    # It decodes the whole utterance again each time, at the end with its context.
    "faster-whisper": Style(first_ms=416, step_ms=640, ahead=True, context_ms=14_000),
    # It continues where it was, some 400 ms at a time.
    "zipformer": Style(first_ms=0, step_ms=128, ahead=False),
}
"""The engines for live streams, and the request pattern of each."""
_CT2_FILES: Final = ("model.bin", "config.json", "tokenizer.json")


def load_engine(
    engine: str,
    weights: Path,
    *,
    threads: int = 1,
    device: str = "cpu",
    compute_type: str = "int8",
    encoder: Encoder = "ctranslate2",
) -> SpeechEngine:
    """Load ``weights`` into an engine: a folder, or a ggml file for ``whisper.cpp``.

    Whisper decodes again where it left speech out (`common.asr.redecoding`).

    Call this in the process that uses the engine, never before a fork. ``device`` (``cpu``,
    ``cuda``), ``compute_type`` and ``encoder`` are for faster-whisper; a ggml file has its own
    precision, and the whisper.cpp of PyPI runs on the CPU. CTranslate2 encodes where OpenVINO
    cannot, as with quantized weights: see `SpeechEngine.encoder`.

    Raises:
        UnknownOption: The engine does not exist.
        WeightsMissing: ``weights``, or a part of it, is missing.
        WeightsUnusable: They are incomplete, malformed, or of an unknown kind.
        EngineFailed: The weights do not load, or the device is unavailable.
    """
    loaded: SpeechEngine
    if engine == "sherpa-onnx":
        from common.asr.sherpa import SherpaOnnx

        return SherpaOnnx(weights, threads=threads)
    if engine == "faster-whisper":
        _require(engine, weights, [weights / name for name in _CT2_FILES])
        from common.asr.faster_whisper import FasterWhisper

        loaded = FasterWhisper(
            weights,
            threads=threads,
            device=device,
            compute_type=compute_type,
            encoder=_openvino_encoder(weights, threads) if encoder == "openvino" else None,
        )
    elif engine == "whisper.cpp":
        _require(engine, weights, [weights])
        from common.asr.whisper_cpp import WhisperCpp

        loaded = WhisperCpp(weights, threads=threads)
    else:
        raise UnknownOption(field="engine", allowed=", ".join(BATCH_ENGINES), value=engine)
    from common.asr.redecoding import Redecoding
    from common.audio.silero import SileroNetwork

    return Redecoding(loaded, SileroNetwork())


def _openvino_encoder(weights: Path, threads: int) -> OpenVinoEncoder | None:
    try:
        from common.asr.openvino_encoder import OpenVinoEncoder

        return OpenVinoEncoder(weights, threads=threads)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError):
        return None


def style_of(engine: str) -> Style:
    """The request pattern of the engine of this name for live streams.

    Raises:
        UnknownOption: It does not support live streams.
    """
    if engine not in STYLES:
        raise UnknownOption(field="engine", allowed=", ".join(STYLES), value=engine)
    return STYLES[engine]


def load_recognizer(
    engine: str, weights: Path, *, threads: int = 1, device: str = "cpu", compute_type: str = "int8"
) -> Recognizer:
    """Load ``weights`` (a folder) into an engine for live streams, like `load_engine`.

    Raises:
        UnknownOption: No such engine.
        WeightsMissing, WeightsUnusable, EngineFailed: As in `load_engine`.
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
