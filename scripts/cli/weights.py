"""Download weights that are needed beforehand, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from common.domain.models import ModelName
from common.errors import (
    PullFailed,
    SetupProblem,
    UnknownOption,
    WeightsCorrupt,
    WeightsMissing,
)
from common.settings import AsrSettings, StreamSettings
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore

LINES = 10
"""How many lines report the progress without a terminal."""


def have_default_weights(asr: AsrSettings, streams: StreamSettings) -> None:
    """Download the default weights of jobs and of live streams unless they are present.

    Without those of streams, jobs are possible: a failure is only reported.

    Raises:
        SetupProblem: those of jobs are neither present nor in the manifest.
        PullFailed: every source of those of jobs failed.
    """
    have_one(asr, asr.default_models)
    if not asr.auto_fetch or not streams.limit_of(streams.engine):
        return
    try:
        have_weights(asr, streams.engine, streams.model)
    except (UnknownOption, PullFailed) as error:
        click.echo(f"For live streams: {error.message}", err=True)


def have_one(asr: AsrSettings, names: Sequence[ModelName]) -> None:
    """Download the first of these weights that has a source, unless a better one is present.

    With ``AUTO_FETCH=false``, nothing is downloaded where any of them is present.

    Raises:
        SetupProblem: they are neither present nor in the manifest.
        PullFailed: no source had any of them.
    """
    if not asr.auto_fetch and _any_is_present(asr, names):
        return
    for name in names:
        try:
            have_weights(asr, name.engine, name.model)
        except UnknownOption as error:
            if name != names[-1]:
                continue
            raise SetupProblem(
                problem=f"DEFAULT_MODEL {name.model} for {name.engine} is not in "
                f"{asr.models_dir}, and the manifest has no source for it",
                remedy="Put it there, or set DEFAULT_MODEL to one of `steno models list`",
            ) from error
        except PullFailed as error:
            if name == names[-1]:
                raise
            click.echo(f"{error.message}; trying {names[names.index(name) + 1]}", err=True)
        else:
            return


def _any_is_present(asr: AsrSettings, names: Sequence[ModelName]) -> bool:
    states = WeightsStore(asr.models_dir, Manifest.load()).states()
    here = {ModelName(it.engine, it.model) for it in states if it.state == "present"}
    return not here.isdisjoint(names)


def have_weights(asr: AsrSettings, engine: str, model: str) -> None:
    """Download these weights unless they are present and whole.

    Raises:
        UnknownOption: they are not in the manifest.
        PullFailed: every source failed.
        SetupProblem: their folder is not writable.
    """
    store = WeightsStore(asr.models_dir, Manifest.load())
    with suppress(WeightsMissing, WeightsCorrupt):
        store.resolve(engine, model)
        return
    from common.weights.pull import Puller  # slow to import, and rarely needed

    try:
        with transfer_bar() as report:
            Puller(store, progress=report).pull(engine, model)
    except OSError as error:
        raise SetupProblem(
            problem=f"{model} for {engine} cannot be written to {asr.models_dir}: "
            f"{error.strerror or error}",
            remedy="Set MODELS_DIR to a writable folder",
        ) from error


@contextmanager
def transfer_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, removed at the end; lines where stderr is a file."""
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
            if done < bar.tasks[0].completed:  # another file or source: start over
                bar.reset(task, total=total)
            bar.update(task, description=what, completed=done, total=total)
            before, share = share, done * LINES // total
            if share > before and not console.is_terminal:
                console.print(f"{what}: {share * 100 // LINES} %", soft_wrap=True)

        yield report
