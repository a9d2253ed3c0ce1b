"""The graph of an n-gram model, operator by operator: what `scripts.training.ngrams` computes.

It is written out rather than traced, so that the table can be stored as int8 and its rows turned to
numbers only where they are used, and so that the recurrent layer stops at the end of each text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from common.moderation.ngrams import SLOTS

if TYPE_CHECKING:
    from scripts.training.ngrams import NgramNet

IR_VERSION = 10
"""Of the file format: the newest that every onnxruntime of the last two years reads."""
NOWHERE = -1e4
"""Below all that a GRU can say: what lies past a text's end is not its maximum."""


def write_graph(net: NgramNet, path: Path, *, opset: int, int8: bool) -> None:
    """Write the graph from ``features`` (int32) to ``logits``; ``int8``: the table in 8 bits."""
    graph = _Graph()
    rarity = _array(net.rarity)
    labels = len(net.bias)
    columns = [] if net.votes is None else [_array(net.votes) * rarity[:, None]]
    graph.constant("rows", np.hstack([*columns, rarity[:, None] ** 2]).astype(np.float32))
    graph.add("Gather", ["rows", "features"], "row")
    graph.constant("last_column", np.array(-1))
    graph.add("Gather", ["row", "last_column"], "weight", axis=3)
    logits = graph.constant("bias", _array(net.bias))
    if net.votes is not None:
        logits = _votes(graph, logits, labels)
    if net.table is not None:
        logits = _reading(graph, net, logits, rarity > 0, int8=int8)
    graph.add("Identity", [logits], "logits")
    model = graph.model(labels, opset)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """A node; returns the name of its first output."""
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes)
        )
        return outputs[0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def model(self, labels: int, opset: int) -> Any:
        shape = ["texts", "syllables", SLOTS]
        graph = helper.make_graph(
            self._nodes,
            "ngrams",
            [helper.make_tensor_value_info("features", TensorProto.INT32, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", labels])],
            self._constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION
        )


def _votes(graph: _Graph, logits: str, labels: int) -> str:
    """All features' votes, divided by the length of the vector of their weights."""
    graph.constant("text_axes", np.array([1, 2]))
    graph.add("ReduceSum", ["row", "text_axes"], "summed", keepdims=0)
    graph.constant("parts", np.array([labels, 1]))
    graph.constant("little", np.array(1e-6, np.float32))
    graph.add("Split", ["summed", "parts"], "voted", "squares", axis=1)
    graph.add("Add", ["squares", "little"], "positive")
    graph.add("Sqrt", ["positive"], "length")
    graph.add("Div", ["voted", "length"], "votes")
    return graph.add("Add", [logits, "votes"], "voted_logits")


def _reading(
    graph: _Graph, net: NgramNet, logits: str, known: NDArray[np.bool_], *, int8: bool
) -> str:
    assert net.table is not None  # noqa: S101 - for the type checker
    table = _array(net.table) * known[:, None]
    graph.constant("slot_axis", np.array([2]))
    graph.constant("syllable_axis", np.array([1]))
    if int8:
        scale = np.maximum(np.abs(table).max(0), 1e-9) / 127
        graph.constant("table", np.rint(table / scale).astype(np.int8))
        graph.add("Gather", ["table", "features"], "gathered")
        graph.add("Cast", ["gathered"], "numbers", to=TensorProto.FLOAT)
        graph.add("ReduceSum", ["numbers", "slot_axis"], "unscaled", keepdims=0)
        graph.constant("scale", scale.astype(np.float32))
        graph.add("Mul", ["unscaled", "scale"], "sums")
    else:
        graph.constant("table", table.astype(np.float32))
        graph.add("Gather", ["table", "features"], "gathered")
        graph.add("ReduceSum", ["gathered", "slot_axis"], "sums", keepdims=0)
    graph.constant("nothing", np.array(0, np.float32))
    graph.constant("one", np.array(1, np.float32))
    graph.add("Greater", ["weight", "nothing"], "is_known")
    graph.add("Cast", ["is_known"], "ones", to=TensorProto.FLOAT)
    graph.add("ReduceSum", ["ones", "slot_axis"], "known", keepdims=1)
    graph.add("Max", ["known", "one"], "count")
    graph.add("Sqrt", ["count"], "root")
    graph.add("Div", ["sums", "root"], "vectors")
    graph.constant("zero", np.array(0, np.int32))
    graph.constant("first_slot", np.array([0]))
    graph.add("Gather", ["features", "first_slot"], "syllable", axis=2)
    graph.add("Greater", ["syllable", "zero"], "said")  # (texts, syllables, 1)
    graph.add("Cast", ["said"], "said_once", to=TensorProto.INT32)
    graph.constant("both_axes", np.array([1, 2]))
    graph.add("ReduceSum", ["said_once", "both_axes"], "lengths", keepdims=0)
    graph.add("Transpose", ["vectors"], "in_time", perm=[1, 0, 2])
    _gru(graph, net)
    graph.add("Transpose", ["read"], "per_text", perm=[2, 0, 1, 3])
    graph.constant("flat", np.array([0, 0, -1]))
    graph.add("Reshape", ["per_text", "flat"], "heard")
    graph.constant("nowhere", np.array(NOWHERE, np.float32))
    graph.add("Where", ["said", "heard", "nowhere"], "within")
    graph.add("ReduceMax", ["within", "syllable_axis"], "most", keepdims=0)
    graph.add("ReduceSum", ["heard", "syllable_axis"], "total", keepdims=0)
    graph.add("Cast", ["lengths"], "syllables", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", ["syllables", "syllable_axis"], "divisor")
    graph.add("Div", ["total", "divisor"], "mean")
    graph.add("Concat", ["most", "mean"], "pooled", axis=1)
    graph.constant("out", _array(net.out.weight))
    graph.constant("out_bias", _array(net.out.bias))
    graph.add("Gemm", ["pooled", "out", "out_bias"], "judged", transB=1)
    return graph.add("Add", [logits, "judged"], "both")


def _gru(graph: _Graph, net: NgramNet) -> None:
    """Both directions; PyTorch's gates are reset, update, new, and ONNX's update, reset, new."""

    def gates(name: str) -> NDArray[np.float32]:
        reset, update, new = np.split(_array(getattr(net.gru, name)), 3)
        return np.concatenate([update, reset, new])

    for name, weight in (("inputs", "weight_ih_l0"), ("states", "weight_hh_l0")):
        graph.constant(name, np.stack([gates(weight), gates(f"{weight}_reverse")]))
    biases = [
        np.concatenate([gates(f"bias_ih_l0{way}"), gates(f"bias_hh_l0{way}")])
        for way in ("", "_reverse")
    ]
    graph.constant("biases", np.stack(biases))
    graph.add(
        "GRU",
        ["in_time", "inputs", "states", "biases", "lengths"],
        "read",  # (syllables, directions, texts, numbers)
        direction="bidirectional",
        hidden_size=net.gru.hidden_size,
        linear_before_reset=1,
    )


def _array(tensor: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array
