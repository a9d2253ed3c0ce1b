"""A run of `steno bench` or `steno bench stream`: its folder, progress and findings."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.settings import Settings
from scripts.bench.report import BenchPart, all_met, machine, show, show_machine, summary
from scripts.stack.embedded import own
from scripts.stack.stack import available_cores

Command = Callable[..., None]
Progress = Callable[[str], None]
"""Called with the current activity."""


def chosen(text: str | None, parts: Sequence[str]) -> tuple[str, ...]:
    """The parts in ``text``, separated by commas, in their own order; all where there is none.

    Raises:
        click.BadParameter: it names an unknown part, or none.
    """
    if text is None:
        return tuple(parts)
    asked = {part.strip() for part in text.split(",") if part.strip()}
    if not asked or not asked <= set(parts):
        raise click.BadParameter(f"has to be some of {','.join(parts)}")
    return tuple(part for part in parts if part in asked)


def parts_option(parts: Sequence[str]) -> Callable[[Command], Command]:
    """The option that chooses among ``parts``."""
    return click.option(
        "--parts",
        callback=lambda _, __, text: chosen(text, parts),
        metavar="PART,...",
        help=f"What to measure [{','.join(parts)}].",
    )


cores_option = click.option(
    "--cores", type=click.IntRange(min=1), default=2, help="Cores, and workers, to use [2]."
)
json_option = click.option(
    "--json",
    "as_json",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write all figures to this file as well.",
)


class Findings:
    """Prints findings part by part, and writes them to ``as_json`` as well."""

    def __init__(self, console: Console, *, cores: int, quick: bool, as_json: Path | None) -> None:
        self._console = console
        self._quick = quick
        self._as_json = as_json
        self._parts: list[BenchPart] = []
        self._machine = machine(_keep_to(cores))
        show_machine(self._machine, console)
        used = self._machine["cores_used"]
        if used < cores:
            console.print(f"Only {used} cores are available: {cores} workers share them.")
        if quick:
            console.print("A quick run: the targets are meant for a full one.", style="yellow")

    def take(self, part: BenchPart) -> None:
        self._parts.append(part)
        show(part, self._console)
        if self._as_json is not None:
            document = json.dumps(self._document(), indent=2, ensure_ascii=False)
            self._as_json.write_text(document)

    def sum_up(self) -> bool:
        """Print how many targets were met; returns whether all were."""
        self._console.print()
        self._console.print(summary(self._parts), style="bold")
        return all_met(self._parts)

    def _document(self) -> dict[str, Any]:
        return {
            "machine": self._machine,
            "quick": self._quick,
            "parts": {part.name: part.document() for part in self._parts},
        }


@contextmanager
def working(settings: Settings) -> Iterator[tuple[Path, Progress]]:
    """A folder for this run, empty before and after it, and a callback for its progress."""
    place = settings.storage.data_dir.absolute() / "bench"
    lock = own(place)
    try:
        _clear(place)
        with Console(stderr=True).status("") as status:
            yield place, lambda what: status.update(f"{what} ...")
    finally:
        _clear(place)
        lock.close()


def _clear(place: Path) -> None:
    """Delete everything but the lock: leftovers may be from a killed run."""
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink()


def _keep_to(cores: int) -> int:
    """Pin this process and its children to so many cores, where the system can do that."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        return available_cores()
    return min(cores, available_cores())
