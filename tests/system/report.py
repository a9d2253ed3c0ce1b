"""What a proof found, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was measured; ``ok`` is None where nothing was asked of it."""

    what: str
    measured: str
    asked: str = ""
    ok: bool | None = None

    @property
    def mark(self) -> str:
        return {None: "", True: "ok", False: "NOT OK"}[self.ok]

    def __str__(self) -> str:
        asked = f" (asked: {self.asked})" if self.asked else ""
        return f"{self.what}: {self.measured}{asked} {self.mark}".rstrip()


def faults_row(what: str, faults: Sequence[str], asked: str, fine: str) -> Row:
    """A row about something in which nothing should be found."""
    return Row(what, "; ".join(faults) or fine, asked, not faults)


def show(rows: Mapping[str, Sequence[Row]], console: Console) -> None:
    """Print a table, and how much of what was asked is so; ``rows`` are by title."""
    table = Table("", "measured", "asked", "", box=None, pad_edge=False)
    for number, (title, each) in enumerate(rows.items()):
        if number:
            table.add_row()
        table.add_row(Text(title, style="bold"))
        for row in each:
            style = "bold red" if row.ok is False else "green"
            cells = (row.what, row.measured, row.asked)
            table.add_row(*(Text(cell) for cell in cells), Text(row.mark, style=style))
    console.print(table)
    checked = [row for each in rows.values() for row in each if row.ok is not None]
    broken = [row.what for row in checked if not row.ok]
    line = f"{len(checked) - len(broken)} of {len(checked)} ok"
    console.print(line + (f"; not ok: {'; '.join(broken)}" if broken else ""))


def all_ok(rows: Mapping[str, Sequence[Row]]) -> bool:
    """Whether something was asked, and nothing was found wanting."""
    marks = [row.ok for each in rows.values() for row in each if row.ok is not None]
    return bool(marks) and all(marks)
