"""Workers and a dispatcher as real processes, on a test's own database."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Self, TypeVar
from uuid import UUID

import psutil
import psycopg
from sqlalchemy import text

from common.db.database import Database
from common.db.jobs import Jobs
from common.db.snapshots import Snapshot
from common.domain.job import JobStatus
from common.redis.events import Events
from common.redis.queue import connect
from common.settings import ROOT
from common.storage.local import LocalStorage
from scripts.stack.embedded import EmbeddedPostgres
from tests.support.audio_files import make_wav
from tests.support.factories import TENANT, new_job, new_recording
from tests.support.fork_server import Program
from tests.support.speech import Samples, pcm16

T = TypeVar("T")
PATIENCE_S = 120.0
STOP_LIMIT_S = 10.0
ENDED = {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


def wait_until(
    check: Callable[[], T | None], what: str = "the state", patience_s: float = PATIENCE_S
) -> T:
    """Wait for ``check`` to give something true, and return that."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {patience_s:g} s in vain for {what}")


def write_wav(path: Path, samples: Samples) -> Path:
    """A 16 kHz mono recording."""
    path.write_bytes(make_wav(pcm16(samples)))
    return path


class Service:
    """The part of the stack behind the gateway; ends with the block."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, **env: str) -> None:
        self.database = Database(database_url)
        self.jobs = Jobs(self.database, TENANT)
        self.folder = folder
        self.storage = LocalStorage(
            folder / "uploads", folder / "uploads" / ".incoming", folder / "results"
        )
        self.storage.prepare()
        self.redis_url = redis_url
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DATA_DIR": str(folder),
            "DEFAULT_MODEL": "base",
            "RETRY_DELAY": "0.1",
            "WORKER_NICE": "0",  # to wait for other tests would only make this one longer
            "LOG_LEVEL": "DEBUG",
            **env,
        }
        self._log = (folder / "service.log").open("wb")
        self._processes: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(TimeoutExpired):
                process.wait(STOP_LIMIT_S)
            process.kill()
            process.wait()
        self._log.close()
        self.database.close()

    def serve(self, workers: int = 1) -> Self:
        """Start workers and a dispatcher."""
        for _ in range(workers):
            self.start_worker()
        self.start_dispatcher()
        return self

    def start_worker(self, before: str = "") -> psutil.Process:
        """Start one worker, in a process that runs the code ``before`` first."""
        return self._start("worker", before)

    def start_dispatcher(self, before: str = "") -> psutil.Process:
        """Start the dispatcher, in a process that runs the code ``before`` first."""
        return self._start("worker.dispatcher", before)

    def workers(self) -> list[psutil.Process]:
        """The workers that run."""
        return [
            psutil.Process(it.pid)
            for it in self._processes
            if it.module == "worker" and it.poll() is None
        ]

    def submit(self, audio: Samples | Path, **options: object) -> UUID:
        """Submit a recording; ``options`` are fields of `NewJob`."""
        recording = replace(new_recording(None), filename="talk.wav", container="wav")
        incoming = self.storage.incoming(recording.id)
        if isinstance(audio, Path):
            incoming.write_bytes(audio.read_bytes())
        else:
            write_wav(incoming, audio)
        job = new_job(**options)
        self.jobs.submit(replace(recording, size_bytes=incoming.stat().st_size), job)
        self.storage.keep(recording.id)
        self.notify()
        return job.id

    def notify(self) -> None:
        """Notify the dispatcher of work, as the gateway does after each change of a job."""
        with connect(self.redis_url) as redis:
            Events(redis).work_to_do()

    def retry(self, job_id: UUID) -> None:
        """Retry a job."""
        self.jobs.retry(job_id)
        self.notify()

    def ended(self, job_id: UUID, patience_s: float = PATIENCE_S) -> Snapshot:
        """The job's last state, waited for."""

        def look() -> Snapshot | None:
            snapshot = self.jobs.snapshot(job_id)
            return snapshot if snapshot.status in ENDED else None

        try:
            return wait_until(look, f"the end of {self.jobs.snapshot(job_id)}", patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-4000:]}") from None

    def log(self) -> str:
        """What the processes have logged."""
        return (self.folder / "service.log").read_text()

    def text(self, job_id: UUID) -> str:
        """The text of a completed job."""
        return " ".join(segment["text"].strip() for segment in self.jobs.text(job_id).segments)

    def _start(self, module: str, before: str) -> psutil.Process:
        process = Program(module, self._env, self._log, before)
        self._processes.append(process)
        return psutil.Process(process.pid)


Start = Callable[..., Service]
"""Makes a `Service` with settings of its own, given by their names in the environment."""


def engine_process_of(worker: psutil.Process) -> psutil.Process:
    """A worker's engine process, once it is there."""

    def look() -> psutil.Process | None:
        return next(iter(worker.children()), None)

    return wait_until(look, "an engine process")


def have_ended(processes: Iterable[psutil.Process]) -> bool:
    """Whether all have, reaped or not."""
    return not any(it.is_running() and it.status() != psutil.STATUS_ZOMBIE for it in processes)


def shut(postgres: EmbeddedPostgres, database_url: str, *, allow: bool) -> None:
    """Close the database to all, or open it again."""
    name = database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )


def waits_for_a_lock(database: Database) -> bool:
    """Whether some transaction waits for another one's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with database.transaction() as session:
        return bool(session.scalar(waiting))
