"""The inner side of a process that `api.processes.child.ChildProcess` started."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, TypeVar

from loguru import logger

from common.errors import DecodeFailed, NotAudio, NotFound, StenoError, Transient
from common.process.orphans import die_with_parent

T = TypeVar("T")

MAX_MEMORY = 4 << 30
"""Of address space, in bytes; most of what is mapped is libraries."""


def pipe_to_gateway(parent: str) -> BinaryIO:
    """The pipe for answers; ``parent`` is the gateway's process id, with which this process ends.

    Standard output of libraries goes to standard error from now on.
    """
    die_with_parent(int(parent))
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe


def load(
    pipe: BinaryIO, what: str, loader: Callable[[], T], reason: Callable[[StenoError], str] = str
) -> T:
    """What ``loader`` returns; where it fails, report why to the gateway, and exit."""
    try:
        return loader()
    except StenoError as error:
        write_line(pipe, {"unusable": reason(error)})
    except Exception as error:
        logger.opt(exception=error).error("{} cannot be loaded", what)
        write_line(pipe, {"unusable": "loading it failed; the log says why"})
    sys.exit()


def readable(pipe: BinaryIO, read: Callable[[], T]) -> T | None:
    """What ``read`` returns; where it cannot read a recording, report why, and return None.

    `api.processes.child.size_announced` is the other side.
    """
    try:
        return read()
    except (NotAudio, DecodeFailed) as error:
        answer: dict[str, object] = {"unreadable": error.details["reason"]}
    except NotFound:
        answer = {"missing": True}
    except Transient:
        answer = {"unavailable": True}
    with suppress(BrokenPipeError):  # nobody waits for it
        write_line(pipe, answer)
    return None


def log_where(what: str, error: Exception) -> None:
    """Log where ``error`` arose; its message may quote what was said, which no log carries."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("{}: {} in {}:{}", what, type(error).__name__, frame.filename, frame.lineno)


def confine() -> None:
    """Limit what a hostile file could exhaust: memory, and the disk by core dumps."""
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
