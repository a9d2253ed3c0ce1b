"""What every moderation model promises (common.moderation.moderator), on one of PhoBERT's shape."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.domain.moderation import Label, decide
from common.errors import ModerationUnusable
from common.moderation.hf import HfModerator
from common.moderation.moderator import Moderator
from common.moderation.onnx import OnnxModerator
from tests.support.phobert import WORDS, PhoBert, examples

ADAPTERS: dict[str, Callable[..., Moderator]] = {
    "onnx-int8": OnnxModerator,
    "onnx-fp32": lambda path, **options: OnnxModerator(path, graph="model.onnx", **options),
    "hf": HfModerator,
}
WEIGHTS = {
    "onnx-int8": "model_int8.onnx",
    "onnx-fp32": "model.onnx",
    "hf": "model.safetensors",
}
TEXTS = [text for text, _ in examples(60, seed=7)]
ODD = [
    "",
    " \n\t",
    "😀 😡 🤬",
    "🤬" * 500,
    "xin chào 你好 здравствуй مرحبا hello",
    "ĐỒ NGU!!! như bò???",
    "do\u0300\u0302 ngu",
    "half of a pair: \ud83d",
    "\0 null \x7f",
    "</s> <s> <pad> <mask> <unk>",
    "_ __ a_b_c _",
    "a" * 5000,
]


@pytest.fixture(scope="module", params=ADAPTERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(phobert: PhoBert, kind: str) -> Path:
    return phobert.checkpoint if kind == "hf" else phobert.onnx


@pytest.fixture(scope="module")
def moderator(source: Path, kind: str) -> Moderator:
    return ADAPTERS[kind](source)


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(source, tmp_path / "model"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({name: it for name, it in config.items() if it is not None}))


def test_each_text_has_probabilities_in_order(moderator: Moderator) -> None:
    scores = moderator.scores([*TEXTS, *ODD])
    assert scores.shape == (len(TEXTS) + len(ODD), len(Label))
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)


def labels(moderator: Moderator, texts: Sequence[str]) -> list[Label]:
    return [decide(row, moderator.by.thresholds) for row in moderator.scores(texts).tolist()]


def test_it_gives_the_labels_it_was_trained_on(moderator: Moderator) -> None:
    labelled = examples(90, seed=3)
    assert labels(moderator, [text for text, _ in labelled]) == [label for _, label in labelled]


def test_the_same_text_has_the_same_scores_in_any_batch(moderator: Moderator) -> None:
    texts = [*TEXTS[:20], *ODD]
    together = moderator.scores(texts)
    alone = np.concatenate([moderator.scores([text]) for text in texts])
    backwards = moderator.scores(texts[::-1])[::-1]
    assert np.abs(together - alone).max() <= 1e-4
    assert np.abs(together - backwards).max() <= 1e-4


def test_no_texts_have_no_scores(moderator: Moderator) -> None:
    assert moderator.scores([]).shape == (0, len(Label))


@pytest.mark.parametrize("before", [0, 300, 3000])
def test_foul_words_are_found_anywhere_in_a_long_text(moderator: Moderator, before: int) -> None:
    clean = (f"{WORDS[Label.CLEAN][0]} " * 1000).split()
    foul = (f"{WORDS[Label.HATE][1]} " * 60).split()
    texts = [" ".join(clean), " ".join([*clean[:before], *foul, *clean[before:]])]
    assert labels(moderator, texts) == [Label.CLEAN, Label.HATE]


def test_a_megabyte_is_read_to_its_end(moderator: Moderator) -> None:
    foul = f"{WORDS[Label.HATE][1]} " * 60
    text = f"{WORDS[Label.CLEAN][0]} " * 48_000 + foul
    assert len(text.encode()) > 1_000_000
    assert labels(moderator, [text]) == [Label.HATE]


def test_it_names_its_weights_and_thresholds(moderator: Moderator, source: Path, kind: str) -> None:
    assert moderator.by.model == "checkpoint"
    content = (source / WEIGHTS[kind]).read_bytes()
    assert moderator.by.sha256 == hashlib.sha256(content).hexdigest()
    assert set(moderator.by.thresholds) == {Label.OFFENSIVE, Label.HATE}


def test_thresholds_of_the_settings_go_before_its_own(folder: Path, kind: str) -> None:
    configure(folder, stenopool={"thresholds": {"OFFENSIVE": 0.4, "HATE": 0.3}})
    moderator = ADAPTERS[kind](folder, thresholds={Label.HATE: 0.9})
    assert moderator.by.thresholds == {Label.OFFENSIVE: 0.4, Label.HATE: 0.9}


def test_the_setting_names_the_outputs(folder: Path, kind: str, moderator: Moderator) -> None:
    configure(folder, id2label={str(number): f"LABEL_{number}" for number in range(3)})
    with pytest.raises(
        ModerationUnusable, match="set MODERATION_LABELS to the labels of its outputs"
    ):
        ADAPTERS[kind](folder)
    swapped = ADAPTERS[kind](folder, labels="HATE,OFFENSIVE,CLEAN").scores(TEXTS[:6])
    assert swapped == pytest.approx(moderator.scores(TEXTS[:6])[:, ::-1], abs=1e-4)


def test_too_few_labels_are_rejected(folder: Path, kind: str) -> None:
    configure(folder, id2label=None, label2id=None, num_labels=None)
    with pytest.raises(ModerationUnusable, match=r"outputs|size mismatch"):
        ADAPTERS[kind](folder, labels="CLEAN,HATE")


def test_a_folder_without_weights_says_which_it_lacks(folder: Path, kind: str) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(ModerationUnusable) as caught:
        ADAPTERS[kind](folder)
    assert str(folder) in caught.value.message
    assert WEIGHTS[kind] in caught.value.message


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_corrupt_weights_are_rejected(folder: Path, kind: str, content: bytes | None) -> None:
    weights = folder / WEIGHTS[kind]
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModerationUnusable) as caught:
        ADAPTERS[kind](folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_folder_without_a_tokenizer_says_so(folder: Path, kind: str) -> None:
    (folder / "bpe.codes").unlink()
    with pytest.raises(ModerationUnusable, match=r"neither vocab\.txt with bpe\.codes nor"):
        ADAPTERS[kind](folder)


def test_both_adapters_give_the_same_labels_and_scores(phobert: PhoBert) -> None:
    texts = [*TEXTS, *ODD, " ".join(TEXTS)]
    by_onnx, by_hf = (
        OnnxModerator(phobert.onnx, graph="model.onnx"),
        HfModerator(phobert.checkpoint),
    )
    assert by_onnx.by.thresholds == by_hf.by.thresholds
    assert np.abs(by_onnx.scores(texts) - by_hf.scores(texts)).max() <= 1e-3
    assert labels(by_onnx, texts) == labels(by_hf, texts)
