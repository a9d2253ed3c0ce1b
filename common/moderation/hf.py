"""Checkpoints of transformers, run by PyTorch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.domain.moderation import Label, Thresholds
from common.errors import ModerationFailed
from common.moderation.folder import read_folder, unusable
from common.moderation.inputs import Inputs, TokenInputs, Worst, to_scores
from common.moderation.moderator import Scores

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NEEDS = "PyTorch or transformers is missing; run: .venv/bin/python -m pip install -e '.[train]'"


class HfModerator:
    """A checkpoint folder with weights, config.json and tokenizer files; on one thread.

    Args:
        path: the folder.
        labels: the labels of the outputs, where config.json has none (MODERATION_LABELS).
        thresholds: override the model's own.

    Raises:
        ModerationUnusable: PyTorch is not installed, or something is missing or broken.
    """

    def __init__(
        self, path: Path, *, labels: str | None = None, thresholds: Thresholds | None = None
    ) -> None:
        folder = read_folder(path, labels)
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            raise unusable(path, f"it has no weights ({' or '.join(WEIGHTS)})")
        self.model = _load(path)
        folder.check_outputs(self.model.config.num_labels, "the model")
        taken = inspect.signature(self.model.forward).parameters
        self.folder = folder
        self._inputs = TokenInputs(folder, [*taken])
        with weights.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.by = folder.moderated_by(sha256, thresholds)

    def scores(self, texts: Sequence[str]) -> Scores:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return score(self.model, self._inputs, texts, self.folder.labels)
        except RuntimeError as error:
            raise ModerationFailed(reason=" ".join(str(error).split())[:300]) from error
        finally:
            torch.set_num_threads(threads)


def score(model: Any, inputs: Inputs, texts: Sequence[str], labels: Sequence[Label]) -> Scores:
    """The scores of texts by a PyTorch model, on the device that it is on."""
    import torch

    worst = Worst(len(texts))
    with torch.inference_mode():
        for batch in inputs.batches(texts):
            feeds = {
                name: torch.from_numpy(feed).to(model.device) for name, feed in batch.feeds.items()
            }
            logits = model(**feeds).logits.float().cpu().numpy()
            worst.add(batch.owners, to_scores(logits, labels))
    return worst.scores


def _load(path: Path) -> Any:
    try:
        import torch
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging
    except ImportError as error:
        raise unusable(path, NEEDS) from error
    logging.set_verbosity_error()
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # of many kinds, all of which mean that it cannot be loaded
        raise unusable(path, f"its weights cannot be loaded: {error}") from error
    if loading["missing_keys"] or loading["mismatched_keys"]:
        lacking = ", ".join(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise unusable(path, f"its weights lack {lacking[:200]}; steno moderation train makes them")
    return model.eval()
