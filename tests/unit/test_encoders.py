"""The encoder is chosen by what the processor offers, and the reason is given."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from common.asr.encoders import EncoderChoice, choose_encoder

AVX512 = {"avx2", "avx512f", "avx512_vnni"}
AMX = {*AVX512, "avx512_bf16", "amx_tile", "amx_bf16"}


def choice(
    flags: AbstractSet[str], wanted: Any = "auto", *, installed: bool = True, **changes: str
) -> EncoderChoice:
    given = {"device": "cpu", "compute_type": "int8", **changes}
    return choose_encoder(wanted, flags=flags, installed=installed, **given)


def test_openvino_encodes_where_the_processor_has_bfloat16() -> None:
    assert choice(AMX) == EncoderChoice("openvino", "the processor has amx_bf16")
    assert choice(AVX512) == EncoderChoice("ctranslate2", "the processor has no bfloat16")
    assert choice(set()).encoder == "ctranslate2"


def test_without_openvino_ctranslate2_encodes_and_the_reason_names_what_is_missing() -> None:
    without = choice(AMX, installed=False)
    assert without.encoder == "ctranslate2"
    assert "openvino" in without.reason
    assert "amx_bf16" in without.reason


def test_settings_decide_before_the_processor() -> None:
    assert choice(AMX, "ctranslate2").encoder == "ctranslate2"
    assert choice(set(), "openvino").encoder == "openvino"
    assert choice(AMX, device="cuda").encoder == "ctranslate2"
    assert choice(AMX, compute_type="float32").encoder == "ctranslate2"
