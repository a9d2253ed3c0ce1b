"""Models exported to ONNX, run by onnxruntime."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from common.domain.moderation import Thresholds
from common.errors import ModerationFailed
from common.moderation.folder import ModelFolder, read_folder, unusable
from common.moderation.inputs import Inputs, TokenInputs, Worst, to_scores
from common.moderation.moderator import Scores
from common.moderation.ngrams import NgramInputs

GRAPHS = ("model_int8.onnx", "model.onnx")
"""The graph to run: the first of these that the folder has."""

_BY_BATCH = b"DynamicQuantizeLinear"
"""An operator that quantises a batch as a whole, so that a text's scores depend on the other texts
(by 0.005 in an int8 PhoBERT). Each text then runs alone: 30 % slower on one core."""


class OnnxModerator:
    """A folder with a graph, config.json and tokenizer files; on one thread.

    Args:
        path: the folder.
        labels: the labels of the outputs, where config.json has none (MODERATION_LABELS).
        thresholds: override the model's own.
        graph: the graph's file name; by default the first of `GRAPHS` that exists.

    Raises:
        ModerationUnusable: something is missing or broken; the text says what.
    """

    def __init__(
        self,
        path: Path,
        *,
        labels: str | None = None,
        thresholds: Thresholds | None = None,
        graph: str | None = None,
    ) -> None:
        folder = read_folder(path, labels)
        self.graph = _find_graph(path, graph)
        sha256, by_batch = _inspect(self.graph)
        self.session = _open(self.graph)
        outputs = self.session.get_outputs()[0].shape[-1]
        if isinstance(outputs, int):
            folder.check_outputs(outputs, self.graph.name)
        self._labels = folder.labels
        self.inputs = inputs_for(
            [given.name for given in self.session.get_inputs()], folder, apart=by_batch
        )
        self.by = folder.moderated_by(sha256, thresholds)

    def scores(self, texts: Sequence[str]) -> Scores:
        worst = Worst(len(texts))
        for batch in self.inputs.batches(texts):
            worst.add(batch.owners, to_scores(self._run(batch.feeds), self._labels))
        return worst.scores

    def _run(self, feeds: Mapping[str, Any]) -> Any:
        try:
            return self.session.run(None, feeds)[0]
        except Exception as error:  # onnxruntime's errors have no public base class
            raise ModerationFailed(reason=" ".join(str(error).split())[:300]) from error


def inputs_for(names: Collection[str], folder: ModelFolder, *, apart: bool = False) -> Inputs:
    """What makes texts into the inputs of a graph with these input names.

    Args:
        names: the graph's inputs.
        folder: the model's.
        apart: texts must not share a batch: they would change each other's scores.

    Raises:
        ModerationUnusable: the graph takes other inputs, or the folder has no tokenizer.
    """
    if {"input_ids"} <= set(names) <= {"input_ids", "attention_mask", "token_type_ids"}:
        return TokenInputs(folder, names, apart=apart)
    if set(names) == {"features"}:
        return NgramInputs()
    raise unusable(folder.path, f"its graph has unsupported inputs: {', '.join(sorted(names))}")


def _find_graph(path: Path, name: str | None) -> Path:
    names = GRAPHS if name is None else (name,)
    for graph in (path / name for name in names):
        if graph.is_file():
            return graph
    raise unusable(path, f"it has no {' or '.join(names)}; steno moderation export makes them")


def _inspect(graph: Path) -> tuple[str, bool]:
    """The file's SHA-256, and whether it quantises a batch as a whole."""
    if graph.stat().st_size == 0:
        raise unusable(graph.parent, f"{graph.name} is empty")
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest(), content.find(_BY_BATCH) >= 0


def _open(graph: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A memory plan would be kept for every shape of input, without limit. The arena itself stays:
    # without it the peak is higher (464 against 316 MB with an int8 PhoBERT).
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(
            str(graph), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no public base class
        raise unusable(graph.parent, f"{graph.name} cannot be loaded: {error}") from error
