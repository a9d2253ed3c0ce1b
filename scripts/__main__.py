"""``python -m scripts``: the command line behind ``scripts/steno``."""

from scripts.cli import COMMAND, steno

steno(prog_name=COMMAND)
