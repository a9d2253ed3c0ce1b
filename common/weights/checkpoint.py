"""PyTorch checkpoints, and those of transformers' Whisper, read without PyTorch."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.weights.whisper import NotConvertible, Tensor, Whisper, map_file

_HF_RENAMED = (
    ("model.", ""),
    (".layers.", ".blocks."),
    (".self_attn_layer_norm.", ".attn_ln."),
    (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".final_layer_norm.", ".mlp_ln."),
    (".self_attn.", ".attn."),
    (".encoder_attn.", ".cross_attn."),
    (".q_proj.", ".query."),
    (".k_proj.", ".key."),
    (".v_proj.", ".value."),
    (".out_proj.", ".out."),
    (".fc1.", ".mlp.0."),
    (".fc2.", ".mlp.2."),
    ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."),
    (".embed_positions.weight", ".positional_embedding"),
    (".embed_tokens.", ".token_embedding."),
)


def read_transformers(folder: Path) -> Whisper:
    """Read a transformers checkpoint: `pytorch_model.bin` and `tokenizer.json`.

    Raises:
        NotConvertible: the checkpoint has other content, or is truncated.
    """
    tensors = {}
    for name, tensor in read_tensors(folder / "pytorch_model.bin").items():
        if name == "proj_out.weight":  # tied to the embedding
            continue
        for theirs, ours in _HF_RENAMED:
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids = dict(tokenizer["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    by_id = {index: text for text, index in ids.items()}
    size = tensors["decoder.token_embedding.weight"].shape[0]
    texts = [by_id[index] for index in range(min(size, len(by_id)))]
    # checkpoints whose tokenizer stops before the time stamps: 0.00 to 30.00 s every 0.02 s
    texts += [f"<|{step * 0.02:.2f}|>" for step in range(size - len(texts))]
    return Whisper(tensors, tuple(texts))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file in its zip format, mapped: all of it, or its ``state_dict``.

    The pickle inside is never executed: only the names that a dictionary of tensors needs are
    resolved, to functions of this module.

    Raises:
        NotConvertible: the file has other content, or is truncated.
    """
    data = map_file(path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        index = next((name for name in entries if name.endswith("/data.pkl")), None)
        if index is None:
            raise NotConvertible(f"{path.name} is not a PyTorch checkpoint in the zip format")
        prefix = index.removesuffix("data.pkl")

        def storage(key: str, dtype: str) -> Tensor:
            info = entries[f"{prefix}data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED:
                raise NotConvertible(f"{path.name} is compressed")
            # the local header's name and extra field may differ from the directory's
            name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name_length + extra_length
            return np.frombuffer(data[start : start + info.file_size], dtype)

        with archive.open(index) as file:
            content = _TensorUnpickler(file, storage).load()
    return dict(content.get("state_dict", content))


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries of numpy views; rejects every other object."""

    _STORAGES = {  # noqa: RUF012 - never changed
        "FloatStorage": "<f4",
        "HalfStorage": "<f2",
        "LongStorage": "<i8",
    }

    def __init__(self, file: Any, storage: Callable[[str, str], Tensor]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in self._STORAGES:
            return self._STORAGES[name]
        raise NotConvertible(f"the checkpoint uses {module}.{name}, which tensors do not need")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        return self._storage(key, dtype)


def _rebuild_tensor(
    storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or last >= len(storage):
        raise NotConvertible("the checkpoint has a tensor outside its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
