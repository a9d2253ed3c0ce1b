"""The whole service on one machine: servers, gateway, dispatcher and workers under one supervisor.

`Stack` is what ``steno up`` runs. Its processes die with it, are started again when they die, and
stop in the order that loses nothing: gateway, workers, dispatcher, servers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

import httpx
from loguru import logger

from api.auth.exposure import listening_host
from common.db.migrate import upgrade
from common.errors import SetupProblem, StenoError
from common.files import OWN, FileAccess
from common.settings import Settings, import_from_checkout
from scripts.stack.embedded import (
    EmbeddedPostgres,
    EmbeddedServer,
    EmbeddedValkey,
    free_port,
    listening_problem,
    own,
    write_private,
)
from scripts.stack.processes import spawn
from scripts.stack.running import RunningStack

READY_WITHIN_S = 120
TICK_S = 0.5
"""How often the supervisor checks its processes."""

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
HEALTHY_AFTER_S = 10.0
"""A process that dies is started again after a delay that doubles; this long a life resets it."""

LOG_LIMIT_BYTES = 20_000_000

PATIENCE_S = {"gateway": 25.0, "worker": 10.0, "dispatcher": 10.0}
"""How long a process may take to end by itself: the gateway lets uploads under way arrive (20 s). A
worker has WORKER_STOP_PERIOD on top, to finish its step."""


@dataclass(eq=False)
class StackProcess:
    """One supervised process, with its log."""

    role: str
    name: str
    argv: list[str]
    log_file: Path
    access: FileAccess = OWN
    process: subprocess.Popen[bytes] | None = None
    _started_at: float = 0.0
    _delay_s: float = FIRST_DELAY_S
    _read_up_to: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def due_at(self) -> float:
        """When it may be started again, on the monotonic clock."""
        return self._started_at + self._delay_s if self.process is not None else 0.0

    def start(self, env: Mapping[str, str]) -> None:
        lived_s = time.monotonic() - self._started_at
        if lived_s > HEALTHY_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        else:
            self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)
        self.access.make_folder(self.log_file.parent)
        with self.access.open(self.log_file, "ab") as log:
            if self.process is None:
                self._read_up_to = log.tell()
            self.process = spawn(self.argv, log=log, env=env)
        self._started_at = time.monotonic()

    def new_errors(self) -> Iterator[str]:
        """The lines about errors that were logged since the last call; keeps the log small."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._read_up_to)
                fresh = log.read()
        except FileNotFoundError:  # somebody tidied up
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_up_to += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if re.search(r"\b(ERROR|CRITICAL)\b", line):
                yield line
        if self._read_up_to > LOG_LIMIT_BYTES:
            before = self.log_file.with_suffix(".log.1")
            with self.log_file.open("rb") as log, self.access.open(before, "wb") as kept:
                shutil.copyfileobj(log, kept)
            os.truncate(self.log_file, 0)  # it is open for appending, so it goes on at the start
            self._read_up_to = 0

    def last_words(self) -> str:
        """The log line that most likely gives the reason it ended."""
        text = self.log_file.read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\bERROR|\bCRITICAL|^[\w.]+Error:", line)]
        return (errors or lines or ["its log is empty"])[-1]


class Stack:
    """Everything that ``steno up`` starts.

    ``settings`` decide where data lies, where the gateway listens (port 0: a free one) and whether
    Postgres and Redis are embedded. ``env`` is added to the children's environment; ``report``
    takes what an operator should see; ``prepare`` is called by `start` once the data directory and
    the port are ours, before any process is started. `start` and `stop` are to be called by one
    thread; all processes belong to a thread of the stack's own, which lives as long as they do.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int | None = None,
        env: Mapping[str, str] | None = None,
        report: Callable[[str], None] = logger.info,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.data_dir = settings.storage.data_dir.absolute()
        self.log_dir = self.data_dir / "logs"
        self.host = settings.api.host
        self.port = settings.api.port or free_port()
        self.workers = workers if workers is not None else available_cores()
        self._env = dict(env or {})
        self._report = report
        self._prepare = prepare
        self._servers: dict[str, EmbeddedServer] = {}
        self._children: list[StackProcess] = []
        self._held: set[str] = set()
        self._lock: IO[str] | None = None
        # Events, as a Ctrl-C in Thread.join() makes Python 3.11 take the thread for ended.
        self._settled = threading.Event()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._ended.set()
        self._error: BaseException | None = None
        self.database_url = ""
        self.redis_url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where a client on this machine reaches the gateway."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def processes(self) -> dict[str, list[int]]:
        """The running processes' ids by role: postgres, valkey, gateway, dispatcher, worker."""
        found: dict[str, list[int]] = {
            role: [server.pid] if server.pid is not None else []
            for role, server in self._servers.items()
        }
        for child in self._children:
            pids = found.setdefault(child.role, [])
            if child.process is not None and child.running:
                pids.append(child.process.pid)
        return found

    def start(self) -> str:
        """Start everything; returns the address once ``/readyz`` succeeds.

        Raises:
            common.errors.SetupProblem: something is missing, in conflict, or does not start.
        """
        for event in (self._settled, self._stopping, self._ended):
            event.clear()
        self._error = None
        try:
            self._claim()
        except BaseException:
            self._take_down()
            self._ended.set()
            raise
        threading.Thread(target=self._supervise, name="supervisor", daemon=True).start()
        try:
            self._settled.wait()
        except BaseException:
            self.stop()
            raise
        if self._error is not None:
            raise self._error
        return self.address

    def wait(self) -> None:
        """Until `stop` or `kill` is called (by a signal's handler), or the supervisor fails."""
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Stop after every process has finished what it has in hand; safe to call again."""
        self._stopping.set()
        self._ended.wait()

    def kill(self) -> None:
        """Kill everything. Accepted jobs are kept; steps in hand are done again."""
        self._stopping.set()
        for pids in self.processes.values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def hold(self, role: str) -> Iterator[None]:
        """Do not restart a role's processes while the block lasts (for tests of outages)."""
        self._held.add(role)
        try:
            yield
        finally:
            self._held.discard(role)

    # --- the supervisor's thread --------------------------------------------------------------

    def _supervise(self) -> None:
        try:
            self._bring_up()
            self._settled.set()
            while not self._stopping.wait(TICK_S):
                self._look_after_all()
        except BaseException as error:
            self._error = error
        finally:
            try:
                self._take_down()
            finally:
                self._ended.set()
                self._settled.set()

    def _claim(self) -> None:
        """Lock the data directory, check the port and prepare, before any server is started."""
        self._lock = own(self.data_dir, self.settings.storage.access)
        (self.data_dir / "stack.json").unlink(missing_ok=True)  # from a killed stack
        if problem := listening_problem(self.port, self.host):
            raise SetupProblem(
                problem=f"The gateway cannot listen on {self.host}, port {self.port}: {problem}",
                remedy="Stop what listens there, or choose another with --host or --port"
                " (API_HOST, API_PORT)",
            )
        self._prepare()

    def _bring_up(self) -> None:
        settings = self.settings
        self.database_url = settings.database.address or self._serve("postgres", EmbeddedPostgres)
        self.redis_url = settings.redis.address or self._serve("valkey", EmbeddedValkey)
        upgrade(self.database_url)
        self.host = listening_host(self.settings, self.database_url, self._report)
        self._children = [
            self._child("gateway", "gateway", "api"),
            self._child("dispatcher", "dispatcher", "worker.dispatcher"),
            *(self._child("worker", f"worker-{n + 1}", "worker") for n in range(self.workers)),
        ]
        for child in self._children:
            child.start(self._environment())
        self._wait_until_ready()
        running = RunningStack(self.address, os.getpid(), self.database_url, self.redis_url)
        write_private(self.data_dir / "stack.json", json.dumps(asdict(running)))

    def _serve(self, role: str, kind: type[EmbeddedPostgres | EmbeddedValkey]) -> str:
        server = kind(self.data_dir / role, log_file=self.log_dir / f"{role}.log")
        self._servers[role] = server
        return server.start()

    def _child(self, role: str, name: str, module: str) -> StackProcess:
        log_file = self.log_dir / f"{name}.log"
        access = self.settings.storage.access
        return StackProcess(role, name, [sys.executable, "-m", module], log_file, access)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **import_from_checkout(),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "API_HOST": self.host,
            "API_PORT": str(self.port),
            "DATA_DIR": str(self.data_dir),
            **self._env,
        }

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        with httpx.Client(base_url=self.address, timeout=5, trust_env=False) as client:
            while not self._stopping.wait(TICK_S / 2):
                for child in self._children:
                    if child.role != "worker" and not child.running:
                        raise self._failure(child)
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").is_success:
                        return
                if time.monotonic() > deadline:
                    raise self._failure(self._children[0])
        raise SetupProblem(problem="The stack was stopped while it was starting", remedy="")

    def _failure(self, child: StackProcess) -> StenoError:
        return SetupProblem(
            problem=f"The {child.name} did not start: {child.last_words()}",
            remedy=f"Its log is {child.log_file}",
        )

    def _look_after_all(self) -> None:
        for role, server in self._servers.items():
            if not server.running and role not in self._held:
                self._report(f"{server.name} died; starting it again")
                try:
                    server.start()
                except SetupProblem as problem:
                    self._report(problem.message)
                    self._stopping.wait(FIRST_DELAY_S * 10)
        for child in self._children:
            for line in child.new_errors():
                self._report(f"{child.name}: {line}")
            due = time.monotonic() >= child.due_at and child.role not in self._held
            if not child.running and due:
                self._report(f"{child.name} {_end_of(child)}; starting it again")
                child.start(self._environment())

    def _take_down(self) -> None:
        if self._lock is not None:  # without the file, the directory is another stack's
            (self.data_dir / "stack.json").unlink(missing_ok=True)
        for role in PATIENCE_S:
            self._end_role(role)
        for server in reversed(self._servers.values()):
            server.stop()
        self._children = []
        self._servers = {}
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_role(self, role: str) -> None:
        """Signal all of a role's processes at once, then wait for them together."""
        living = [child.process for child in self._children if child.role == role and child.process]
        for process in living:
            process.send_signal(signal.SIGTERM)
        on_top_s = self.settings.worker.stop_period if role == "worker" else 0.0
        deadline = time.monotonic() + PATIENCE_S[role] + on_top_s
        for process in living:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in living:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def available_cores() -> int:
    """The cores this process may use, which a container or taskset can make fewer than exist."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_of(child: StackProcess) -> str:
    code = child.process.returncode if child.process is not None else 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
