"""Which encoder suits this processor."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

Encoder = Literal["ctranslate2", "openvino"]
"""``openvino`` computes in bfloat16 (`common.asr.openvino_encoder`)."""

BFLOAT16: Final = ("amx_bf16", "avx512_bf16")
"""The flags of processors that multiply in bfloat16, the faster first."""


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """An encoder, and the reason for it."""

    encoder: Encoder
    reason: str


def choose_encoder(
    wanted: Literal["auto", "ctranslate2", "openvino"],
    *,
    device: str,
    compute_type: str,
    flags: AbstractSet[str],
    installed: bool,
) -> EncoderChoice:
    """The encoder for faster-whisper; ``auto`` decides by the processor's ``flags``.

    By flags and not by a measurement: a busy core would measure something else each time, and the
    same recording would get another text.
    """
    if wanted != "auto":
        return EncoderChoice(wanted, "set by ENCODER")
    if device != "cpu" or compute_type != "int8":
        return EncoderChoice("ctranslate2", f"set by DEVICE={device}, COMPUTE_TYPE={compute_type}")
    found = next((flag for flag in BFLOAT16 if flag in flags), None)
    if found is None:
        return EncoderChoice("ctranslate2", "the processor has no bfloat16")
    if not installed:
        return EncoderChoice("ctranslate2", f"openvino, which would use {found}, is not installed")
    return EncoderChoice("openvino", f"the processor has {found}")


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def processor_flags() -> frozenset[str]:
    """The processor's instruction sets by Linux's names; elsewhere none."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return frozenset()
    return frozenset(cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split())
