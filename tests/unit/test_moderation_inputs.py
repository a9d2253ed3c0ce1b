"""Texts become batches in which every token of every text is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.moderation import Label
from common.errors import ModerationUnusable
from common.moderation.folder import ModelFolder
from common.moderation.inputs import (
    BATCH_ROWS,
    BATCH_TOKENS,
    OVERLAP,
    TokenInputs,
    Worst,
    to_scores,
)
from common.moderation.onnx import inputs_for
from tests.support.phobert import write_tokenizer

NAMES = ("input_ids", "attention_mask")
MAX_TOKENS = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path)
    thresholds = {Label.OFFENSIVE: 0.5, Label.HATE: 0.5}
    return ModelFolder(path, "model", tuple(Label), MAX_TOKENS, 1, True, False, thresholds)


@pytest.fixture(scope="module")
def inputs(folder: ModelFolder) -> TokenInputs:
    return TokenInputs(folder, NAMES)


@given(length=st.integers(0, 2000))
def test_windows_hold_every_token_and_overlap(inputs: TokenInputs, length: int) -> None:
    text = "q" * length  # a token each
    windows = inputs.windows(text)
    whole = inputs.tokenizer.encode(text).tolist()
    assert all((window[0], window[-1]) == (0, 2) for window in windows)
    assert all(len(window) <= MAX_TOKENS for window in windows)
    covered = windows[0][1:-1].tolist()
    for window in windows[1:]:
        inner = window[1:-1].tolist()
        assert len(inner) > OVERLAP
        covered += inner[OVERLAP:]
    assert covered == whole


@given(lengths=st.lists(st.integers(0, 600), max_size=40), apart=st.booleans())
def test_batches_hold_every_row_once_and_stay_small(
    folder: ModelFolder, inputs: TokenInputs, lengths: list[int], apart: bool
) -> None:
    texts = ["q" * length for length in lengths]
    chosen = TokenInputs(folder, NAMES, apart=True) if apart else inputs
    tokens = np.zeros(len(texts), int)
    for batch in chosen.batches(texts):
        ids, mask = batch.feeds["input_ids"], batch.feeds["attention_mask"]
        assert len(ids) <= BATCH_ROWS
        assert len(ids) == 1 or ids.size <= BATCH_TOKENS
        assert (mask.any(axis=0)).all(), "a column of nothing but padding"
        assert ((ids == 1) == (mask == 0)).all()
        if apart:
            assert len(set(batch.owners)) == 1
        np.add.at(tokens, batch.owners, mask.sum(axis=1))
    expected = [sum(map(len, inputs.windows(text))) for text in texts]
    assert tokens.tolist() == expected


def test_a_graph_gets_the_inputs_that_it_names(folder: ModelFolder) -> None:
    names = {"input_ids", "token_type_ids"}
    (batch,) = inputs_for(names, folder).batches(["xin chào"])
    assert set(batch.feeds) == names


def test_a_graph_of_another_kind_is_rejected(folder: ModelFolder) -> None:
    with pytest.raises(ModerationUnusable, match="its graph has unsupported inputs: audio, pixels"):
        inputs_for({"audio", "pixels"}, folder)


def test_half_a_surrogate_pair_is_a_sign_like_any_other(inputs: TokenInputs) -> None:
    assert len(inputs.windows("a \ud800 b")) == 1


def test_labels_that_a_model_does_not_know_have_no_share() -> None:
    scores = to_scores(np.log(np.array([[3.0, 1.0]], np.float32)), (Label.HATE, Label.CLEAN))
    assert scores[0] == pytest.approx([0.25, 0.0, 0.75])


def test_a_text_has_the_scores_of_its_worst_window() -> None:
    worst = Worst(2)
    worst.add(np.array([1, 0]), np.array([[0.25, 0.25, 0.5], [0.75, 0.25, 0]], np.float32))
    worst.add(np.array([1, 0]), np.array([[0.5, 0.5, 0], [0.125, 0.875, 0]], np.float32))
    assert worst.scores.tolist() == [[0.125, 0.875, 0], [0.25, 0.25, 0.5]]
