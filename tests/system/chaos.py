"""Chaos test: nothing is lost while everything is killed.

Run ``scripts/test --system chaos FOLDER``.

It starts a stack of its own, has it transcribe the recordings of FOLDER once undisturbed, and then
again while gateway, dispatcher, workers, engine processes, Postgres and Valkey are killed by
SIGKILL, Valkey is flushed, and Postgres is unavailable for a while. In the end every job must be
COMPLETED with exactly the text of the undisturbed run, and nothing may be left over (see
`tests.system.aftermath`). The seed decides what is sent and which faults happen when; what a
process does at that moment is chance.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import numpy as np
import psutil
from redis import Redis
from redis.exceptions import RedisError

from common.audio.decode import MonoDecoder
from common.domain.values import SAMPLE_RATE
from common.errors import SetupProblem
from scripts.bench.corpus import write_wav
from scripts.bench.service import UnderTest, until
from scripts.cli.client import Gateway
from scripts.cli.recordings import find_recordings
from tests.system.aftermath import (
    Findings,
    JobText,
    at_work,
    examine,
    patiently,
    strays,
    text_of,
    verify_pages,
    wait_for_the_end,
)

CLIPS = 6
"""Short recordings taken from the folder."""
PAUSE_S = 6.0
"""Between the clips of a long recording: long enough to end a window, and so a chunk."""
LONG_EVERY = 6
"""Every so many jobs one is long."""

MEAN_GAP_S = 4.0
"""Between two faults."""
UPLOADING = 0.8
"""The part of the time over which uploads are spread, so that every fault meets work."""
CLIENTS = 4
UPLOAD_S = 2.0
"""How long a client takes to send its bytes, so that the gateway dies in the midst of some."""
CLIENT_PATIENCE_S = 300.0
VICTIM_WITHIN_S = 60.0
AIM_S = 5.0
"""How long to wait for a worker to have a step in hand before any will do."""

SETTLED_WITHIN_S = 300.0
"""How long the stack may go without finishing a step before the run is given up."""


class FaultKind(StrEnum):
    """Kinds of faults."""

    GATEWAY = "gateway killed"
    DISPATCHER = "dispatcher killed"
    WORKER = "worker killed"
    ENGINE = "engine process killed"
    POSTGRES = "postgres killed"
    VALKEY = "valkey killed"
    FLUSH = "valkey flushed"
    OUTAGE = "postgres unavailable"


ROLES = {
    FaultKind.GATEWAY: "gateway",
    FaultKind.DISPATCHER: "dispatcher",
    FaultKind.POSTGRES: "postgres",
    FaultKind.OUTAGE: "postgres",
    FaultKind.VALKEY: "valkey",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, ``at_s`` seconds into the run; ``pick`` in [0, 1) chooses among victims.

    ``aimed``: kill a worker or an engine process that has a step in hand, if there is one soon;
    otherwise any, whatever it does.
    """

    at_s: float
    kind: FaultKind
    pick: float
    aimed: bool


@dataclass(frozen=True, slots=True)
class Order:
    """One upload, ``at_s`` seconds into the run."""

    at_s: float
    recording: Path
    priority: str


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """How much of it: ``jobs`` uploads and faults over ``seconds``, Postgres unavailable for some.

    A long recording consists of ``talk_parts`` clips, and so has as many chunks.
    """

    jobs: int = 60
    talk_parts: int = 8
    seconds: float = 180.0
    outage_s: float = 20.0
    seed: int = 1
    workers: int = 2
    language: str = "en"
    speakers: bool = False


@dataclass(slots=True)
class ChaosRun:
    """What happened."""

    faults: Counter[FaultKind] = field(default_factory=Counter)
    last_fault: datetime = field(default_factory=lambda: datetime.now(UTC))
    accepted: list[str] = field(default_factory=list)
    undisturbed: int = 0
    expected_text: dict[str, JobText] = field(default_factory=dict)
    """The results of the undisturbed run, by filename."""
    retried: int = 0
    finding: Findings = field(default_factory=Findings)


def faults(asked: ChaosPlan) -> list[Fault]:
    """Every kind at least once, in random order; the outage once and never as the last.

    The first of a kind is aimed.
    """
    chance = random.Random(asked.seed)  # noqa: S311 - nothing secret
    lesser: list[FaultKind] = [kind for kind in FaultKind if kind is not FaultKind.OUTAGE]
    count = max(len(lesser), round(asked.seconds / MEAN_GAP_S) - 1)
    kinds = lesser + chance.choices(lesser, k=count - len(lesser))
    chance.shuffle(kinds)
    kinds.insert(chance.randrange(len(kinds) // 4, 3 * len(kinds) // 4), FaultKind.OUTAGE)
    slot_s = asked.seconds / len(kinds)
    return [
        Fault((index + chance.random()) * slot_s, kind, chance.random(), kind not in kinds[:index])
        for index, kind in enumerate(kinds)
    ]


def orders(asked: ChaosPlan, clips: Sequence[Path], talks: Sequence[Path]) -> list[Order]:
    """Uploads of short and long recordings in all priorities, spread over the run."""
    chance = random.Random(asked.seed + 1)  # noqa: S311 - nothing secret
    return sorted(
        (
            Order(
                at_s=chance.random() * UPLOADING * asked.seconds,
                recording=chance.choice(talks if number % LONG_EVERY == 0 else clips),
                priority=chance.choice(("high", "normal", "low")),
            )
            for number in range(asked.jobs)
        ),
        key=lambda order: order.at_s,
    )


# --- uploads ---------------------------------------------------------------------------------


def recordings(asked: ChaosPlan, folder: Path, into: Path) -> tuple[list[Path], list[Path]]:
    """Some clips of ``folder``, and long recordings made of them.

    Raises:
        click.UsageError: there are none.
    """
    chance = random.Random(asked.seed)  # noqa: S311 - nothing secret
    found, _ = find_recordings([folder])
    clips = chance.sample(found, min(CLIPS, len(found)))
    talks = []
    for number in range(2):
        parts = chance.choices(clips, k=asked.talk_parts)
        talks.append(join(parts, into / f"talk-{number}.wav"))
    return clips, talks


def join(parts: Sequence[Path], target: Path) -> Path:
    """One recording of ``parts`` with pauses between them."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.int16)
    return write_wav(target, (block for part in parts for block in (*MonoDecoder(part), pause)))


class Clients:
    """Clients that send recordings and retry transient errors."""

    def __init__(self, gateway: Gateway, asked: ChaosPlan, run: ChaosRun) -> None:
        self._gateway = gateway
        self._options = {"language": asked.language, "diarize": str(asked.speakers).lower()}
        self._run = run
        self._lock = threading.Lock()

    def send(self, recording: Path, priority: str = "normal") -> str:
        """Send until it is accepted; returns the job's id.

        Raises:
            RequestRejected: the gateway rejected a valid upload.
            GatewayLost: it stayed unavailable.
        """
        job_id = patiently(
            lambda: self._upload(recording, priority),
            patience_s=CLIENT_PATIENCE_S,
            on_retry=self._retried,
        )
        self._run.accepted.append(job_id)
        return job_id

    def _retried(self) -> None:
        with self._lock:
            self._run.retried += 1

    def _upload(self, recording: Path, priority: str) -> str:
        options = self._options | {"priority": priority}
        size = recording.stat().st_size

        def take_time(sent: int) -> None:
            time.sleep(UPLOAD_S * sent / size)

        return str(self._gateway.upload(recording, options, take_time)["job_id"])


# --- faults -------------------------------------------------------------------------------


class FaultInjector:
    """Injects faults into a stack."""

    def __init__(
        self,
        service: UnderTest,
        run: ChaosRun,
        *,
        outage_s: float,
        report_line: Callable[[str], None],
    ) -> None:
        self._stack = service.stack
        self._database = service.database
        self._run = run
        self._outage_s = outage_s
        self._report_line = report_line
        self._lock = threading.Lock()

    def inject(self, fault: Fault) -> None:
        """Inject one fault; returns when it is over."""
        if fault.kind is FaultKind.OUTAGE:
            with self._stack.hold("postgres"):
                self._strike(fault)
                time.sleep(self._outage_s)
        else:
            self._strike(fault)
        with self._lock:
            self._report_line(f"{fault.at_s:6.1f} s  {fault.kind}")
            self._run.faults[fault.kind] += 1
            self._run.last_fault = datetime.now(UTC)

    def _strike(self, fault: Fault) -> None:
        started = time.monotonic()

        def done() -> bool:
            if fault.kind is FaultKind.FLUSH:
                return self._flush()
            return self._kill(fault, time.monotonic() - started)

        if until(done, VICTIM_WITHIN_S, poll_s=0.05) is None:
            raise SetupProblem(
                problem=f"{fault.kind}: none was alive for {VICTIM_WITHIN_S:g} s",
                remedy="See the logs",
            )

    def _kill(self, fault: Fault, waited_s: float) -> bool:
        victims = self._victims(fault, waited_s)
        try:
            os.kill(victims[int(fault.pick * len(victims))], signal.SIGKILL)
        except (IndexError, ProcessLookupError):  # there is none now
            return False
        return True

    def _victims(self, fault: Fault, waited_s: float) -> list[int]:
        if fault.kind in ROLES:
            return self._stack.processes[ROLES[fault.kind]]
        workers = self._stack.processes["worker"]
        if fault.aimed and waited_s < AIM_S:
            names = at_work(self._database)
            workers = [pid for pid in workers if any(f"-{pid}-" in name for name in names)]
        if fault.kind is FaultKind.WORKER:
            return workers
        return [child for worker in workers for child in _children(worker)]

    def _flush(self) -> bool:
        try:
            with Redis.from_url(self._stack.redis_url) as redis:
                redis.flushall()
        except RedisError:
            return False
        return True


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


# --- the run --------------------------------------------------------------------------------------


def chaos(
    asked: ChaosPlan, audio: Path, data_dir: Path, report_line: Callable[[str], None]
) -> ChaosRun:
    """Do all of it on a new stack in ``data_dir``; the broken promises are in what it returns.

    Raises:
        SetupProblem: it cannot be done here.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if any(data_dir.iterdir()):
        raise SetupProblem(problem=f"{data_dir} is not empty", remedy="Name a new folder")
    run = ChaosRun()
    clips, talks = recordings(asked, audio, data_dir)
    log = (data_dir / "chaos.log").open("a", buffering=1)

    def note(line: str) -> None:
        log.write(f"{datetime.now(UTC):%H:%M:%S.%f} {line}\n")

    def log_and_report(line: str) -> None:
        note(line)
        report_line(line)

    service = UnderTest(asked.workers, data_dir, env={"JOB_TIMEOUT": "0"}, report=note)
    with log, service:
        gateway = service.gateway
        clients = Clients(gateway, asked, run)
        report_line(f"{len(clips)} clips and {len(talks)} talks are transcribed undisturbed")
        for path in (*clips, *talks):
            job_id = clients.send(path)
            service.wait(UUID(job_id))
            run.expected_text[path.name] = text_of(gateway.result(job_id))
        report_line(f"{asked.jobs} jobs and faults over {asked.seconds:g} s, seed {asked.seed}")
        run.undisturbed = len(run.accepted)
        started = time.monotonic()
        with (
            ThreadPoolExecutor(CLIENTS) as senders,
            ThreadPoolExecutor(len(FaultKind)) as injectors,
        ):
            injector = FaultInjector(
                service, run, outage_s=asked.outage_s, report_line=log_and_report
            )
            work: list[Future[object]] = [
                senders.submit(
                    _at, started + order.at_s, clients.send, order.recording, order.priority
                )
                for order in orders(asked, clips, talks)
            ]
            for fault in faults(asked):
                sleep_until(started + fault.at_s)
                work.append(injectors.submit(injector.inject, fault))
        for done in work:
            if (error := done.exception()) is not None:
                run.finding.violations.append(f"{type(error).__name__}: {error}")
        report_line(
            f"the last fault is over after {time.monotonic() - started:.0f} s; waiting for the rest"
        )
        wait_for_the_end(service.database, SETTLED_WITHIN_S)
        examine(run.finding, service, run.accepted, run.last_fault, run.expected_text)
    run.finding.violations += [f"{name} outlived the stack" for name in strays(data_dir)]
    run.finding.violations += verify_pages(data_dir / "postgres" / "cluster")
    return run


def sleep_until(instant: float) -> None:
    """Sleep until an instant on the monotonic clock."""
    time.sleep(max(0.0, instant - time.monotonic()))


def _at(instant: float, call: Callable[..., object], *args: object) -> object:
    sleep_until(instant)
    return call(*args)


# --- the report -----------------------------------------------------------------------------------


def report(run: ChaosRun) -> Iterator[str]:
    """What happened, line by line."""
    finding = run.finding
    yield from table("fault", run.faults)
    yield ""
    yield from table(
        "jobs",
        {
            "accepted before the faults": run.undisturbed,
            "accepted during the faults": len(run.accepted) - run.undisturbed,
            "sent again after an error": run.retried,
            **{f"in the end {status}": count for status, count in finding.jobs.items()},
            "with the text of the undisturbed run": finding.equal_texts,
        },
    )
    yield ""
    yield from table(
        "work",
        {
            "steps": finding.steps,
            "attempts": finding.attempts,
            "chunks": finding.chunks,
            **{f"failed attempts: {code}": count for code, count in finding.failures.items()},
            "uploads cut off, left to be cleaned up": finding.cut_off,
        },
    )
    yield ""
    yield "after the last fault"
    yield f"  longest time without a finished step {finding.longest_stall_s:>8.1f} s"
    yield f"  until the last job had ended         {finding.drain_s:>8.1f} s"
    yield f"  what the work alone takes            {finding.work_s:>8.1f} s"
    yield ""
    yield from (f"VIOLATED: {violation}" for violation in finding.violations)
    yield f"{len(finding.violations)} promise(s) broken" if finding.violations else "All kept."


def table(title: str, rows: Mapping[str, int] | Mapping[FaultKind, int]) -> Iterator[str]:
    """Counts by name, line by line."""
    yield title
    for name, count in rows.items():
        yield f"  {name:<40} {count:>6}"


DEFAULT = ChaosPlan()


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--jobs", default=DEFAULT.jobs, show_default=True, help="Uploads.")
@click.option(
    "--seconds", default=DEFAULT.seconds, show_default=True, help="How long faults happen, in s."
)
@click.option(
    "--outage",
    "outage_s",
    default=DEFAULT.outage_s,
    show_default=True,
    help="How long Postgres is unavailable, in s.",
)
@click.option("--seed", default=DEFAULT.seed, show_default=True)
@click.option("--workers", default=DEFAULT.workers, show_default=True)
@click.option("--language", default=DEFAULT.language, show_default=True)
@click.option("--speakers", is_flag=True, help="Jobs are diarized as well.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Kept; default: a temporary one.")
def main(folder: Path, data_dir: Path | None, **asked: Any) -> None:
    """Run, print, and exit with 1 when a promise was broken."""
    where = data_dir or Path(tempfile.mkdtemp(prefix="stenopool-chaos-"))
    run = chaos(ChaosPlan(**asked), folder, where.absolute(), click.echo)
    for line in report(run):
        click.echo(line)
    if run.finding.violations:
        click.echo(f"Logs and data: {where}")
        sys.exit(1)
    if data_dir is None:
        shutil.rmtree(where)
