"""Builds ONNX files operator by operator, as protocol buffers, without the package onnx.

The same calls write the same bytes, so that the hash of a converted network can be pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.weights.onnx_file import GRAPH, METADATA, METADATA_KEY, METADATA_VALUE, write_field

OPSET = 15
"""The version of the operators; 15 is the first with a `Shape` of some dimensions only."""
_IR_VERSION = 8

# From onnx.proto: the numbers of fields, and of types.
_MODEL_IR_VERSION, _MODEL_OPSET = 1, 8
_OPSET_VERSION = 2
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TEXT, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = 1, 3, 4, 8, 20
_INT, _TEXT, _INTS = 2, 3, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIM, _DIM_VALUE, _DIM_NAME = 1, 1, 2
_ELEMENTS = {"float32": 1, "int64": 7}

Shape = Sequence[int | str]
"""The dimensions of an input or output; the name of one that varies."""


class OnnxGraph:
    """A network with one input and one output, both float32."""

    def __init__(self, input_name: str, shape: Shape) -> None:
        self.input = input_name
        self._inputs = _value(input_name, shape)
        self._nodes = bytearray()
        self._constants = bytearray()
        self._count = 0

    def constant(self, array: NDArray[Any] | Sequence[int]) -> str:
        """Add a constant (float32, or int64 for whole numbers); returns its name."""
        values = np.asarray(array)
        values = values.astype("<f4" if values.dtype.kind == "f" else "<i8")
        name = self._name()
        tensor = b"".join(write_field(_TENSOR_DIMS, size) for size in values.shape)
        tensor += write_field(_TENSOR_TYPE, _ELEMENTS[values.dtype.name])
        tensor += write_field(_TENSOR_NAME, name.encode())
        tensor += write_field(_TENSOR_RAW, values.tobytes())
        self._constants += write_field(_GRAPH_INITIALIZER, tensor)
        return name

    def add(self, operator: str, *inputs: str, **attributes: int | str | Sequence[int]) -> str:
        """Add an operator; returns the name of its first output.

        Attributes are whole numbers that are not negative, or text.
        """
        return self._add(self._name(), operator, inputs, attributes)

    def _add(
        self,
        name: str,
        operator: str,
        inputs: Sequence[str],
        attributes: Mapping[str, int | str | Sequence[int]],
    ) -> str:
        node = b"".join(write_field(_NODE_INPUT, each.encode()) for each in inputs)
        node += write_field(_NODE_OUTPUT, name.encode())
        node += write_field(_NODE_OPERATOR, operator.encode())
        for key, value in attributes.items():
            node += write_field(_NODE_ATTRIBUTE, _attribute(key, value))
        self._nodes += write_field(_GRAPH_NODE, node)
        return name

    def write(
        self, path: Path, result: str, output: str, shape: Shape, metadata: Mapping[str, str]
    ) -> None:
        """Write the network to ``path``: ``result`` is its output, under the name ``output``."""
        self._add(output, "Identity", [result], {})
        graph = self._nodes + write_field(_GRAPH_NAME, b"network") + self._constants
        graph += write_field(_GRAPH_INPUT, self._inputs)
        graph += write_field(_GRAPH_OUTPUT, _value(output, shape))
        model = write_field(_MODEL_IR_VERSION, _IR_VERSION) + write_field(GRAPH, bytes(graph))
        model += write_field(_MODEL_OPSET, write_field(_OPSET_VERSION, OPSET))
        for key, text in metadata.items():
            pair = write_field(METADATA_KEY, key.encode())
            pair += write_field(METADATA_VALUE, text.encode())
            model += write_field(METADATA, pair)
        path.write_bytes(model)

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"


def _attribute(name: str, value: int | str | Sequence[int]) -> bytes:
    written = write_field(_ATTRIBUTE_NAME, name.encode())
    if isinstance(value, int):
        return written + write_field(_ATTRIBUTE_INT, value) + write_field(_ATTRIBUTE_TYPE, _INT)
    if isinstance(value, str):
        text = write_field(_ATTRIBUTE_TEXT, value.encode())
        return written + text + write_field(_ATTRIBUTE_TYPE, _TEXT)
    numbers = b"".join(write_field(_ATTRIBUTE_INTS, each) for each in value)
    return written + numbers + write_field(_ATTRIBUTE_TYPE, _INTS)


def _value(name: str, shape: Shape) -> bytes:
    dims = b"".join(
        write_field(
            _SHAPE_DIM,
            write_field(_DIM_VALUE, size)
            if isinstance(size, int)
            else write_field(_DIM_NAME, size.encode()),
        )
        for size in shape
    )
    tensor = write_field(_TENSOR_ELEMENT, _ELEMENTS["float32"])
    tensor += write_field(_TENSOR_SHAPE, dims)
    kind = write_field(_VALUE_TYPE, write_field(_TYPE_TENSOR, tensor))
    return write_field(_VALUE_NAME, name.encode()) + kind
