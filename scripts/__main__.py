"""``python -m scripts``: the command line behind ``scripts/steno``."""

from scripts.cli import steno

steno(prog_name="steno")
