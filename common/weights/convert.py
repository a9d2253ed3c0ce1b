"""Whisper weights from one engine's format to the other's, with numpy alone.

Between the formats stands `Whisper`: tensors under OpenAI's names (openai/whisper, `model.py`)
and the vocabulary as byte-level BPE strings. Readers map files into memory and writers stream
tensor by tensor, so that large weights convert in little memory.

Results equal the published files byte for byte wherever that can be checked: ggml-base made from
faster-whisper base, faster-whisper tiny made from ggml-tiny, and both q8_0 files.
"""

from __future__ import annotations

import json
import mmap
import pickle
import re
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]
"""float16 or float32, C order; usually a view of a mapped file."""

Tick = Callable[[int], None]
"""Called with the number of bytes just written."""

_HEAD_SIZE = 64
"""Width of an attention head, the same in all sizes of Whisper (arXiv 2212.04356, table 1)."""


class NotConvertible(ValueError):
    """The source is not what its format promises; the message says how."""


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
        return 1 + max(
            int(name.removeprefix(prefix).partition(".")[0])
            for name in self.tensors
            if name.startswith(prefix)
        )


# --- what the formats share -------------------------------------------------------------------


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
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
"""The tokens of languages; other special tokens have longer names."""


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


def _tensor_names(audio_layers: int, text_layers: int) -> list[str]:
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


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _Cursor:
    """Reads a mapped file from front to back."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= self.left():
            raise NotConvertible("the file ends too early")
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


# --- ggml (whisper.cpp) -----------------------------------------------------------------------

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


def read_ggml(path: Path) -> Whisper:
    """Read an unquantized ggml file of whisper.cpp.

    Raises:
        NotConvertible: it is another format, quantized, or cut short.
    """
    cursor = _Cursor(_map(path))
    magic, *_, ftype = cursor.unpack("I11i")
    if magic != _GGML_MAGIC:
        raise NotConvertible(f"{path.name} is no ggml file")
    if ftype not in (0, _FTYPE_F16):
        raise NotConvertible(f"{path.name} is quantized; convert from the f16 file")
    bands, bins = cursor.unpack("2i")
    cursor.take(4 * bands * bins)
    tokens = [bytes(cursor.take(cursor.unpack("i")[0])) for _ in range(cursor.unpack("i")[0])]
    tensors = {}
    while cursor.left():
        rank, name_length, kind = cursor.unpack("3i")
        shape = cursor.unpack(f"{rank}i")[::-1]
        name = bytes(cursor.take(name_length)).decode()
        tensors[name] = cursor.tensor("<f2" if kind == _GGML_F16 else "<f4", shape)
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
    names = _tensor_names(whisper.audio_layers, whisper.text_layers)
    if set(names) != set(tensors):
        raise NotConvertible(
            f"these tensors are no Whisper: {sorted(set(names) ^ set(tensors))[:4]}"
        )
    bands = tensors["encoder.conv1.weight"].shape[1]
    vocabulary_size, width = tensors["decoder.token_embedding.weight"].shape
    header = (
        vocabulary_size,
        tensors["encoder.positional_embedding"].shape[0],
        width,
        width // _HEAD_SIZE,
        whisper.audio_layers,
        tensors["decoder.positional_embedding"].shape[0],
        width,
        width // _HEAD_SIZE,
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


# --- CTranslate2 (faster-whisper) -------------------------------------------------------------

_CT2_TYPES = {0: "<f4", 1: "|i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_CT2_VERSION, _CT2_REVISION, _CT2_SPEC = 6, 3, "WhisperSpec"
_CT2_GELU = 3
_CT2_SELF = (("query", "key", "value"), ("out",))
_CT2_CROSS = (("query",), ("key", "value"), ("out",))
"""CTranslate2 fuses projections of the same input: one linear layer for each group."""

_ALIGNMENT_HEADS = {
    (4, 4): [[2, 2], [3, 0], [3, 2], [3, 3], [3, 4], [3, 5]],
    (6, 6): [[3, 1], [4, 2], [4, 3], [4, 7], [5, 1], [5, 2], [5, 4], [5, 6]],
    (12, 12): [[5, 3], [5, 9], [8, 0], [8, 4], [8, 7], [8, 8], [9, 0], [9, 7], [9, 9], [10, 5]],
    (24, 24): [[13, 15], [15, 4], [15, 15], [16, 1], [20, 0], [23, 4]],
}
"""Heads that follow the audio, for word times, by layers (openai/whisper, `__init__.py`)."""


def read_ct2(folder: Path) -> Whisper:
    """Read a faster-whisper folder in float16 or float32.

    Raises:
        NotConvertible: it is no Whisper, is quantized, or is cut short.
    """
    cursor = _Cursor(_map(folder / "model.bin"))

    def text() -> str:
        return bytes(cursor.take(cursor.unpack("H")[0]))[:-1].decode()

    (version,) = cursor.unpack("I")
    if version != _CT2_VERSION or text() != _CT2_SPEC:
        raise NotConvertible(f"{folder.name}/model.bin is no CTranslate2 Whisper, version 6")
    _, count = cursor.unpack("2I")
    variables: dict[str, Tensor] = {}
    for _ in range(count):
        name = text()
        shape = cursor.unpack(f"{cursor.unpack('B')[0]}I")
        kind, size = cursor.unpack("BI")
        if kind not in _CT2_TYPES:
            raise NotConvertible(f"{folder.name}/model.bin has an unknown type of numbers")
        # the shape holds the size, and unlike the field beside it does not overflow 32 bits
        variables[name] = cursor.tensor(_CT2_TYPES[kind], shape)
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
            raise NotConvertible(f"{ours} has a bias on its keys, which Whisper has not")
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
    heads = tensors["decoder.ln.weight"].shape[0] // _HEAD_SIZE
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


# --- transformers -----------------------------------------------------------------------------

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

    Nothing of the pickle inside is executed: only the three names that a dictionary of tensors
    needs are resolved, and those to functions of this module.

    Raises:
        NotConvertible: the checkpoint holds anything else, or is cut short.
    """
    tensors = {}
    for name, tensor in _torch_tensors(folder / "pytorch_model.bin").items():
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


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file in its zip format, mapped, with no PyTorch."""
    data = _map(path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        index = next((name for name in entries if name.endswith("/data.pkl")), None)
        if index is None:
            raise NotConvertible(f"{path.name} is no PyTorch checkpoint in the zip format")
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
            tensors = _TensorUnpickler(file, storage).load()
    return dict(tensors)


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries of numpy views; refuses every other object."""

    _STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2"}  # noqa: RUF012 - never changed

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
        raise NotConvertible(f"the checkpoint asks for {module}.{name}, which tensors do not need")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        return self._storage(key, dtype)


def _rebuild_tensor(
    storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or last >= len(storage):
        raise NotConvertible("the checkpoint has a tensor that reaches out of its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


# --- from folder to folder ---------------------------------------------------------------------


def ct2_to_ggml(source: Path, target: Path, *, tick: Tick = lambda _: None) -> None:
    """Convert the faster-whisper folder ``source`` to the ggml file ``target`` (f16)."""
    write_ggml(read_ct2(source), target, tick=tick)


def quantize_ggml(source: Path, target: Path, *, tick: Tick = lambda _: None) -> None:
    """Convert the f16 ggml file ``source`` to q8_0 at ``target``."""
    write_ggml(read_ggml(source), target, q8_0=True, tick=tick)


def ggml_to_ct2(
    source: Path, target: Path, companion: Path, *, tick: Tick = lambda _: None
) -> None:
    """Convert the ggml file ``source`` to faster-whisper's files in the folder ``target``.

    ``companion`` is any faster-whisper folder with the same vocabulary: its tokenizer files are
    copied, and its config with the alignment heads of this size.
    """
    whisper = read_ggml(source)
    vocabulary = read_vocabulary(companion)
    if len(vocabulary) != whisper.tensors["decoder.token_embedding.weight"].shape[0]:
        raise NotConvertible(f"{companion.name} has another vocabulary than {source.name}")
    write_ct2(whisper, target / "model.bin", tick=tick)
    for name in ("tokenizer.json", "vocabulary.txt", "vocabulary.json", "preprocessor_config.json"):
        if (companion / name).is_file():
            shutil.copyfile(companion / name, target / name)
    config = json.loads((companion / "config.json").read_text("utf-8"))
    config["alignment_heads"] = _alignment_heads(whisper)
    _write_json(target / "config.json", config)


def transformers_to_ct2(source: Path, target: Path, *, tick: Tick = lambda _: None) -> None:
    """Convert the transformers checkpoint in ``source`` to faster-whisper's files in ``target``.

    Reads `pytorch_model.bin`, `tokenizer.json` and `generation_config.json`.
    """
    whisper = read_transformers(source)
    write_ct2(whisper, target / "model.bin", tick=tick)
    generation = json.loads((source / "generation_config.json").read_text("utf-8"))
    config = {
        "alignment_heads": generation.get("alignment_heads") or _alignment_heads(whisper),
        "lang_ids": [i for i, text in enumerate(whisper.vocabulary) if _LANGUAGE.fullmatch(text)],
        "suppress_ids": generation.get("suppress_tokens") or [],
        "suppress_ids_begin": generation.get("begin_suppress_tokens") or [],
    }
    _write_json(target / "config.json", config)
    _write_json(target / "vocabulary.json", list(whisper.vocabulary))
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")


def _alignment_heads(whisper: Whisper) -> list[list[int]]:
    """The known heads of this size, or else all heads of the upper half of the layers."""
    layers = whisper.text_layers
    heads = whisper.tensors["decoder.ln.weight"].shape[0] // _HEAD_SIZE
    upper = [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]
    return _ALIGNMENT_HEADS.get((whisper.audio_layers, layers), upper)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
