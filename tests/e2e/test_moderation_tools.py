"""The way of a PhoBERT: trained, exported, checked and served, by the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from common.domain.moderation import Label
from common.errors import ModerationOff, ModerationUnusable
from common.moderation.loading import load_moderation, load_moderator
from common.settings import ROOT, ModerationSettings
from tests.support.phobert import (
    VOCABULARY,
    WORDS,
    PhoBert,
    examples,
    moderation,
    moderation_process,
    write_csv,
)

FOUL = f"theo như tin tức {WORDS[Label.OFFENSIVE][0]} mọi người ơi"


def test_training_learns_reports_and_writes_a_checkpoint(phobert: PhoBert) -> None:
    assert "macro-F1 1.0000 on 60 held-out texts" in phobert.trained
    assert re.search(r"expected calibration error 0\.\d+", phobert.trained)
    config = json.loads((phobert.checkpoint / "config.json").read_text())
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    assert config["vocab_size"] == VOCABULARY
    assert config["max_position_embeddings"] == 258
    assert config["id2label"] == {"0": "CLEAN", "1": "OFFENSIVE", "2": "HATE"}
    assert config["stenopool"]["segmented"] is True
    assert set(config["stenopool"]["thresholds"]) == {"OFFENSIVE", "HATE"}


def test_exports_agree_with_pytorch(phobert: PhoBert) -> None:
    found = re.search(r"fp32: scores within (\S+) of PyTorch's", phobert.exported)
    assert found is not None
    assert float(found[1]) <= 1e-3
    assert "int8: 100.0% of the labels are PyTorch's" in phobert.exported
    graph = onnx.load(phobert.onnx / "model.onnx")
    assert max(each.version for each in graph.opset_import) >= 17
    sizes = [(phobert.onnx / name).stat().st_size for name in ("model_int8.onnx", "model.onnx")]
    assert sizes[0] < sizes[1] / 3


def test_check_and_smoke_give_a_text_the_same_label(phobert: PhoBert) -> None:
    checked = moderation("check", phobert.checkpoint, FOUL, "cảm ơn bạn đã giúp").stdout
    how = ("--folder", phobert.onnx, "--bare")
    smoked = moderation_process("smoke", FOUL, "cảm ơn bạn đã giúp", *how).stdout
    for said in (checked, smoked):
        assert re.findall(r"^(CLEAN|OFFENSIVE|HATE) ", said, re.MULTILINE) == ["OFFENSIVE", "CLEAN"]
    assert re.search(r"model_int8\.onnx: imported in .* s, loaded in .* s, \d+ MB", smoked)
    assert re.search(r"\d+ segments/s on one core, \d+ MB in all; onnxruntime alone \d+/s", smoked)


def test_eval_evaluates_a_file_with_and_without_the_word_lists(
    phobert: PhoBert, tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "test.csv", examples(45, seed=11))
    for folder in (phobert.onnx, phobert.checkpoint):
        said = moderation("eval", data, "--folder", folder).stdout
        assert "checkpoint alone, thresholds OFFENSIVE 0" in said
        assert "checkpoint with the word lists" in said
        assert re.search(r"^HATE +1\.000 +1\.000 +1\.000 +15 +0 +0 +15$", said, re.MULTILINE)
        assert f"(45 texts, {data})" in said


def test_a_checkpoint_is_fine_tuned_further(phobert: PhoBert, tmp_path: Path) -> None:
    turned = [(text, Label.CLEAN if label is Label.HATE else label) for text, label in examples(90)]
    data = write_csv(tmp_path / "turned.csv", turned)
    out = tmp_path / "tuned"
    how = ("--epochs", "2", "--lr", "3e-3", "--batch", "8", "--class-weights", "sqrt")
    said = moderation(
        "train", data, "--out", out, "--base", phobert.checkpoint, "--dev", data, *how
    )
    assert "macro-F1 1.0000 on 90 held-out texts" in said.stdout
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "CLEAN", "1": "OFFENSIVE"}
    assert config["stenopool"]["name"] == "tuned"


def test_the_service_gives_the_same_labels_by_onnx_and_by_pytorch(phobert: PhoBert) -> None:
    labelled = examples(30, seed=5)
    by_onnx, by_pytorch = (
        ModerationSettings(phobert_onnx_dir=phobert.onnx),
        ModerationSettings(use_onnxruntime=False, phobert_checkpoint_dir=phobert.checkpoint),
    )
    moderated = [
        [
            finding.label
            for finding in load_moderation(settings).classify([it for it, _ in labelled])
        ]
        for settings in (by_onnx, by_pytorch)
    ]
    assert moderated[0] == moderated[1]
    severities = [
        (found.severity, label.severity)
        for found, (_, label) in zip(moderated[0], labelled, strict=True)
    ]
    assert all(found >= learned for found, learned in severities), "the word lists only add"
    texts = [text for text, _ in labelled]
    found, by_torch = (
        [finding.label for finding in load_moderation(settings).classify(texts)]
        for settings in (by_onnx, by_pytorch)
    )
    assert found == by_torch
    severities = [
        (label.severity, learned.severity)
        for label, (_, learned) in zip(found, labelled, strict=True)
    ]
    assert all(label >= learned for label, learned in severities), "the word lists only add"


def test_thresholds_come_from_the_settings(phobert: PhoBert) -> None:
    moderator = load_moderator(
        ModerationSettings(phobert_onnx_dir=phobert.onnx, moderation_threshold_hate=0.99)
    )
    assert moderator.by.thresholds[Label.HATE] == 0.99
    assert moderator.by.thresholds[Label.OFFENSIVE] < 0.99


def test_moderation_that_is_switched_off_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModerationOff):
        load_moderation(ModerationSettings(ai_load_models=False, phobert_onnx_dir=tmp_path))


def test_run_time_needs_neither_pytorch_nor_what_comes_with_it(phobert: PhoBert) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from common.moderation.loading import load_moderator\n"
        "from common.settings import ModerationSettings\n"
        "settings = ModerationSettings(phobert_onnx_dir=Path(sys.argv[1]))\n"
        "load_moderator(settings).scores(['xin chào'])\n"
        "heavy = {'torch', 'transformers', 'optimum', 'onnx', 'underthesea'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", program, str(phobert.onnx)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_pytorch_the_error_names_what_to_install(
    phobert: PhoBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    settings = ModerationSettings(use_onnxruntime=False, phobert_checkpoint_dir=phobert.checkpoint)
    with pytest.raises(ModerationUnusable, match=r"pip install -e '\.\[train\]'"):
        load_moderator(settings)


def test_tools_report_what_is_wrong_in_one_line(phobert: PhoBert, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\nxin chào,CLEAN\nđồ ngu,RUDE\n", "utf-8")
    unnamed = Path(shutil.copytree(phobert.onnx, tmp_path / "unnamed"))
    (unnamed / "config.json").write_text("{}")
    corrupt = Path(shutil.copytree(phobert.onnx, tmp_path / "corrupt"))
    (corrupt / "model_int8.onnx").write_bytes(b"not a graph")
    fresh = ("--from-scratch", "--tokenizer", phobert.tokenizer)
    new = ("--out", tmp_path / "new")
    for arguments, said in (
        (("train", bad, *new, *fresh), "bad.csv, line 3: the label 'RUDE' is not one of CLEAN"),
        (("train", phobert.data, *new), "Give one of --base, --from-scratch"),
        (("train", phobert.data, "--out", tmp_path, *fresh), f"{tmp_path} already exists"),
        (
            ("train", phobert.data, *new, *fresh, "--hidden", "200"),
            "--hidden 200 is not a multiple",
        ),
        (("export", tmp_path, "--out", tmp_path / "x"), "it has no config.json"),
        (("check", unnamed), "config.json has no id2label; set MODERATION_LABELS"),
        (("smoke", "--folder", corrupt), "model_int8.onnx cannot be loaded"),
        (("smoke", "--folder", tmp_path / "none"), "there is no such folder"),
        (("eval", bad), "line 3: the label 'RUDE'"),
    ):
        done = moderation(*arguments, fails=True)
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("steno: ")
        assert said in line
        assert not done.stdout
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_base_neither_a_folder_nor_on_a_hub_is_rejected(phobert: PhoBert, tmp_path: Path) -> None:
    arguments = ("train", phobert.data, "--out", tmp_path / "out", "--base", "no/such")
    done = moderation_process(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "no/such is neither a folder nor available from the hub" in done.stderr
