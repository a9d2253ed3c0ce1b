"""The way of the small model: trained on a CSV, exported, checked and run, by the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from common.domain.moderation import Label
from common.moderation.onnx import OnnxModerator
from tests.support.phobert import examples, moderation, write_csv

TEXTS = [text for text, _ in examples(60, seed=7)]
LONG = " ".join(TEXTS)


class Made(NamedTuple):
    parts: str
    checkpoint: Path
    onnx: Path
    trained: str
    exported: str


@pytest.fixture(scope="module", params=["both", "linear"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    data = [write_csv(folder / f"{seed}.csv", examples(200, seed)) for seed in (0, 1)]
    checkpoint, onnx = folder / "checkpoint", folder / "onnx"
    how = ("--ngrams", request.param, "--epochs", "12")
    trained = moderation("train", *data, "--out", checkpoint, *how).stdout
    exported = moderation("export", checkpoint, "--out", onnx).stdout
    return Made(request.param, checkpoint, onnx, trained, exported)


def test_training_evaluates_each_text_by_a_model_that_has_not_seen_it(made: Made) -> None:
    found = re.search(r"macro-F1 (\S+), cross-validated in quarters", made.trained)
    assert found is not None
    assert float(found[1]) > 0.95
    config = json.loads((made.checkpoint / "config.json").read_text())
    assert config["parts"] == made.parts
    assert config["id2label"] == {"0": "CLEAN", "1": "OFFENSIVE", "2": "HATE"}
    assert set(config["stenopool"]["thresholds"]) == {"OFFENSIVE", "HATE"}


def test_graphs_agree_with_pytorch_in_32_and_in_8_bits(made: Made) -> None:
    fp32 = re.search(r"fp32: scores within (\S+) of PyTorch's", made.exported)
    int8 = re.search(r"int8: (\S+)% of the labels are PyTorch's", made.exported)
    assert fp32 is not None
    assert int8 is not None
    assert float(fp32[1]) <= 1e-3
    assert float(int8[1]) == 100


def test_the_table_takes_a_byte_a_number(made: Made) -> None:
    if made.parts != "linear":
        small, large = (made.onnx / name for name in ("model_int8.onnx", "model.onnx"))
        assert small.stat().st_size < 25e6 < large.stat().st_size


def test_a_text_has_the_same_scores_in_any_batch(made: Made) -> None:
    moderator = OnnxModerator(made.onnx)
    together = moderator.scores([*TEXTS, LONG, ""])
    alone = np.concatenate([moderator.scores([text]) for text in [*TEXTS, LONG, ""]])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_check_smoke_and_eval_know_it(made: Made, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "test.csv", examples(45, seed=11))
    foul = next(text for text, label in examples(30, seed=5) if label is Label.HATE)
    for said in (
        moderation("check", made.checkpoint, foul).stdout,
        moderation("smoke", foul, "--folder", made.onnx, "--no-speed").stdout,
    ):
        assert re.search(r"^HATE ", said, re.MULTILINE)
    for folder in (made.onnx, made.checkpoint):
        said = moderation("eval", data, "--folder", folder).stdout
        found = re.search(r"macro-F1 (\S+) \(45 texts", said)
        assert found is not None
        assert float(found[1]) > 0.95


@pytest.mark.parametrize("ways", [(), ("--ngrams", "both", "--from-scratch")])
def test_one_way_to_train_must_be_named(ways: tuple[str, ...], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", examples(30))
    said = moderation("train", data, "--out", tmp_path / "out", *ways, fails=True).stderr
    assert "Give one of --base, --from-scratch and --ngrams" in said


def test_an_option_that_would_be_ignored_is_rejected(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", examples(30))
    how = ("--ngrams", "both", "--dev", data)
    said = moderation("train", data, "--out", tmp_path / "out", *how, fails=True).stderr
    assert "--dev does not go with --ngrams" in said


def test_training_data_of_one_label_is_rejected(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", [("xin chào", Label.CLEAN)] * 10)
    done = moderation("train", data, "--out", tmp_path / "out", "--ngrams", "linear", fails=True)
    assert "CLEAN only" in done.stderr
