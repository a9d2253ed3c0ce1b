"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 110
"""Columns where there is no terminal to ask."""


def make_console() -> Console:
    """Standard output, wide enough for the tables where it is a file."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)
