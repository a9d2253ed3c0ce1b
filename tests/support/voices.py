"""Voices made of tones, and networks for diarization that tell them apart, made on the spot.

The segmentation goes by loudness: `LEVELS` are those of its classes. The embedding is how much each
band of the spectrum swells, so a voice is a tone that goes up and down.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.diarization.onnx import OnnxDiarizer
from common.domain.values import SAMPLE_RATE
from common.weights.onnx_graph import OnnxGraph

Samples = NDArray[np.float32]

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75)
"""The mean absolute value of nobody, of each voice, and of the pairs 1 2, 1 3 and 2 3."""


def write_networks(folder: Path) -> tuple[Path, Path]:
    """Write the two networks; returns their folders."""
    places = folder / "segmentation", folder / "embedding"
    for place in places:
        place.mkdir(parents=True)
    graph = OnnxGraph("x", ("N", 1, "T"))
    loudness = graph.add("AveragePool", graph.add("Abs", "x"), kernel_shape=[991], strides=[270])
    loudness = graph.add("Transpose", loudness, perm=[0, 2, 1])
    away = graph.add("Sub", loudness, graph.constant(np.array(LEVELS, np.float32)))
    scores = graph.add("Neg", graph.add("Abs", away))
    graph.write(places[0] / "model.onnx", scores, "y", ("N", "frames", 7), {})
    graph = OnnxGraph("x", ("N", "T", 80))
    swells = graph.add("ReduceMean", graph.add("Mul", "x", "x"), axes=[1], keepdims=0)
    swells = graph.add("Mul", swells, swells)
    graph.write(places[1] / "model.onnx", swells, "embedding", ("N", 80), {})
    return places


def tone_diarizer(folder: Path) -> OnnxDiarizer:
    """A diarizer of voices made of tones."""
    return OnnxDiarizer(*write_networks(folder))


def voice(seconds: float, of_class: int, hz: float = 440, *, called: bool = False) -> Samples:
    """A tone at the loudness of a class of the segmentation.

    ``called``: without the hiss of speech now and then, which a telephone leaves out.
    """
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = np.where(at % 0.1 < 0.05, hz, 1.5 * hz)
    wave = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    hiss = 0.002 * np.random.default_rng(1).standard_normal(len(at))
    if not called:
        hiss *= np.where(at % 0.1 < 0.05, 1, 8)
    return (LEVELS[of_class] * np.pi / 2 * wave + hiss).astype(np.float32)
