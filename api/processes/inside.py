"""The inside of a process that `api.processes.child.Child` started."""

from __future__ import annotations

import json
import os
import resource
from typing import BinaryIO

from common.orphans import die_with_parent

MAX_MEMORY = 4 << 30
"""Of address space, in bytes; most of what is mapped is libraries."""


def pipe_to_gateway(parent: str) -> BinaryIO:
    """What carries the answers; ``parent`` is the gateway's process id, with which we end.

    Libraries may write to standard output: from now on that goes to standard error.
    """
    die_with_parent(int(parent))
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe


def confine() -> None:
    """Take away what a hostile file could fill: memory without end, and the disk with dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def write_line(pipe: BinaryIO, answer: object) -> None:
    """Answer with one line of JSON."""
    write_all(pipe, json.dumps(answer).encode() + b"\n")


def write_all(pipe: BinaryIO, content: bytes) -> None:
    """Write all of it; a raw pipe may take less at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[pipe.write(rest) :]
