"""How fast cancelling a long recording frees the workers and removes its chunks.

Run ``scripts/test --system cancel FILE``, any recording of more than a few minutes. It starts a
stack of its own, cancels once all workers have their engine at work on the file, and prints for
each worker when its engine had ended and when it waited for the next step, counted from the moment
the request was sent; then, when the last file cut from the recording was deleted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import click
import psutil
from redis import Redis
from rq.worker import WorkerStatus
from sqlalchemy import select

from common.db.tables import Step
from common.domain.job import StepStatus
from common.domain.pipeline import StepKind
from common.redis.queue import connect
from scripts.bench.service import UnderTest
from scripts.cli.console import make_console
from tests.support.service import wait_until
from tests.system.report import Row, all_ok, show

LIMIT_S = 2.0
"""What is promised."""


@dataclass(slots=True)
class Freed:
    """One worker: seconds from the request until its engine had ended, and until it was idle."""

    name: str
    engine_process: psutil.Process
    ended_s: float | None = None
    idle_s: float | None = None


class CancelTrial:
    """A service, and direct access to its Redis."""

    def __init__(self, service: UnderTest, redis: Redis) -> None:
        self._service = service
        self._redis = redis

    def run(self, file: Path, engine: str, model: str, rest_s: float) -> Iterator[Row]:
        """Send the file, cancel it under all workers, and watch what happens."""
        gateway = self._service.gateway
        options = {"language": "auto", "engine": engine, "model": model}
        job_id = self._service.submit(file, options)
        names = wait_until(lambda: self._all_transcribing(job_id), "all workers at work on it")
        workers = [Freed(name, self._engine_process(name)) for name in sorted(names)]
        progress = gateway.status(str(job_id))["progress"]
        files = len(self._chunk_files(job_id))
        started = time.monotonic()
        status = gateway.cancel(str(job_id))["status"]
        answered_s = time.monotonic() - started
        yield Row(
            f"cancelled at {progress} %",
            f"{status} after {answered_s:.2f} s",
            "CANCELLED",
            status == "CANCELLED",
        )
        wait_until(lambda: self._all_free(workers, started), "free workers")
        wait_until(lambda: not self._chunk_files(job_id), "no chunk files")
        deleted_s = time.monotonic() - started
        for number, worker in enumerate(workers, start=1):
            assert worker.idle_s is not None
            yield Row(
                f"worker {number}",
                f"engine ended after {worker.ended_s:.2f} s, free after {worker.idle_s:.2f} s",
                f"free within {LIMIT_S:g} s",
                worker.idle_s <= LIMIT_S,
            )
        time.sleep(rest_s)
        left = len(self._chunk_files(job_id))
        yield Row(
            f"{files} chunk files",
            f"deleted after {deleted_s:.2f} s, {left} left in the end",
            "none left",
            not left,
        )

    def _all_transcribing(self, job_id: UUID) -> set[str] | None:
        with self._service.database.transaction() as session:
            rows = session.scalars(
                select(Step.worker).where(
                    Step.job_id == job_id,
                    Step.kind == StepKind.TRANSCRIBE,
                    Step.status == StepStatus.RUNNING,
                )
            )
            names = {name for name in rows if name is not None}
        return names if len(names) == self._service.workers else None

    def _engine_process(self, name: str) -> psutil.Process:
        """The engine's process of the worker whose name says which process it is."""
        pid = int(name.rsplit("-", 2)[-2])
        return psutil.Process(pid).children()[0]

    def _all_free(self, workers: list[Freed], started: float) -> bool:
        for worker in workers:
            if worker.ended_s is None and _has_ended(worker.engine_process):
                worker.ended_s = time.monotonic() - started
            state = self._redis.hget(f"rq:worker:{worker.name}", "state")
            idle = state == WorkerStatus.IDLE.value.encode()
            if worker.ended_s is not None and worker.idle_s is None and idle:
                worker.idle_s = time.monotonic() - started
        return all(worker.idle_s is not None for worker in workers)

    def _chunk_files(self, job_id: UUID) -> list[Path]:
        folder = self._service.stack.settings.storage.uploads / "chunks" / str(job_id)
        return list(folder.iterdir()) if folder.is_dir() else []


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--workers", default=2, show_default=True)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=["faster-whisper base", "whisper.cpp tiny"],
    show_default=True,
    help="An engine and its weights; may be given several times.",
)
@click.option("--rest", default=20.0, show_default=True, help="Seconds to watch for late files.")
def main(file: Path, workers: int, engines: tuple[str, ...], rest: float) -> None:
    """Cancel FILE under all workers; exits with 1 where that took more than 2 s or left files."""
    rows = {}
    with UnderTest(workers) as service, connect(service.stack.redis_url) as redis:
        trial = CancelTrial(service, redis)
        for each in engines:
            engine, _, model = each.partition(" ")
            rows[each] = list(trial.run(file, engine, model, rest))
    show(rows, make_console())
    sys.exit(not all_ok(rows))
