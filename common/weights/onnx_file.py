"""ONNX files read and written as protocol buffers, without loading the network in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.weights.whisper import map_file

# From onnx.proto: fields of ModelProto, and of the StringStringEntryProto in it.
GRAPH = 7
METADATA = 14
METADATA_KEY, METADATA_VALUE = 1, 2
# Fields on the way from a GraphProto to the last dimension of an output: GraphProto.output,
# ValueInfoProto.type, TypeProto.tensor_type, Tensor.shape, TensorShapeProto.dim, dim_value.
_OUTPUT, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_VALUE = 12, 2, 1, 2, 1, 1

# Protobuf's wire types
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def read_metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of an ONNX model; a large file takes no longer than a small one.

    Raises:
        ValueError: the file is not an ONNX model, or is truncated.
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        raise ValueError(f"{path.name} is empty")
    found = {}
    has_graph = False
    try:
        for number, value in read_fields(map_file(path)):
            if number == GRAPH:
                has_graph = True
            elif number == METADATA:
                texts = [
                    (key, text) for key, text in read_fields(value) if not isinstance(text, int)
                ]
                pair = {key: bytes(text).decode() for key, text in texts}
                found[pair.get(METADATA_KEY, "")] = pair.get(METADATA_VALUE, "")
    except (IndexError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path.name} is not an ONNX model, or is truncated") from problem
    if not has_graph:
        raise ValueError(f"{path.name} is not an ONNX model")
    return found


def read_output_sizes(path: Path) -> list[int]:
    """The last dimension of each output of an ONNX model; 0 where it varies.

    Raises:
        ValueError: the file is not an ONNX model, or is truncated.
    """
    try:
        (graph,) = _fields(map_file(path), GRAPH)
        return [_last_dimension(output) for output in _fields(graph, _OUTPUT)]
    except (IndexError, ValueError) as problem:
        raise ValueError(f"{path.name} is not an ONNX model, or is truncated") from problem


def _last_dimension(output: memoryview) -> int:
    found = [output]
    for number in (_TYPE, _TENSOR, _SHAPE, _DIM):
        found = [value for message in found for value in _fields(message, number)]
    return next(iter(_fields(found[-1], _DIM_VALUE)), 0) if found else 0


def _fields(message: memoryview, number: int) -> list[Any]:
    return [value for field, value in read_fields(message) if field == number]


def read_fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number, and an int or (for all other types) the bytes.

    Raises:
        IndexError: the message is malformed, or ends too early.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED_32, _FIXED_64):
            size = 4 if kind == _FIXED_32 else 8
        else:
            raise IndexError(kind)
        at += size
        if at > len(message) or number == 0:
            raise IndexError(at)
        yield number, message[at - size : at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at ``at``, and the position after it."""
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def write_field(number: int, value: int | bytes | memoryview) -> bytes:
    """A field of a protobuf message: a number that is not negative, or bytes (text, a message)."""
    if isinstance(value, int):
        return _to_varint(number << 3 | _VARINT) + _to_varint(value)
    return _to_varint(number << 3 | _BYTES) + _to_varint(len(value)) + value


def _to_varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
