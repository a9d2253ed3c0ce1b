"""The networks of speaker diarization, from their PyTorch checkpoints to ONNX, with numpy alone.

Each function builds the graph that the published code computes, in the layout and with the
metadata of the files published for sherpa-onnx, which runs ours as well:

- pyannote segmentation-3.0, MIT (pyannote.audio, `models/segmentation/PyanNet.py` and
  `models/blocks/sincnet.py`; the filters: asteroid-filterbanks, `param_sinc_fb.py`)
- CAM++, Apache-2.0 (3D-Speaker, `speakerlab/models/campplus/DTDNN.py` and `layers.py`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.weights.checkpoint import read_tensors
from common.weights.onnx_graph import OnnxGraph
from common.weights.whisper import Tensor

Floats = NDArray[np.float32]
Tensors = Mapping[str, Tensor]

_SAMPLE_RATE = 16_000
_SINC_STRIDE = 10
_MIN_HZ = 50
_POOL = {"kernel_shape": [3], "strides": [3]}

_SEGMENTATION_METADATA = {
    "model_type": "pyannote-segmentation-3.0",
    "version": "1",
    "num_speakers": "3",
    "powerset_max_classes": "2",
    "num_classes": "7",
    "sample_rate": str(_SAMPLE_RATE),
    "window_size": "160000",
    "receptive_field_size": "991",
    "receptive_field_shift": "270",
}

_EPSILON = 1e-5
"""Of PyTorch's batch normalization."""
_SEGMENT = 100
"""Steps that share a context in CAM++."""
_BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation of CAM++'s blocks."""
_EMBEDDING_METADATA = {
    "framework": "3d-speaker",
    "language": "Chinese-English",
    "sample_rate": str(_SAMPLE_RATE),
    "output_dim": "192",
    "feature_normalize_type": "global-mean",
    "normalize_samples": "1",
}


def segmentation_to_onnx(source: Path, target: Path) -> None:
    """Convert pyannote segmentation-3.0 from the PyTorch file ``source``.

    The network at ``target`` takes ``x``, samples of 16 kHz of shape (N, 1, T), and gives ``y``,
    log probabilities of shape (N, frames, 7): 589 frames for 160,000 samples.

    Raises:
        NotConvertible: the file has other content, or is truncated.
        KeyError: a tensor is missing.
    """
    tensors = read_tensors(source)
    graph = OnnxGraph("x", ("N", 1, "T"))

    def of(*names: str) -> list[str]:
        return [graph.constant(tensors[name]) for name in names]

    at = graph.add("InstanceNormalization", "x", *_pair(graph, tensors, "sincnet.wav_norm1d"))
    filters = graph.constant(_sinc_filters(tensors, "sincnet.conv1d.0.filterbank."))
    at = graph.add("Conv", at, filters, strides=[_SINC_STRIDE])
    at = graph.add("Abs", at)
    for layer in range(3):
        if layer > 0:
            at = graph.add("Conv", at, *_pair(graph, tensors, f"sincnet.conv1d.{layer}"))
        at = graph.add("MaxPool", at, **_POOL)
        norm = _pair(graph, tensors, f"sincnet.norm1d.{layer}")
        at = graph.add("LeakyRelu", graph.add("InstanceNormalization", at, *norm))

    at = graph.add("Transpose", at, perm=[2, 0, 1])  # frames, N, features
    flat = graph.constant([0, 0, 256])
    for layer in range(4):
        at = graph.add(
            "LSTM",
            at,
            *(graph.constant(each) for each in _lstm(tensors, layer)),
            hidden_size=128,
            direction="bidirectional",
        )
        at = graph.add("Transpose", at, perm=[0, 2, 1, 3])  # frames, N, directions, features
        at = graph.add("Reshape", at, flat)
    at = graph.add("Transpose", at, perm=[1, 0, 2])
    for name in ("linear.0", "linear.1", "classifier"):
        weight = graph.constant(tensors[f"{name}.weight"].T)
        at = graph.add("Add", graph.add("MatMul", at, weight), *of(f"{name}.bias"))
        if name != "classifier":
            at = graph.add("LeakyRelu", at)
    at = graph.add("LogSoftmax", at, axis=2)
    graph.write(target, at, "y", ("N", "frames", 7), _SEGMENTATION_METADATA)


def _pair(graph: OnnxGraph, tensors: Tensors, name: str) -> tuple[str, str]:
    return graph.constant(tensors[f"{name}.weight"]), graph.constant(tensors[f"{name}.bias"])


def _sinc_filters(tensors: Tensors, prefix: str) -> Floats:
    """The band-pass filters, first the even then the odd ones, shape (80, 1, 251).

    In double precision, so that the rounded result is the same on every processor.
    """
    low_hz, band_hz, window, time = (
        tensors[prefix + name].astype(np.float64)
        for name in ("low_hz_", "band_hz_", "window_", "n_")
    )
    low = _MIN_HZ + np.abs(low_hz)
    high = np.clip(low + _MIN_HZ + np.abs(band_hz), _MIN_HZ, _SAMPLE_RATE / 2)
    even = (np.sin(high * time) - np.sin(low * time)) / (time / 2) * window
    odd = (np.cos(low * time) - np.cos(high * time)) / (time / 2) * window
    band = 2 * (high - low)
    filters = np.concatenate(
        [
            np.concatenate([even, band, even[:, ::-1]], axis=1) / band,
            np.concatenate([odd, np.zeros_like(band), -odd[:, ::-1]], axis=1) / band,
        ]
    )
    return filters[:, None].astype(np.float32)


def _lstm(tensors: Tensors, layer: int) -> tuple[Floats, Floats, Floats]:
    """Input weights, recurrent weights and biases of both directions, in the order of ONNX."""
    found = []
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        names = (f"lstm.{kind}_l{layer}", f"lstm.{kind}_l{layer}_reverse")
        both = np.stack([tensors[name] for name in names])
        # PyTorch: input, forget, cell, output; ONNX: input, output, forget, cell
        at_input, forget, cell, output = np.split(both, 4, axis=1)
        found.append(np.concatenate([at_input, output, forget, cell], axis=1))
    return found[0], found[1], np.concatenate(found[2:], axis=1)


def embedding_to_onnx(source: Path, target: Path) -> None:
    """Convert CAM++ from the PyTorch file ``source``.

    The network at ``target`` takes ``x``, 80 filter banks of shape (N, T, 80) without their mean,
    and gives ``embedding``, of shape (N, 192).

    Raises:
        NotConvertible: the file has other content, or is truncated.
        KeyError: a tensor is missing.
    """
    _CamPlusPlus(read_tensors(source)).write(target)


class _CamPlusPlus:
    """The graph of CAM++.

    Where a batch normalization follows a convolution, it becomes part of it. The gate of a layer is
    the same for all steps of a segment, so it is computed once a segment.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._graph = OnnxGraph("x", ("N", "T", 80))

    def write(self, target: Path) -> None:
        graph = self._graph
        at = graph.add("Transpose", "x", perm=[0, 2, 1])
        at = graph.add("Unsqueeze", at, graph.constant([1]))  # N, 1, 80, T
        at = self._relu(self._conv2d(at, "head.conv1", "head.bn1"))
        for name in ("head.layer1", "head.layer2"):
            at = self._residual(at, f"{name}.0", stride=2)
            at = self._residual(at, f"{name}.1", stride=1)
        at = self._relu(self._conv2d(at, "head.conv2", "head.bn2", stride=2))
        at = graph.add("Reshape", at, graph.constant([0, 320, -1]))
        at = self._conv1d(
            *(at, "xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm"),
            strides=[2],
            pads=[2, 2],
        )
        at = self._relu(at)
        steps = graph.add("Shape", at, start=2, end=3)
        for number, (layers, dilation) in enumerate(_BLOCKS, start=1):
            for layer in range(1, layers + 1):
                added = self._dense(at, f"xvector.block{number}.tdnnd{layer}", dilation, steps)
                at = graph.add("Concat", at, added, axis=1)
            at = self._normalized(at, f"xvector.transit{number}.nonlinear.batchnorm")
            at = self._conv1d(at, f"xvector.transit{number}.linear")
        at = self._normalized(at, "xvector.out_nonlinear.batchnorm")
        at = self._conv1d(
            self._statistics(at), "xvector.dense.linear", "xvector.dense.nonlinear.batchnorm"
        )
        at = graph.add("Squeeze", at, graph.constant([2]))
        graph.write(target, at, "embedding", ("N", 192), _EMBEDDING_METADATA)

    def _residual(self, at: str, name: str, stride: int) -> str:
        """A block of two convolutions, and what bypasses them; ``stride`` is that of frequency."""
        inner = self._relu(self._conv2d(at, f"{name}.conv1", f"{name}.bn1", stride))
        inner = self._conv2d(inner, f"{name}.conv2", f"{name}.bn2")
        if stride > 1:
            at = self._conv2d(at, f"{name}.shortcut.0", f"{name}.shortcut.1", stride, pad=0)
        return self._relu(self._graph.add("Add", inner, at))

    def _dense(self, at: str, name: str, dilation: int, steps: str) -> str:
        """The features that a layer of a block adds."""
        graph = self._graph
        at = self._normalized(at, f"{name}.nonlinear1.batchnorm")
        at = self._relu(self._conv1d(at, f"{name}.linear1", f"{name}.nonlinear2.batchnorm"))
        local = self._conv1d(
            at,
            f"{name}.cam_layer.linear_local",
            dilations=[dilation],
            pads=[dilation, dilation],
        )
        segments = graph.add(
            "AveragePool", at, kernel_shape=[_SEGMENT], strides=[_SEGMENT], ceil_mode=1
        )
        context = graph.add("Add", segments, graph.add("GlobalAveragePool", at))
        gate = self._relu(self._conv1d(context, f"{name}.cam_layer.linear1"))
        gate = graph.add("Sigmoid", self._conv1d(gate, f"{name}.cam_layer.linear2"))
        gate = graph.add("Unsqueeze", gate, graph.constant([3]))
        gate = graph.add("Expand", gate, graph.constant([1, 1, 1, _SEGMENT]))
        gate = graph.add("Reshape", gate, graph.constant([0, 32, -1]))
        gate = graph.add("Slice", gate, graph.constant([0]), steps, graph.constant([2]))
        return graph.add("Mul", local, gate)

    def _statistics(self, at: str) -> str:
        """Mean and (unbiased) standard deviation over time, shape (N, 1024, 1)."""
        graph = self._graph
        mean = graph.add("GlobalAveragePool", at)
        distance = graph.add("Sub", at, mean)
        squares = graph.add("GlobalAveragePool", graph.add("Mul", distance, distance))
        steps = graph.add("Cast", graph.add("Shape", at, start=2, end=3), to=1)
        one = graph.constant(np.ones(1, np.float32))
        others = graph.add("Max", graph.add("Sub", steps, one), one)
        variance = graph.add("Mul", squares, graph.add("Div", steps, others))
        return graph.add("Concat", mean, graph.add("Sqrt", variance), axis=1)

    def _relu(self, at: str) -> str:
        return self._graph.add("Relu", at)

    def _conv2d(self, at: str, name: str, norm: str, stride: int = 1, pad: int = 1) -> str:
        weight, bias = self._weights(name, norm)
        return self._graph.add("Conv", at, weight, bias, strides=[stride, 1], pads=[pad] * 4)

    def _conv1d(
        self, at: str, name: str, norm: str | None = None, **attributes: Sequence[int]
    ) -> str:
        return self._graph.add("Conv", at, *self._weights(name, norm), **attributes)

    def _weights(self, name: str, norm: str | None) -> list[str]:
        """The weight of a convolution, and the bias if there is one."""
        weight, bias = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        if norm is not None:
            scale, shift = self._affine(norm)
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = shift
        return [self._graph.constant(each) for each in (weight, bias) if each is not None]

    def _normalized(self, at: str, norm: str) -> str:
        """A batch normalization by itself, and its rectification."""
        scale, shift = (self._graph.constant(each[:, None]) for each in self._affine(norm))
        return self._relu(self._graph.add("Add", self._graph.add("Mul", at, scale), shift))

    def _affine(self, norm: str) -> tuple[Floats, Floats]:
        """A batch normalization as a factor and a summand of each channel."""
        mean, variance = (
            self._tensors[f"{norm}.running_{each}"].astype(np.float64) for each in ("mean", "var")
        )
        scale = self._tensors.get(f"{norm}.weight", np.float64(1)) / np.sqrt(variance + _EPSILON)
        shift = self._tensors.get(f"{norm}.bias", np.float64(0)) - mean * scale
        return scale.astype(np.float32), shift.astype(np.float32)


CONVERSIONS: Mapping[str, Callable[[Path, Path], None]] = {
    "segmentation": segmentation_to_onnx,
    "embedding": embedding_to_onnx,
}
"""The conversions, by the names that the manifest gives the networks."""
