"""Fine-tuning a checkpoint, or a small encoder from scratch, into one that labels texts.

The loop is plain PyTorch: shuffled batches of like lengths, AdamW with a warm-up, the weights of
the best epoch kept. Training uses the same `TokenInputs` as inference.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.domain.moderation import Label
from common.errors import SetupProblem
from common.moderation.folder import CONFIG, OURS, ModelFolder, read_folder
from common.moderation.hf import WEIGHTS, score
from common.moderation.inputs import TokenInputs
from common.moderation.moderator import Scores
from common.moderation.phobert_tokenizer import ANY_TOKENIZER, MERGES, VOCABULARY, Ids
from scripts.training.data import (
    Example,
    require_labels,
    shuffled_batches,
    texts_and_labels,
)
from scripts.training.metrics import Trained, choose_thresholds, macro_f1

TOKENIZER_FILES = (
    VOCABULARY,
    MERGES,
    ANY_TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
WARM_UP = 0.1
"""The share of all steps in which the rate of learning grows; in the others it falls to 0."""
WEIGHT_DECAY = 0.01
MAX_GRADIENT = 1.0

ClassWeights = Literal["balanced", "sqrt", "none"]


@dataclass(frozen=True, slots=True)
class Fresh:
    """A RoBERTa of this shape, whose weights are drawn at random."""

    tokenizer: Path
    layers: int
    hidden: int

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise SetupProblem(
                problem=f"--hidden {self.hidden} is not a multiple of 64", remedy="Take one that is"
            )

    @property
    def heads(self) -> int:
        return max(self.hidden // 64, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    ``segmented`` and ``normalised`` None: as what it starts from was trained; where that does not
    tell, words are segmented for PhoBERT's tokenizer, and nothing is normalised.
    """

    start: Path | Fresh
    epochs: int = 5
    batch: int = 32
    rate: float = 2e-5
    max_tokens: int = 128
    class_weights: ClassWeights = "balanced"
    patience: int = 2
    segmented: bool | None = None
    normalised: bool | None = None
    seed: int = 0


def train(
    learned: Sequence[Example],
    held: Sequence[Example],
    out: Path,
    recipe: Recipe,
    progress: Callable[[str], None],
) -> Trained:
    """Train on ``learned``, stop early by macro-F1 on ``held``, write a checkpoint to ``out``.

    Raises:
        SetupProblem: ``out`` is not empty, or the base cannot be used.
        ModerationUnusable: the tokenizer is missing or broken.
    """
    import torch

    labels = require_labels(learned, "The training data")
    require_labels(held, "What is held out")
    prepare_folder(out)
    random.seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    model = _model(recipe, labels)
    folder = _write_config(out, model, recipe)
    inputs = TokenInputs(folder, ("input_ids", "attention_mask"))
    columns = [labels.index(example.label) for example in learned]
    learner = _Learner(model, folder.padding, columns, recipe)
    windows = [inputs.windows(example.text)[0] for example in learned]
    held_texts, held_truth = texts_and_labels(held)

    best: tuple[tuple[float, float], int, Scores] | None = None
    for epoch in range(1, recipe.epochs + 1):
        loss = learner.epoch(windows)
        model.eval()
        scores = score(model, inputs, held_texts, labels)
        given = scores[np.arange(len(held)), held_truth]
        likelihood = float(np.log(np.maximum(given, 1e-9)).mean())
        reached = macro_f1(np.array(held_truth), scores.argmax(axis=1)), likelihood
        progress(f"epoch {epoch}: loss {loss:.4f}, macro-F1 {reached[0]:.4f} on held-out texts")
        if best is None or reached > best[0]:
            best = reached, epoch, scores
            model.save_pretrained(out)
            _add_ours(out, folder)
        elif epoch - best[1] >= recipe.patience:
            break
    if best is None:
        raise ValueError("training takes at least one epoch")
    _, epoch, scores = best
    choice = choose_thresholds(scores, held_truth, recipe.seed)
    _add_ours(out, replace(folder, thresholds=choice.thresholds))
    return Trained(scores, choice, epoch)


def prepare_folder(out: Path) -> None:
    """Create the folder ``out``, or check that it is empty.

    Raises:
        SetupProblem: it is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SetupProblem(problem=f"{out} already exists", remedy="Remove it or pass another")
    out.mkdir(parents=True, exist_ok=True)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy what files of a tokenizer ``source`` has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def label_names(labels: Sequence[Label]) -> dict[str, dict[str, Any]]:
    """The meaning of a model's outputs, as its config has it."""
    return {
        "id2label": {str(number): str(label) for number, label in enumerate(labels)},
        "label2id": {str(label): number for number, label in enumerate(labels)},
    }


def write_config(out: Path, config: Mapping[str, Any]) -> None:
    """Write a model's config.json."""
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def find_base(name: str) -> Path:
    """The folder of a checkpoint: a local one, or downloaded from the hub by its name.

    Raises:
        SetupProblem: it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        wanted = [CONFIG, *WEIGHTS, *TOKENIZER_FILES]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of many kinds: no such name, no network, no right to read
        raise SetupProblem(
            problem=f"{name} is neither a folder nor available from the hub: "
            f"{' '.join(str(error).split())[:200]}",
            remedy="Pass a folder with a PhoBERT or RoBERTa checkpoint, or its name on the hub",
        ) from error


def _model(recipe: Recipe, labels: Sequence[Label]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, RobertaConfig
    from transformers.utils import logging

    from common.moderation.phobert_tokenizer import load_tokenizer

    logging.set_verbosity_error()
    named = {
        "id2label": {number: str(label) for number, label in enumerate(labels)},
        "label2id": {str(label): number for number, label in enumerate(labels)},
    }
    if isinstance(recipe.start, Fresh):
        shape = recipe.start
        try:
            tokenizer = load_tokenizer(shape.tokenizer)
        except (OSError, ValueError) as error:
            raise SetupProblem(
                problem=f"{shape.tokenizer} holds no tokenizer: {error}",
                remedy=f"Name a folder with {VOCABULARY} and {MERGES}, or {ANY_TOKENIZER}",
            ) from error
        config = RobertaConfig(
            vocab_size=tokenizer.size,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.hidden,
            max_position_embeddings=recipe.max_tokens + 2,
            type_vocab_size=1,
            bos_token_id=tokenizer.first,
            eos_token_id=tokenizer.last,
            **named,
        )
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                recipe.start, local_files_only=True, ignore_mismatched_sizes=True, **named
            )
        except Exception as error:  # of many kinds, and all of them say that it cannot be loaded
            raise SetupProblem(
                problem=f"{recipe.start} cannot be loaded: {' '.join(str(error).split())[:300]}",
                remedy="Pass a folder with a PhoBERT or RoBERTa checkpoint",
            ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _write_config(out: Path, model: Any, recipe: Recipe) -> ModelFolder:
    """Make ``out`` a model's folder that lacks only the weights."""
    model.config.save_pretrained(out)
    source = recipe.start.tokenizer if isinstance(recipe.start, Fresh) else recipe.start
    copy_tokenizer(source, out)
    if not any((out / name).is_file() for name in (MERGES, ANY_TOKENIZER)):
        from transformers import AutoTokenizer  # it knows older forms, and writes the newer one

        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(out)
    folder = read_folder(out)
    return replace(
        folder,
        name=out.absolute().name,
        max_tokens=min(folder.max_tokens, recipe.max_tokens),
        segmented=folder.segmented if recipe.segmented is None else recipe.segmented,
        normalised=folder.normalised if recipe.normalised is None else recipe.normalised,
    )


def _add_ours(out: Path, folder: ModelFolder) -> None:
    """Write what `read_folder` will read of ours."""
    config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    config[OURS] = {
        "name": folder.name,
        "segmented": folder.segmented,
        "normalised": folder.normalised,
        "max_tokens": folder.max_tokens,
        "thresholds": {str(label): value for label, value in folder.thresholds.items()},
    }
    write_config(out, config)


class _Learner:
    """A model with its optimiser and the schedule of its rate."""

    def __init__(self, model: Any, padding: int, columns: Sequence[int], recipe: Recipe) -> None:
        import torch

        self._model = model
        self._padding = padding
        self._columns = columns
        self._recipe = recipe
        self._random = random.Random(recipe.seed)  # noqa: S311 - an order, no secret
        counts = np.bincount(columns, minlength=model.config.num_labels)
        weights = np.ones(len(counts))
        if recipe.class_weights != "none":
            weights = len(columns) / (len(counts) * np.maximum(counts, 1))
        if recipe.class_weights == "sqrt":
            weights = np.sqrt(weights)
        self._loss = torch.nn.CrossEntropyLoss(
            torch.tensor(weights, dtype=torch.float32, device=model.device)
        )
        matrices = [it for it in model.parameters() if it.ndim > 1]
        others = [it for it in model.parameters() if it.ndim <= 1]  # biases and normalisation
        self._optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": WEIGHT_DECAY},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.rate,
        )
        steps = math.ceil(len(columns) / recipe.batch) * recipe.epochs
        warm_up = max(round(WARM_UP * steps), 1)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser,
            lambda step: min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1)),
        )

    def epoch(self, windows: Sequence[Ids]) -> float:
        """Train for one epoch. Returns the mean loss."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        self._model.train()
        losses: list[float] = []
        sizes = list(map(len, windows))
        for batch in shuffled_batches(sizes, self._recipe.batch, self._random):
            texts = [torch.from_numpy(windows[at]) for at in batch]
            ids = pad_sequence(texts, batch_first=True, padding_value=self._padding)
            mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
            device = self._model.device
            logits = self._model(ids.to(device), attention_mask=mask.to(device)).logits
            wanted = torch.tensor([self._columns[at] for at in batch], device=device)
            loss = self._loss(logits, wanted)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT)
            self._optimiser.step()
            self._schedule.step()
            self._optimiser.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)
