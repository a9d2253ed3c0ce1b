"""Child processes that cannot outlive the one that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from common.files import UMASK
from common.process.orphans import die_with_parent


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

    It is sent ``death_signal`` when the calling *thread* ends (see `common.process.orphans`).
    What it writes is for its own user. ``log`` takes its output (none: it is discarded); ``user``
    and ``group`` are what it drops to.
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
        umask=UMASK,
        preexec_fn=partial(die_with_parent, os.getpid(), death_signal),
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
