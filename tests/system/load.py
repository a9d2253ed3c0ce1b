"""Latency of the gateway while many clients upload short recordings and poll their status.

Run ``scripts/test --system load FOLDER``: a stack of its own (workers niced, as they always are),
200 clients for a minute, each sending a recording from FOLDER, asking about once a second where it
stands until it is done, and then sending the next. The clients run on the same cores.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import click
import httpx
import numpy as np

from common.errors import SetupProblem
from scripts.bench.report import BenchPart, Figure, Target, all_met, counted, show
from scripts.bench.service import UnderTest
from scripts.cli.client import ENDED
from scripts.cli.console import make_console
from scripts.cli.recordings import find_recordings
from scripts.stack.stack import available_cores

PAUSE_S = (0.5, 1.5)
"""From an answer to a client's next question, at random: clients that all pause alike would fall
into step, and then come all at once."""
ARRIVAL_S = 5.0
"""Within how many seconds all clients send their first recording."""
WANTED_MS = 100.0
"""What most questions (95 %) may take."""
LARGEST_BYTES = 1_000_000


@dataclass
class Seen:
    """What all clients measured; times in milliseconds, by kind of request."""

    times: dict[str, list[float]] = field(default_factory=lambda: {"status": [], "upload": []})
    errors: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    unfinished: int = 0


class Client:
    """One of many: sends a recording, asks until it is done, sends the next."""

    def __init__(self, address: str, files: Iterator[Path], seen: Seen) -> None:
        self._http = httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, trust_env=False)
        self._files = files
        self._seen = seen

    async def run(self, delay_s: float, deadline: float) -> None:
        """Go on until ``deadline`` on the monotonic clock, beginning after a delay of its own."""
        async with self._http:
            await asyncio.sleep(delay_s)
            while time.monotonic() < deadline:
                path = next(self._files)
                sent = {"file": (path.name, path.read_bytes())}
                accepted = await self._ask("upload", "POST", "/upload", files=sent)
                if accepted is None:
                    await asyncio.sleep(_pause_s())
                    continue
                await self._follow(accepted["job_id"], deadline)

    async def _follow(self, job_id: str, deadline: float) -> None:
        while time.monotonic() < deadline:
            await asyncio.sleep(_pause_s())
            state = await self._ask("status", "GET", f"/status/{job_id}")
            if state is not None and state["status"] in ENDED:
                if state["status"] == "COMPLETED":
                    self._seen.completed += 1
                else:
                    self._seen.errors[f"job {state['status']}: {state['error_code']}"] += 1
                return
        self._seen.unfinished += 1

    async def _ask(
        self, kind: str, method: str, path: str, files: dict[str, tuple[str, bytes]] | None = None
    ) -> dict[str, str] | None:
        started = time.monotonic()
        try:
            answer = await self._http.request(method, path, files=files)
        except httpx.HTTPError as error:
            self._seen.errors[f"{kind}: {type(error).__name__}"] += 1
            return None
        self._seen.times[kind].append((time.monotonic() - started) * 1000)
        if answer.status_code != httpx.codes.OK:
            self._seen.errors[f"{kind}: {answer.status_code}"] += 1
            return None
        document: dict[str, str] = answer.json()
        return document


def _pause_s() -> float:
    return random.uniform(*PAUSE_S)  # noqa: S311 - nobody has to be unable to guess it


async def load(address: str, files: list[Path], clients: int, seconds: float) -> Seen:
    """Have ``clients`` use the gateway for ``seconds``."""
    seen, each = Seen(), cycle(files)
    deadline = time.monotonic() + seconds
    await asyncio.gather(
        *(
            Client(address, each, seen).run(number * ARRIVAL_S / clients, deadline)
            for number in range(clients)
        )
    )
    return seen


def report(seen: Seen, clients: int, seconds: float) -> BenchPart:
    """The figures, the promised ones with what was promised."""
    figures = [counted("errors", seen.errors.total(), Target(0))]
    for kind, times in seen.times.items():
        p50, p95, p99 = np.percentile(times or [0.0], [50, 95, 99])
        target = Target(WANTED_MS) if kind == "status" else None
        figures += [
            counted(f"{kind}: requests", len(times)),
            Figure(f"{kind}: median", (float(p50),), "ms"),
            Figure(f"{kind}: 95th percentile", (float(p95),), "ms", target=target),
            Figure(f"{kind}: 99th percentile", (float(p99),), "ms"),
        ]
    figures += [
        counted("jobs completed", seen.completed),
        counted("jobs still under way", seen.unfinished),
    ]
    title = f"{clients} clients for {seconds:g} s"
    return BenchPart(
        "load", title, tuple(figures), remarks=tuple(f"{k}: {n}" for k, n in seen.errors.items())
    )


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clients", default=200, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--language", default="vi", show_default=True)
def main(folder: Path, clients: int, seconds: float, language: str) -> None:
    """Measure, print, and exit with 1 where a target is missed."""
    found, _ = find_recordings([folder])
    files = [path for path in found if path.stat().st_size <= LARGEST_BYTES]
    if not files:
        raise SetupProblem(problem=f"{folder} has no short recordings", remedy="Name another")
    with UnderTest(available_cores()) as service:
        service.warm_up(files, {"language": language})
        seen = asyncio.run(load(service.address, files, clients, seconds))
    part = report(seen, clients, seconds)
    show(part, make_console())
    sys.exit(not all_met([part]))
