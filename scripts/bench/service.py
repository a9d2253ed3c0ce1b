"""The service under test: a stack of its own, used over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import psutil
from sqlalchemy import func, select

from common.db.database import Database
from common.db.tables import JobMetrics, Step
from common.domain.job import StepStatus
from common.domain.pipeline import StepKind
from common.errors import SetupProblem
from common.settings import Settings
from scripts.cli.client import ENDED, Gateway
from scripts.stack.stack import Stack

POLL_S = 30.0
"""Longest long poll of a job's status."""
WORKERS_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One finished step; times in seconds since the epoch, ``engine_s`` 0 but for a chunk."""

    kind: StepKind
    worker: str
    start: float
    end: float
    engine_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """A job as its client saw it: from the first byte sent to the answer COMPLETED."""

    job_id: UUID
    sent_at: float
    done_at: float
    result: dict[str, Any]
    metrics: JobMetrics
    steps: tuple[StepTimes, ...]

    @property
    def seconds(self) -> float:
        return self.done_at - self.sent_at

    @property
    def engine_s(self) -> float:
        """The engine's time over all chunks."""
        return self.metrics.engine_ms / 1000

    @property
    def text(self) -> str:
        return str(self.result["text"])

    def text_until(self, end_s: float) -> str:
        """The words that start before ``end_s``."""
        words = (word["word"].strip() for word in self.result["words"] if word["start"] < end_s)
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Shares:
    """Where the workers' time went, in seconds of one worker; together ``workers * wall``.

    ``before``: upload, probe, commit and the way to the first claim. ``plan``: the plan step.
    ``waiting_first``: workers without a chunk while the first ones are being cut. ``engine``:
    inference. ``around``: in a chunk's step, but not in the engine. ``moderation``: the steps that
    moderate. ``between``: from a step to the next. ``tail``: no chunk is left, other workers have
    theirs. ``merge``: all wait for it. ``after``: from the commit to the client's answer.
    """

    before: float
    plan: float
    waiting_first: float
    engine: float
    around: float
    moderation: float
    between: float
    tail: float
    merge: float
    after: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))


def shares(steps: Sequence[StepTimes], workers: int, *, sent_at: float, done_at: float) -> Shares:
    """Divide ``workers`` times the wall time among what the workers did.

    ``steps`` are all steps of one job that nobody else's job disturbed.
    """
    first = min(step.start for step in steps)
    merge = next(step for step in steps if step.kind == StepKind.MERGE)
    by_worker: dict[str, list[StepTimes]] = {}
    for step in steps:
        if step.kind is not StepKind.MERGE:
            by_worker.setdefault(step.worker, []).append(step)
    waiting = between = tail = 0.0
    for done in by_worker.values():
        done.sort(key=lambda step: step.start)
        waiting += done[0].start - first
        between += sum(later.start - earlier.end for earlier, later in pairwise(done))
        tail += merge.start - done[-1].end
    never_called = workers - len(by_worker)
    waiting += never_called * (merge.start - first)
    chunks = [step for step in steps if step.kind == StepKind.TRANSCRIBE]
    engine = sum(step.engine_s for step in chunks)
    return Shares(
        before=workers * (first - sent_at),
        plan=sum(step.end - step.start for step in steps if step.kind == StepKind.PLAN),
        waiting_first=waiting,
        engine=engine,
        around=sum(step.end - step.start for step in chunks) - engine,
        moderation=sum(step.end - step.start for step in steps if step.kind == StepKind.MODERATE),
        between=between,
        tail=tail,
        merge=workers * (merge.end - merge.start),
        after=workers * (done_at - merge.end),
    )


class UnderTest:
    """A stack with ``workers`` single-threaded workers over servers and files of its own.

    ``env`` are further settings, by their names in the environment.
    """

    def __init__(self, settings: Settings, folder: Path, workers: int, **env: str) -> None:
        self.workers = workers
        self._stack = Stack(
            _apart(settings, folder),
            workers=workers,
            # The environment takes precedence over .env.
            env={
                "UPLOAD_DIR": str(folder / "uploads"),
                "RESULTS_DIR": str(folder / "results"),
                "TEMP_DIR": str(folder / "uploads" / ".incoming"),
                "MODELS_DIR": str(settings.asr.models_dir.absolute()),
                "DEFAULT_ENGINE": "faster-whisper",
                "DEFAULT_MODEL": "base",
                "THREADS": "1",
                "REUSE_RESULTS": "false",
                "MAX_UPLOAD_SIZE_MB": "2048",
                "API_WORKERS": "1",
                **env,
            },
            report=lambda _: None,
        )

    def __enter__(self) -> Self:
        self._gateway = Gateway(self._stack.start(), self._stack.settings.key.of_client)
        try:
            self._database = Database(self._stack.database_url)
            self._await_workers()
        except BaseException:
            self._stack.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._gateway.close()
        self._database.close()
        self._stack.stop()

    @property
    def address(self) -> str:
        """Where its gateway listens."""
        return self._gateway.address

    # --- jobs ---------------------------------------------------------------------------------

    def submit(self, path: Path, options: dict[str, str]) -> UUID:
        return UUID(self._gateway.upload(path, options)["job_id"])

    def run(self, path: Path, options: dict[str, str]) -> Run:
        """Send a recording and wait for its text.

        Raises:
            SetupProblem: the job did not end as COMPLETED.
        """
        sent_at, started = time.time(), time.monotonic()
        job_id = self.submit(path, options)
        self.wait(job_id)
        done_at = sent_at + (time.monotonic() - started)
        return self._run(job_id, sent_at, done_at)

    def run_all(self, paths: Sequence[Path], options: dict[str, str]) -> list[Run]:
        """Send recordings, enough at once to keep all workers busy."""
        with ThreadPoolExecutor(2 * max(1, self.workers)) as senders:
            return list(senders.map(lambda path: self.run(path, options), paths))

    def warm_up(self, clips: Sequence[Path], options: dict[str, str]) -> None:
        """Have every worker load its engine and use it once."""
        self.run_all([clips[n % len(clips)] for n in range(2 * self.workers)], options)

    def wait(self, job_id: UUID) -> None:
        """Until the job is COMPLETED."""
        while (state := self._gateway.status(str(job_id), POLL_S))["status"] not in ENDED:
            continue
        if state["status"] != "COMPLETED":
            raise SetupProblem(
                problem=f"A job ended as {state['status']}: {state['error_message']}",
                remedy=f"The logs were in {self._stack.log_dir}",
            )

    def ended(self, job_id: UUID) -> bool:
        return self._gateway.status(str(job_id))["status"] in ENDED

    def wait_until_under_way(self, job_id: UUID) -> None:
        """Until its first chunk is done (or it has ended)."""
        while True:
            state = self._gateway.status(str(job_id), POLL_S)
            if state["chunks_completed"] > 0 or state["status"] in ENDED:
                return

    def cancel(self, job_id: UUID) -> None:
        self._gateway.cancel(str(job_id))

    def _run(self, job_id: UUID, sent_at: float, done_at: float) -> Run:
        result = self._gateway.result(str(job_id))
        with self._database.transaction() as session:
            metrics = session.get_one(JobMetrics, job_id)
            rows = session.execute(
                select(
                    Step.kind, Step.worker, Step.started_at, Step.finished_at, Step.elapsed_ms
                ).where(Step.job_id == job_id, Step.status == StepStatus.DONE)
            ).all()
        steps = tuple(
            StepTimes(
                StepKind(kind),
                worker or "",
                _epoch(start),
                _epoch(end),
                _engine_s(kind, elapsed_ms),
            )
            for kind, worker, start, end, elapsed_ms in rows
        )
        return Run(job_id, sent_at, done_at, result, metrics, steps)

    def chunks_transcribed(self) -> int:
        """How many chunks of this stack have a text."""
        with self._database.transaction() as session:
            return (
                session.scalar(
                    select(func.count()).where(
                        Step.kind == StepKind.TRANSCRIBE, Step.status == StepStatus.DONE
                    )
                )
                or 0
            )

    # --- processes ----------------------------------------------------------------------------

    @property
    def gateway_pids(self) -> list[int]:
        """The gateway's process and those it started."""
        return [process.pid for process in self._family("gateway")]

    @property
    def engine_pids(self) -> list[int]:
        """The workers' engine processes."""
        workers = map(psutil.Process, self._stack.processes.get("worker", []))
        return [child.pid for worker in workers for child in worker.children()]

    def recognizers(self, engine: str) -> list[psutil.Process]:
        """The gateway's recognizer processes with ``engine``."""
        asked = json.dumps({"engine": engine})[1:-1]
        return [
            process
            for process in self._family("gateway")
            if "api.processes.recognizer_process" in process.cmdline()
            and asked in process.cmdline()[-1]
        ]

    def _family(self, role: str) -> list[psutil.Process]:
        parents = [psutil.Process(pid) for pid in self._stack.processes.get(role, [])]
        return [*parents, *(child for one in parents for child in one.children(recursive=True))]

    def _await_workers(self) -> None:
        deadline = time.monotonic() + WORKERS_WITHIN_S
        while len(self.engine_pids) < self.workers:
            if time.monotonic() > deadline:
                raise SetupProblem(
                    problem="The workers did not start",
                    remedy=f"The logs were in {self._stack.log_dir}",
                )
            time.sleep(0.1)


def _apart(settings: Settings, folder: Path) -> Settings:
    """The settings without servers and files that are in use."""
    return settings.model_copy(
        update={
            "api": settings.api.model_copy(update={"host": "127.0.0.1", "port": 0, "workers": 1}),
            "storage": settings.storage.model_copy(update={"data_dir": folder}),
            "database": settings.database.model_copy(update={"url": None}),
            "redis": settings.redis.model_copy(update={"url": None, "host": None}),
        }
    )


def _engine_s(kind: str, elapsed_ms: int | None) -> float:
    return (elapsed_ms or 0) / 1000 if kind == StepKind.TRANSCRIBE else 0.0


def _epoch(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()
