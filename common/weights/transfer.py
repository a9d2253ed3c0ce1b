"""What all ways of fetching share: limits, progress, and the checks on a file that has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.weights.manifest import FileSpec
from common.weights.store import sha256_of

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and what is being worked on.

With 0 bytes in all the text is news that stands by itself: a source that failed, a wait.
"""


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """How to reach the sources, and when to give one up.

    ``hub_endpoint`` None takes the hub library's own, which the variable HF_ENDPOINT sets.
    ``connect_timeout_s`` bounds finding and reaching a host; ``stall_timeout_s`` is how long a
    transfer may bring nothing.
    """

    hub_endpoint: str | None = None
    connect_timeout_s: float = 3.0
    stall_timeout_s: float = 20.0


class SourceFailed(Exception):
    """A source cannot be used; the text says why, in a few words."""


class Meter:
    """Counts bytes and reports them at most ten times a second."""

    def __init__(self, progress: Progress, total: int, what: str = "") -> None:
        self.what = what
        self.done = 0
        self._progress = progress
        self._total = total
        self._told_at = 0.0

    def add(self, size: int) -> None:
        self.move_to(self.done + size)

    def move_to(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if now - self._told_at >= 0.1 or done >= self._total:
            self._told_at = now
            self._progress(done, max(self._total, done), self.what)


def is_whole(path: Path, file: FileSpec) -> bool:
    """Whether ``path`` is certainly the file meant: the manifest knows its hash, and it is that."""
    if file.sha256 is None or not path.is_file() or file.size not in (None, path.stat().st_size):
        return False
    return sha256_of(path) == file.sha256


def check_file(path: Path, size: int | None, sha256: str | None) -> None:
    """Hold a file that has come against what is known of it; a wrong one is removed.

    Raises:
        SourceFailed: it is missing or wrong.
    """
    if not path.is_file():
        raise SourceFailed(f"{path.name} did not come")
    found_size = path.stat().st_size
    if size not in (None, found_size):
        path.unlink()
        raise SourceFailed(f"{path.name} has {found_size} bytes, should have {size}")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        path.unlink()
        raise SourceFailed(f"{path.name} has the wrong hash (sha256 {found})")


def human(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
