"""The command line: ``scripts/steno`` runs it as a module, an installed ``steno`` calls `main`."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line with the packages that lie beside this one, as in the checkout."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from scripts.cli.cli import COMMAND, steno

    steno(prog_name=COMMAND)


if __name__ == "__main__":
    main()
