"""How commands find the running stack; fast to import."""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A stack's addresses, in ``DATA_DIR/stack.json``, which only its owner can read."""

    address: str
    pid: int
    database_url: str
    redis_url: str


def find_running(data_dir: Path) -> RunningStack | None:
    """The stack that runs in ``data_dir``, if any."""
    if find_owner(data_dir) is None:  # its file is from a killed stack
        return None
    try:
        return RunningStack(**json.loads((data_dir / "stack.json").read_text()))
    except OSError:
        return None


def find_owner(data_dir: Path) -> str | None:
    """The id of the process whose stack is up in ``data_dir``, starts or stops."""
    with suppress(OSError), (data_dir / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read().strip() or "unknown"
    return None
