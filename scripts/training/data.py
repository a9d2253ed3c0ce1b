"""Labelled texts: read from CSV, checked, and split for training."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.domain.moderation import Label
from common.errors import SetupProblem

TEXT_COLUMNS = ("text", "free_text")
LABEL_COLUMNS = ("label", "label_id")
"""Default column names; the second of each is ViHSD's."""

_NUMBERED = {str(label.severity): label for label in Label}
_MEANINGS = {**_NUMBERED, **{str(label): label for label in Label}}
LENGTH_POOL = 50
"""Batches that are sorted by length together: little padding, and still a random order."""
_LONGEST_FIELD = 1 << 27


@dataclass(frozen=True, slots=True)
class Example:
    """A text and its label."""

    text: str
    label: Label


@dataclass(frozen=True, slots=True)
class Examples:
    """What a CSV file holds. ``skipped`` are the lines that have no text."""

    examples: tuple[Example, ...]
    skipped: tuple[int, ...]


def read_examples(
    path: Path, text_column: str | None = None, label_column: str | None = None
) -> Examples:
    """Read a CSV with a header; labels are names of `Label` in any case, or 0, 1, 2.

    Raises:
        SetupProblem: it cannot be read, lacks a column, or has another label; it names the line.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        text_at = _column(path, header, text_column, TEXT_COLUMNS, "text")
        label_at = _column(path, header, label_column, LABEL_COLUMNS, "label")
        rows = [(reader.line_num, row[text_at], row[label_at]) for row in reader]
    except csv.Error as error:
        raise _wrong(path, reader.reader.line_num, f"no CSV ({error})") from error
    examples: list[Example] = []
    skipped: list[int] = []
    for line, text, label in rows:
        if label is None:
            raise _wrong(path, line, "fewer values than the header has columns")
        if (meaning := _MEANINGS.get(label.strip().upper())) is None:
            raise _wrong(
                path, line, f"the label {label!r} is not one of {', '.join(Label)} (or 0, 1, 2)"
            )
        if text.strip():
            examples.append(Example(text, meaning))
        else:
            skipped.append(line)
    if not examples:
        raise SetupProblem(problem=f"{path} has no rows with a text", remedy="Name another file")
    return Examples(tuple(examples), tuple(skipped))


def hold_out(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split the examples in two, the second with ``share`` of each label (at least one)."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - a split, no secret
    kept: list[Example] = []
    held: list[Example] = []
    for label in Label:
        of_label = [example for example in shuffled if example.label is label]
        count = min(max(round(share * len(of_label)), 1), len(of_label) // 2)
        held += of_label[:count]
        kept += of_label[count:]
    return kept, held


def shuffled_batches(lengths: Sequence[int], size: int, chance: random.Random) -> list[list[int]]:
    """The numbers of all texts in batches of ``size`` and of like lengths, in a random order."""
    order = list(range(len(lengths)))
    chance.shuffle(order)
    batches = []
    for start in range(0, len(order), size * LENGTH_POOL):
        alike = sorted(order[start : start + size * LENGTH_POOL], key=lambda at: lengths[at])
        batches += [alike[at : at + size] for at in range(0, len(alike), size)]
    chance.shuffle(batches)
    return batches


def require_labels(examples: Sequence[Example], what: str) -> tuple[Label, ...]:
    """The labels that occur, in order: CLEAN and one other at least.

    Raises:
        SetupProblem: there are not enough of them.
    """
    found = {example.label for example in examples}
    if Label.CLEAN not in found or len(found) < 2:
        raise SetupProblem(
            problem=f"{what} is labelled {' and '.join(sorted(found)) or 'nowhere'} only",
            remedy=f"Training needs {Label.CLEAN} and at least one other label",
        )
    return tuple(label for label in Label if label in found)


def texts_and_labels(examples: Sequence[Example]) -> tuple[list[str], list[int]]:
    """The texts, and their labels as numbers in the order of `Label`."""
    return [it.text for it in examples], [it.label.severity for it in examples]


def _column(
    path: Path, header: Sequence[str], wanted: str | None, known: Sequence[str], what: str
) -> str:
    names = (wanted,) if wanted is not None else known
    for name in names:
        if name in header:
            return name
    raise SetupProblem(
        problem=f"{path} has no column {' or '.join(names)}, but {', '.join(header) or 'none'}",
        remedy=f"Name its column with --{what}-column",
    )


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetupProblem(
            problem=f"{path} cannot be read: {error.strerror}", remedy="Name a CSV file"
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _wrong(
            path, line, f"not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from error


def _wrong(path: Path, line: int, what: str) -> SetupProblem:
    return SetupProblem(problem=f"{path}, line {line}: {what}", remedy="Nothing was done")
