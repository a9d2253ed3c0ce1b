"""A model's folder is read, and what it lacks is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.domain.moderation import Label
from common.errors import ModerationUnusable
from common.moderation.folder import ModelFolder, read_folder

NAMED = {"0": "CLEAN", "1": "OFFENSIVE", "2": "HATE"}


def read(path: Path, labels: str | None = None, /, **config: Any) -> ModelFolder:
    (path / "config.json").write_text(json.dumps(config))
    return read_folder(path, labels)


def test_phoberts_own_config_is_enough_when_its_outputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "bpe.codes").touch()
    config = {"model_type": "roberta", "max_position_embeddings": 258, "pad_token_id": 1}
    folder = read(tmp_path, id2label=NAMED, **config)
    assert folder == ModelFolder(
        tmp_path,
        tmp_path.name,
        (Label.CLEAN, Label.OFFENSIVE, Label.HATE),
        max_tokens=256,
        padding=1,
        segmented=True,
        normalised=False,
        thresholds={Label.OFFENSIVE: 0.5, Label.HATE: 0.5},
    )


def test_our_own_section_of_the_config_goes_before(tmp_path: Path) -> None:
    ours = {"name": "mine", "segmented": False, "normalised": True, "max_tokens": 64}
    ours["thresholds"] = {"HATE": 0.3}
    folder = read(tmp_path, id2label=NAMED, max_position_embeddings=258, stenopool=ours)
    assert (folder.name, folder.segmented, folder.normalised) == ("mine", False, True)
    assert folder.max_tokens == 64
    assert folder.thresholds == {Label.OFFENSIVE: 0.5, Label.HATE: 0.3}
    chosen = folder.moderated_by("a" * 64, {Label.HATE: 0.9}).thresholds
    assert chosen == {Label.OFFENSIVE: 0.5, Label.HATE: 0.9}


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["clean", "Offensive", "HATE"], (Label.CLEAN, Label.OFFENSIVE, Label.HATE)),
        (["HATE", "CLEAN"], (Label.HATE, Label.CLEAN)),
    ],
)
def test_outputs_are_known_by_name_in_any_case_and_order(
    tmp_path: Path, names: list[str], labels: tuple[Label, ...]
) -> None:
    named = {str(number): name for number, name in enumerate(names)}
    assert read(tmp_path, id2label=named).labels == labels


@pytest.mark.parametrize("config", [{}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}])
def test_unnamed_outputs_are_named_by_the_setting(tmp_path: Path, config: dict[str, Any]) -> None:
    assert read(tmp_path, "clean, hate", **config).labels == (Label.CLEAN, Label.HATE)


@pytest.mark.parametrize(
    ("labels", "config", "reason"),
    [
        (None, {}, "no id2label; set MODERATION_LABELS"),
        (None, {"id2label": {"0": "LABEL_0"}}, "no id2label; set MODERATION_LABELS"),
        (None, {"id2label": {"0": "NEG", "1": "POS"}}, "id2label ['NEG', 'POS']; set MODERATION"),
        (None, {"id2label": {"0": "HATE", "1": "HATE"}}, "id2label ['HATE', 'HATE']; set"),
        ("CLEAN,BAD", {}, "MODERATION_LABELS is 'CLEAN,BAD'; it needs CLEAN and one of"),
        ("CLEAN,HATE", {"id2label": {"0": "x"}}, "has 2 labels (CLEAN,HATE), the model 1"),
        (None, {"id2label": 3}, "config.json is malformed"),
        (None, {"id2label": NAMED, "stenopool": {"thresholds": {"HATE": 2}}}, "above 0 and at"),
        (None, {"id2label": NAMED, "stenopool": {"thresholds": {"BAD": 1}}}, "'BAD' is not a"),
    ],
)
def test_an_unusable_config_is_rejected_with_the_reason(
    tmp_path: Path, labels: str | None, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModerationUnusable) as caught:
        read(tmp_path, labels, **config)
    assert str(tmp_path) in caught.value.message
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it has no config.json"),
        ("{", "config.json cannot be read"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_folder_without_a_readable_config_is_rejected_with_the_reason(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModerationUnusable, match=reason):
        read_folder(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModerationUnusable, match="nowhere cannot be used: there is no such folder"):
        read_folder(tmp_path / "nowhere")
