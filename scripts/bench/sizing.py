"""What a worker takes for each set of weights on this machine: memory, and one core's speed.

``python -m scripts.bench.sizing RECORDING [--minutes N] [--model M ...]`` plans and transcribes the
start of a recording as a worker does, each set of weights in a process of its own, on `THREADS`
threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger
from rich.table import Table

from common.settings import ROOT, Settings, import_from_checkout, load_settings
from common.weights.manifest import WHISPER_ENGINES, Manifest
from common.weights.store import WeightsState, WeightsStore
from scripts.bench.direct import peak_mb
from scripts.cli.console import make_console

if TYPE_CHECKING:
    from common.audio.planning import PlannedChunk

MEGABYTE = 1_000_000


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--language", default="en")
    parser.add_argument(
        "--model", action="append", help="only this model; may be given several times"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    settings = load_settings()
    if asked.one:
        logger.remove()
        print(json.dumps(_measure(settings, asked)))  # noqa: T201 - its parent reads it
        return 0
    table = Table("engine", "model", "on disk", "loaded", "at most", "loads in", "a minute takes")
    for state in _present(settings, asked.model):
        found = _in_a_process(state)
        table.add_row(
            state.engine,
            state.model,
            f"{state.size / MEGABYTE:.0f} MB",
            f"{found['loaded'] / MEGABYTE:.0f} MB",
            f"{found['peak'] / MEGABYTE:.0f} MB",
            f"{found['loading_s']:.1f} s",
            f"{found['cpu_s'] / found['minutes']:.1f} s of a core",
        )
    console = make_console()
    console.print(f"{asked.recording.name}, the first {asked.minutes:g} minutes")
    console.print(table)
    return 0


def _present(settings: Settings, wanted: list[str] | None) -> Iterator[WeightsState]:
    for state in WeightsStore(settings.asr.models_dir, Manifest.load()).states():
        hears_recordings = state.state == "present" and state.engine in WHISPER_ENGINES
        if hears_recordings and (not wanted or state.model in wanted):
            yield state


def _in_a_process(state: WeightsState) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.bench.sizing", *sys.argv[1:]]
    done = subprocess.run(
        [*command, "--one", state.engine, state.model],
        env={**os.environ, **import_from_checkout()},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(settings: Settings, asked: argparse.Namespace) -> dict[str, Any]:
    """The cost of one engine process that plans and transcribes this recording alone."""
    for library in ("OMP", "OPENBLAS"):  # as a worker sets it for its engine process
        os.environ.setdefault(f"{library}_NUM_THREADS", str(settings.asr.threads))
    from common.asr.engine import DecodingOptions
    from worker.engines import Engines
    from worker.memory import Memory
    from worker.moderation import WarmModeration
    from worker.steps.audio import cut_samples

    memory = Memory()
    store = WeightsStore(settings.asr.models_dir, Manifest.load())
    engines = Engines(store, settings.asr, memory)
    WarmModeration(settings.moderation, memory).get()
    started = time.monotonic()
    engine = engines.get(*asked.one)
    loading_s, loaded = time.monotonic() - started, memory.held
    chunks = [
        cut_samples(planned.pcm, planned.chunk.windows, planned.chunk.audio)
        for planned in _plan(asked.recording, asked.minutes)
    ]
    used = time.process_time()
    for windows in chunks:
        engine.transcribe(windows, DecodingOptions(language=asked.language))
    return {
        "loading_s": loading_s,
        "loaded": loaded,
        "peak": round(peak_mb(os.getpid()) * MEGABYTE),
        "cpu_s": time.process_time() - used,
        "minutes": asked.minutes,
    }


def _plan(recording: Path, minutes: float) -> Iterator[PlannedChunk]:
    from common.audio.decode import MonoDecoder
    from common.audio.planning import Planner, PlanOptions
    from common.audio.silero import SileroNetwork

    planner = Planner(PlanOptions(), SileroNetwork())
    decoding = MonoDecoder(recording)
    for block in decoding:
        yield from planner.feed(block)
        if decoding.duration_ms >= minutes * 60_000:
            break
    yield from planner.finish()


if __name__ == "__main__":
    sys.exit(main())
