"""What an idle stack takes: processor time over a minute, and memory.

Run ``python -m scripts.bench_idle [FILE]``. It starts a stack of its own with two workers, sends
FILE (a recording of a few seconds) if one is named, lets the stack rest, and prints for each
process what share of a core it took, and its memory (PSS: shared pages are divided among those who
share them). It fails where the whole stack takes 0.5 % of a core or more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from scripts.cli import load_settings
from scripts.client import Gateway
from scripts.stack import Stack

LIMIT = 0.005
"""Of a core."""
SETTLE_S = 20.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Taken:
    """One process: seconds of processor time since it began, and bytes of memory."""

    name: str
    cpu_s: float
    pss: int


def look(pids: dict[str, list[int]]) -> dict[int, Taken]:
    """The stack's processes and their descendants, by their ids."""
    found: dict[int, Taken] = {}
    for role, roots in pids.items():
        for root in roots:
            for process, depth in _family(psutil.Process(root)):
                try:
                    times = process.cpu_times()
                    memory = process.memory_full_info()
                except psutil.Error:  # it has just ended
                    continue
                pss = getattr(memory, "pss", memory.rss)
                found[process.pid] = Taken(
                    f"{role}{' child' * depth}", times.user + times.system, pss
                )
    return found


def _family(process: psutil.Process, depth: int = 0) -> Iterator[tuple[psutil.Process, int]]:
    yield process, depth
    for child in process.children():
        yield from _family(child, min(1, depth + 1))


def _upload(stack: Stack, file: Path) -> float:
    """Seconds from the request to the end of the job."""
    with Gateway(stack.address) as gateway:
        started = time.monotonic()
        job_id = gateway.upload(file, {"language": "en"})["job_id"]
        while gateway.status(job_id)["status"] not in {"COMPLETED", "FAILED"}:
            time.sleep(POLL_S / 10)
        return time.monotonic() - started


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True, help="How long to look.")
@click.option("--workers", default=2, show_default=True)
@click.option("--engine-idle", default=600.0, show_default=True, help="ENGINE_IDLE of the workers.")
def main(file: Path | None, seconds: float, workers: int, engine_idle: float) -> None:
    """Print what an idle stack takes; exits with 1 where that is too much."""
    with ExitStack() as on_exit:
        folder = on_exit.enter_context(tempfile.TemporaryDirectory(prefix="stenopool-idle-"))
        settings = load_settings(data_dir=folder, api_port=0, reuse_results="false")
        env = {"ENGINE_IDLE": str(engine_idle), "REUSE_RESULTS": "false"}
        stack = on_exit.enter_context(
            Stack(settings, workers=workers, report=lambda _: None, env=env)
        )
        time.sleep(SETTLE_S)
        if file is not None:
            click.echo(f"first clip: {_upload(stack, file):.2f} s")
            click.echo(f"second clip: {_upload(stack, file):.2f} s")
        time.sleep(SETTLE_S)
        before, started, own_s = look(stack.processes), time.monotonic(), time.process_time()
        time.sleep(seconds)
        total = (time.process_time() - own_s) / seconds
        click.echo(f"{'supervisor':20}{total:8.2%} of a core")
        after, took_s = look(stack.processes), time.monotonic() - started
        for pid, taken in after.items():
            share = (taken.cpu_s - before[pid].cpu_s if pid in before else taken.cpu_s) / took_s
            total += share
            click.echo(f"{taken.name:20}{share:8.2%} of a core{taken.pss / 1e6:8.0f} MB")
        memory = sum(taken.pss for taken in after.values())
        click.echo(f"{'all':20}{total:8.2%} of a core{memory / 1e6:8.0f} MB")
        if file is not None:
            click.echo(f"next clip: {_upload(stack, file):.2f} s")
    sys.exit(int(total >= LIMIT))


if __name__ == "__main__":
    main()
