"""A model of PhoBERT's shape: its tokenizer's two files, and labelled sentences to train it on.

Everything is made up here: syllables that Vietnamese could have, merges that spell them, and a
vocabulary of as many words as PhoBERT's.
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice, product
from pathlib import Path

from click.testing import CliRunner, Result

from common.domain.moderation import Label

VOCABULARY = 64_001
"""Ids of PhoBERT: 4 special tokens, the words of vocab.txt, and the mask."""

WORDS = {
    Label.CLEAN: ("hôm nay trời rất đẹp", "cảm ơn bạn đã giúp", "bài hát này hay quá"),
    Label.OFFENSIVE: ("dốt như con bò", "câm mồm lại đi", "đồ khùng điên rồ"),
    Label.HATE: ("lũ chúng nó đáng bị đuổi", "cút hết bọn chúng đi", "ghét cả cái bọn đó"),
}
FILLING = (
    "tôi nghĩ là", "anh ấy nói", "thật ra thì", "ngoài kia", "mọi người ơi", "nghe đây nhé",
    "sáng nay", "ở trường học", "trên đường về nhà", "theo như tin tức",
)  # fmt: skip
_ONSETS = ("", *"b c d đ g h k l m n p r s t v x ch gh gi kh ng ngh nh ph qu th tr".split())  # noqa: SIM905
_RHYMES = (
    *"a á à ả ã ạ e ê i o ô ơ u ư y ă â an ang anh ao ay ắt ất áo ánh ang ên ết iên ông ơi".split(),  # noqa: SIM905
    *"úp ọi ạn ài át ày á ồ ò ìn âm ồm ũ úng ó áng ị ổi uổi út ểt ôm ời ẹp ảm ơn".split(),  # noqa: SIM905
)


def write_tokenizer(folder: Path) -> None:
    """Write vocab.txt and bpe.codes, in PhoBERT's format and of its size."""
    words_used = " ".join([*FILLING, *(each for several in WORDS.values() for each in several)])
    syllables = [*dict.fromkeys(words_used.split()), *(a + b for a, b in product(_ONSETS, _RHYMES))]
    merges: dict[tuple[str, str], None] = {}
    pieces: dict[str, None] = {}
    for syllable in syllables:
        symbols = [*syllable[:-1], f"{syllable[-1]}</w>"]
        pieces.update(dict.fromkeys(f"{symbol}@@" for symbol in symbols[:-1]))
        pieces[syllable[-1]] = None
        built = symbols[0]
        for symbol in symbols[1:]:
            merges[built, symbol] = None
            built += symbol
            pieces[f"{built}@@" if built != f"{syllable}</w>" else syllable] = None
    fillers = (f"từ_{number}" for number in count())
    words = [*pieces, *islice(fillers, VOCABULARY - 5 - len(pieces))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text(
        "".join(f"{word} {len(words) - rank}\n" for rank, word in enumerate(words)), "utf-8"
    )
    (folder / "bpe.codes").write_text(
        "".join(
            f"{one} {other} {len(merges) - rank}\n" for rank, (one, other) in enumerate(merges)
        ),
        "utf-8",
    )


def examples(number: int, seed: int = 0) -> list[tuple[str, Label]]:
    """Sentences whose label is plain to a reader, in equal parts."""
    chance = random.Random(seed)  # noqa: S311 - made up, no secret
    found = []
    for label in islice(cycle(Label), number):
        before = chance.sample(FILLING, chance.randint(1, 3))
        word = chance.choice(WORDS[label])
        after = chance.sample(FILLING, chance.randint(0, 2))
        found.append((" ".join([*before, word, *after]), label))
    return found


def write_csv(path: Path, rows: Sequence[tuple[str, Label]]) -> Path:
    """Write labelled texts with ViHSD's columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["free_text", "label_id"])
        writer.writerows((text, label.severity) for text, label in rows)
    return path


@dataclass(frozen=True, slots=True)
class PhoBert:
    """A trained checkpoint, its export, what it was trained on, and what the commands printed."""

    tokenizer: Path
    data: Path
    checkpoint: Path
    onnx: Path
    trained: str
    exported: str


def make_phobert(folder: Path) -> PhoBert:
    """Train two layers for a few seconds by `steno moderation train`, and export them."""
    tokenizer, checkpoint, onnx = (folder / name for name in ("tokenizer", "checkpoint", "onnx"))
    write_tokenizer(tokenizer)
    data = write_csv(folder / "data.csv", examples(600))
    shape = ("--layers", "2", "--hidden", "32", "--max-length", "256")
    how = ("--epochs", "3", "--batch", "16", "--lr", "3e-3")
    fresh = ("--from-scratch", "--tokenizer", tokenizer)
    trained = moderation("train", data, "--out", checkpoint, *fresh, *shape, *how)
    exported = moderation("export", checkpoint, "--out", onnx)
    return PhoBert(tokenizer, data, checkpoint, onnx, trained.stdout, exported.stdout)


def moderation(*arguments: str | Path, fails: bool = False) -> Result:
    """Run `steno moderation` in this process."""
    import torch

    from scripts.cli.cli import steno

    torch.set_num_threads(1)  # others may be using the other cores
    done = CliRunner().invoke(steno, ["moderation", *map(str, arguments)])
    assert (done.exit_code != 0) == fails, done.output
    return done


def moderation_process(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `steno moderation` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "scripts", "moderation", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
