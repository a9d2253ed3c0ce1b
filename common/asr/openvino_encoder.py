"""Whisper's encoder on OpenVINO in bfloat16, for processors that compute in it.

CTranslate2 has no bfloat16 on CPUs, only int8 and float32. Measured (base, one thread, windows of
30 s; the error is the RMS deviation from float32):

====================  ===========================  ==============================  ======
encoder               time on AMD Zen 4            time on Intel Emerald Rapids    error
====================  ===========================  ==============================  ======
CTranslate2 int8      1                            1                               7.6 %
OpenVINO bfloat16     0.75 (AVX-512 BF16)          0.30 to 0.36 (AMX)              1.9 %
OpenVINO float32      1.4                          1                               0.0 %
====================  ===========================  ==============================  ======

Whole recordings take 0.88 of the time on Zen 4. A process needs 180 MB more with base and 450 MB
more with small, and half a second more to start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from common.weights.ct2 import read_ct2
from common.weights.whisper import HEAD_SIZE, Tensor, Whisper

# Without this package OpenVINO sends no usage statistics; with it, importing OpenVINO does.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402 - see above
from openvino import opset13 as ops  # noqa: E402

FRAMES = 3_000
EPSILON = 1e-5
"""Of the normalization of layers, as in openai/whisper."""


class OpenVinoEncoder:
    """The encoder of weights in CTranslate2's layout, in float16 or float32.

    Raises:
        NotConvertible: the weights are quantized, or not Whisper's.
        RuntimeError: OpenVINO cannot compile the encoder.
    """

    name = "openvino bfloat16"

    def __init__(self, weights: Path, *, threads: int = 1) -> None:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        cache = cache_folder()
        if cache is not None:
            options["CACHE_DIR"] = str(cache)
        # One process compiles; the others wait, and read what it has written.
        with nullcontext() if cache is None else FileLock(cache / "lock"):
            encoder = encoder_of(read_ct2(weights))
            compiled = openvino.Core().compile_model(encoder, "CPU", options)
        self._request = compiled.create_infer_request()

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The encoder's output, shape (1, 1500, width), of features of shape (1, mels, 3000).

        Raises:
            RuntimeError: OpenVINO fails.
        """
        (output,) = self._request.infer([features]).values()
        copied: NDArray[np.float32] = output.copy()  # the next call overwrites it
        return copied


def cache_folder() -> Path | None:
    """Where compiled encoders are kept; None where the user has no folder to write to."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(home) if home else Path.home() / ".cache") / "stenopool" / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def encoder_of(whisper: Whisper) -> openvino.Model:
    """The encoder as a graph: features of shape (1, mels, 3000) to output (1, 1500, width)."""
    return _Graph(whisper.tensors).encoder(whisper.audio_layers)


class _Graph:
    """Builds the parts of the encoder; names are those of openai/whisper."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._width = tensors["encoder.ln_post.weight"].shape[0]

    def encoder(self, layers: int) -> openvino.Model:
        mels = self._tensors["encoder.conv1.weight"].shape[1]
        features = ops.parameter([1, mels, FRAMES], np.float32)
        x = self._convolution(features, "encoder.conv1", stride=1)
        x = self._convolution(x, "encoder.conv2", stride=2)
        x = ops.transpose(x, np.array([0, 2, 1]))
        x = ops.add(x, self._weights("encoder.positional_embedding"))
        for index in range(layers):
            block = f"encoder.blocks.{index}"
            x = ops.add(x, self._attention(self._norm(x, f"{block}.attn_ln"), f"{block}.attn"))
            hidden = self._linear(self._norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0")
            x = ops.add(x, self._linear(ops.gelu(hidden, "erf"), f"{block}.mlp.2"))
        return openvino.Model([self._norm(x, "encoder.ln_post")], [features], "encoder")

    def _weights(self, name: str, shape: tuple[int, ...] | None = None) -> Any:
        tensor = self._tensors[name]
        constant = ops.constant(tensor if shape is None else tensor.reshape(shape))
        return ops.convert(constant, np.float32)

    def _convolution(self, x: Any, name: str, stride: int) -> Any:
        x = ops.convolution(x, self._weights(f"{name}.weight"), [stride], [1], [1], [1])
        return ops.gelu(ops.add(x, self._weights(f"{name}.bias", (1, -1, 1))), "erf")

    def _linear(self, x: Any, name: str) -> Any:
        # OpenVINO would keep weights in float32 beside those in bfloat16 that it computes with.
        weight = ops.convert(ops.constant(self._tensors[f"{name}.weight"]), "bf16")
        x = ops.matmul(ops.convert(x, "bf16"), weight, False, True)
        x = ops.convert(x, np.float32)
        bias = f"{name}.bias"
        return ops.add(x, self._weights(bias)) if bias in self._tensors else x

    def _norm(self, x: Any, name: str) -> Any:
        x = ops.mvn(x, np.array([-1]), True, EPSILON, "inside_sqrt")
        x = ops.multiply(x, self._weights(f"{name}.weight"))
        return ops.add(x, self._weights(f"{name}.bias"))

    def _attention(self, x: Any, name: str) -> Any:
        query, key, value = (
            self._heads(self._linear(x, f"{name}.{role}")) for role in ("query", "key", "value")
        )
        found = ops.scaled_dot_product_attention(query, key, value)
        found = ops.transpose(found, np.array([0, 2, 1, 3]))
        return self._linear(ops.reshape(found, np.array([0, 0, self._width]), True), f"{name}.out")

    def _heads(self, x: Any) -> Any:
        x = ops.reshape(x, np.array([0, 0, self._width // HEAD_SIZE, HEAD_SIZE]), True)
        return ops.transpose(x, np.array([0, 2, 1, 3]))
