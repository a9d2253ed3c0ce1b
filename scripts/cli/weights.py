"""Having the weights that are needed, with a progress bar, before anything waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from common.errors import SetupProblem, UnknownOption, WeightsCorrupt, WeightsMissing
from common.settings import AsrSettings
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore

LINES = 10
"""Where there is no terminal for a bar, so many lines report the progress."""


def have_default_weights(asr: AsrSettings) -> None:
    """Fetch the weights of jobs that name none, unless they are here.

    Raises:
        SetupProblem: they are neither here nor in the manifest.
        PullFailed: no source gave them.
    """
    try:
        have_weights(asr, asr.default_engine, asr.default_model)
    except UnknownOption as error:
        raise SetupProblem(
            problem=f"DEFAULT_MODEL {asr.default_model} for {asr.default_engine} is not in "
            f"{asr.models_dir}, and nothing is known of where to fetch it",
            remedy="Put it there, or set DEFAULT_MODEL to one that `steno models list` shows",
        ) from error


def have_weights(asr: AsrSettings, engine: str, model: str) -> None:
    """Fetch these weights, unless they are here and whole.

    Raises:
        UnknownOption: they are not in the manifest.
        PullFailed: no source gave them.
        SetupProblem: nothing can be written where they belong.
    """
    store = WeightsStore(asr.models_dir, Manifest.load())
    with suppress(WeightsMissing, WeightsCorrupt):
        store.resolve(engine, model)
        return
    from common.weights.pull import Puller  # it takes a while, and is mostly not needed

    try:
        with transfer_bar() as report:
            Puller(store, progress=report).pull(engine, model)
    except OSError as error:
        raise SetupProblem(
            problem=f"{model} for {engine} cannot be put into {asr.models_dir}: "
            f"{error.strerror or error}",
            remedy="Set MODELS_DIR to a folder that can be written",
        ) from error


@contextmanager
def transfer_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error, gone when the work is done; lines where it is a file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        share = 0

        def report(done: int, total: int, what: str) -> None:
            nonlocal share
            if total == 0:
                console.print(what, markup=False, soft_wrap=not console.is_terminal)
                return
            if done < bar.tasks[0].completed:  # another file, or another source: another speed
                bar.reset(task, total=total)
            bar.update(task, description=what, completed=done, total=total)
            before, share = share, done * LINES // total
            if share > before and not console.is_terminal:
                console.print(f"{what}: {share * 100 // LINES} %", soft_wrap=True)

        yield report
