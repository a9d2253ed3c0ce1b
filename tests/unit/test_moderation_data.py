"""Labelled texts are read whole, and what is wrong with them is said with its line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from common.domain.moderation import Label
from common.errors import SetupProblem
from scripts.training.data import Example, hold_out, read_examples, require_labels


def write(path: Path, content: str | bytes) -> Path:
    file = path / "data.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"một\nhai",HATE\nba,clean\n',
        'free_text,label_id\n"một\nhai",2\nba,0\n',
        '\ufefflabel,id,text\r\nHate,7,"một\nhai"\r\n CLEAN ,8,ba\r\n',
    ],
)
def test_names_and_numbers_are_labels(tmp_path: Path, content: str) -> None:
    found = read_examples(write(tmp_path, content))
    assert found.examples == (Example("một\nhai", Label.HATE), Example("ba", Label.CLEAN))


def test_any_columns_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path, "comment,text,toxic\nba,no,1\n")
    assert read_examples(file, "comment", "toxic").examples == (Example("ba", Label.OFFENSIVE),)


def test_a_row_without_a_text_is_skipped_and_its_line_reported(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path, "text,label\nmột,0\n  ,1\nba,0\n"))
    assert (len(found.examples), found.skipped) == (2, (3,))


def test_a_text_of_a_million_letters_is_read_whole(tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path, f"text,label\n{'a' * 1_000_000},0\n")).examples
    assert len(example.text) == 1_000_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "text,label\nmột,CLEAN\nhai,RUDE\n",
            "data.csv, line 3: the label 'RUDE' is not one of CLEA",
        ),
        ("text,label\nmột,3\n", "line 2: the label '3' is not one of"),
        ("text,label\nmột,\n", "line 2: the label '' is not one of"),
        ("text,label\nmột\n", "line 2: fewer values than the header has columns"),
        ("words,label\nmột,0\n", "no column text or free_text, but words, label"),
        ("text,mark\nmột,0\n", "no column label or label_id, but text, mark"),
        ("", "no column text or free_text, but none"),
        ("text,label\n", "no rows with a text"),
        ('text,label\n"một"x,0\n', "line 2: no CSV"),
        (b"text,label\nm\xf4t,0\n", "line 2: not UTF-8 (byte 0xf4)"),
    ],
)
def test_an_error_in_a_file_names_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(SetupProblem) as caught:
        read_examples(write(tmp_path, content))
    assert said in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match=r"none\.csv cannot be read"):
        read_examples(tmp_path / "none.csv")


def test_what_is_held_out_has_every_label_and_is_not_learned_from() -> None:
    counts = {Label.CLEAN: 80, Label.OFFENSIVE: 15, Label.HATE: 5}
    examples = [
        Example(f"{label} {at}", label) for label, count in counts.items() for at in range(count)
    ]
    kept, held = hold_out(examples, 0.1, seed=1)
    assert Counter(it.label for it in held) == {"CLEAN": 8, "OFFENSIVE": 2, "HATE": 1}
    assert {*kept, *held} == {*examples}
    assert len(kept) + len(held) == len(examples)
    assert hold_out(examples, 0.1, seed=1) == (kept, held)
    assert hold_out(examples, 0.1, seed=2) != (kept, held)


def test_one_label_alone_teaches_nothing() -> None:
    with pytest.raises(SetupProblem, match="The data is labelled HATE only"):
        require_labels([Example("a", Label.HATE)], "The data")
