"""Starts the engine process of a worker.

On Linux the worker forks it. The child inherits the worker's imports, so it starts a second sooner
than a new interpreter and shares that memory. The worker itself never uses an engine: CTranslate2,
onnxruntime and whisper.cpp deadlock or crash in a child of a process that has used them. On macOS
a process with threads cannot be forked safely, so the worker starts a new interpreter.
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
from typing import NoReturn

from common.settings import AsrSettings

POLL_S = 0.01
STOPPING = {signal.SIGINT, signal.SIGTERM}


def start_child(name: str, *, warm: bool) -> tuple[Forked | subprocess.Popen[bytes], socket.socket]:
    """Start the engine process of the worker ``name`` in its own process group.

    ``warm``: it loads its models before the first step needs them.

    Returns:
        The process, and the worker's end of the connection to it.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        if sys.platform == "linux":
            return Forked(partial(_serve, name, ours, theirs, os.getpid(), warm=warm)), ours
        descriptor = str(theirs.fileno())
        module = [sys.executable, "-m", "worker.engine_process"]
        arguments = [name, descriptor, str(os.getpid()), *["warm"] * warm]
        child = subprocess.Popen([*module, *arguments], process_group=0, pass_fds=[theirs.fileno()])
        return child, ours


def preload(settings: AsrSettings) -> None:
    """Import what every child needs, as far as that is safe before a fork."""
    for library in ("OMP", "OPENBLAS"):
        # Otherwise numpy and whisper.cpp would each use all cores, here and in the child.
        os.environ.setdefault(f"{library}_NUM_THREADS", str(settings.threads))
    if sys.platform == "linux":
        import common.audio.decode  # noqa: F401 - numpy and FFmpeg's libraries


class Forked:
    """A forked child that calls ``run`` and exits; as `subprocess.Popen`, as far as it is used."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._code: int | None = None
        # Until the child has its own handlers, a signal would call the worker's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(run)
            with suppress(OSError):  # parent and child both do this: either may be first
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
    """Run as the child; none of the worker's code runs here, not even at exit."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in STOPPING:  # the worker handles those that arrived before
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

    ours.close()  # otherwise the end of the worker would not close the connection
    main(name, theirs, parent, warm=warm)
