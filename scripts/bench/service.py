"""The service under test: a stack of its own, used over HTTP."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from uuid import UUID

import psutil
from sqlalchemy import func, select

from common.db.database import Database
from common.db.tables import JobMetrics, Step
from common.domain.job import StepStatus
from common.domain.models import BATCH_ENGINES
from common.domain.pipeline import StepKind
from common.errors import SetupProblem
from common.settings import Settings, load_settings
from scripts.bench.direct import peaks_mb
from scripts.cli.client import ENDED, Gateway
from scripts.stack.stack import Stack

POLL_S = 30.0
"""Longest long poll of a job's status."""
WORKERS_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """A job as its client saw it: ``seconds`` from the first byte sent to the answer COMPLETED."""

    seconds: float
    result: dict[str, Any]
    metrics: JobMetrics

    @property
    def engine_s(self) -> float:
        """The engine's time over all chunks."""
        return self.metrics.engine_ms / 1000

    @property
    def text(self) -> str:
        return str(self.result["text"])

    @property
    def encoders(self) -> list[str]:
        """What encoded the audio, and in which precision."""
        encoders: list[str] = self.result["manifest"]["encoders"]
        return encoders

    def text_until(self, end_s: float) -> str:
        """The words that start before ``end_s``."""
        words = (word["word"].strip() for word in self.result["words"] if word["start"] < end_s)
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class EngineLoads:
    """How often a worker has loaded an engine, and unloaded one to make room for another."""

    loaded: int
    unloaded: int


def until(state: Callable[[], object], patience_s: float, poll_s: float = 0.2) -> float | None:
    """Seconds until ``state`` is true, None where it does not become that."""
    started = time.monotonic()
    while True:
        true, taken = state(), time.monotonic() - started
        if true or taken > patience_s:
            return taken if true else None
        time.sleep(poll_s)


class UnderTest:
    """A stack with ``workers`` single-threaded workers over servers and files of its own.

    ``folder`` is empty (None: a temporary one is used). ``env`` are further settings, by their
    names in the environment; ``report`` takes what the supervisor does.
    """

    def __init__(
        self,
        workers: int,
        folder: Path | None = None,
        *,
        settings: Settings | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.workers = workers
        self._on_exit = ExitStack()
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="stenopool-")
            folder = Path(self._on_exit.enter_context(made))
        settings = settings or load_settings()
        own = _apart(settings, folder)
        self.stack = Stack(
            own,
            workers=workers,
            # The environment takes precedence over .env.
            env={
                "UPLOAD_DIR": str(own.storage.uploads),
                "RESULTS_DIR": str(own.storage.results),
                "TEMP_DIR": str(own.storage.temp),
                "MODELS_DIR": str(settings.asr.models_dir.absolute()),
                "DEFAULT_ENGINE": "faster-whisper",
                "DEFAULT_MODEL": "base",
                "THREADS": "1",
                "REUSE_RESULTS": "false",
                "MAX_UPLOAD_SIZE_MB": "2048",
                "API_WORKERS": "1",
                **env,
            },
            report=report,
        )

    def __enter__(self) -> Self:
        with self._on_exit as on_exit:
            on_exit.enter_context(self.stack)
            self.gateway = on_exit.enter_context(
                Gateway(self.stack.address, self.stack.settings.key.of_client)
            )
            self.database = on_exit.enter_context(Database(self.stack.database_url))
            if until(self._has_workers, WORKERS_WITHIN_S) is None:
                raise SetupProblem(
                    problem="The workers did not start",
                    remedy=f"The logs were in {self.stack.log_dir}",
                )
            self._on_exit = on_exit.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._on_exit.close()

    @property
    def address(self) -> str:
        """Where its gateway listens."""
        return self.gateway.address

    def _has_workers(self) -> bool:
        return len(self.engine_pids) >= self.workers

    # --- jobs ---------------------------------------------------------------------------------

    def submit(self, path: Path, options: dict[str, str]) -> UUID:
        return UUID(self.gateway.upload(path, options)["job_id"])

    def run(self, path: Path, options: dict[str, str]) -> Run:
        """Send a recording and wait for its text.

        Raises:
            SetupProblem: the job did not end as COMPLETED.
        """
        started = time.monotonic()
        job_id = self.submit(path, options)
        self.wait(job_id)
        seconds = time.monotonic() - started
        result = self.gateway.result(str(job_id))
        with self.database.transaction() as session:
            return Run(seconds, result, session.get_one(JobMetrics, job_id))

    def run_all(self, paths: Sequence[Path], options: dict[str, str]) -> list[Run]:
        """Send recordings, enough at once to keep all workers busy."""
        with ThreadPoolExecutor(2 * max(1, self.workers)) as senders:
            return list(senders.map(lambda path: self.run(path, options), paths))

    def warm_up(self, clips: Sequence[Path], options: dict[str, str]) -> None:
        """Have every worker load its engine and use it once."""
        self.run_all([clips[n % len(clips)] for n in range(2 * self.workers)], options)

    def wait(self, job_id: UUID) -> None:
        """Until the job is COMPLETED."""
        while (state := self.gateway.status(str(job_id), POLL_S))["status"] not in ENDED:
            continue
        if state["status"] != "COMPLETED":
            raise SetupProblem(
                problem=f"A job ended as {state['status']}: {state['error_message']}",
                remedy=f"The logs were in {self.stack.log_dir}",
            )

    def ended(self, job_id: UUID) -> bool:
        return self.gateway.status(str(job_id))["status"] in ENDED

    def wait_until_under_way(self, job_id: UUID) -> None:
        """Until its first chunk is done (or it has ended)."""
        while True:
            state = self.gateway.status(str(job_id), POLL_S)
            if state["chunks_completed"] > 0 or state["status"] in ENDED:
                return

    def cancel(self, job_id: UUID) -> None:
        self.gateway.cancel(str(job_id))

    def chunks_transcribed(self) -> int:
        """How many chunks of this stack have a text."""
        with self.database.transaction() as session:
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
        return [engine.pid for worker in self._workers for engine in worker.children()]

    def kill_worker(self) -> None:
        """Kill a worker with its engine process, by SIGKILL; the stack starts another."""
        worker, *_ = self._workers
        for process in (worker, *worker.children(recursive=True)):
            process.kill()

    def worker_peaks_mb(self) -> dict[int, float]:
        """The peak memory of each worker, by its process's id.

        That is the peak of its engine process, and what the worker itself does not share with it.
        """
        return {
            worker.pid: worker.memory_full_info().uss / 1e6
            + max(peaks_mb([child.pid for child in worker.children()]).values(), default=0.0)
            for worker in self._workers
        }

    def engine_loads(self) -> list[EngineLoads]:
        """How often each worker has loaded and unloaded engines, by its log (at INFO)."""
        engines = "|".join(map(re.escape, BATCH_ENGINES))
        logs = sorted(self.stack.log_dir.glob("worker-*.log"))
        return [
            EngineLoads(
                *(
                    len(re.findall(rf"\b{verb} (?:{engines}) ", log.read_text(errors="replace")))
                    for verb in ("loading", "unloading")
                )
            )
            for log in logs
        ]

    @property
    def _workers(self) -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in self.stack.processes.get("worker", [])]

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
        parents = [psutil.Process(pid) for pid in self.stack.processes.get(role, [])]
        return [*parents, *(child for one in parents for child in one.children(recursive=True))]


def _apart(settings: Settings, folder: Path) -> Settings:
    """The settings without servers and files that are in use."""
    return settings.model_copy(
        update={
            "api": settings.api.model_copy(update={"host": "127.0.0.1", "port": 0, "workers": 1}),
            "storage": settings.storage.model_copy(
                update={
                    "data_dir": folder,
                    "upload_dir": folder / "uploads",
                    "results_dir": folder / "results",
                    "temp_dir": folder / "uploads" / ".incoming",
                }
            ),
            "database": settings.database.model_copy(update={"url": None}),
            "redis": settings.redis.model_copy(update={"url": None, "host": None}),
        }
    )
