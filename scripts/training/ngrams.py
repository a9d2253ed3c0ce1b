"""The small bundled model: hashed n-grams, summed and read by a recurrent layer.

Wide and deep (Cheng et al., arXiv 1606.07792), over the features of `common.moderation.ngrams`.
Wide: each feature of a text votes for each label, weighted by how rare it is, and the sum is
divided by the length of the vector of all weights (TF-IDF). Deep: the features of a syllable are
summed to a vector, a bidirectional GRU reads these, and its outputs' maximum and mean decide.
Either can be left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding_bag
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.domain.moderation import Label, Thresholds
from common.moderation.folder import CONFIG, OURS, read_folder, unusable
from common.moderation.inputs import Worst, to_scores
from common.moderation.moderator import Scores
from common.moderation.ngrams import BUCKETS, Features, NgramInputs, features, padded, windows
from scripts.training.data import (
    Example,
    require_labels,
    shuffled_batches,
    texts_and_labels,
)
from scripts.training.metrics import Trained, choose_thresholds
from scripts.training.train import label_names, write_config

MODEL_TYPE = "ngram-gru"
WEIGHTS = "model.safetensors"
Parts = Literal["linear", "gru", "both"]

WIDTH = 96
"""Numbers a syllable is summed to, and that each direction of the GRU remembers."""
DROPOUT = 0.4
FEATURES_DROPPED = 0.1
SYLLABLES_DROPPED = 0.1
"""Shares left out at random while learning, so that no single one is relied on."""
CROPPED = 0.15
CROP = 6
"""The share of clean texts in whose place a piece is shown, of so many syllables at most: else
whatever is short and unknown draws suspicion, and segments of speech are short."""
SMOOTHING = 0.05
"""Of the labels: people disagree about them."""
WARM_UP = 0.1
DENSE_RATE, TABLE_RATE, VOTE_RATE = 2e-3, 2e-3, 5e-3
MAX_GRADIENT = 1.0
BATCH = 64
EPOCHS = 3
FOLDS = 4


@dataclass(frozen=True, slots=True)
class NgramRecipe:
    """How to train: which parts, how many epochs, and the seed."""

    parts: Parts = "both"
    epochs: int = EPOCHS
    seed: int = 0


class NgramNet(nn.Module):  # type: ignore[misc] # nothing is known of it without PyTorch
    """Logits, shape (texts, labels), from features, shape (texts, syllables, slots)."""

    rarity: Tensor

    def __init__(self, parts: Parts, labels: int, rarity: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("rarity", torch.zeros(BUCKETS) if rarity is None else rarity)
        self.bias = nn.Parameter(torch.zeros(labels))
        self.votes = nn.Parameter(torch.zeros(BUCKETS, labels)) if parts != "gru" else None
        self.table = None
        if parts != "linear":
            self.table = nn.Parameter(torch.randn(BUCKETS, WIDTH) * 0.1)
            self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
            self.out = nn.Linear(4 * WIDTH, labels)
            self.dropout = nn.Dropout(DROPOUT)

    def forward(self, found: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            lengths = (found[:, :, 0] > 0).sum(1)
        known = found * (self.rarity[found] > 0)  # features never seen in training do not count
        logits = self.bias.expand(len(found), -1)
        if self.votes is not None:
            logits = logits + self._voted(known.flatten(1))
        if self.table is not None:
            logits = logits + self._read(self.table, known, lengths)
        return logits

    def _voted(self, known: Tensor) -> Tensor:
        assert self.votes is not None  # noqa: S101 - for the type checker
        rarity = self.rarity[known]
        votes = embedding_bag(
            known, self.votes, mode="sum", per_sample_weights=rarity, sparse=True, padding_idx=0
        )
        length: Tensor = (rarity.square().sum(1, keepdim=True) + 1e-6).sqrt()
        return votes / length

    def _read(self, table: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        texts, syllables, slots = known.shape
        sums = embedding_bag(
            known.view(-1, slots), table, mode="sum", sparse=True, padding_idx=0
        ).view(texts, syllables, -1)
        count = (known > 0).sum(2, keepdim=True).clamp(min=1)
        vectors = self.dropout(sums / count.sqrt())
        packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        read, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=syllables)
        said = torch.arange(syllables) < lengths[:, None]
        most = read.masked_fill(~said[:, :, None], -1e4).amax(1)
        mean = read.sum(1) / lengths[:, None]
        scored: Tensor = self.out(self.dropout(torch.cat([most, mean], 1)))
        return scored


def is_ngrams(path: Path) -> bool:
    """Whether the checkpoint in ``path`` is an n-gram model."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        return bool(config["model_type"] == MODEL_TYPE)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # loading it reports what is wrong


class NgramModerator:
    """An n-gram checkpoint run by PyTorch: the reference for its exported graph.

    Raises:
        ModerationUnusable: something is missing or broken.
    """

    def __init__(self, path: Path, *, thresholds: Thresholds | None = None) -> None:
        folder = read_folder(path)
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        self.net = NgramNet(config["parts"], len(folder.labels))
        try:
            self.net.load_state_dict(load_file(path / WEIGHTS))
        except (OSError, RuntimeError, ValueError) as error:
            raise unusable(path, f"{WEIGHTS} cannot be loaded: {error}") from error
        self.net.eval()
        self.folder = folder
        sha256 = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
        self.by = folder.moderated_by(sha256, thresholds)

    def scores(self, texts: Sequence[str]) -> Scores:
        return _score(self.net, texts, self.folder.labels)


def train(
    examples: Sequence[Example], out: Path, recipe: NgramRecipe, progress: Callable[[str], None]
) -> Trained:
    """Train on ``examples`` and write the folder ``out``, which exists and is empty.

    The thresholds are chosen by what `FOLDS` models, each taught without its part of the examples,
    say about that part; the model that is kept is taught with all.

    Raises:
        SetupProblem: there are fewer than two labels.
    """
    labels = require_labels(examples, "The training data")
    texts, truth = texts_and_labels(examples)
    columns = np.array([labels.index(example.label) for example in examples])
    found = [features(text) for text in texts]
    order = np.random.default_rng(recipe.seed).permutation(len(texts))
    scores = np.zeros((len(texts), len(Label)), np.float32)
    for fold in range(FOLDS):
        held = order[fold::FOLDS]
        taught = np.setdiff1d(order, held)
        net = _taught([found[at] for at in taught], columns[taught], len(labels), recipe)
        scores[held] = _score(net, [texts[at] for at in held], labels)
        progress(f"fold {fold + 1} of {FOLDS} scored")
    choice = choose_thresholds(scores, truth, recipe.seed)
    net = _taught(found, columns, len(labels), recipe)
    _save(net, out, labels, recipe, choice.thresholds)
    return Trained(scores, choice, recipe.epochs)


def _taught(
    found: Sequence[Features], columns: NDArray[np.intp], labels: int, recipe: NgramRecipe
) -> NgramNet:
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)  # noqa: S311 - an order, no secret
    # A longer text is learned from by one of its windows, each time anew.
    cut = [windows(rows) for rows in found]
    is_clean = (columns == 0).tolist()  # `require_labels` has CLEAN first
    net = NgramNet(recipe.parts, labels, _rarity(found))
    sparse = {"table": TABLE_RATE, "votes": VOTE_RATE}
    named = dict(net.named_parameters())
    dense = [parameter for name, parameter in named.items() if name not in sparse]
    optimisers: list[Any] = [torch.optim.AdamW(dense, lr=DENSE_RATE, weight_decay=0.01)]
    for name, rate in sparse.items():
        if name in named:
            optimisers.append(torch.optim.SparseAdam([named[name]], lr=rate))
    steps = math.ceil(len(found) / BATCH) * recipe.epochs
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step / steps))
        for optimiser in optimisers
    ]
    net.train()
    for _ in range(recipe.epochs):
        picked = [
            _cropped(rng.choice(parts), rng) if clean else rng.choice(parts)
            for parts, clean in zip(cut, is_clean, strict=True)
        ]
        for batch in shuffled_batches(list(map(len, picked)), BATCH, rng):
            block = torch.from_numpy(padded([picked[at] for at in batch])).long()
            lengths = torch.tensor([len(picked[at]) for at in batch])
            logits = net(_thinned(block), lengths)
            loss = cross_entropy(
                logits, torch.from_numpy(columns[batch]), label_smoothing=SMOOTHING
            )
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(dense, MAX_GRADIENT)
            for optimiser, schedule in zip(optimisers, schedules, strict=True):
                optimiser.step()
                schedule.step()
    net.eval()
    return net


def _cropped(rows: Features, rng: random.Random) -> Features:
    """At times, a piece of a text."""
    if rng.random() >= CROPPED:
        return rows
    start = rng.randrange(len(rows))
    piece = rows[start : start + rng.randint(1, CROP)].copy()
    piece[0, -2:] = piece[1:2, -1] = 0  # pairs and triples with what went before
    return piece


def _rarity(found: Sequence[Features]) -> Tensor:
    """The inverse document frequency of each feature; 0 for those that occur in one text only."""
    counts = np.zeros(BUCKETS)
    for rows in found:
        counts[np.unique(rows)] += 1
    rarity = np.where(counts > 1, np.log((1 + len(found)) / (1 + counts)) + 1, 0.0)
    rarity[0] = 0.0
    return torch.tensor(rarity, dtype=torch.float32)


def _pace(share: float) -> float:
    """The rate at a share of all steps: up in a line, down in a half cosine."""
    if share < WARM_UP:
        return 0.04 + 0.96 * share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _thinned(block: Tensor) -> Tensor:
    """Features, and all those of some syllables, left out at random."""
    features_kept = torch.rand(block.shape) > FEATURES_DROPPED
    syllables_kept = torch.rand(block.shape[:2]) > SYLLABLES_DROPPED
    return block * features_kept * syllables_kept[:, :, None]


def _score(net: NgramNet, texts: Sequence[str], labels: Sequence[Label]) -> Scores:
    worst = Worst(len(texts))
    with torch.inference_mode():
        for batch in NgramInputs().batches(texts):
            logits = net(torch.from_numpy(batch.feeds["features"]).long()).numpy()
            worst.add(batch.owners, to_scores(logits, labels))
    return worst.scores


def _save(
    net: NgramNet, out: Path, labels: Sequence[Label], recipe: NgramRecipe, thresholds: Thresholds
) -> None:
    save_file(net.state_dict(), out / WEIGHTS)
    config = {
        "model_type": MODEL_TYPE,
        "parts": recipe.parts,
        **label_names(labels),
        OURS: {
            "name": out.absolute().name,
            "thresholds": {str(label): value for label, value in thresholds.items()},
        },
    }
    write_config(out, config)
