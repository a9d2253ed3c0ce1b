"""CTranslate2's Whisper files, which faster-whisper loads."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.weights.whisper import (
    HEAD_SIZE,
    BinaryReader,
    NotConvertible,
    Tensor,
    Tick,
    Whisper,
    map_file,
)

_CT2_TYPES = {0: "<f4", 1: "|i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_CT2_VERSION, _CT2_REVISION, _CT2_SPEC = 6, 3, "WhisperSpec"
_CT2_GELU = 3
_CT2_SELF = (("query", "key", "value"), ("out",))
_CT2_CROSS = (("query",), ("key", "value"), ("out",))
"""CTranslate2 fuses projections of the same input: one linear layer for each group."""


def read_ct2(folder: Path) -> Whisper:
    """Read a faster-whisper folder in float16 or float32.

    Raises:
        NotConvertible: it is not a Whisper model, is quantized, or is truncated.
    """
    reader = BinaryReader(map_file(folder / "model.bin"))

    def text() -> str:
        return bytes(reader.take(reader.unpack("H")[0]))[:-1].decode()

    (version,) = reader.unpack("I")
    if version != _CT2_VERSION or text() != _CT2_SPEC:
        raise NotConvertible(f"{folder.name}/model.bin is not a CTranslate2 Whisper, version 6")
    _, count = reader.unpack("2I")
    variables: dict[str, Tensor] = {}
    for _ in range(count):
        name = text()
        shape = reader.unpack(f"{reader.unpack('B')[0]}I")
        kind, size = reader.unpack("BI")
        if kind not in _CT2_TYPES:
            raise NotConvertible(f"{folder.name}/model.bin has an unknown type of numbers")
        # the shape holds the size, and unlike the field beside it does not overflow 32 bits
        variables[name] = reader.tensor(_CT2_TYPES[kind], shape)
        if variables[name].nbytes % 2**32 != size:
            raise NotConvertible(f"{folder.name}/model.bin is damaged at {name}")
        if name.endswith("/weight_scale"):
            raise NotConvertible(f"{folder.name} is quantized; convert from float16")
    return Whisper(_from_ct2(variables), read_vocabulary(folder))


def read_vocabulary(folder: Path) -> tuple[str, ...]:
    """The vocabulary of a faster-whisper folder, from `vocabulary.json` or `vocabulary.txt`."""
    if (folder / "vocabulary.json").is_file():
        return tuple(json.loads((folder / "vocabulary.json").read_text("utf-8")))
    return tuple((folder / "vocabulary.txt").read_text("utf-8").removesuffix("\n").split("\n"))


def _from_ct2(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    width = variables["encoder/layer_norm/gamma"].shape[0]
    tensors: dict[str, Tensor] = {}
    for ours, theirs in _ct2_plain_names(variables):
        tensors[ours] = variables[theirs]
    for ours, theirs, groups in _ct2_attentions(variables):
        for index, group in enumerate(groups):
            for part in ("weight", "bias"):
                fused = variables[f"{theirs}/linear_{index}/{part}"]
                for position, role in enumerate(group):
                    tensors[f"{ours}.{role}.{part}"] = fused[position * width :][:width]
        if tensors.pop(f"{ours}.key.bias").any():
            raise NotConvertible(f"{ours} has a bias on its keys, unlike Whisper")
    return tensors


def _ct2_layers(variables: Mapping[str, Any], side: str) -> int:
    return len(
        {n.split("/")[1] for n in variables if n.startswith(f"{side}/layer_") and "/ffn/" in n}
    )


def _ct2_plain_names(variables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(OpenAI's name, CTranslate2's name) of every tensor that is the same in both."""
    yield "decoder.token_embedding.weight", "decoder/embeddings/weight"
    for convolution in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            yield f"encoder.{convolution}.{part}", f"encoder/{convolution}/{part}"
    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        yield f"{side}.positional_embedding", f"{side}/position_encodings/encodings"
        norms = [(f"{side}.{last}", f"{side}/layer_norm")]
        for i in range(_ct2_layers(variables, side)):
            ours, theirs = f"{side}.blocks.{i}", f"{side}/layer_{i}"
            norms.append((f"{ours}.attn_ln", f"{theirs}/self_attention/layer_norm"))
            norms.append((f"{ours}.mlp_ln", f"{theirs}/ffn/layer_norm"))
            if side == "decoder":
                norms.append((f"{ours}.cross_attn_ln", f"{theirs}/attention/layer_norm"))
            for part in ("weight", "bias"):
                yield f"{ours}.mlp.0.{part}", f"{theirs}/ffn/linear_0/{part}"
                yield f"{ours}.mlp.2.{part}", f"{theirs}/ffn/linear_1/{part}"
        for ours, theirs in norms:
            yield f"{ours}.weight", f"{theirs}/gamma"
            yield f"{ours}.bias", f"{theirs}/beta"


def _ct2_attentions(
    variables: Mapping[str, Any],
) -> Iterator[tuple[str, str, tuple[tuple[str, ...], ...]]]:
    for side in ("encoder", "decoder"):
        for i in range(_ct2_layers(variables, side)):
            ours, theirs = f"{side}.blocks.{i}", f"{side}/layer_{i}"
            yield f"{ours}.attn", f"{theirs}/self_attention", _CT2_SELF
            if side == "decoder":
                yield f"{ours}.cross_attn", f"{theirs}/attention", _CT2_CROSS


def write_ct2(whisper: Whisper, path: Path, *, tick: Tick = lambda _: None) -> None:
    """Write `model.bin` for faster-whisper, in float16, at ``path``.

    The layout is that of the 2023 files on the hub, which every CTranslate2 since 3.x reads.
    """
    makers = _ct2_variables(whisper)
    with path.open("wb") as file:

        def text(value: str) -> bytes:
            encoded = value.encode() + b"\0"
            return struct.pack("<H", len(encoded)) + encoded

        file.write(struct.pack("<I", _CT2_VERSION) + text(_CT2_SPEC))
        file.write(struct.pack("<2I", _CT2_REVISION, len(makers)))
        for name in sorted(makers):
            value = makers[name]()
            kind = next(k for k, dtype in _CT2_TYPES.items() if np.dtype(dtype) == value.dtype)
            file.write(text(name) + struct.pack("<B", value.ndim))
            file.write(struct.pack(f"<{value.ndim}I", *value.shape))
            file.write(struct.pack("<BI", kind, value.nbytes % 2**32))
            tick(file.write(value.tobytes()))
        # the output projection shares the embedding
        file.write(struct.pack("<I", 1))
        file.write(text("decoder/projection/weight") + text("decoder/embeddings/weight"))


def _ct2_variables(whisper: Whisper) -> dict[str, Callable[[], Tensor]]:
    """Every variable by CTranslate2's name, made only when it is written."""
    tensors = whisper.tensors
    heads = tensors["decoder.ln.weight"].shape[0] // HEAD_SIZE
    layers = {
        f"{side}/layer_{i}/ffn/": None
        for side, count in (("encoder", whisper.audio_layers), ("decoder", whisper.text_layers))
        for i in range(count)
    }
    bytes_, shorts = ("|i1", "<i2")
    scalars = {
        "encoder/num_heads": (shorts, heads),
        "decoder/num_heads": (shorts, heads),
        "decoder/activation": (bytes_, _CT2_GELU),
        "decoder/alibi": (bytes_, 0),
        "decoder/alignment_heads": (shorts, 1),
        "decoder/alignment_layer": (shorts, -1),
        "decoder/pre_norm": (bytes_, 1),
        "decoder/scale_embeddings": (bytes_, 0),
        "decoder/start_from_zero_embedding": (bytes_, 0),
    }

    def scalar(dtype: str, value: int) -> Callable[[], Tensor]:
        return lambda: np.array(value, dtype)

    def plain(name: str) -> Callable[[], Tensor]:
        # ggml keeps the bias of a convolution as a column
        flat = name.startswith("encoder.conv") and name.endswith(".bias")
        return lambda: tensors[name].reshape(-1 if flat else tensors[name].shape).astype("<f2")

    def fused(prefix: str, group: tuple[str, ...], part: str) -> Callable[[], Tensor]:
        def zeros() -> Tensor:
            return np.zeros(tensors[f"{prefix}.query.bias"].shape, "<f2")

        return lambda: np.concatenate(
            [tensors.get(f"{prefix}.{role}.{part}", zeros()).astype("<f2") for role in group]
        )

    makers = {name: scalar(*value) for name, value in scalars.items()}
    makers |= {theirs: plain(ours) for ours, theirs in _ct2_plain_names(layers)}
    for ours, theirs, groups in _ct2_attentions(layers):
        for index, group in enumerate(groups):
            for part in ("weight", "bias"):
                makers[f"{theirs}/linear_{index}/{part}"] = fused(ours, group, part)
    return makers
