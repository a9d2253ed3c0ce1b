"""whisper.cpp's ggml files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.weights.whisper import (
    HEAD_SIZE,
    BinaryReader,
    NotConvertible,
    Tensor,
    Tick,
    Whisper,
    map_file,
    tensor_names,
)

_GGML_MAGIC = 0x67676D6C
_GGML_F32, _GGML_F16, _GGML_Q8_0 = 0, 1, 8
_FTYPE_F16 = 1
_FTYPE_Q8_0 = 2007
"""ggml's "mostly q8_0" (7) in version 2 of its quantization formats (2 * 1000)."""
_ALWAYS_F32 = frozenset(
    {
        "encoder.conv1.bias",
        "encoder.conv2.bias",
        "encoder.positional_embedding",
        "decoder.positional_embedding",
    }
)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (openai/gpt-2, `encoder.py`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}
_END_OF_TEXT = "<|endoftext|>"
"""The first special token: ggml files hold the tokens before it."""


def read_ggml(path: Path) -> Whisper:
    """Read an unquantized ggml file of whisper.cpp.

    Raises:
        NotConvertible: it has another format, is quantized, or is truncated.
    """
    reader = BinaryReader(map_file(path))
    magic, *_, ftype = reader.unpack("I11i")
    if magic != _GGML_MAGIC:
        raise NotConvertible(f"{path.name} is not a ggml file")
    if ftype not in (0, _FTYPE_F16):
        raise NotConvertible(f"{path.name} is quantized; convert from the f16 file")
    bands, bins = reader.unpack("2i")
    reader.take(4 * bands * bins)
    tokens = [bytes(reader.take(reader.unpack("i")[0])) for _ in range(reader.unpack("i")[0])]
    tensors = {}
    while reader.left():
        rank, name_length, kind = reader.unpack("3i")
        shape = reader.unpack(f"{rank}i")[::-1]
        name = bytes(reader.take(name_length)).decode()
        tensors[name] = reader.tensor("<f2" if kind == _GGML_F16 else "<f4", shape)
    vocabulary = tuple("".join(_CHARACTER_OF[byte] for byte in token) for token in tokens)
    return Whisper(tensors, vocabulary)


def write_ggml(
    whisper: Whisper, path: Path, *, q8_0: bool = False, tick: Tick = lambda _: None
) -> None:
    """Write ``whisper`` for whisper.cpp, in f16 or, with ``q8_0``, in 8 bits a weight.

    The header (mel filters, vocabulary, sizes) is built here; the layout is that of whisper.cpp's
    `models/convert-pt-to-ggml.py` and `examples/quantize`.
    """
    tensors = whisper.tensors
    names = tensor_names(whisper.audio_layers, whisper.text_layers)
    if set(names) != set(tensors):
        raise NotConvertible(
            f"these tensors are not a Whisper model: {sorted(set(names) ^ set(tensors))[:4]}"
        )
    bands = tensors["encoder.conv1.weight"].shape[1]
    vocabulary_size, width = tensors["decoder.token_embedding.weight"].shape
    header = (
        vocabulary_size,
        tensors["encoder.positional_embedding"].shape[0],
        width,
        width // HEAD_SIZE,
        whisper.audio_layers,
        tensors["decoder.positional_embedding"].shape[0],
        width,
        width // HEAD_SIZE,
        whisper.text_layers,
        bands,
        _FTYPE_Q8_0 if q8_0 else _FTYPE_F16,
    )
    filters = mel_filters(bands)
    tokens = _byte_tokens(whisper.vocabulary)
    with path.open("wb") as file:
        file.write(struct.pack("<I11i", _GGML_MAGIC, *header))
        file.write(struct.pack("<2i", *filters.shape) + filters.astype("<f4").tobytes())
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name in names:
            tick(_write_ggml_tensor(file, name, tensors[name], q8_0=q8_0))


def _byte_tokens(vocabulary: tuple[str, ...]) -> list[bytes]:
    end = vocabulary.index(_END_OF_TEXT) if _END_OF_TEXT in vocabulary else len(vocabulary)
    return [bytes(_BYTE_OF[character] for character in token) for token in vocabulary[:end]]


def _write_ggml_tensor(file: BinaryIO, name: str, tensor: Tensor, *, q8_0: bool) -> int:
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        tensor = tensor.reshape(-1, 1)
    wide = tensor.ndim >= 2 and name not in _ALWAYS_F32
    if wide and q8_0 and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
        kind, data = _GGML_Q8_0, _q8_0(tensor)
    elif wide:
        kind, data = _GGML_F16, tensor.astype("<f2").tobytes()
    else:
        kind, data = _GGML_F32, tensor.astype("<f4").tobytes()
    label = name.encode()
    file.write(struct.pack("<3i", tensor.ndim, len(label), kind))
    file.write(struct.pack(f"<{tensor.ndim}i", *tensor.shape[::-1]) + label)
    return file.write(data)


def _q8_0(tensor: Tensor) -> bytes:
    """Blocks of 32 weights: a float16 scale and 32 int8 (ggml, `quantize_row_q8_0_ref`)."""
    blocks = tensor.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = blocks * inverse[:, None]
    # C's roundf: halves away from zero, unlike numpy's round
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    packed = np.empty((len(blocks), 34), np.uint8)
    packed[:, :2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    packed[:, 2:] = rounded.view(np.uint8)
    return packed.tobytes()


def mel_filters(bands: int) -> NDArray[np.float32]:
    """Triangular filters on Slaney's mel scale for 400-point frames at 16 kHz.

    Returns:
        Shape (bands, 201). Equal, bit by bit, to what OpenAI ships and ggml files embed
        (`librosa.filters.mel(sr=16000, n_fft=400, n_mels=bands)`); the order of operations and
        the rounding to float32 before the scaling are part of that.
    """
    linear_hz = 200.0 / 3  # Slaney: linear up to 1 kHz, then 27 steps per factor of 6.4
    corner_hz, step = 1000.0, np.log(6.4) / 27.0
    corner_mel = corner_hz / linear_hz
    top_mel = corner_mel + np.log(8000.0 / corner_hz) / step
    mels = np.linspace(0.0, top_mel, bands + 2)
    edges = np.where(
        mels >= corner_mel, corner_hz * np.exp(step * (mels - corner_mel)), linear_hz * mels
    )
    ramps = np.subtract.outer(edges, np.fft.rfftfreq(n=400, d=1.0 / 16_000))
    widths = np.diff(edges)[:, None]
    rising, falling = -ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]
    # whether maximum(0, -0.0) keeps the sign depends on the CPU; adding zero drops it
    filters = (np.maximum(0, np.minimum(rising, falling)) + 0.0).astype(np.float32)
    filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return np.asarray(filters, np.float32)
