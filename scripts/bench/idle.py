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
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import psutil

from scripts.bench.service import UnderTest, until

LIMIT = 0.005
"""Of a core."""
SETTLE_S = 20.0
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
        for root in map(psutil.Process, roots):
            for process in (root, *root.children(recursive=True)):
                try:
                    times = process.cpu_times()
                    memory = process.memory_full_info()
                except psutil.Error:  # it has just ended
                    continue
                pss = getattr(memory, "pss", memory.rss)
                name = role if process == root else f"{role} child"
                found[process.pid] = ProcessUsage(name, times.user + times.system, pss)
    return found


def _extra_s(service: UnderTest, file: Path, rounds: int) -> float:
    """How much longer a clip takes when the engines were unloaded; medians, in seconds."""
    cold, warm = [], []
    options = {"language": "en"}
    for _ in range(rounds):
        cold.append(service.run(file, options).seconds)
        # The first few may be the first ones of another worker.
        sent = [service.run(file, options).seconds for _ in range(WARM_CLIPS * service.workers)]
        warm += sent[-WARM_CLIPS:]
        if until(lambda: not service.engine_pids, 60 * ENGINE_IDLE_S, poll_s=1) is None:
            raise click.ClickException("the engines were not unloaded")
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
    with UnderTest(workers, env={"ENGINE_IDLE": str(ENGINE_IDLE_S)}) as service:
        time.sleep(SETTLE_S)
        extra_s = 0.0
        if file is not None:
            extra_s = _extra_s(service, file, rounds)
            click.echo(f"after a rest it takes {extra_s:.2f} s more (limit: {MOST_EXTRA_S:g} s)")
        time.sleep(SETTLE_S)
        before = look(service.stack.processes)
        started, own_s = time.monotonic(), time.process_time()
        time.sleep(seconds)
        total = (time.process_time() - own_s) / seconds
        click.echo(f"{'supervisor':20}{total:8.2%} of a core")
        after, took_s = look(service.stack.processes), time.monotonic() - started
        for pid, taken in after.items():
            share = (taken.cpu_s - before[pid].cpu_s if pid in before else taken.cpu_s) / took_s
            total += share
            click.echo(f"{taken.name:20}{share:8.2%} of a core{taken.pss / 1e6:8.0f} MB")
        memory = sum(taken.pss for taken in after.values())
        click.echo(f"{'all':20}{total:8.2%} of a core{memory / 1e6:8.0f} MB")
    sys.exit(int(total >= LIMIT or extra_s > MOST_EXTRA_S))


if __name__ == "__main__":
    main()
