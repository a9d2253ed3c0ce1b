"""The conversions of the speaker networks, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from common.weights.onnx_file import read_metadata
from common.weights.speaker_networks import embedding_to_onnx, segmentation_to_onnx
from common.weights.whisper import NotConvertible
from tests.support.speaker_checkpoints import CamPlusPlus, PyanNet, make

NETWORKS = [(PyanNet, segmentation_to_onnx), (CamPlusPlus, embedding_to_onnx)]


def outputs(network: Any, path: Path, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """What PyTorch and the converted network make of noise."""
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {"x": x})
    assert ours.shape == theirs.shape
    return ours, theirs


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[Any, Path]]:
    folder = tmp_path_factory.mktemp("networks")
    found: dict[Any, tuple[Any, Path]] = {}
    for network, convert in NETWORKS:
        made = make(network, folder / "checkpoint.pt")
        path = folder / f"{network.__name__}.onnx"
        convert(folder / "checkpoint.pt", path)
        found[network] = made, path
    return found


@pytest.mark.parametrize("network", [PyanNet, CamPlusPlus])
def test_a_converted_network_is_valid(
    converted: dict[Any, tuple[Any, Path]], network: type
) -> None:
    onnx.checker.check_model(onnx.load(converted[network][1]), full_check=True)


@pytest.mark.parametrize(("count", "samples", "frames"), [(2, 160_000, 589), (1, 20_000, 71)])
def test_the_segmentation_gives_pytorchs_log_probabilities(
    converted: dict[Any, tuple[Any, Path]], count: int, samples: int, frames: int
) -> None:
    ours, theirs = outputs(*converted[PyanNet], (count, 1, samples))
    assert ours.shape == (count, frames, 7)
    assert theirs.std(axis=1).max() > 0.1, "they depend on the audio"
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize(("count", "frames"), [(3, 150), (1, 200), (2, 201), (1, 777), (1, 12)])
def test_the_embedding_gives_pytorchs_values_at_every_length(
    converted: dict[Any, tuple[Any, Path]], count: int, frames: int
) -> None:
    ours, theirs = outputs(*converted[CamPlusPlus], (count, frames, 80))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_sherpa_onnx_finds_the_metadata_that_it_requires(
    converted: dict[Any, tuple[Any, Path]],
) -> None:
    metadata = read_metadata(converted[PyanNet][1])
    assert metadata["model_type"] == "pyannote-segmentation-3.0"
    assert (metadata["window_size"], metadata["receptive_field_shift"]) == ("160000", "270")
    assert read_metadata(converted[CamPlusPlus][1])["output_dim"] == "192"


@pytest.mark.parametrize(("network", "convert"), NETWORKS)
def test_a_conversion_writes_the_same_bytes_each_time(
    network: type, convert: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    make(network, tmp_path / "checkpoint.pt")
    for name in ("one", "two"):
        convert(tmp_path / "checkpoint.pt", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_checkpoint_that_runs_code_is_rejected(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": Path("/")}}, tmp_path / "checkpoint.pt")
    with pytest.raises(NotConvertible, match="which tensors do not need"):
        segmentation_to_onnx(tmp_path / "checkpoint.pt", tmp_path / "made.onnx")
    assert not (tmp_path / "made.onnx").exists()
