"""How a gateway responds while thousands of connections hold incomplete request heads (slowloris).

Run ``python -m scripts.bench.connections``: a stack of its own without workers, on loopback only,
and processes that open 20,000 connections (5,000 each) and send half a head over each. Before and
meanwhile a regular client polls a job's status, over a new connection each time. It exits with 1
where a poll failed, or the gateway's log was flooded.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from uuid import uuid4

import click
import httpx
import numpy as np

from scripts.bench.service import UnderTest

EACH = 5_000
"""Connections held by each attacking process."""
HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Never: "
AT_ONCE = 500
CONNECT_S = 10.0
PAUSE_S = 0.1
ANSWER_S = 20.0
QUIET_S = 5.0
START_S = 1.0
"""How long each attacking process waits for the others to start."""
LOG_LINES = 200
"""More log lines than this are a flood; the regular client's requests are not counted."""


@dataclass
class HonestClient:
    """What the regular client measured; times in seconds."""

    times_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        median, p95, most = np.percentile(self.times_s or [float("nan")], [50, 95, 100]) * 1000
        count = len(self.times_s) + self.failures.total()
        failures = f"; failures: {dict(self.failures)}" if self.failures else ""
        return (
            f"{len(self.times_s)} of {count} answered, median {median:.0f} ms, "
            f"95th percentile {p95:.0f} ms, most {most:.0f} ms{failures}"
        )


def hold(port: int, source: str, count: int, until: float) -> Counter[str]:
    """Hold ``count`` connections from ``source`` until that time (of `time.time`).

    Returns:
        How many were ``made``, ``refused`` (not established, or closed before anything was sent)
        and later ``ended`` by the gateway; and the statuses that it sent.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(_hold(port, source, count, until))


async def _hold(port: int, source: str, count: int, until: float) -> Counter[str]:
    held, turn, loop = Counter[str](), asyncio.Semaphore(AT_ONCE), asyncio.get_running_loop()

    async def one() -> None:
        with socket.socket() as line:
            line.setblocking(False)
            try:
                async with turn, asyncio.timeout(CONNECT_S):
                    line.bind((source, 0))
                    await loop.sock_connect(line, ("127.0.0.1", port))
                    await loop.sock_sendall(line, HALF)
            except OSError:
                held["refused"] += 1
                return
            held["made"] += 1
            answer = b""
            try:
                async with asyncio.timeout(max(0.0, until - time.time())):
                    answer = await loop.sock_recv(line, 4096)
            except TimeoutError:
                return
            except OSError:
                pass
            held["ended"] += 1
            if answer.startswith(b"HTTP/1.1 "):
                held[answer[9:12].decode()] += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return held


def ask(address: str, until: float) -> HonestClient:
    """Poll a status until that time, as an unrelated client."""
    asked = HonestClient()
    while time.time() < until:
        started = time.monotonic()
        try:
            with httpx.Client(base_url=address, timeout=ANSWER_S, trust_env=False) as client:
                outcome = str(client.get(f"/api/v1/status/{uuid4()}").status_code)
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        if outcome == "404":
            asked.times_s.append(time.monotonic() - started)
        else:
            asked.failures[outcome] += 1
        time.sleep(PAUSE_S)
    return asked


@click.command()
@click.option("--connections", default=20_000, show_default=True)
@click.option(
    "--sources", default=4, show_default=True, help="Source addresses of the connections."
)
@click.option("--seconds", default=30.0, show_default=True, help="Duration of the whole run, in s.")
def main(connections: int, sources: int, seconds: float) -> None:
    """Hold many connections with half a request head each, and measure other requests meanwhile."""
    counts = [min(EACH, connections - begun) for begun in range(0, connections, EACH)]
    with (
        UnderTest(0) as service,
        ProcessPoolExecutor(len(counts), mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        for started in [pool.submit(time.sleep, START_S) for _ in counts]:
            started.result()
        quiet = ask(service.address, time.time() + QUIET_S)
        until = time.time() + seconds
        attacks = [
            pool.submit(hold, service.stack.port, f"127.0.0.{2 + number % sources}", count, until)
            for number, count in enumerate(counts)
        ]
        asked = ask(service.address, until)
        held = sum((attack.result() for attack in attacks), Counter[str]())
        lines = (service.stack.log_dir / "gateway.log").read_text(errors="replace").splitlines()
    log = [line for line in lines if "GET /api/v1/status/" not in line]
    full = sum("Too many open files" in line for line in log)
    click.echo(
        f"half heads: {held['made']} connections made, {held['refused']} not made, "
        f"{held['ended']} ended by the gateway\n"
        f"  of these with 408: {held['408']}, with 503: {held['503']}\n"
        f"the regular client before: {quiet}\n"
        f"the regular client meanwhile: {asked}\n"
        f"the gateway's log: {len(log)} lines, {full} of them Too many open files"
    )
    sys.exit(int(bool(asked.failures) or len(log) > LOG_LINES))


if __name__ == "__main__":
    main()
