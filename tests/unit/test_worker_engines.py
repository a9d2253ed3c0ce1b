"""Which engines a worker keeps loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.domain.models import ModelName
from common.settings import AsrSettings
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from tests.support.offline_networks import write_offline_zipformer2
from worker.engines import Engines
from worker.memory import Memory
from worker.models import Models

MB = 1_000_000


@pytest.fixture
def engines(tmp_path: Path) -> Callable[[int], Engines]:
    """Makes them, with so many MB for three models of 2 MB each: a, b, c."""
    for model in "abc":
        folder = tmp_path / f"sherpa-onnx-{model}"
        folder.mkdir()
        write_offline_zipformer2(folder)
        with (folder / "tokens.txt").open("a", encoding="utf-8") as tokens:
            tokens.write(
                f"{model} 6\n" + "\n".join(f"t{number} {number}" for number in range(7, 200_000))
            )
    store = WeightsStore(tmp_path, Manifest(()))
    return lambda mb: Engines(Models(store), AsrSettings(engines_mb=mb), Memory())


def loaded(engines: Engines) -> str:
    return "".join(weights.model for weights in engines._loaded)


def test_engines_stay_loaded_while_their_models_fit(engines: Callable[[int], Engines]) -> None:
    made = engines(20)
    first = {model: made.get(ModelName("sherpa-onnx", model)) for model in "abc"}
    assert {model: made.get(ModelName("sherpa-onnx", model)) for model in "abc"} == first


def test_the_one_used_least_recently_is_unloaded_for_another(
    engines: Callable[[int], Engines],
) -> None:
    size = engines(0)._models.resolve(ModelName("sherpa-onnx", "a")).size
    made = engines(2 * size // MB + 1)
    made.get(ModelName("sherpa-onnx", "a"))
    made.get(ModelName("sherpa-onnx", "b"))
    made.get(ModelName("sherpa-onnx", "a"))
    made.get(ModelName("sherpa-onnx", "c"))
    assert loaded(made) == "ac"


def test_a_model_that_is_larger_than_the_limit_is_loaded_alone(
    engines: Callable[[int], Engines],
) -> None:
    made = engines(0)
    for model in "ab":
        made.get(ModelName("sherpa-onnx", model))
        assert loaded(made) == model
