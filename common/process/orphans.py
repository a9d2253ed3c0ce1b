"""Child processes end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process ``death_signal`` when its parent, ``parent``, ends.

    To the kernel the parent is the *thread* that started the process (prctl(2)): that thread must
    live as long as the process should. Does nothing except on Linux.
    """
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before prctl
        os._exit(1)
