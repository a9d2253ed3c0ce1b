"""`steno moderation`: train, export, check and evaluate moderation models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.domain.moderation import Label, Thresholds, decide
from common.errors import SetupProblem
from common.settings import ModerationSettings
from scripts.cli.cli import load_settings
from scripts.training.data import (
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    Example,
    hold_out,
    read_examples,
    texts_and_labels,
)

if TYPE_CHECKING:
    from common.moderation.moderator import Moderator, Scores
    from scripts.training.metrics import Choice, Report

SHOWN = 44
"""Characters of a text that a table shows."""

_folder = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path, dir_okay=False)


def _with_columns(command: Callable[..., None]) -> Callable[..., None]:
    for what, known in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
        help_ = f"Column of the {what}s [{' or '.join(known)}]."
        command = click.option(f"--{what}-column", help=help_)(command)
    return command


@click.group()
def moderation() -> None:
    """Train, export, check and evaluate models that label texts CLEAN, OFFENSIVE or HATE.

    train and export need PyTorch: .venv/bin/python -m pip install -e '.[train]'
    """


@moderation.command()
@click.argument("data", type=_file, nargs=-1, required=True)
@click.option("--out", type=_folder, required=True, help="Folder to write; it must not exist yet.")
@click.option("--base", help="Checkpoint to fine-tune: a folder, or a name on the hub.")
@click.option("--from-scratch", is_flag=True, help="Train a small RoBERTa from random weights.")
@click.option(
    "--ngrams",
    type=click.Choice(["linear", "gru", "both"]),
    help="Train a small model of hashed n-grams: their votes, a GRU over them, or both.",
)
@click.option("--tokenizer", type=_folder, help="Folder of its tokenizer (--from-scratch).")
@click.option("--layers", type=click.IntRange(1, 48), default=4, show_default=True)
@click.option("--hidden", type=click.IntRange(16, 4096), default=256, show_default=True)
@click.option("--dev", type=_file, help="CSV to stop early and to choose thresholds by.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.1,
    show_default=True,
    help="Share of DATA for that, without --dev.",
)
@_with_columns
@click.option("--epochs", type=click.IntRange(1, 1000), help="[5; --ngrams: 3]")
@click.option("--patience", type=click.IntRange(1), default=2, show_default=True)
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True)
@click.option("--lr", type=click.FloatRange(0, 1, min_open=True), help="[2e-5; fresh: 5e-4]")
@click.option("--max-length", type=click.IntRange(8, 8192), default=128, show_default=True)
@click.option(
    "--class-weights",
    type=click.Choice(["balanced", "sqrt", "none"]),
    default="balanced",
    show_default=True,
    help="Weigh rare labels up: in full, by the square root, not at all.",
)
@click.option("--segment/--no-segment", default=None, help="Join the words [as PhoBERT: yes].")
@click.option("--normalise/--no-normalise", default=None, help="Normalise texts [as --base: no].")
@click.option("--seed", type=int, default=0, show_default=True)
def train(data: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Train a model on DATA, one or more CSV files of texts and labels.

    Labels are CLEAN, OFFENSIVE and HATE, or 0, 1 and 2. Give --base to fine-tune a PhoBERT or
    RoBERTa, or --from-scratch with --tokenizer. It stops when macro-F1 on the held-out texts has
    not risen for --patience epochs, keeps the best weights, and chooses thresholds there. Texts
    longer than --max-length tokens are truncated.

    The bundled model was made with --ngrams both, which takes no --dev: its thresholds are chosen
    by four models, each trained without a quarter of DATA and evaluated on it. Of the options below
    only --epochs, --seed and the columns are for it.
    """
    _require("torch", "transformers")
    if sum(map(bool, (options["base"], options["from_scratch"], options["ngrams"]))) != 1:
        raise click.UsageError("Give one of --base, --from-scratch and --ngrams")
    if options["ngrams"] is not None:
        _refuse_but("data", "out", "ngrams", "epochs", "seed", "text_column", "label_column")
        _train_ngrams(data, out, options)
        return
    from scripts.training.train import Fresh, Recipe, find_base
    from scripts.training.train import train as run

    base, tokenizer = options["base"], options["tokenizer"]
    if options["from_scratch"] and tokenizer is None:
        raise click.UsageError("--from-scratch needs --tokenizer")
    learned = _all_examples(data, options)
    if options["dev"] is not None:
        held = _examples(options["dev"], **_picked(options))
    else:
        learned, held = hold_out(learned, options["held_out"], options["seed"])
    if base is not None:
        start: Path | Fresh = find_base(base)
    else:
        start = Fresh(tokenizer, options["layers"], options["hidden"])
    recipe = Recipe(
        start,
        epochs=options["epochs"] or 5,
        batch=options["batch"],
        rate=options["lr"] or (2e-5 if base is not None else 5e-4),
        max_tokens=options["max_length"],
        class_weights=options["class_weights"],
        patience=options["patience"],
        segmented=options["segment"],
        normalised=options["normalise"],
        seed=options["seed"],
    )
    _say(f"learning from {len(learned)} texts, held out: {len(held)}")
    trained = run(learned, held, out, recipe, _say)
    _show_trained(held, trained.scores, trained.choice, f"held-out texts, epoch {trained.epoch}")
    click.echo(f"{out}: macro-F1 {trained.choice.macro_f1:.4f} on {len(held)} held-out texts")


def _refuse_but(*known: str) -> None:
    """Reject options that would be ignored."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in known:
            raise click.UsageError(f"{parameter.opts[0]} does not go with --ngrams")


def _train_ngrams(data: Sequence[Path], out: Path, options: dict[str, Any]) -> None:
    from scripts.training.ngrams import EPOCHS, NgramRecipe, train
    from scripts.training.train import prepare_folder

    examples = _all_examples(data, options)
    prepare_folder(out)
    _say(f"learning from {len(examples)} texts")
    recipe = NgramRecipe(options["ngrams"], options["epochs"] or EPOCHS, options["seed"])
    trained = train(examples, out, recipe, _say)
    _show_trained(examples, trained.scores, trained.choice, "cross-validated in quarters")
    click.echo(f"{out}: macro-F1 {trained.choice.macro_f1:.4f}, cross-validated in quarters")


def _show_trained(examples: Sequence[Example], scores: Scores, choice: Choice, title: str) -> None:
    from scripts.training.metrics import decide_all, report

    _say(
        f"thresholds {_written(choice.thresholds)}; macro-F1 with 0.5 for each: "
        f"{choice.at_default:.4f}, chosen on one half and evaluated on the other: "
        f"{choice.cross_checked:.4f}"
    )
    truth = [example.label.severity for example in examples]
    _show(report(truth, decide_all(scores, choice.thresholds), scores), title)


@moderation.command()
@click.argument("checkpoint", type=_folder)
@click.option("--out", type=_folder, required=True, help="Folder to write; it must not exist yet.")
@click.option("--opset", type=click.IntRange(17), default=18, show_default=True)
@click.option("--int8/--no-int8", default=True, help="Write model_int8.onnx too [yes].")
@click.option("--texts", type=_file, help="CSV with more texts to compare.")
@_with_columns
def export(
    checkpoint: Path,
    out: Path,
    opset: int,
    int8: bool,
    texts: Path | None,
    text_column: str | None,
    label_column: str | None,
) -> None:
    """Export CHECKPOINT to an ONNX folder that runs without PyTorch.

    It has model.onnx (fp32), which must agree with PyTorch, and model_int8.onnx, smaller and
    faster, which is preferred when present: delete it to run fp32.
    """
    _require("torch", "transformers", "optimum")
    from scripts.training.export import export as run
    from scripts.training.smoke import SAMPLES, segments

    compared = [*SAMPLES, *segments(), " ".join(SAMPLES * 4)]
    if texts is not None:
        rows = _examples(texts, text_column=text_column, label_column=label_column)
        compared += [example.text for example in rows]
    labels = load_settings().moderation.moderation_labels
    made = run(checkpoint, out, compared, labels=labels, opset=opset, int8=int8)
    click.echo(f"fp32: scores within {made.fp32_difference:.1e} of PyTorch's ({made.texts} texts)")
    if made.int8_agreement is not None:
        click.echo(
            f"int8: {made.int8_agreement:.1%} of the labels are PyTorch's, scores within "
            f"{made.int8_difference:.1e}"
        )
    click.echo(f"{out}: run it with PHOBERT_ONNX_DIR={out}")


@moderation.command()
@click.argument("checkpoint", type=_folder)
@click.argument("text", nargs=-1)
def check(checkpoint: Path, text: tuple[str, ...]) -> None:
    """Load CHECKPOINT with PyTorch and label each TEXT (else: samples)."""
    _require("torch", "transformers")
    from scripts.training.export import load_checkpoint

    settings = load_settings().moderation
    started = time.perf_counter()
    moderator = load_checkpoint(
        checkpoint, labels=settings.moderation_labels, thresholds=_chosen(settings)
    )
    _say(f"loaded in {time.perf_counter() - started:.2f} s")
    _predict(moderator, text)


@moderation.command()
@click.argument("text", nargs=-1)
@click.option("--folder", type=_folder, help="Model to load [PHOBERT_ONNX_DIR].")
@click.option("--bare", is_flag=True, help="Measure onnxruntime alone as well.")
@click.option("--speed/--no-speed", default=True, help="Measure speed and memory [yes].")
def smoke(text: tuple[str, ...], folder: Path | None, bare: bool, speed: bool) -> None:
    """Load an ONNX model, label each TEXT (else: samples), and measure.

    Speed is in segments of 20 syllables a second of one core. --bare runs onnxruntime on the same
    batches, by turns: what normalising, segmenting and tokenizing cost on top.
    """
    settings = load_settings().moderation
    started = time.perf_counter()
    from scripts.training.smoke import load, measure

    imported = time.perf_counter() - started
    loaded = load(
        folder or settings.phobert_onnx_dir, settings.moderation_labels, _chosen(settings)
    )
    _predict(loaded.moderator, text)
    click.echo(
        f"{loaded.moderator.graph.name}: imported in {imported:.2f} s, loaded in "
        f"{loaded.seconds:.2f} s, {loaded.memory_mb:.0f} MB"
    )
    if speed:
        found = measure(loaded.moderator, bare=bare)
        line = f"{found.segments:.0f} segments/s on one core, {found.memory_mb:.0f} MB in all"
        if found.bare is not None:
            line += f"; onnxruntime alone {found.bare:.0f}/s, {found.ratio:.2f} times as fast"
        click.echo(line)


@moderation.command("eval")
@click.argument("data", type=_file)
@click.option(
    "--folder", type=_folder, help="Model to evaluate, ONNX or checkpoint [the settings']."
)
@click.option("--lists/--no-lists", default=True, help="Also evaluate with the word lists [yes].")
@_with_columns
def evaluate(
    data: Path,
    folder: Path | None,
    lists: bool,
    text_column: str | None,
    label_column: str | None,
) -> None:
    """Classify the texts of DATA, a CSV of texts and labels, and compare.

    Prints macro-F1, precision and recall of each label, the confusion matrix and the calibration:
    of the model alone, and together with the word lists.
    """
    import numpy as np

    from common.moderation.lexicon import Lexicon
    from common.moderation.moderation import Moderation
    from scripts.training.metrics import decide_all, report

    texts, truth = texts_and_labels(_examples(data, text_column, label_column))
    moderator = _load(folder, load_settings().moderation)
    scores = moderator.scores(texts)
    thresholds = moderator.by.thresholds
    alone = report(truth, decide_all(scores, thresholds), scores)
    _show(alone, f"{moderator.by.model} alone, thresholds {_written(thresholds)}")
    together = alone
    if lists:
        findings = Moderation(moderator, Lexicon()).classify(texts)
        given = np.array([finding.label.severity for finding in findings])
        together = report(truth, given, np.array([finding.scores for finding in findings]))
        _show(together, f"{moderator.by.model} with the word lists")
    click.echo(f"macro-F1 {together.macro_f1:.4f} ({len(texts)} texts, {data})")


def _load(folder: Path | None, settings: ModerationSettings) -> Moderator:
    """The model in ``folder``, be it ONNX or a checkpoint; without one, that of the settings."""
    from common.moderation.hf import WEIGHTS
    from common.moderation.loading import load_moderator

    if folder is not None and any((folder / name).is_file() for name in WEIGHTS):
        from scripts.training.export import load_checkpoint

        return load_checkpoint(
            folder, labels=settings.moderation_labels, thresholds=_chosen(settings)
        )
    place = {} if folder is None else {"use_onnxruntime": True, "phobert_onnx_dir": folder}
    return load_moderator(settings.model_copy(update=place))


def _predict(moderator: Moderator, texts: Sequence[str]) -> None:
    from scripts.training.smoke import SAMPLES

    texts = list(texts) or list(SAMPLES)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("label", *(str(label).lower() for label in Label), "text"):
        table.add_column(heading, no_wrap=True)
    for text, row in zip(texts, moderator.scores(texts).tolist(), strict=True):
        label = decide(row, moderator.by.thresholds)
        shown = Text(shorten(text, SHOWN, placeholder=" ..."))
        table.add_row(str(label), *(f"{score:.3f}" for score in row), shown)
    Console().print(table)
    by = moderator.by
    click.echo(f"{by.model}, sha256 {by.sha256[:12]}, thresholds {_written(by.thresholds)}")


def _show(found: Report, title: str) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("label", no_wrap=True)
    called = (f"as {label}" for label in Label)
    for heading in ("precision", "recall", "F1", "texts", *called):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, figures in found.classes.items():
        table.add_row(
            str(label),
            *(f"{each:.3f}" for each in (figures.precision, figures.recall, figures.f1)),
            str(figures.support),
            *(str(count) for count in found.confusion[label.severity]),
        )
    click.echo(title)
    Console().print(table)
    click.echo(f"macro-F1 {found.macro_f1:.4f}, accuracy {found.accuracy:.4f}")
    bins = (f"{it.confidence:.2f} {it.accuracy:.2f} ({it.count})" for it in found.bins)
    click.echo(f"expected calibration error {found.calibration_error:.3f}; score, share right:")
    click.echo(f"  {', '.join(bins)}\n")


def _examples(
    path: Path, text_column: str | None = None, label_column: str | None = None
) -> list[Example]:
    found = read_examples(path, text_column, label_column)
    if found.skipped:
        lines = shorten(", ".join(map(str, found.skipped)), SHOWN, placeholder=" ...")
        _say(f"{path}: skipped {len(found.skipped)} rows without a text (lines {lines})")
    return list(found.examples)


def _all_examples(paths: Sequence[Path], options: dict[str, Any]) -> list[Example]:
    return [example for path in paths for example in _examples(path, **_picked(options))]


def _picked(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("text_column", "label_column")}


def _chosen(settings: ModerationSettings) -> Thresholds:
    from common.moderation.loading import chosen_thresholds

    return chosen_thresholds(settings)


def _written(thresholds: Thresholds) -> str:
    return ", ".join(f"{label} {value:g}" for label, value in thresholds.items())


def _require(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise SetupProblem(
            problem=f"{' and '.join(missing)} not installed",
            remedy="In the checkout, run: .venv/bin/python -m pip install -e '.[train]'",
        )


def _say(line: str) -> None:
    click.echo(line, err=True)
