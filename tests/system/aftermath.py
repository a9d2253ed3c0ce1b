"""What must hold once a stack has recovered from faults (see `tests.system.chaos`)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.tables import (
    Job,
    JobMetrics,
    Outbox,
    Part,
    Recording,
    Step,
    StepFailure,
    TranscriptRevision,
)
from common.db.transcriptions import ChunkResult, select_chunks
from common.domain.formats import MEDIA_TYPES, RTTM
from common.domain.job import JobStatus, StepStatus
from common.domain.request import Options
from common.errors import GatewayLost, RequestRejected, Unavailable
from common.redis.queue import StepQueue, connect
from common.storage.local import LocalStorage
from scripts.bench.service import UnderTest, until
from scripts.cli.client import passing
from scripts.stack.embedded import find_postgres
from scripts.stack.stack import Stack

T = TypeVar("T")

STUCK_S = 30.0
"""Longer than this nothing may stand still after the last fault."""
TIDY_WITHIN_S = 120.0
"""Chunks are deleted, and a killed worker forgotten, within seconds, if Postgres is available."""
POLL_S = 0.2
RETRY_S = 0.3
OPEN = (JobStatus.PENDING, JobStatus.PROCESSING)


@dataclass(slots=True)
class Findings:
    """The figures, and every promise that was broken, in words."""

    violations: list[str] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    equal_texts: int = 0
    steps: int = 0
    attempts: int = 0
    chunks: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    cut_off: int = 0
    longest_stall_s: float = 0.0
    drain_s: float = 0.0
    """From the last fault to the end of the last job."""
    work_s: float = 0.0
    """What of ``drain_s`` all workers together needed at least for the steps done in it."""

    def check(self, kept: bool, broken: str) -> None:
        """Note a promise that is not kept."""
        if not kept:
            self.violations.append(broken)


@dataclass(frozen=True, slots=True)
class JobText:
    """A job's text, when each segment and word was said and by whom, and its moderation."""

    text: str
    segments: tuple[tuple[float, float, str, str | None], ...]
    words: tuple[tuple[float, float, str], ...]
    moderation: tuple[tuple[int, str], ...] | None
    """Each segment's id and label."""
    speakers: tuple[tuple[str, float, int], ...] | None


def text_of(result: dict[str, Any]) -> JobText:
    """The parts of a result that must be the same in every run."""
    moderation = result["moderation"]
    return JobText(
        text=result["text"],
        segments=tuple(
            (part["start"], part["end"], part["text"], part["speaker"])
            for part in result["segments"]
        ),
        words=tuple((part["start"], part["end"], part["word"]) for part in result["words"]),
        moderation=moderation
        and tuple((part["id"], part["label"]) for part in moderation["results"]),
        speakers=None
        if result.get("speakers") is None  # as in earlier versions
        else tuple((each["id"], each["seconds"], each["words"]) for each in result["speakers"]),
    )


def patiently(
    ask: Callable[[], T],
    *,
    again: Callable[[RequestRejected | GatewayLost], bool] = passing,
    patience_s: float = 180.0,
    on_retry: Callable[[], None] = lambda: None,
) -> T:
    """Ask a gateway until it answers, for as long as its errors are to be tried again."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except (RequestRejected, GatewayLost) as error:
            if not again(error) or time.monotonic() > deadline:
                raise
            on_retry()
            time.sleep(RETRY_S)


def at_work(database: Database) -> list[str]:
    """The names of the workers that have a step in hand; none while Postgres is unavailable."""
    try:
        with database.transaction() as session:
            running = select(Step.worker).where(
                Step.status == StepStatus.RUNNING, Step.lease_until > func.clock_timestamp()
            )
            return [name for name in session.scalars(running) if name is not None]
    except Unavailable:
        return []


def wait_for_the_end(database: Database, patience_s: float) -> None:
    """Until every job has ended, or no step has been finished for ``patience_s``."""
    done, since = -1, time.monotonic()
    while time.monotonic() - since < patience_s:
        try:
            with database.transaction() as session:
                is_open = count(session, Job, Job.status.in_(OPEN))
                now_done = count(session, Step, Step.status == StepStatus.DONE)
        except Unavailable:
            continue
        if not is_open:
            return
        if now_done != done:
            done, since = now_done, time.monotonic()
        time.sleep(POLL_S)


def examine(
    finding: Findings,
    service: UnderTest,
    accepted: Sequence[str],
    last_fault: datetime,
    expected_text: Mapping[str, JobText],
) -> None:
    """Check every promise on a stack whose jobs have ended.

    ``expected_text`` has each recording's undisturbed text, by filename.
    """
    with service.database.transaction() as session:
        examine_rows(finding, session, accepted, last_fault, service.workers)
    _texts(finding, service, expected_text)
    _queue(finding, service.stack)
    _files(finding, service)
    ours = frozenset(child.pid for child in psutil.Process().children(recursive=True))
    finding.violations += [
        f"{name} belongs to nobody" for name in strays(service.stack.data_dir, besides=ours)
    ]


# --- in Postgres ----------------------------------------------------------------------------------


def examine_rows(
    finding: Findings,
    session: Session,
    accepted: Sequence[str],
    last_fault: datetime,
    workers: int,
) -> None:
    """Check what Postgres holds: every job ended well, every step once, and none of them late."""
    _jobs(finding, session, accepted)
    _steps(finding, session)
    _chunks(finding, session)
    _stalls(finding, session, last_fault, workers)


def count(session: Session, table: type, *where: Any) -> int:
    """How many rows of ``table`` there are."""
    return session.scalar(select(func.count()).select_from(table).where(*where)) or 0


def _jobs(finding: Findings, session: Session, accepted: Sequence[str]) -> None:
    jobs = session.scalars(select(Job)).all()
    for job in jobs:
        finding.jobs[job.status] = finding.jobs.get(job.status, 0) + 1
        finding.check(
            job.status == JobStatus.COMPLETED,
            f"job {job.id} is {job.status}: {job.error_code} {job.error_message}",
        )
        finding.check(
            job.units_done == (job.units_total or 0),
            f"job {job.id} has {job.units_done} of {job.units_total} ms done",
        )
    known = {str(job.id) for job in jobs}
    finding.violations += [
        f"job {job_id} was accepted and is not there" for job_id in accepted if job_id not in known
    ]
    finding.check(len(set(accepted)) == len(accepted), "two uploads were given the same id")


def _steps(finding: Findings, session: Session) -> None:
    for step in session.scalars(select(Step)):
        finding.steps += 1
        finding.attempts += step.attempt
        finding.check(
            step.status == StepStatus.DONE,
            f"{step.kind} of job {step.job_id} is {step.status} after {step.attempt} attempt(s)",
        )
    finding.check(count(session, Outbox) == 0, "the outbox is not empty")
    codes = (
        select(StepFailure.code, func.count()).group_by(StepFailure.code).order_by(StepFailure.code)
    )
    finding.failures = dict(session.execute(codes).all())


def _chunks(finding: Findings, session: Session) -> None:
    finding.chunks = count(session, Part)
    for step in session.scalars(select(Step).where(Step.stored_count != 1)):
        finding.violations.append(
            f"{step.kind} {step.part} of job {step.job_id} was stored {step.stored_count} times"
        )
    totals: dict[UUID, int] = {}
    for job in session.scalars(select(Job)):
        totals[job.id] = job.parts_total
        chunks = [ChunkResult(*row) for row in session.execute(select_chunks(job.id))]
        missing = set(range(job.parts_total)) - {chunk.index for chunk in chunks}
        finding.check(not missing, f"job {job.id} lacks {len(missing)} chunk(s)")
        finding.check(
            len(chunks) + len(missing) == job.parts_total,
            f"job {job.id} has miscounted its chunks",
        )
        for chunk in chunks:
            finding.check(
                chunk.result is not None,
                f"chunk {chunk.index} of job {job.id} was stored without a result",
            )
            finding.check(
                (chunk.moderation is not None) == Options.from_json(job.options).moderation,
                f"chunk {chunk.index} of job {job.id} was moderated, or not, against its options",
            )
    for table in (TranscriptRevision, JobMetrics):
        finding.check(
            set(session.scalars(select(table.job_id))) == set(totals)
            and count(session, table) == len(totals),
            f"not every job has exactly one row in {table.__tablename__}",
        )


def _stalls(finding: Findings, session: Session, last_fault: datetime, workers: int) -> None:
    """How long things stood still after the last fault.

    Two ways of standing still: no step anywhere is finished for a while; or, since one waiting job
    can hide behind the progress of others, the end comes later than the work explains.
    """
    later = session.execute(
        select(Step.started_at, Step.finished_at)
        .where(Step.finished_at > last_fault)
        .order_by(Step.finished_at)
    ).all()
    spans = [(max(start, last_fault), end) for start, end in later if start and end]
    instants = [last_fault, *(end for _, end in spans)]
    if count(session, Job, Job.status.in_(OPEN)):
        instants.append(session.scalar(select(func.clock_timestamp())) or last_fault)
    gaps = [_seconds(later - earlier) for earlier, later in pairwise(instants)]
    finding.longest_stall_s = max(gaps, default=0.0)
    finding.drain_s = _seconds(instants[-1] - last_fault)
    finding.work_s = sum(_seconds(end - start) for start, end in spans) / workers
    finding.check(
        finding.longest_stall_s <= STUCK_S,
        f"no step was finished for {finding.longest_stall_s:.1f} s after the last fault",
    )
    idle_s = finding.drain_s - finding.work_s
    # What slows the steps of a busy host slows what happens between them.
    allowed_s = STUCK_S + finding.work_s / 2
    finding.check(
        idle_s <= allowed_s,
        f"{idle_s:.1f} s were lost after the last fault; {allowed_s:.1f} s is the most allowed",
    )


def _seconds(span: timedelta) -> float:
    return span.total_seconds()


# --- at the gateway -------------------------------------------------------------------------------


def _texts(finding: Findings, service: UnderTest, expected_text: Mapping[str, JobText]) -> None:
    with service.database.transaction() as session:
        completed = session.execute(
            select(Job.id, Recording.filename)
            .join(Recording, Recording.id == Job.recording_id)
            .where(Job.status == JobStatus.COMPLETED)
        ).all()
    for job_id, filename in completed:
        if text_of(service.gateway.result(str(job_id))) == expected_text[filename]:
            finding.equal_texts += 1
        else:
            finding.violations.append(
                f"job {job_id} transcribed {filename} differently from the undisturbed run"
            )


# --- in Valkey ------------------------------------------------------------------------------------


def _queue(finding: Findings, stack: Stack) -> None:
    with connect(stack.redis_url) as redis:
        queue = StepQueue(redis)
        until(lambda: queue.waiting() == 0, TIDY_WITHIN_S)
        finding.check(queue.waiting() == 0, f"{queue.waiting()} message(s) are left in the queue")
        until(lambda: queue.live_workers() == stack.workers, TIDY_WITHIN_S)
        alive = queue.live_workers()
        finding.check(
            alive == stack.workers, f"{alive} worker(s) are registered, not {stack.workers}"
        )


# --- on the disk ----------------------------------------------------------------------------------


def _files(finding: Findings, service: UnderTest) -> None:
    folders = service.stack.settings.storage
    with service.database.transaction() as session:
        promised = dict(session.execute(select(Recording.id, Recording.sha256)).all())
        jobs = set(session.scalars(select(Job.id).where(Job.status == JobStatus.COMPLETED)))
    kept = {path.name: path for path in (folders.uploads / "recordings").iterdir()}
    for recording_id, sha256 in promised.items():
        path = kept.pop(str(recording_id), None)
        whole = path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        finding.check(whole, f"recording {recording_id} is not what was sent")
    finding.violations += [f"recording {name} has no row" for name in kept]
    storage = LocalStorage(folders.uploads, folders.temp, folders.results)
    incoming = [recording_id for page in storage.unsettled(-1.0) for recording_id in page]
    finding.cut_off = len(incoming)
    finding.violations += [
        f"recording {recording_id} was left in {folders.temp}"
        for recording_id in incoming
        if recording_id in promised
    ]
    chunks = folders.uploads / "chunks"
    until(lambda: not any(chunks.iterdir()), TIDY_WITHIN_S)
    finding.violations += [f"the chunks of job {path.name} were kept" for path in chunks.iterdir()]
    _results(finding, folders.results, jobs)


def _results(finding: Findings, results: Path, jobs: set[UUID]) -> None:
    wanted = {f"transcript.{ending}" for ending in MEDIA_TYPES}
    for job_id in jobs:
        names = {path.name for path in (results / str(job_id)).iterdir()}
        for name in sorted(wanted - {f"transcript.{RTTM}"} - names):
            finding.violations.append(f"job {job_id} has no {name}")
        for name in sorted(names - wanted):
            finding.violations.append(f"{name} was left among the results of job {job_id}")


def verify_pages(cluster: Path) -> list[str]:
    """What is wrong with the checksums of a Postgres that was shut down."""
    done = subprocess.run(
        [find_postgres()[0] / "pg_checksums", "--check", "--pgdata", cluster],
        capture_output=True,
        text=True,
        check=False,
    )
    return [f"pg_checksums: {done.stderr.strip()}"] if done.returncode else []


# --- among the processes --------------------------------------------------------------------------


def strays(data_dir: Path, besides: frozenset[int] = frozenset()) -> list[str]:
    """Living processes that work for the stack in ``data_dir``, but for those in ``besides``."""
    until(lambda: not list(_strays(data_dir, besides)), TIDY_WITHIN_S)
    return list(_strays(data_dir, besides))


def _strays(data_dir: Path, besides: frozenset[int]) -> Iterator[str]:
    for process in psutil.process_iter():
        if process.pid in besides or process.pid == os.getpid():
            continue
        try:
            inside = Path(process.cwd()).is_relative_to(data_dir)
            configured = process.environ().get("DATA_DIR") == str(data_dir)
            if (inside or configured) and process.status() != psutil.STATUS_ZOMBIE:
                yield f"process {process.pid} ({' '.join(process.cmdline()[:4])})"
        except (psutil.Error, OSError):
            continue
