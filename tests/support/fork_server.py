"""Starts programs of the project as forks of a process that has imported them, a second sooner.

A program has its own environment, output and process group, as one in a new interpreter has.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from typing import IO

from common.process.orphans import die_with_parent
from common.settings import ROOT

REQUEST_BYTES = 1_000_000


class Program:
    """``python -m module``; as `subprocess.Popen`, as far as tests use it.

    It runs the code ``before`` first, and is killed when this process ends.
    """

    def __init__(
        self, module: str, env: Mapping[str, str], log: IO[bytes], before: str = ""
    ) -> None:
        self.module = module
        ours, theirs = socket.socketpair()
        with theirs:
            request = json.dumps([dict(env), before]).encode()
            socket.send_fds(_server(module), [request], [log.fileno(), theirs.fileno()])
        self._status = ours.makefile("rb")
        ours.close()
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, once it has ended; -9 if SIGKILL ended it."""
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most ``timeout`` seconds; raises `subprocess.TimeoutExpired`."""
        code = self._end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.module, timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode


@functools.cache
def _server(module: str) -> socket.socket:
    """The connection to the process that has imported ``module``; it ends with the connection."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", module],
            stdin=theirs.fileno(),
            cwd=ROOT,
            process_group=0,
        )
    return ours


def main() -> None:
    """Import the module, and fork a program for each request that comes on standard input."""
    module = f"{sys.argv[1]}.__main__"
    import_module(module)
    requests = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, maxfds=2)
        if not request:
            return
        server = os.getpid()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(server)
            env, before = json.loads(request)
            _keep(module, env, before, *descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(module: str, env: dict[str, str], before: str, log: int, status: int) -> None:
    """Fork the program and report its process id and its exit code, a line each.

    Returns only as the program, at its end, so that its interpreter ends as a new one does.
    """
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(status)
        die_with_parent(keeper)
        _become(module, env, before, log)
        return
    os.close(log)
    os.write(status, b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status, b"%d\n" % code)
    os._exit(0)


def _become(module: str, env: dict[str, str], before: str, log: int) -> None:
    """Run the program in the state of a new interpreter."""
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.closerange(3, max(nothing, log) + 1)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    del sys.argv[1:]
    del sys.modules[module]  # it runs, and is imported, as in a new interpreter
    exec(before, {})  # noqa: S102 - a test's own
    runpy.run_module(module.removesuffix(".__main__"), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
