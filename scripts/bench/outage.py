"""Latency of a gateway's responses while Redis hangs, compared with a healthy Redis.

Run ``python -m scripts.bench.outage``. It starts a stack of its own without workers, asks each kind
of request alone and twelve at once, stops the Redis server (SIGSTOP: it takes connections and
answers nothing), asks again, and prints how long the slowest answer took. It fails where something
that needs Redis took more than 3 s, or something else more than 1 s.
"""

from __future__ import annotations

import io
import signal
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import click
import httpx
import psutil

from scripts.cli.cli import load_settings
from scripts.stack.stack import Stack

AT_ONCE = 12
ROUNDS = 5
NEEDS_S, FREE_S = 3.0, 1.0
"""Limits of requests that need Redis, and of those that do not."""
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class RequestKind:
    """A kind of request; ``needs`` Redis: it is answered 503 without."""

    name: str
    ask: Callable[[], httpx.Response]
    needs: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """The slowest response, in seconds, and the statuses."""

    slowest_s: float
    statuses: frozenset[int]


def measure(kind: RequestKind, at_once: int) -> Measured:
    """Ask ``ROUNDS`` times alone, or once ``at_once`` times together."""
    if at_once > 1:
        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(lambda _: _timed(kind), range(at_once)))
    else:
        answers = [_timed(kind) for _ in range(ROUNDS)]
    return Measured(max(took for took, _ in answers), frozenset(status for _, status in answers))


def _timed(kind: RequestKind) -> tuple[float, int]:
    started = time.monotonic()
    status = kind.ask().status_code
    return time.monotonic() - started, status


def one_second() -> bytes:
    """A recording."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(32_000))
    return file.getvalue()


def kinds(http: httpx.Client, jobs: list[str]) -> Sequence[RequestKind]:
    """All that is asked; a cancelled job is taken from ``jobs``, whose last one stays."""
    files = {"file": ("a.wav", one_second())}
    seen = jobs[0]

    def cancel() -> httpx.Response:
        return http.post(f"/api/v1/jobs/{jobs.pop()}/cancel")

    return (
        RequestKind("status", partial(http.get, f"/api/v1/status/{seen}")),
        RequestKind("list of jobs", partial(http.get, "/api/v1/jobs")),
        RequestKind("healthz", partial(http.get, "/healthz")),
        RequestKind("cancel", cancel),
        RequestKind("upload", partial(http.post, "/api/v1/upload", files=files), needs=True),
        RequestKind("readyz", partial(http.get, "/readyz"), needs=True),
    )


@click.command()
def main() -> None:
    """Measure, print the table, and exit with 1 where something took too long."""
    broken = False
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stenopool-outage-"))
        settings = load_settings(data_dir=folder, api_port=0)
        running = stack.enter_context(Stack(settings, workers=0, report=lambda _: None))
        http = stack.enter_context(
            httpx.Client(base_url=running.address, timeout=PATIENCE_S, trust_env=False)
        )
        files = {"file": ("a.wav", one_second())}
        jobs = [
            http.post("/api/v1/upload", files=files).json()["job_id"]
            for _ in range(1 + 2 * (AT_ONCE + ROUNDS))
        ]
        asked = kinds(http, jobs)
        (pid,) = running.processes["valkey"]
        redis = psutil.Process(pid)
        found: list[dict[tuple[str, int], Measured]] = []
        for number in (signal.SIGCONT, signal.SIGSTOP):
            redis.send_signal(number)
            found.append(
                {
                    (kind.name, at_once): measure(kind, at_once)
                    for at_once in (AT_ONCE, 1)
                    for kind in asked
                }
            )
        redis.send_signal(signal.SIGCONT)
        click.echo(f"{'':24}{'Redis answers':>18}{'Redis hangs':>18}")
        for kind in asked:
            for at_once in (1, AT_ONCE):
                before, after = (each[kind.name, at_once] for each in found)
                slow = after.slowest_s > (NEEDS_S if kind.needs else FREE_S)
                broken |= slow
                name = kind.name if at_once == 1 else f"{kind.name}, {at_once} at once"
                click.echo(f"{name:24}{_shown(before):>18}{_shown(after):>18}{' !' * slow}")
    sys.exit(int(broken))


def _shown(measured: Measured) -> str:
    statuses = ",".join(map(str, sorted(measured.statuses)))
    return f"{measured.slowest_s:.3f} s ({statuses})"


if __name__ == "__main__":
    main()
