"""`steno models`: list, pull, convert and verify weights."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Column

from common.domain.models import WHISPER_ENGINES
from common.errors import PullFailed, SetupProblem, UnknownOption, WeightsCorrupt, WeightsMissing
from common.settings import AsrSettings
from common.weights.manifest import (
    ENGINES,
    EVERY_LANGUAGE,
    FASTER_WHISPER,
    Manifest,
)
from common.weights.pull import Puller
from common.weights.store import Weights, WeightsState, WeightsStore
from common.weights.transfer import Meter
from scripts.cli.console import print_table
from scripts.cli.weights import transfer_bar

_STYLES = {"present": "green", "missing": "dim", "corrupt": "bold red"}

_engine = click.Choice(ENGINES)
_whisper = click.Choice(WHISPER_ENGINES)


@click.group()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the weights (default: MODELS_DIR, or models/).",
)
@click.pass_context
def models(context: click.Context, folder: Path | None) -> None:
    """List, pull, convert and verify weights."""
    context.obj = WeightsStore(folder or AsrSettings().models_dir, Manifest.load())


@models.command("list")
@click.pass_obj
def list_(store: WeightsStore) -> None:
    """Show all weights, published and your own, with their state."""
    headings = ("model", "engine", "languages", "size", "licence", "state")
    columns = [
        Column(each, justify="right" if each == "size" else "left", no_wrap=True)
        for each in headings
    ]
    states = store.states()
    print_table(columns, map(_row, states))
    for state in states:
        if state.problem is not None:
            problem = f"{state.model} for {state.engine} cannot be used: {state.problem}"
            click.echo(problem, err=True)


def _row(weights: WeightsState) -> tuple[str, ...]:
    state = f"[{_STYLES[weights.state]}]{weights.state}[/]"
    return (
        weights.model,
        weights.engine,
        _short(weights.languages),
        f"{weights.size / 1e6:,.0f} MB",
        weights.licence,
        state,
    )


def _short(languages: tuple[str, ...]) -> str:
    if languages == EVERY_LANGUAGE:
        return "all"
    return " ".join(languages if len(languages) <= 2 else (*languages[:2], "..."))


@models.command()
@click.argument("model", required=False)
@click.option(
    "--engine",
    type=_engine,
    help="Engine of the weights (default: DEFAULT_ENGINE, or the only one that has MODEL).",
)
@click.pass_obj
def pull(store: WeightsStore, model: str | None, engine: str | None) -> None:
    """Download MODEL (default: DEFAULT_MODEL), or resume an interrupted download.

    auto downloads the best one for DEFAULT_LANGUAGE that has a source.
    """
    names = AsrSettings().models_of(engine or _only_engine_of(store, model), model, None)
    with transfer_bar() as progress:
        puller = Puller(store, progress=progress)
        for name in names:
            try:
                weights = puller.pull(name.engine, name.model)
            except (PullFailed, UnknownOption) as error:
                if name == names[-1]:
                    raise
                progress(0, 0, error.message)
            else:
                break
    _say(weights)


def _only_engine_of(store: WeightsStore, model: str | None) -> str | None:
    """The engine of a model that DEFAULT_ENGINE does not have; None: it has it, or nothing does.

    Raises:
        SetupProblem: several others have it.
    """
    engines = [spec.engine for spec in store.manifest.specs if spec.model == model]
    if AsrSettings().default_engine in engines or not engines:
        return None
    if len(engines) > 1:
        raise SetupProblem(
            problem=f"{model} is a model of {' and of '.join(engines)}",
            remedy="Choose one with --engine",
        )
    return engines[0]


@models.command()
@click.argument("model")
@click.option("--from", "from_engine", type=_whisper, required=True, help="Engine to convert from.")
@click.option("--to", "to_engine", type=_whisper, required=True, help="Engine to convert to.")
@click.option("--name", help="Name of the result (default: MODEL).")
@click.pass_obj
def convert(
    store: WeightsStore, model: str, from_engine: str, to_engine: str, name: str | None
) -> None:
    """Convert MODEL between engines. From whisper.cpp to whisper.cpp makes MODEL-q8_0."""
    with transfer_bar() as progress:
        weights = Puller(store, progress=progress).convert(model, from_engine, to_engine, name)
    _say(weights)


@models.command()
@click.argument("model", required=False)
@click.option("--engine", type=_engine, help="Only this engine's.")
@click.pass_obj
def verify(store: WeightsStore, model: str | None, engine: str | None) -> None:
    """Read MODEL (default: all that are present) from disk and compare every hash."""
    chosen = [
        key for key in store.present() if model in (None, key[1]) and engine in (None, key[0])
    ]
    if not chosen:
        raise WeightsMissing(model=model or "of any model", engine=engine or FASTER_WHISPER)
    corrupt = 0
    for engine_, model_ in chosen:
        label = f"{model_} ({engine_})"
        try:
            with transfer_bar() as progress:
                meter = Meter(progress, store.spec(engine_, model_).size, f"reading {label}")
                weights = store.verify(engine_, model_, tick=meter.add)
        except (WeightsCorrupt, WeightsMissing) as error:
            corrupt += 1
            click.echo(f"{label}: {error}", err=True)
        else:
            click.echo(f"{label}: ok, sha256 {weights.sha256}")
    if corrupt:
        raise click.ClickException(f"{corrupt} of {len(chosen)} are corrupt")


def _say(weights: Weights) -> None:
    click.echo(f"{weights.model} ({weights.engine}): {weights.path}, sha256 {weights.sha256}")
