"""What an idle stack uses: processor time over a minute, and memory.

Run ``python -m scripts.bench.idle [FILE]``. It starts a stack of its own with two workers, lets it
rest, and prints for each process what share of a core it took, and its memory (PSS: shared pages
are divided among those who share them). It fails where the whole stack takes 0.5 % of a core or
more.

With FILE (a recording of a few seconds) it also prints how long that takes from upload to COMPLETED
while engines are loaded, and after they were unloaded, and fails where the latter takes over 1 s
more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import psutil

from scripts.cli.cli import load_settings
from scripts.cli.client import ENDED, Gateway
from scripts.stack.stack import Stack

LIMIT = 0.005
"""Of a core."""
SETTLE_S = 20.0
WAIT_S = 30.0
ENGINE_IDLE_S = 5
"""ENGINE_IDLE of the workers, in place of ten minutes."""
MOST_EXTRA_S = 1.0
WARM_CLIPS = 4


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """One process: seconds of processor time since it began, and bytes of memory."""

    name: str
    cpu_s: float
    pss: int


def look(pids: dict[str, list[int]]) -> dict[int, ProcessUsage]:
    """The stack's processes and their descendants, by their ids."""
    found: dict[int, ProcessUsage] = {}
    for role, roots in pids.items():
        for root in roots:
            for process, depth in _family(psutil.Process(root)):
                try:
                    times = process.cpu_times()
                    memory = process.memory_full_info()
                except psutil.Error:  # it has just ended
                    continue
                pss = getattr(memory, "pss", memory.rss)
                found[process.pid] = ProcessUsage(
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
        while gateway.status(job_id, WAIT_S)["status"] not in ENDED:
            pass
        return time.monotonic() - started


def _extra_s(stack: Stack, file: Path, rounds: int) -> float:
    """How much longer a clip takes when the engines were unloaded; medians, in seconds."""
    cold, warm = [], []
    for _ in range(rounds):
        cold.append(_upload(stack, file))
        # The first few may be the first ones of another worker.
        warm += [_upload(stack, file) for _ in range(WARM_CLIPS * stack.workers)][-WARM_CLIPS:]
        while any(psutil.Process(pid).children() for pid in stack.processes["worker"]):
            time.sleep(1)
    click.echo(f"a clip, engines loaded: {_row(warm)}; unloaded: {_row(cold)}")
    return median(cold) - median(warm)


def _row(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f} s, median {median(seconds):.2f}"


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True, help="How long to look.")
@click.option("--workers", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="How often to send FILE after a rest.")
def main(file: Path | None, seconds: float, workers: int, rounds: int) -> None:
    """Print what an idle stack uses; exits with 1 where that is too much."""
    with ExitStack() as on_exit:
        folder = on_exit.enter_context(tempfile.TemporaryDirectory(prefix="stenopool-idle-"))
        settings = load_settings(data_dir=folder, api_port=0, reuse_results="false")
        env = {"ENGINE_IDLE": str(ENGINE_IDLE_S), "REUSE_RESULTS": "false"}
        stack = on_exit.enter_context(
            Stack(settings, workers=workers, report=lambda _: None, env=env)
        )
        time.sleep(SETTLE_S)
        extra_s = 0.0
        if file is not None:
            extra_s = _extra_s(stack, file, rounds)
            click.echo(f"after a rest it takes {extra_s:.2f} s more (limit: {MOST_EXTRA_S:g} s)")
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
    sys.exit(int(total >= LIMIT or extra_s > MOST_EXTRA_S))


if __name__ == "__main__":
    main()
