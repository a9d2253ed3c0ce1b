"""Prove the containers on a real engine: ``scripts/test --system containers FOLDER-or-FILES``.

Whatever Docker's context names is used. Of the last commit, in a folder and a Compose project of
their own, both images are built and the whole service is started with the compose file that people
use. Then it has to do what is promised, in nine proofs; a line is printed as each thing happens,
and a table in the end. The exit status is 1 where something was not ok. Images, containers and
volumes are removed in the end, also after Ctrl-C.

FOLDER-or-FILES are recordings: those of up to half a minute are clips, the longest of all is the
long one; where none has ten minutes, clips are put together for one.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import click

from common.audio.probe import probe
from common.domain.job import JobStatus
from common.domain.models import FALLBACK_MODEL
from common.errors import GatewayLost, NotAudio, RequestRejected, SetupProblem, StenoError
from common.settings import AsrSettings
from scripts.bench.corpus import Clip
from scripts.bench.service import until
from scripts.bench.stream_play import string_together
from scripts.cli.client import ENDED, Gateway
from scripts.cli.console import make_console
from tests.system.aftermath import JobText, patiently, text_of
from tests.system.chaos import join
from tests.system.containers.audit import audit, log_rows
from tests.system.containers.live import SERVICE, Speaker, live
from tests.system.containers.project import OURS, PROFILES, Container, Project
from tests.system.containers.trouble import trouble
from tests.system.report import Row, all_ok, show

T = TypeVar("T")

CLIP_S = 30.0
LONG_S = 600.0
"""The least that the long recording must have, to outlast what is done to its job."""
BASE = "python:3.11-slim"

SCALED = 0.6
"""What two workers may take of the time of one."""
PATIENCE_S = 60.0
"""How long a job may stall after a fault."""
JOB_S = 3600.0
POLL_S = 0.5

MIDST_PERCENT = 85
"""Beyond this too little is left of a job to do anything to it."""

IN_FLIGHT = 20
KILLED = ("api", "dispatcher", "worker", "postgres", "redis")
ROLLED = ("dispatcher", "worker", "api")
TRIES = 3
SPOKEN_S = 30.0
"""How long is spoken on a live stream."""
BACKUP = ("steno.dump", "data.tar")
OLDER = "0002"
"""The tables of the version before there was a gateway for production."""


@dataclass(slots=True)
class ContainerTrial:
    """What the proofs work with: the project, recordings and their undisturbed texts."""

    project: Project
    clips: list[Path]
    long: Path
    language: str
    model: str
    report_line: Callable[[str], None]
    built: str = ""
    """How long building took."""
    expected_text: dict[Path, JobText] = field(default_factory=dict)

    def gateway(self) -> Gateway:
        """A client of its own."""
        return Gateway(self.project.address_of("api"), self.project.secrets["GATEWAY_API_KEY"])

    def send(self, gateway: Gateway, path: Path) -> str:
        """Send a recording; returns the job's id."""
        accepted = patiently(lambda: gateway.upload(path, {"language": self.language}))
        return str(accepted["job_id"])

    def wait_for_text(self, gateway: Gateway, path: Path) -> JobText:
        """A recording's text."""
        return outcome(gateway, self.send(gateway, path))

    def undisturbed(self, path: Path) -> JobText:
        """A recording's text when nothing happens; transcribed once."""
        if path not in self.expected_text:
            self.report_line(f"{path.name} is transcribed undisturbed")
            with self.gateway() as gateway:
                self.expected_text[path] = self.wait_for_text(gateway, path)
        return self.expected_text[path]

    def same(self, path: Path, text: JobText) -> tuple[str, bool]:
        """Compare a recording's text with its undisturbed text: in words, and whether equal."""
        expected_text = self.undisturbed(path)
        if text == expected_text:
            return f"the same {len(text.words)} words at the same times", True
        if text.text == expected_text.text:
            return "the same text, at other times", False
        return f"another text: {len(text.words)} words, not {len(expected_text.words)}", False


def lost(error: RequestRejected | GatewayLost) -> bool:
    """Whether only the connection is to blame."""
    return isinstance(error, GatewayLost)


def outcome(gateway: Gateway, job_id: str) -> JobText:
    """The text of a job, once it has ended.

    Raises:
        RequestRejected: it did not complete.
    """
    deadline = time.monotonic() + JOB_S
    while time.monotonic() < deadline:
        state = patiently(lambda: gateway.status(job_id, wait_s=10))
        if state["status"] in ENDED:
            if state["status"] != JobStatus.COMPLETED:
                detail = f"job {job_id} is {state['status']}: {state['error_message']}"
                raise RequestRejected(detail=detail, status=0)
            return text_of(patiently(lambda: gateway.result(job_id)))
    raise RequestRejected(detail=f"job {job_id} has not ended after {JOB_S:g} s", status=0)


# --- 1: from nothing to a text --------------------------------------------------------------------


def first_text(bench: ContainerTrial) -> Iterator[Row]:
    """Start what was built, and have a recording transcribed through the published port."""
    project = bench.project
    yield Row("docker compose build", bench.built)
    base_mb = _size_mb(project, BASE)
    for which in OURS:
        size_mb = _size_mb(project, project.image(which))
        yield Row(
            f"image {which}",
            f"{size_mb:.0f} MB unpacked, {size_mb - base_mb:.0f} MB beside {BASE}",
        )
    yield Row("docker compose up -d --wait", f"{project.up():.0f} s")
    clip = bench.clips[0]
    started = time.monotonic()
    text = bench.undisturbed(clip)
    seconds = time.monotonic() - started
    yield Row(
        f"{clip.name} through the published port",
        f"{len(text.words)} words after {seconds:.1f} s: {text.text.strip()[:40]}...",
        "a text",
        bool(text.text.strip()),
    )
    before = project.containers()
    healthy = _all_healthy(before)
    names = ", ".join(each.service for each in before)
    yield Row("healthy", names if healthy else project.describe_unhealthy(), "all", healthy)
    seconds = project.up()
    changed = {(each.id, each.started_at) for each in before} ^ {
        (each.id, each.started_at) for each in project.containers()
    }
    yield Row(
        "docker compose up -d --wait again",
        f"{f'{len(changed)} changes' if changed else 'nothing changed'}, {seconds:.0f} s",
        "nothing changes",
        not changed,
    )


def _size_mb(project: Project, image: str) -> float:
    return int(project.docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6


def _all_healthy(containers: Sequence[Container]) -> bool:
    services = {each.service for each in containers}
    return {*KILLED} <= services and all(each.health == "healthy" for each in containers)


# --- 2: more workers ------------------------------------------------------------------------------


def scaling(bench: ContainerTrial) -> Iterator[Row]:
    """The long recording with one worker, and with two."""
    texts, seconds = [], []
    for workers in (1, 2):
        bench.project.up(workers=workers)
        with bench.gateway() as gateway:
            _warm_up(bench, gateway, workers)
            bench.report_line(f"{workers} worker(s) transcribe {bench.long.name}")
            started = time.monotonic()
            texts.append(bench.wait_for_text(gateway, bench.long))
            seconds.append(time.monotonic() - started)
        bench.expected_text.setdefault(bench.long, texts[0])
        length = probe(bench.long).duration_ms or 0
        yield Row(
            f"--scale worker={workers}",
            f"{seconds[-1]:.1f} s, {length / 1000 / seconds[-1]:.1f} times as fast as it was said",
        )
    ratio = seconds[1] / seconds[0]
    if bench.project.cores > 1:
        yield Row("two workers to one", f"{ratio:.2f}", f"<= {SCALED}", ratio <= SCALED)
    else:
        yield Row("two workers to one", f"{ratio:.2f}, on one core")
    observed, same = bench.same(bench.long, texts[1])
    yield Row("texts", observed, "the same", same)


def _warm_up(bench: ContainerTrial, gateway: Gateway, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda clip: bench.wait_for_text(gateway, clip), bench.clips[: 2 * workers]))


# --- 3: kill -9 -----------------------------------------------------------------------------------


class Watched:
    """A long job that is sent again for as long as something is to be done to it."""

    def __init__(self, bench: ContainerTrial, gateway: Gateway) -> None:
        self._bench = bench
        self._gateway = gateway
        self.jobs = [bench.send(gateway, bench.long)]

    def status(self) -> dict[str, Any]:
        """Where the newest job stands."""
        return patiently(lambda: self._gateway.status(self.jobs[-1]), patience_s=300)

    def in_the_midst(self) -> int:
        """Wait until chunks are done and chunks are left; returns how many are done."""
        while True:
            state = self.status()
            done = int(state["chunks_completed"])
            if state["progress"] > MIDST_PERCENT:
                self.jobs.append(self._bench.send(self._gateway, self._bench.long))
            elif done:
                return done
            time.sleep(POLL_S)

    def goes_on(self, done: int) -> float | None:
        """Seconds until a client sees more than ``done`` chunks."""
        return until(
            lambda: (state := self.status())["chunks_completed"] > done or state["status"] in ENDED,
            PATIENCE_S,
        )

    def checked(self) -> Iterator[Row]:
        """What came of the jobs."""
        for job_id in self.jobs:
            try:
                observed, same = self._bench.same(self._bench.long, outcome(self._gateway, job_id))
            except StenoError as error:
                observed, same = error.message, False
            yield Row("the job", observed, "COMPLETED, the undisturbed text", same)


def kills(bench: ContainerTrial) -> Iterator[Row]:
    """Kill every container while a long job runs."""
    project = bench.project
    project.up(workers=2)
    bench.undisturbed(bench.long)
    with bench.gateway() as gateway:
        job = Watched(bench, gateway)
        for service in KILLED:
            for victim in project.containers(service):
                yield _kill(bench, job, victim)
        yield from job.checked()


def _kill(bench: ContainerTrial, job: Watched, victim: Container) -> Row:
    project = bench.project
    done = job.in_the_midst()
    held = steps_of(project, victim) if victim.service == "worker" else {}
    by_policy = project.kill(victim)
    bench.report_line(f"{victim.name} is killed after {done} chunks")
    seconds = job.goes_on(done)
    observed = ["stood still" if seconds is None else f"next chunk after {seconds:.1f} s"]
    if held:
        taken = until(lambda: taken_over(project, held), PATIENCE_S)
        observed.append(
            "its own never" if taken is None else f"its own claimed after {taken:.1f} s"
        )
    healthy = until(lambda: is_back(project.again(victim), victim), 2 * PATIENCE_S)
    restarted = project.again(victim).restarts > victim.restarts
    how = "by the policy" if restarted else "not by the policy" if by_policy else "by hand"
    observed.append(f"restarted {how}, {'not ' if healthy is None else ''}healthy again")
    return Row(
        f"kill -9 {victim.name}",
        ", ".join(observed),
        f"restarted, goes on within {PATIENCE_S:g} s",
        None not in {seconds, healthy} and restarted == by_policy,
    )


def is_well(container: Container) -> bool:
    """Whether it runs and its check says so."""
    return container.running and container.health == "healthy"


def is_back(container: Container, before: Container) -> bool:
    """Whether it is well again, after it was started anew."""
    return is_well(container) and container.started_at != before.started_at


def steps_of(project: Project, container: Container) -> dict[str, str]:
    """The steps that the worker in a container has in hand, with its name."""
    rows = project.sql(
        "SELECT id, worker FROM steps WHERE status = 'running' AND kind = 'transcribe'"  # noqa: S608
        f" AND worker LIKE '{container.host}-%'"
    )
    return dict(rows)


def holders(project: Project, held: Mapping[str, str]) -> list[tuple[str, bool]]:
    """The status of each step, and whether it is, or was last, another worker's."""
    ids = ", ".join(f"'{step}'" for step in held)
    rows = project.sql(
        f"SELECT id, status, coalesce(worker, '') FROM steps WHERE id IN ({ids})"  # noqa: S608
    )
    return [(status, worker != held[step]) for step, status, worker in rows]


def taken_over(project: Project, held: Mapping[str, str]) -> bool:
    """Whether other workers have, or have done, all of it."""
    now = holders(project, held)
    return bool(now) and all(status in {"running", "done"} and moved for status, moved in now)


# --- 4: rolling restarts, scaling, stopping -------------------------------------------------------


class Crowd:
    """People who send clips one after the other, ask how each is doing, and read it.

    They try again when the connection is lost; any other error is a failure.
    """

    def __init__(self, bench: ContainerTrial) -> None:
        self._bench = bench
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(IN_FLIGHT)
        self.in_flight = 0
        self.completed = 0
        self.counted: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for number in range(IN_FLIGHT):
            self._pool.submit(self._person, number)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _person(self, number: int) -> None:
        clip = self._bench.clips[number % len(self._bench.clips)]
        with self._bench.gateway() as gateway:
            while not self._stop.is_set():
                try:
                    self._one(gateway, clip)
                except StenoError as error:
                    self._count(self.failures, error.message)
                except Exception as error:
                    self._count(self.failures, f"{type(error).__name__}: {error}")

    def _one(self, gateway: Gateway, clip: Path) -> None:
        options = {"language": self._bench.language}
        job_id = str(self._ask(lambda: gateway.upload(clip, options))["job_id"])
        with self._lock:
            self.in_flight += 1
        try:
            while (state := self._ask(lambda: gateway.status(job_id)))["status"] not in ENDED:
                time.sleep(POLL_S)
        finally:
            with self._lock:
                self.in_flight -= 1
        if state["status"] != JobStatus.COMPLETED:
            self._count(self.failures, f"a job is {state['status']}: {state['error_message']}")
            return
        text = text_of(self._ask(lambda: gateway.result(job_id)))
        if text != self._bench.expected_text[clip]:
            self._count(self.failures, "another text than undisturbed")
        with self._lock:
            self.completed += 1

    def _ask(self, ask: Callable[[], T]) -> T:
        self._count(self.counted, "requests")
        return patiently(ask, again=lost, on_retry=lambda: self._count(self.counted, "retries"))

    def _count(self, counter: Counter[str], what: str) -> None:
        with self._lock:
            counter[what] += 1

    def row(self, what: str) -> Row:
        """How they fared; for when they have stopped."""
        failures = "; ".join(f"{text} ({count})" for text, count in self.failures.most_common(5))
        return Row(
            what,
            f"{self.completed} jobs COMPLETED with the undisturbed text, "
            f"{self.counted['requests']} requests, "
            f"{self.counted['retries']} retried; {failures or 'no failure'}",
            "no failure",
            not self.failures and self.completed >= IN_FLIGHT,
        )


def restarts(bench: ContainerTrial) -> Iterator[Row]:
    """Renew services of ours under a crowd; scale and stop workers under a long recording."""
    project = bench.project
    project.up(workers=2)
    for clip in bench.clips:
        bench.undisturbed(clip)
    crowd = Crowd(bench)
    with crowd:
        if until(lambda: crowd.in_flight >= IN_FLIGHT, PATIENCE_S) is None:
            bench.report_line(f"only {crowd.in_flight} jobs are in flight")
        for service in ROLLED:
            jobs = crowd.in_flight
            seconds = project.up(service, workers=2, options=("--no-deps", "--force-recreate"))
            yield Row(f"new {service}", f"{seconds:.0f} s, {jobs} jobs in flight")
        for service in ROLLED:
            jobs = crowd.in_flight
            yield Row(f"restart {service}", f"{_restart(project, service)}, {jobs} jobs in flight")
    yield crowd.row(f"{IN_FLIGHT} clients meanwhile")
    yield _all_completed(project)
    yield from _up_and_down(bench)
    yield from _stops(bench)


def _restart(project: Project, service: str) -> str:
    started = time.monotonic()
    project.compose("restart", "--no-deps", service)
    well = until(lambda: all(map(is_well, project.containers(service))), 2 * PATIENCE_S)
    return f"{time.monotonic() - started:.0f} s{'' if well is not None else ', not healthy'}"


def _all_completed(project: Project) -> Row:
    """What came of every job, also of those whose answer was lost, so that they were sent again."""
    in_states = "SELECT status, count(*) FROM jobs GROUP BY status"
    until(lambda: {status for status, _ in project.sql(in_states)} <= ENDED, PATIENCE_S)
    counts = {status: int(count) for status, count in project.sql(in_states)}
    observed = ", ".join(f"{count} {status}" for status, count in counts.items())
    return Row("every job that is there", observed, "COMPLETED", set(counts) == {"COMPLETED"})


def _up_and_down(bench: ContainerTrial) -> Iterator[Row]:
    project = bench.project
    project.up(workers=1)
    bench.undisturbed(bench.long)
    with bench.gateway() as gateway:
        job = Watched(bench, gateway)
        for workers in (4, 1):
            job.in_the_midst()
            seconds = project.up("worker", workers=workers, options=("--no-deps", "--no-recreate"))
            running = len(project.containers("worker"))
            yield Row(
                f"--scale worker={workers} during a job",
                f"{running} run after {seconds:.0f} s",
                f"{workers}",
                running == workers,
            )
        yield from job.checked()
        rows = project.sql(
            f"SELECT count(DISTINCT worker) FROM steps WHERE job_id = '{job.jobs[-1]}'"  # noqa: S608
        )
        yield Row("workers that took part in it", rows[0][0] if rows else "not known")


def _stops(bench: ContainerTrial) -> Iterator[Row]:
    """Stop a worker that has a chunk in hand: with time to finish it, and with none."""
    project = bench.project
    for at_once in (False, True):
        settings = {"WORKER_STOP_PERIOD": "0"} if at_once else {}
        with project.having(settings), bench.gateway() as gateway:
            project.up(workers=2, options=("--force-recreate",))
            job = Watched(bench, gateway)
            for _ in range(TRIES):  # it may be done with the chunk before the signal arrives
                row = _stop(project, job, at_once=at_once)
                project.up(workers=2)
                if row.ok:
                    break
            yield row
            yield from job.checked()
    project.up(workers=2, options=("--force-recreate",))


def _stop(project: Project, job: Watched, *, at_once: bool) -> Row:
    job.in_the_midst()
    until(lambda: any(steps_of(project, each) for each in project.containers("worker")), PATIENCE_S)
    victim, held = max(
        ((each, steps_of(project, each)) for each in project.containers("worker")),
        key=lambda found: len(found[1]),
    )
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(project.docker, "stop", victim.id)
        free_s = until(lambda: let_go(project, held), PATIENCE_S) if held else None
        stopping.result()
    seconds = time.monotonic() - started
    exit_code = project.again(victim).exit_code
    elsewhere = bool(held) and taken_over(project, held)
    fate = "stayed with it" if free_s is None else f"was done by it after {free_s:.1f} s"
    if elsewhere:
        fate = f"was claimed elsewhere after {free_s:.1f} s"
    period = "0" if at_once else "as it is"
    return Row(
        f"docker stop of a worker in mid-chunk, WORKER_STOP_PERIOD {period}",
        f"its chunk {fate}; it ended after {seconds:.1f} s with {exit_code}",
        "claimed elsewhere" if at_once else "done by it, ended with 0",
        bool(held) and free_s is not None and elsewhere == at_once and exit_code == 0,
    )


def let_go(project: Project, held: Mapping[str, str]) -> bool:
    """Whether each step is done, or another worker's."""
    now = holders(project, held)
    return bool(now) and all(
        status == "done" or (status == "running" and moved) for status, moved in now
    )


# --- 5: what they may, and what they reveal -------------------------------------------------------


def confinement(bench: ContainerTrial) -> Iterator[Row]:
    """Look at every container, while all of them have something to do."""
    project = bench.project
    project.up(workers=2)
    project.up(SERVICE)
    with bench.gateway() as gateway:
        bench.wait_for_text(gateway, bench.clips[0])
    yield from audit(project)
    project.compose("rm", "--stop", "--force", SERVICE)


# --- 7: backup and restore, tables of an older version --------------------------------------------


def keeping(bench: ContainerTrial) -> Iterator[Row]:
    """Restore all from a backup that was made under way; go back to older tables, and on again."""
    project = bench.project
    project.up(workers=2)
    clip = bench.clips[0]
    expected_text = bench.undisturbed(clip)
    bench.undisturbed(bench.long)
    with bench.gateway() as gateway:
        done = bench.send(gateway, clip)
        outcome(gateway, done)
        job = Watched(bench, gateway)
        chunks = job.in_the_midst()
        seconds = project.follow("Backup and restore")
        sizes = [
            f"{name} {(project.checkout / name).stat().st_size / 1e6:.1f} MB" for name in BACKUP
        ]
        made = f"{seconds:.0f} s, {', '.join(sizes)}"
        yield Row("backup during a job", f"{made}, {chunks} chunks done")
        project.down()
        yield Row("restore into nothing", f"{project.follow('Backup and restore', 1):.0f} s")
        kept = patiently(lambda: text_of(gateway.result(done))) == expected_text
        yield Row("a finished job", "its text is there" if kept else "is not there", "there", kept)
        yield from job.checked()
        job = Watched(bench, gateway)
        job.in_the_midst()
        started = time.monotonic()
        project.compose("stop", "worker", "dispatcher", "api")
        project.compose("run", "--rm", "migrate", "scripts", "migrate", "--downgrade", OLDER)
        project.up(workers=2)
        yield Row(f"tables of {OLDER}, and on again", f"{time.monotonic() - started:.0f} s")
        yield from job.checked()


# --- 8: live streams ------------------------------------------------------------------------------


def live_streams(bench: ContainerTrial) -> Iterator[Row]:
    """Stream some clips, undisturbed and while their gateway is killed or restarted."""
    bench.project.up(workers=2)
    clips = [Clip(path, bench.undisturbed(path).text) for path in bench.clips]
    programme = string_together(clips, bench.language, SPOKEN_S)
    yield from live(Speaker(bench.project, bench.gateway, programme), _long_job(bench))


@contextmanager
def _long_job(bench: ContainerTrial) -> Iterator[None]:
    with bench.gateway() as gateway:
        job_id = bench.send(gateway, bench.long)
        yield
        with suppress(RequestRejected):  # it has ended meanwhile
            gateway.cancel(job_id)


# --- 9: models ------------------------------------------------------------------------------------


def models(bench: ContainerTrial) -> Iterator[Row]:
    """Fetch a missing model for a job and keep it; use another one where the best has no source."""
    project, clip = bench.project, bench.clips[0]
    project.up(workers=2)
    converted = {"language": bench.language, "engine": "whisper.cpp", "model": bench.model}
    with bench.gateway() as gateway:
        for what in ("a model that has to be made", "the same, of new containers"):
            started = time.monotonic()
            accepted = gateway.upload(clip, converted)
            text = outcome(gateway, accepted["job_id"])
            seconds = time.monotonic() - started
            used = gateway.status(accepted["job_id"])["engine"]
            yield Row(
                what,
                f"{len(text.words)} words by {used} after {seconds:.1f} s",
                "by whisper.cpp",
                used == "whisper.cpp" and bool(text.words),
            )
            (folder,) = {project.shell(each, "ls /models") for each in project.containers("worker")}
            kept = f"ggml-{bench.model}.bin"
            yield Row("in the volume", " ".join(folder.split()), kept, kept in folder)
            project.up("worker", workers=2, options=("--no-deps", "--force-recreate"))
        accepted = gateway.upload(clip, {"language": "vi", "model": "auto"})
        outcome(gateway, accepted["job_id"])
        state = gateway.status(accepted["job_id"])
        warned = [each for each in state["warnings"] if each.startswith(FALLBACK_MODEL)]
        used = f"{state['engine']}/{state['model']}"
        best = str(AsrSettings().models_for["vi"][0])
        yield Row(
            "the best model for Vietnamese",
            f"{used}; {warned[0] if warned else 'no warning'}",
            "the best, or a warning",
            (used == best) != bool(warned),
        )


# --- all of it ------------------------------------------------------------------------------------


def clear_messages(bench: ContainerTrial) -> Iterator[Row]:
    """Set the service up wrongly, and read what it says."""
    yield from trouble(bench.project, bench.gateway, bench.clips[0])


PROOFS: dict[int, tuple[str, Callable[[ContainerTrial], Iterator[Row]]]] = {
    1: ("From docker compose build to a text", first_text),
    2: ("Two workers against one", scaling),
    3: ("kill -9 of each container during a job", kills),
    4: ("Restarts, scaling and stopping under way", restarts),
    5: ("What containers may, and what they reveal", confinement),
    6: ("Clear messages", clear_messages),
    7: ("Backup and restore, tables of an older version", keeping),
    8: ("Live streams, in a gateway of their own", live_streams),
    9: ("Models that jobs need", models),
}


def recordings(paths: Sequence[Path]) -> list[tuple[float, Path]]:
    """The recordings among files and in folders, with their seconds, the shortest first."""
    found = []
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            try:
                length_ms = probe(file).duration_ms if file.is_file() else None
            except NotAudio:
                continue
            if length_ms:
                found.append((length_ms / 1000, file))
    return sorted(found)


def chosen(
    found: Sequence[tuple[float, Path]], long: Path | None, into: Path
) -> tuple[list[Path], Path]:
    """The clips, and the long recording.

    Raises:
        SetupProblem: there are no clips.
    """
    clips = [path for seconds, path in found if seconds <= CLIP_S][:IN_FLIGHT]
    if not clips:
        raise SetupProblem(
            problem=f"No recording is as short as {CLIP_S:g} s", remedy="Name some that are"
        )
    if long is not None:
        return clips, long
    seconds, path = found[-1]
    if seconds >= LONG_S:
        return clips, path
    lengths = {path: seconds for seconds, path in found}
    parts: list[Path] = []
    while sum(lengths[part] for part in parts) < LONG_S:
        parts.append(clips[-1 - len(parts) % len(clips)])
    return clips, join(parts, into / "long.wav")


def prove(bench: ContainerTrial, numbers: Sequence[int], rows: dict[str, list[Row]]) -> None:
    """Add what each proof finds to ``rows``; one that breaks off does not keep the others back."""
    for number in numbers:
        name, proof = PROOFS[number]
        title = f"{number}. {name}"
        bench.report_line(title)
        observed = rows.setdefault(title, [])
        try:
            for row in proof(bench):
                observed.append(row)
                bench.report_line(f"   {row}")
        except StenoError as error:
            observed.append(Row("broke off", str(error.details.get("problem", error)), ok=False))
            bench.report_line(f"   {observed[-1]}")


def _numbers(_context: click.Context, _option: click.Parameter, text: str) -> list[int]:
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not set(numbers) <= set(PROOFS):
        raise click.BadParameter(f"numbers of {', '.join(map(str, PROOFS))}, separated by commas")
    return sorted(set(numbers))


@click.command(help=__doc__)
@click.argument(
    "paths",
    metavar="FOLDER-or-FILES...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, path_type=Path),
)
@click.option(
    "--only", "numbers", default=",".join(map(str, PROOFS)), callback=_numbers, help="Such as 1,3."
)
@click.option("--long", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--language", default="en", show_default=True)
@click.option("--model", default="base", show_default=True, help="Weights to bake in and use.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice(PROFILES),
    help="Start these containers too; may be given twice.",
)
@click.option("--no-cache", is_flag=True, help="Build everything afresh.")
@click.option("--keep", is_flag=True, help="Leave containers, volumes, images and logs behind.")
def main(
    paths: tuple[Path, ...],
    numbers: list[int],
    long: Path | None,
    language: str,
    model: str,
    profiles: tuple[str, ...],
    no_cache: bool,
    keep: bool,
) -> None:
    """Prove, print, and exit with 1 where something was not ok."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    console = make_console()
    started = time.monotonic()

    def report_line(line: str) -> None:
        click.echo(f"{time.monotonic() - started:7.1f} s  {line}")

    folder = Path(tempfile.mkdtemp(prefix="stenopool-containers-"))
    rows: dict[str, list[Row]] = {}
    with ExitStack() as stack:
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        clips, the_long = chosen(recordings(paths), long, folder)
        settings = {"REUSE_RESULTS": "false", "DEFAULT_MODEL": model, "STREAM_MODEL": model}
        project = Project(
            folder, settings=settings, build={"MODELS": model}, profiles=profiles, keep=keep
        )
        try:
            with project:
                report_line(f"{project.engine_named}; logs in {project.logs_folder}")
                bench = ContainerTrial(project, clips, the_long, language, model, report_line)
                cached = "nothing cached" if no_cache else "cached where it was built before"
                bench.built = f"{project.build(afresh=no_cache):.0f} s, {cached}"
                report_line(f"built in {bench.built}")
                prove(bench, numbers, rows)
            rows["All along"] = list(log_rows(project))
        except StenoError as error:
            rows["All of it"] = [Row("broke off", error.message, ok=False)]
        if not all_ok(rows):
            stack.pop_all()
            if not keep:
                shutil.rmtree(project.checkout, ignore_errors=True)
    console.print()
    show(rows, console)
    if not all_ok(rows):
        console.print(f"Logs: {project.logs_folder}")
        sys.exit(1)
