"""Texts become the ids that PhoBERT was trained on, as transformers' own tokenizer has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import RobertaProcessing
from transformers import PhobertTokenizer

from common.moderation.phobert_tokenizer import Tokenizer, load_tokenizer
from tests.support.phobert import FILLING, VOCABULARY, write_tokenizer

UNKNOWN = 3

syllables = st.sampled_from(" ".join(FILLING).split())
vietnamese = st.lists(st.lists(syllables, min_size=1, max_size=3).map("_".join)).map(" ".join)
glued = st.lists(st.one_of(syllables, st.text(max_size=3))).map("".join)
characters = st.characters(codec="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


@given(text=st.one_of(vietnamese, glued, st.text(characters)))
def test_any_text_has_the_ids_of_transformers(ours: Tokenizer, theirs: Any, text: str) -> None:
    expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours.encode(text).tolist() == expected


def test_special_tokens_have_phoberts_ids(ours: Tokenizer, theirs: Any) -> None:
    assert (ours.first, ours.last) == (theirs.cls_token_id, theirs.sep_token_id) == (0, 2)
    assert ours.size == len(theirs) == VOCABULARY


def test_a_text_cannot_speak_as_a_special_token(ours: Tokenizer) -> None:
    assert not {0, 1, 2, VOCABULARY - 1} & set(ours.encode("<s> <pad> </s> <mask>").tolist())


def test_what_no_merge_spells_is_unknown_letter_by_letter(ours: Tokenizer) -> None:
    assert ours.encode("漢字").tolist() == [UNKNOWN, UNKNOWN]


def test_a_merge_into_a_word_that_the_vocabulary_lacks_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a@@ 3\nb 2\n", "utf-8")
    (tmp_path / "bpe.codes").write_text("a b</w> 1\n", "utf-8")
    assert load_tokenizer(tmp_path).encode("ab b").tolist() == [UNKNOWN, 5]


def test_nothing_has_no_ids(ours: Tokenizer) -> None:
    assert ours.encode(" \n ").tolist() == []


def test_a_million_letters_without_a_space_all_become_ids(ours: Tokenizer) -> None:
    assert len(ours.encode("q" * 1_000_000)) == 1_000_000


def test_any_other_models_tokenizer_is_read_from_its_json(tmp_path: Path) -> None:
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "hello": 4, "world": 5}
    backend = Backend(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello world hello world hello").tolist() == [4, 5, 4, 5, 4]
    assert (tokenizer.first, tokenizer.last, tokenizer.size) == (0, 2, 6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"word\n", "vocab.txt, line 1: expected a token and a count, got 'word'"),
        ("vocab.txt", b"w\xff 1\n", "vocab.txt is not UTF-8 (byte 1)"),
        ("bpe.codes", b"", "bpe.codes has no merges"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r".+") as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize("content", ["{", json.dumps({"model": {}})])
def test_a_broken_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_rejected_with_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither vocab\.txt with bpe\.codes nor"):
        load_tokenizer(tmp_path)
