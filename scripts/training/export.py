"""From a checkpoint to ONNX: fp32 and int8, each checked against PyTorch on real text."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.domain.moderation import Thresholds
from common.errors import SetupProblem
from common.moderation.folder import CONFIG
from common.moderation.hf import HfModerator
from common.moderation.moderator import Moderator
from common.moderation.onnx import GRAPHS, OnnxModerator
from scripts.training.metrics import decide_all
from scripts.training.train import copy_tokenizer, label_names, prepare_folder, write_config

if TYPE_CHECKING:
    from scripts.training.ngrams import NgramModerator

INT8, FP32 = GRAPHS
OPSET = 18
TOLERANCE = 1e-3
"""The most by which a score of the fp32 graph may differ from PyTorch's."""


@dataclass(frozen=True, slots=True)
class Exported:
    """How far the graphs are from PyTorch: the largest difference of a score, equal labels."""

    texts: int
    fp32_difference: float
    int8_difference: float | None
    int8_agreement: float | None


def export(
    checkpoint: Path,
    out: Path,
    texts: Sequence[str],
    *,
    labels: str | None = None,
    opset: int = OPSET,
    int8: bool = True,
) -> Exported:
    """Write the folder ``out`` with model.onnx and, for ``int8``, model_int8.onnx.

    It is written beside and moved into place when the fp32 graph has proved to agree on ``texts``.

    Raises:
        SetupProblem: there is something at ``out``, or the graph does not agree.
        ModerationUnusable: the checkpoint cannot be used.
    """
    reference = load_checkpoint(checkpoint, labels=labels)
    prepare_folder(out)
    beside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        _to_fp32(reference, beside, opset)
        copy_tokenizer(checkpoint, beside)
        _copy_config(checkpoint, beside, reference)
        if int8:
            _to_int8(reference, beside, opset)
        exported = _check(reference, beside, texts, int8=int8)
        out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return exported


def load_checkpoint(
    path: Path, *, labels: str | None = None, thresholds: Thresholds | None = None
) -> HfModerator | NgramModerator:
    """A checkpoint of any kind that `steno moderation train` writes, run by PyTorch.

    Raises:
        ModerationUnusable: it cannot be used.
    """
    from scripts.training.ngrams import NgramModerator, is_ngrams

    if is_ngrams(path):
        return NgramModerator(path, thresholds=thresholds)
    return HfModerator(path, labels=labels, thresholds=thresholds)


def _to_fp32(reference: HfModerator | NgramModerator, out: Path, opset: int) -> None:
    if not isinstance(reference, HfModerator):
        from scripts.training.graph import write_graph

        write_graph(reference.net, out / FP32, opset=opset, int8=False)
        return
    from optimum.exporters.onnx import export as to_onnx
    from optimum.exporters.tasks import TasksManager

    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", reference.model, task="text-classification", library_name="transformers"
    )
    with _quiet():
        to_onnx(reference.model, constructor(reference.model.config), out / FP32, opset=opset)


def _to_int8(reference: HfModerator | NgramModerator, out: Path, opset: int) -> None:
    """Weights to int8; of a checkpoint of Hugging Face by channel, activations as they come."""
    if not isinstance(reference, HfModerator):
        from scripts.training.graph import write_graph

        write_graph(reference.net, out / INT8, opset=opset, int8=True)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            out / FP32,
            out / INT8,
            per_channel=True,
            # 7 bits: with 8, processors without VNNI overflow and score otherwise than those with
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def _copy_config(checkpoint: Path, out: Path, reference: HfModerator | NgramModerator) -> None:
    """The checkpoint's config, and the meaning of its outputs where it has none."""
    config = json.loads((checkpoint / CONFIG).read_text(encoding="utf-8"))
    config |= label_names(reference.folder.labels)
    config.setdefault("stenopool", {}).setdefault("name", reference.by.model)
    write_config(out, config)


def _check(reference: Moderator, out: Path, texts: Sequence[str], *, int8: bool) -> Exported:
    wanted = reference.scores(texts)
    difference = float(np.abs(OnnxModerator(out, graph=FP32).scores(texts) - wanted).max())
    if not difference <= TOLERANCE:
        raise SetupProblem(
            problem=f"The graph's scores differ from PyTorch's by {difference:.4g}, more than "
            f"{TOLERANCE:g}",
            remedy="Nothing was written; try another --opset",
        )
    if not int8:
        return Exported(len(texts), difference, None, None)
    scores = OnnxModerator(out, graph=INT8).scores(texts)

    labels, wanted_labels = (decide_all(rows, reference.by.thresholds) for rows in (scores, wanted))
    agreeing = float((labels == wanted_labels).mean())
    return Exported(len(texts), difference, float(np.abs(scores - wanted).max()), agreeing)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the libraries that are for their developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
