"""How a stack is found by the commands that want to talk to it; quick to import."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunningStack:
    """What a stack tells about itself in ``DATA_DIR/stack.json``, to its owner alone."""

    address: str
    pid: int
    database_url: str
    redis_url: str


def find_running(data_dir: Path) -> RunningStack | None:
    """The stack that is up in ``data_dir``, if there is one."""
    try:
        told = json.loads((data_dir / "stack.json").read_text())
        with (data_dir / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody holds it, so what is told is true
        return RunningStack(**told)
    except OSError:
        return None
    return None
