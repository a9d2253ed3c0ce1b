"""What Whisper's file formats share: the tensors' names, and reading of mapped files."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]
"""float16 or float32, C order; usually a view of a mapped file."""

Tick = Callable[[int], None]
"""Called with the number of bytes just written."""

HEAD_SIZE = 64
"""Width of an attention head, the same in all sizes of Whisper (arXiv 2212.04356, table 1)."""


class NotConvertible(ValueError):
    """The source violates its format; the text says how."""


@dataclass(frozen=True, slots=True)
class Whisper:
    """A Whisper model between two formats.

    ``vocabulary`` holds the text of token i at i; from ggml it ends before the special tokens,
    which that format does not store.
    """

    tensors: Mapping[str, Tensor]
    vocabulary: tuple[str, ...]

    @property
    def audio_layers(self) -> int:
        return self._layers("encoder")

    @property
    def text_layers(self) -> int:
        return self._layers("decoder")

    def _layers(self, side: str) -> int:
        prefix = f"{side}.blocks."
        numbers = [
            int(name.removeprefix(prefix).partition(".")[0])
            for name in self.tensors
            if name.startswith(prefix)
        ]
        return 1 + max(numbers, default=-1)


def _block_names(side: str) -> list[str]:
    """Tensor names in a block, in the order of OpenAI's checkpoints, hence of ggml's files."""
    attentions = ["attn"] if side == "encoder" else ["attn", "cross_attn"]
    names = ["mlp_ln.weight", "mlp_ln.bias"]
    names += ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    for attention in attentions:
        names += [f"{attention}_ln.weight", f"{attention}_ln.bias"]
        # Whisper's keys have no bias
        names += [f"{attention}.query.weight", f"{attention}.query.bias", f"{attention}.key.weight"]
        names += [f"{attention}.value.weight", f"{attention}.value.bias"]
        names += [f"{attention}.out.weight", f"{attention}.out.bias"]
    return names


def tensor_names(audio_layers: int, text_layers: int) -> list[str]:
    """All tensors in the order of ggml's files."""

    def blocks(side: str, count: int) -> list[str]:
        return [f"{side}.blocks.{i}.{name}" for i in range(count) for name in _block_names(side)]

    return [
        "decoder.positional_embedding",
        "encoder.positional_embedding",
        "decoder.token_embedding.weight",
        *blocks("decoder", text_layers),
        "decoder.ln.weight",
        "decoder.ln.bias",
        "encoder.conv1.weight",
        "encoder.conv1.bias",
        "encoder.conv2.weight",
        "encoder.conv2.bias",
        *blocks("encoder", audio_layers),
        "encoder.ln_post.weight",
        "encoder.ln_post.bias",
    ]


def map_file(path: Path) -> memoryview:
    """The bytes of a file, read from disk only where they are accessed."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class BinaryReader:
    """Reads a mapped file from front to back."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= self.left():
            raise NotConvertible("the file is truncated")
        self._at += size
        return self._data[self._at - size : self._at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        try:
            return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))
        except struct.error as problem:
            raise NotConvertible("the file is damaged") from problem

    def tensor(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        kind = np.dtype(dtype)
        size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.take(size), kind).reshape(shape)
