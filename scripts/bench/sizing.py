"""What a worker takes for each set of weights on this machine: memory, and one core's speed.

``python -m scripts.bench.sizing RECORDING [--minutes N] [--model M ...]`` plans and transcribes the
start of a recording as a worker does, each set of weights in a process of its own, on `THREADS`
threads.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import click
from loguru import logger
from rich.table import Table

from common.asr.engine import DecodingOptions
from common.domain.models import BATCH_ENGINES, ModelName
from common.settings import load_settings
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.bench.direct import apart, peak_mb, planned_chunks
from scripts.cli.console import make_console

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Sized:
    """What weights took: resident bytes once loaded, MB at most, seconds of loading and of CPU."""

    loaded: int
    peak_mb: float
    loading_s: float
    cpu_s: float


@click.command(help=__doc__)
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--minutes", default=3.0, show_default=True)
@click.option("--language", default="en", show_default=True)
@click.option(
    "--model", "models", multiple=True, help="Only this model; may be given several times."
)
def main(recording: Path, minutes: float, language: str, models: tuple[str, ...]) -> None:
    """Measure, and print the table."""
    asr = load_settings().asr
    for library in ("OMP", "OPENBLAS"):  # as a worker sets it for its engine process
        os.environ.setdefault(f"{library}_NUM_THREADS", str(asr.threads))
    table = Table("engine", "model", "on disk", "loaded", "at most", "loads in", "a minute takes")
    for state in WeightsStore(asr.models_dir, Manifest.load()).states():
        if state.state != "present" or state.engine not in BATCH_ENGINES:
            continue
        if models and state.model not in models:
            continue
        found = apart(measure, state.engine, state.model, recording, minutes, language)
        table.add_row(
            state.engine,
            state.model,
            f"{state.size / MEGABYTE:.0f} MB",
            f"{found.loaded / MEGABYTE:.0f} MB",
            f"{found.peak_mb:.0f} MB",
            f"{found.loading_s:.1f} s",
            f"{found.cpu_s / minutes:.1f} s of a core",
        )
    console = make_console()
    console.print(f"{recording.name}, the first {minutes:g} minutes")
    console.print(table)


def measure(engine: str, model: str, recording: Path, minutes: float, language: str) -> Sized:
    """The cost of one engine process that plans and transcribes this recording alone."""
    from worker.engines import Engines
    from worker.memory import Memory
    from worker.models import Models
    from worker.moderation import WarmModeration
    from worker.steps.audio import cut_samples

    logger.remove()
    settings = load_settings()
    memory = Memory()
    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    engines = Engines(Models(store), settings.asr, memory)
    WarmModeration(settings.moderation, memory).get()
    started = time.monotonic()
    loaded = engines.get(ModelName(engine, model))
    loading_s, loaded_bytes = time.monotonic() - started, memory.held
    chunks = [
        cut_samples(planned.pcm, planned.chunk.windows, planned.chunk.audio)
        for planned in planned_chunks(recording, minutes * 60)
    ]
    used = time.process_time()
    for windows in chunks:
        loaded.transcribe(windows, DecodingOptions(language=language))
    return Sized(loaded_bytes, peak_mb(os.getpid()), loading_s, time.process_time() - used)


if __name__ == "__main__":
    main()
