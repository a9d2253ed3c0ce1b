"""Child processes that cannot outlive the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn`` after which the kernel sends ``death_signal`` when the parent is gone.

    The "parent" is the *thread* that forked (prctl(2)): start children from a thread that lives
    as long as they should. Elsewhere than on Linux it does nothing.
    """
    parent = os.getpid()

    def arm() -> None:
        if _libc is None:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died between the fork and the line above
            os._exit(1)

    return arm


def spawn(
    argv: Sequence[str | Path],
    *,
    log: IO[bytes] | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in a process group of its own, so that a Ctrl-C reaches only the parent.

    ``log`` takes its output (none: it is thrown away); ``user`` and ``group`` are what it drops to.
    """
    output: IO[bytes] | int = subprocess.DEVNULL if log is None else log
    return subprocess.Popen(
        [os.fspath(part) for part in argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=env,
        cwd=cwd,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
        process_group=0,
        preexec_fn=die_with_parent(death_signal),
    )


def terminate(
    process: subprocess.Popen[bytes], signals: Sequence[signal.Signals], patience_s: float
) -> None:
    """Send each signal in turn, waiting ``patience_s`` after it, and SIGKILL in the end."""
    for number in signals:
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            return
    process.kill()
    process.wait()
