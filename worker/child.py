"""The child process of a worker, which holds the engine: how it is started.

On Linux it is forked, and has what the worker has imported already: it begins work a second sooner
than a new interpreter would, and shares that memory. The worker itself never uses an engine:
CTranslate2, onnxruntime and whisper.cpp deadlock or crash in a child of a process that has used
them. On macOS a process with threads cannot be forked safely, so a new interpreter is started.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import NoReturn, Protocol

from common.settings import AsrSettings

POLL_S = 0.01
STOPPING = {signal.SIGINT, signal.SIGTERM}


class Child(Protocol):
    """What a worker needs of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """`poll` once it has ended; raises `subprocess.TimeoutExpired` after ``timeout`` s."""


def start_child(name: str, *, warm: bool) -> tuple[Child, socket.socket]:
    """Start the engine process of the worker ``name``, in a process group of its own.

    ``warm``: it loads its models before the first step asks for them.

    Returns:
        The process, and the worker's end of the connection to it.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        if sys.platform == "linux":
            return Forked(partial(_serve, name, ours, theirs, os.getpid(), warm=warm)), ours
        descriptor = str(theirs.fileno())
        command = [
            "-m",
            "worker.engine_process",
            name,
            descriptor,
            str(os.getpid()),
            *["warm"] * warm,
        ]
        child = subprocess.Popen(
            [sys.executable, *command], process_group=0, pass_fds=[theirs.fileno()]
        )
        return child, ours


def preload(settings: AsrSettings) -> None:
    """Import what every child needs and what is safe to have before a fork."""
    for library in ("OMP", "OPENBLAS"):
        # numpy and whisper.cpp would each take all cores otherwise, here and in the child.
        os.environ.setdefault(f"{library}_NUM_THREADS", str(settings.threads))
    if sys.platform == "linux":
        import common.audio.decode  # noqa: F401 - numpy and FFmpeg's libraries


class Forked:
    """A forked child that does ``run`` and ends."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._code: int | None = None
        # In a child without handlers of its own yet, a signal would call the worker's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(run)
            with suppress(OSError):  # whichever of the two is first
                os.setpgid(self.pid, self.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        limit_s = inf if timeout is None else timeout
        deadline = time.monotonic() + limit_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the engine process", limit_s)
            time.sleep(POLL_S)
        return code


def _become(run: Callable[[], None]) -> NoReturn:
    """Be the child: nothing of the worker's is to run here, not even at the end."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in STOPPING:  # those that came meanwhile are the worker's business
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(
    name: str, ours: socket.socket, theirs: socket.socket, parent: int, *, warm: bool
) -> None:
    from worker.engine_process import main

    ours.close()  # or the worker's end of it could never be seen
    main(name, theirs, parent, warm=warm)
