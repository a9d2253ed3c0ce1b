"""Tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Column, Table

WIDTH = 110
"""Columns where there is no terminal to ask."""


def make_console() -> Console:
    """Standard output, wide enough for the tables where it is a file."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def print_table(columns: Iterable[Column | str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without lines."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    make_console().print(table)
