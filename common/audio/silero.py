"""Silero's voice activity network (v6, MIT): the same numbers in a third of the time.

onnxruntime runs the published graph as a convolution of four columns at a time where one large
matrix product would do. So the front of the network, which treats frames independently, runs here
in numpy: the spectrum is a real FFT, each convolution a few matrix products. The recurrent layer
stays with onnxruntime; its memory of half a minute and more rules out running it in strips.
The weights are read from the file that comes with faster-whisper.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from common.weights.onnx_file import GRAPH, read_fields, write_field

Floats = NDArray[np.float32]

FRAME = 512
"""Samples of one frame: 32 ms at 16 kHz."""

CONTEXT = 64
"""Samples before a frame that belong to its input."""

_WINDOW = 256
_HOP = 128
_STRIDES = (1, 2, 2, 1)
_STATE = 128


class Convolution(NamedTuple):
    """Kernel of 3 taps, shape (3 * inputs, outputs), its bias, and the step between outputs."""

    kernel: Floats
    bias: Floats
    stride: int

    @classmethod
    def of(cls, weight: Floats, bias: Floats, stride: int) -> Self:
        """From PyTorch's layout (outputs, inputs, 3)."""
        kernel = weight.transpose(2, 1, 0).reshape(-1, len(bias))
        return cls(np.ascontiguousarray(kernel), bias, stride)

    @property
    def inputs(self) -> int:
        return len(self.kernel) // 3

    def __call__(self, x: Floats) -> Floats:
        """Convolve each row, (rows, columns * inputs) to (rows, columns' * outputs), and rectify.

        Rows are padded by a column of zeros on both sides, whose products are skipped.
        """
        width = self.inputs
        columns = x.shape[1] // width
        outputs = []
        for centre in range(0, columns, self.stride):
            first, last = max(centre - 1, 0), min(centre + 2, columns)
            taps = self.kernel[(first - centre + 1) * width : (last - centre + 1) * width]
            outputs.append(x[:, first * width : last * width] @ taps + self.bias)
        return np.maximum(np.concatenate(outputs, axis=1), 0, dtype=np.float32)


class RecurrentState(NamedTuple):
    """The state of the recurrent layer, each of shape (1, 1, 128)."""

    h: Floats
    c: Floats


SILENCE = RecurrentState(np.zeros((1, 1, _STATE), np.float32), np.zeros((1, 1, _STATE), np.float32))
"""The state at a recording's start."""


class SileroNetwork:
    """The loaded network, on one thread; stateless, so one serves any number of recordings.

    Raises:
        KeyError: the file is of another version.
    """

    def __init__(self) -> None:
        model = memoryview(silero_path().read_bytes())
        weights = dict(_weights(model))
        self._encoder = [
            Convolution.of(
                weights[f"encoder.conv_layers.{layer}.weight"],
                weights[f"encoder.conv_layers.{layer}.bias"],
                stride,
            )
            for layer, stride in enumerate(_STRIDES)
        ]
        self._blas = ThreadpoolController().select(user_api="blas")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._decoder: Any = onnxruntime.InferenceSession(
            _from_tensor(model, _ENCODED), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def speech_probabilities(
        self, samples: NDArray[np.int16], state: RecurrentState
    ) -> tuple[Floats, RecurrentState]:
        """The probability of speech in each frame, shape (frames,), and the next state.

        Args:
            samples: whole frames, after the `CONTEXT` samples before them (zeros at the start).
            state: that of the frames before.
        """
        frames = sliding_window_view(samples, CONTEXT + FRAME)[::FRAME]
        with self._blas.limit(limits=1):  # more threads would double the time, waiting
            encoded = self._encode(frames)
        feeds = {_ENCODED: encoded[:, :, None], "h": state.h, "c": state.c}
        probabilities, h, c = self._decoder.run(None, feeds)
        return probabilities, RecurrentState(h, c)

    def _encode(self, frames: NDArray[np.int16]) -> Floats:
        """The features of each frame by itself, shape (frames, 128)."""
        mirrored = np.concatenate([frames, frames[:, -2 : -2 - CONTEXT : -1]], axis=1)
        columns = sliding_window_view(mirrored, _WINDOW, axis=1)[:, ::_HOP]
        spectra = np.fft.rfft(columns * _HANN)
        x: Floats = np.sqrt(spectra.real**2 + spectra.imag**2).reshape(len(frames), -1)
        for convolution in self._encoder:
            x = convolution(x)
        return x


_HANN = ((0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)) / 32_768).astype(np.float32)
"""The periodic Hann window of the published graph, and the scale of 16-bit samples."""


def silero_path() -> Path:
    """The network's file inside faster-whisper."""
    return Path(str(files("faster_whisper"))) / "assets" / "silero_vad_v6.onnx"


# --- the fields of ONNX's protocol buffers that are used here (onnx.proto3) -------------------

_ENCODED = "/encoder/relu_3/Relu_output_0"
"""The tensor between the encoder and the recurrent layer, shape (frames, 128, 1)."""

_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_OUTPUT = 2
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT = 1, 2, 1, 1
_FLOAT = 1


def _weights(model: memoryview) -> Iterator[tuple[str, Floats]]:
    """The float tensors of a model by name."""
    for number, tensor in read_fields(_graph(model)):
        if number == _GRAPH_INITIALIZER:
            fields = list(read_fields(tensor))
            values = dict(fields)
            if values[_TENSOR_TYPE] == _FLOAT and _TENSOR_RAW in values:
                dims = [value for field, value in fields if field == _TENSOR_DIMS]
                array = np.frombuffer(values[_TENSOR_RAW], "<f4").astype(np.float32)
                yield bytes(values[_TENSOR_NAME]).decode(), array.reshape(dims)


def _from_tensor(model: memoryview, name: str) -> bytes:
    """The model from the tensor ``name`` on, which becomes its input."""
    graph = [field for field in read_fields(_graph(model)) if not _is_audio_input(field)]
    produced_at = next(
        at
        for at, (number, node) in enumerate(graph)
        if number == _GRAPH_NODE and (_NODE_OUTPUT, name.encode()) in read_fields(node)
    )
    kept = [field for at, field in enumerate(graph) if at > produced_at or field[0] != _GRAPH_NODE]
    kind = write_field(_VALUE_TYPE, write_field(_TYPE_TENSOR, write_field(_TENSOR_ELEMENT, _FLOAT)))
    kept.append((_GRAPH_INPUT, write_field(_VALUE_NAME, name.encode()) + kind))
    shortened = b"".join(write_field(*field) for field in kept)
    return b"".join(
        write_field(number, shortened if number == GRAPH else value)
        for number, value in read_fields(model)
    )


def _is_audio_input(field: tuple[int, Any]) -> bool:
    return field[0] == _GRAPH_INPUT and (_VALUE_NAME, b"input") in read_fields(field[1])


def _graph(model: memoryview) -> Any:
    return dict(read_fields(model))[GRAPH]
