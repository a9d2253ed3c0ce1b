"""``steno`` as pip, pipx and uv install it: out of a folder laid out as the checkout."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the command line with this copy's packages."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from scripts.cli import steno

    steno(prog_name="steno")
