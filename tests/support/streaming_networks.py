"""Networks for sherpa-onnx that are small enough to make on the spot.

All of them do the same: in each chunk of 320 ms that is loud they emit one token, `CYCLE` from its
beginning on, over and over. Which one is next they know from their state alone, so a state that is
lost or mixed up changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CHUNK_MS = 320
TOKENS = ("<blk>", "<sos/eos>", "<unk>", "\u2581một", "\u2581hai", "ba")
CYCLE = (" một", " hai", "ba")
"""What is emitted: the third token goes on with the word of the second."""

MELS = 80
SHIFT = CHUNK_MS // 10
"""Frames in a chunk, of which the encoder makes a fourth."""
LOUD = -8.0
"""A mean log-mel energy above this is loud; of digital silence it is -16."""
LAYER, WIDTH, LEFT, KERNEL = 1, 8, 4, 3


def write_tokens(folder: Path, tokens: Sequence[str] = TOKENS) -> None:
    """Write `tokens.txt`."""
    lines = [f"{token} {number}" for number, token in enumerate(tokens)]
    (folder / "tokens.txt").write_text("\n".join(lines) + "\n", "utf-8")


def write_zipformer2_ctc(folder: Path, shift: int = SHIFT) -> None:
    """Write a CTC model, with its tokens. ``shift`` is how many frames its chunks have."""
    _save(folder / "model.onnx", _zipformer2(shift), "log_probs", _ZIPFORMER2)
    write_tokens(folder)


def write_zipformer2(folder: Path, export: str = "") -> None:
    """Write a transducer, with its tokens. Its files are called ``encoder<export>.onnx``, ..."""
    _write_transducer(folder, _zipformer2(), _ZIPFORMER2, export)


def write_zipformer(folder: Path) -> None:
    """Write a transducer of the first kind of zipformer, with its tokens."""
    metadata = _COMMON | {"model_type": "zipformer", "attention_dims": WIDTH}
    states: dict[str, tuple[int | str, ...]] = {
        "len": (LAYER, "N"),
        "avg": (LAYER, "N", WIDTH),
        "key": (LAYER, LEFT, "N", WIDTH),
        "val": (LAYER, LEFT, "N", WIDTH // 2),
        "val2": (LAYER, LEFT, "N", WIDTH // 2),
        "conv1": (LAYER, "N", WIDTH, KERNEL - 1),
        "conv2": (LAYER, "N", WIDTH, KERNEL - 1),
    }
    _write_transducer(folder, _network(states, counter="len", ahead=7), metadata)


def write_conformer(folder: Path) -> None:
    """Write a transducer with a conformer, with its tokens."""
    metadata: dict[str, object] = {
        "model_type": "conformer",
        "num_encoder_layers": LAYER,
        "left_context": LEFT,
        "encoder_dim": WIDTH,
        "pad_length": 7,
        "cnn_module_kernel": KERNEL,
    }
    states: dict[str, tuple[int | str, ...]] = {
        "attention": (LAYER, LEFT, "N", WIDTH),
        "convolution": (LAYER, KERNEL - 1, "N", WIDTH),
    }
    network = _network(states, counter="convolution", ahead=7, axes=[0, 1, 3])
    network.inputs.append(helper.make_tensor_value_info("processed", TensorProto.INT64, ["N"]))
    _write_transducer(folder, network, metadata)


def write_lstm(folder: Path) -> None:
    """Write a transducer with LSTMs, with its tokens."""
    metadata: dict[str, object] = {
        "model_type": "lstm",
        "num_encoder_layers": LAYER,
        "rnn_hidden_size": 2 * WIDTH,
        "d_model": WIDTH,
    }
    states: dict[str, tuple[int | str, ...]] = {
        "h": (LAYER, "N", WIDTH),
        "c": (LAYER, "N", 2 * WIDTH),
    }
    network = _network(states, counter="c", ahead=7, axes=[0, 2])
    _write_transducer(folder, network, metadata)


_COMMON: dict[str, object] = {
    "encoder_dims": WIDTH,
    "num_encoder_layers": LAYER,
    "cnn_module_kernels": KERNEL,
    "left_context_len": LEFT,
}
_ZIPFORMER2: dict[str, object] = _COMMON | {
    "model_type": "zipformer2",
    "query_head_dims": 2,
    "value_head_dims": 2,
    "num_heads": 1,
}


@dataclass
class _NetworkGraph:
    """A network under construction, with the states that it passes on.

    It is given ``shift`` frames that are new, and ``ahead`` more that come again.
    """

    shift: int
    ahead: int
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    next_states: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    """What else it is given."""
    chunk: str = ""
    """The node that has the chunk's number."""

    @property
    def frames(self) -> int:
        return self.shift + self.ahead

    @property
    def outputs(self) -> int:
        return self.shift // 4

    def constant(self, name: str, values: object, kind: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def node(self, operator: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def state(self, name: str, kind: int, *shape: int | str) -> None:
        """A state, which is passed on as it is where nothing else is done to it."""
        self.states.append(helper.make_tensor_value_info(name, kind, shape))
        self.next_states.append(helper.make_tensor_value_info(f"new_{name}", kind, shape))

    def counted(self, counter: str) -> str:
        """Pass ``counter`` on with this chunk's outputs added; gives which chunk it is, (N,)."""
        step = self.constant("step", self.outputs, np.int64)
        self.node("Add", [counter, step], f"new_{counter}")
        flat = self.node(
            "Reshape", [counter, self.constant("flat", [-1], np.int64)], "flat_counter"
        )
        return self.node("Div", [flat, step], "chunk")

    def counted_in(self, state: str, axes: Sequence[int]) -> str:
        """The same where the only states are floats: all of one, (N,) but for ``axes``, count."""
        one = self.constant("one", 1.0, np.float32)
        self.node("Add", [state, one], f"new_{state}")
        self.node("ReduceMax", [state], "count", axes=axes, keepdims=0)
        return self.node("Cast", ["count"], "chunk", to=TensorProto.INT64)

    def passed_on(self) -> None:
        made = {output for node in self.nodes for output in node.output}
        for value in self.states:
            if f"new_{value.name}" not in made:
                self.node("Identity", [value.name], f"new_{value.name}")

    def emit(self, output: str) -> None:
        """From the audio and the chunk's number to the tokens' scores, (N, outputs, tokens)."""
        shift = [self.constant(f"slice_{i}", [i], np.int64) for i in (0, self.shift, 1)]
        new = self.node("Slice", ["x", *shift], "new")
        shape = self.constant("shape", [0, self.outputs, 4 * MELS], np.int64)
        blocks = self.node("Reshape", [new, shape], "blocks")
        level = self.node("ReduceMean", [blocks], "level", axes=[2], keepdims=1)
        loudness = self.node("Sub", [level, self.constant("loud", LOUD, np.float32)], "loudness")
        first = self.constant("first", TOKENS.index("\u2581một"), np.int64)
        turn = self.node("Mod", [self.chunk, self.constant("cycle", len(CYCLE), np.int64)], "turn")
        token = self.node("Add", [turn, first], "token")
        depth = self.constant("depth", len(TOKENS), np.int64)
        off_on = self.constant("off_on", [0.0, 1.0], np.float32)
        one_hot = self.node("OneHot", [token, depth, off_on], "one_hot")
        axis = self.constant("axis", [1], np.int64)
        wanted = self.node("Unsqueeze", [one_hot, axis], "wanted")
        self.node("Mul", [wanted, loudness], output)


def _network(
    states: dict[str, tuple[int | str, ...]],
    *,
    counter: str,
    ahead: int,
    shift: int = SHIFT,
    axes: Sequence[int] = (),
) -> _NetworkGraph:
    """A network that knows by the state ``counter`` how far it is.

    That is an integer; with ``axes``, one of the floats that all states are, as in `counted_in`.
    """
    graph = _NetworkGraph(shift, ahead)
    for name, shape in states.items():
        kind = TensorProto.INT64 if name == counter and not axes else TensorProto.FLOAT
        graph.state(name, kind, *shape)
    graph.chunk = graph.counted_in(counter, axes) if axes else graph.counted(counter)
    return graph


def _zipformer2(shift: int = SHIFT) -> _NetworkGraph:
    states: dict[str, tuple[int | str, ...]] = {
        "key": (LEFT, "N", 2),
        "nonlin": (1, "N", LEFT, 3 * WIDTH // 4),
        "val1": (LEFT, "N", 2),
        "val2": (LEFT, "N", 2),
        "conv1": ("N", WIDTH, KERNEL // 2),
        "conv2": ("N", WIDTH, KERNEL // 2),
        "embed": ("N", 128, 3, 19),
        "processed": ("N",),
    }
    return _network(states, counter="processed", ahead=13, shift=shift)


def _save(path: Path, graph: _NetworkGraph, output: str, metadata: dict[str, object]) -> None:
    graph.emit(output)
    graph.passed_on()
    audio = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", graph.frames, MELS])
    scores = helper.make_tensor_value_info(
        output, TensorProto.FLOAT, ["N", graph.outputs, len(TOKENS)]
    )
    write_network(
        path,
        graph.nodes,
        [audio, *graph.states, *graph.inputs],
        [scores, *graph.next_states],
        graph.constants,
        metadata | {"decode_chunk_len": graph.shift, "T": graph.frames},
    )


def _write_transducer(
    folder: Path, graph: _NetworkGraph, metadata: dict[str, object], export: str = ""
) -> None:
    """The encoder, a decoder that forbids the last token, so that it is emitted once, and a joiner
    that adds; with the tokens.
    """
    _save(folder / f"encoder{export}.onnx", graph, "encoder_out", metadata)
    forbidding = np.diag([0.0, *[-1000.0] * (len(TOKENS) - 1)]).astype(np.float32)
    write_decoder_and_joiner(folder, forbidding, export)


def write_decoder_and_joiner(folder: Path, table: NDArray[np.float32], export: str = "") -> None:
    """Write a decoder that gives the last token's row of ``table``, a joiner that adds it to the
    scores, and the tokens.
    """
    size = len(TOKENS)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array(1, np.int64), "last"),
    ]
    nodes = [
        helper.make_node("Gather", ["y", "last"], ["token"], axis=1),
        helper.make_node("Gather", ["table", "token"], ["decoder_out"], axis=0),
    ]
    value = helper.make_tensor_value_info
    write_network(
        folder / f"decoder{export}.onnx",
        nodes,
        [value("y", TensorProto.INT64, ["N", 2])],
        [value("decoder_out", TensorProto.FLOAT, ["N", size])],
        constants,
        {"vocab_size": size, "context_size": 2},
    )
    write_network(
        folder / f"joiner{export}.onnx",
        [helper.make_node("Add", ["encoder_out", "decoder_out"], ["logit"])],
        [value(name, TensorProto.FLOAT, ["N", size]) for name in ("encoder_out", "decoder_out")],
        [value("logit", TensorProto.FLOAT, ["N", size])],
        [],
        {"joiner_dim": size},
    )
    write_tokens(folder)


def write_network(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    constants: list[Any],
    metadata: Mapping[str, object],
) -> None:
    """Write a network with these parts."""
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: str(each) for key, each in metadata.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
