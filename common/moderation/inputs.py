"""What a model reads: texts made into the inputs that its graph names.

A kind of graph is a class that implements `Inputs`, and a line in
`common.moderation.onnx.inputs_for`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from common.domain.moderation import Label
from common.moderation.folder import ModelFolder, unusable
from common.moderation.moderator import Scores
from common.moderation.normalise import normalise
from common.moderation.phobert_tokenizer import Ids, load_tokenizer
from common.moderation.segmentation import segment_words

OVERLAP = 32
"""Tokens that two windows share, so that no phrase is cut in every window."""
BATCH_ROWS = 16
BATCH_TOKENS = 2048
"""More rows or tokens only take memory: on one core, more than 8 rows are not faster."""


Row = tuple[int, NDArray[Any]]
"""A window of a text: the text's number, and its input; the first axis is its length."""


class Batch(NamedTuple):
    """The input of one run of the graph."""

    feeds: dict[str, NDArray[Any]]
    """Arrays by input name; each has one row a window."""
    owners: NDArray[np.intp]
    """The text of each row, counted from 0; a text may have several rows."""


class Inputs(Protocol):
    """Makes texts into the inputs of a graph. Stateless."""

    def batches(self, texts: Sequence[str]) -> Iterator[Batch]:
        """Every text, in one row or several, in any order; a few texts at a time.

        Texts share a batch only where that does not change their scores.
        """


class TokenInputs:
    """``input_ids`` with ``attention_mask``, for any encoder; long texts in overlapping windows.

    Raises:
        ModerationUnusable: the folder has no tokenizer, or a broken one.
    """

    def __init__(
        self, folder: ModelFolder, names: Collection[str] = (), *, apart: bool = False
    ) -> None:
        try:
            self.tokenizer = load_tokenizer(folder.path)
        except FileNotFoundError as error:
            raise unusable(folder.path, error) from error
        except ValueError as error:
            raise unusable(folder.path, f"its tokenizer is broken: {error}") from error
        self._folder = folder
        self._names = frozenset(names)
        self._apart = apart

    def windows(self, text: str) -> list[Ids]:
        """The token ids of a text with the first and last token, in windows the model can take."""
        ids = self.tokenizer.encode(prepared(text, self._folder))
        room = self._folder.max_tokens - 2
        step = max(room - OVERLAP, room // 2)
        starts = range(0, max(len(ids) - room + step, 1), step)
        ends = ([self.tokenizer.first], [self.tokenizer.last])
        return [np.concatenate([ends[0], ids[at : at + room], ends[1]]) for at in starts]

    def batches(self, texts: Sequence[str]) -> Iterator[Batch]:
        rows: list[Row] = [
            (owner, window) for owner, text in enumerate(texts) for window in self.windows(text)
        ]
        if self._apart:
            groups = [list(own) for _, own in groupby(rows, key=lambda row: row[0])]
        else:
            groups = [rows]
        for group in groups:
            yield from map(self._batch, packed(group, BATCH_ROWS, BATCH_TOKENS))

    def _batch(self, rows: list[Row]) -> Batch:
        ids = np.full((len(rows), max(len(window) for _, window in rows)), self._folder.padding)
        mask = np.zeros_like(ids)
        for row, (_, window) in enumerate(rows):
            ids[row, : len(window)] = window
            mask[row, : len(window)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        wanted = {name: feed for name, feed in feeds.items() if name in self._names}
        return Batch(wanted, np.array([owner for owner, _ in rows], np.intp))


def packed(rows: list[Row], most_rows: int, most_cells: int) -> Iterator[list[Row]]:
    """Divide rows into batches of similar lengths.

    A batch of several rows has at most ``most_cells`` cells, padding included. Sorts ``rows``.
    """
    rows.sort(key=lambda row: len(row[1]))  # rows of equal length need no padding
    at = 0
    while at < len(rows):
        count = min(most_rows, len(rows) - at)
        while count > 1 and count * len(rows[at + count - 1][1]) > most_cells:
            count -= 1
        yield rows[at : at + count]
        at += count


def prepared(text: str, folder: ModelFolder) -> str:
    """A text in the form of the model's training: composed, normalised and segmented if needed."""
    text = unicodedata.normalize("NFC", text.encode(errors="replace").decode())
    if folder.normalised:
        text = normalise(text).text
    return segment_words(text) if folder.segmented else text


def to_scores(logits: NDArray[np.float32], labels: Sequence[Label]) -> Scores:
    """The scores of rows from the model's outputs, shape (rows, len(labels)).

    A label that the model lacks has probability 0.
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    meaning = np.array([[label is output for label in Label] for output in labels], np.float32)
    scores: Scores = powers / powers.sum(axis=1, keepdims=True) @ meaning
    return scores


class Worst:
    """Collects the scores of rows into those of texts: a text has the scores of its worst row."""

    def __init__(self, texts: int) -> None:
        self.scores: Scores = np.zeros((texts, len(Label)), np.float32)
        self._clean = np.full(texts, np.inf)

    def add(self, owners: NDArray[np.intp], rows: Scores) -> None:
        for owner, row in zip(owners.tolist(), rows, strict=True):
            if row[0] < self._clean[owner]:
                self._clean[owner], self.scores[owner] = row[0], row
