"""PyTorch checkpoints of Whisper, written without PyTorch."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def hf_name(name: str) -> str:
    """The name that transformers gives a tensor of OpenAI's, written out case by case."""
    parts = name.split(".")
    if parts[1] == "positional_embedding":
        return f"model.{parts[0]}.embed_positions.weight"
    if parts[1] == "token_embedding":
        return "model.decoder.embed_tokens.weight"
    if parts[1] == "ln" or parts[1] == "ln_post":
        return f"model.{parts[0]}.layer_norm.{parts[2]}"
    if parts[1].startswith("conv"):
        return f"model.{name}"
    side, _, layer, kind, *rest = parts
    prefix = f"model.{side}.layers.{layer}"
    attention = {"attn": "self_attn", "cross_attn": "encoder_attn"}
    if kind in attention:
        role = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}[rest[0]]
        return f"{prefix}.{attention[kind]}.{role}.{rest[1]}"
    if kind == "mlp":
        return f"{prefix}.{ {'0': 'fc1', '2': 'fc2'}[rest[0]] }.{rest[1]}"
    norm = {
        "attn_ln": "self_attn_layer_norm",
        "cross_attn_ln": "encoder_attn_layer_norm",
        "mlp_ln": "final_layer_norm",
    }[kind]
    return f"{prefix}.{norm}.{rest[0]}"


class Pickle:
    """Opcodes of protocol 2, as `torch.save` writes them (Python's `pickletools` lists them)."""

    @staticmethod
    def name(module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    @staticmethod
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    @staticmethod
    def integers(*values: int) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    @classmethod
    def empty_dictionary(cls) -> bytes:
        return cls.name("collections", "OrderedDict") + b")R"

    @classmethod
    def tensor(cls, key: str, shape: tuple[int, ...]) -> bytes:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        storage = cls.text("storage") + cls.name("torch", "FloatStorage") + cls.text(key)
        storage += cls.text("cpu") + b"J" + struct.pack("<i", int(np.prod(shape)))
        arguments = b"(" + storage + b"tQ" + b"J" + struct.pack("<i", 0)
        arguments += cls.integers(*shape) + cls.integers(*strides) + b"\x89"
        rebuild = cls.name("torch._utils", "_rebuild_tensor_v2")
        return rebuild + b"(" + arguments + cls.empty_dictionary() + b"tR"

    @classmethod
    def dictionary(cls, items: dict[str, bytes]) -> bytes:
        body = b"".join(cls.text(key) + value for key, value in items.items())
        # a module's state dictionary carries its versions in an attribute
        attribute = b"}" + cls.text("_metadata") + cls.empty_dictionary() + b"s"
        return b"\x80\x02" + cls.empty_dictionary() + b"(" + body + b"u" + attribute + b"b."


def write_checkpoint(tensors: Mapping[str, NDArray[Any]], folder: Path) -> None:
    """Write ``tensors``, under OpenAI's names, as transformers saves them, in float32."""
    folder.mkdir()
    items = {}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        for index, (name, tensor) in enumerate(tensors.items()):
            archive.writestr(f"archive/data/{index}", tensor.astype("<f4").tobytes())
            items[hf_name(name)] = Pickle.tensor(str(index), tensor.shape)
        items["proj_out.weight"] = items["model.decoder.embed_tokens.weight"]
        archive.writestr("archive/data.pkl", Pickle.dictionary(items))
