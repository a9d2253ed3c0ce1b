"""Limits, progress and file checks of all kinds of download."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.weights.manifest import FileSpec
from common.weights.store import sha256_of

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in total, and the current activity.

With a total of 0 the text is a message of its own: a source failed, or the pull waits.
"""


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Where the hub is, and the timeouts of all sources.

    ``hub_endpoint`` None means the hub library's own, which the variable HF_ENDPOINT sets.
    ``connect_timeout_s`` bounds resolving and connecting; ``stall_timeout_s`` is the longest time
    without data.
    """

    hub_endpoint: str | None = None
    connect_timeout_s: float = 3.0
    stall_timeout_s: float = 20.0


class SourceFailed(Exception):
    """A source failed; the text briefly says why."""


class Meter:
    """Counts bytes and reports them at most ten times a second."""

    def __init__(self, progress: Progress, total: int, what: str = "") -> None:
        self.what = what
        self.done = 0
        self._progress = progress
        self._total = total
        self._reported_at = 0.0

    def add(self, size: int) -> None:
        self.move_to(self.done + size)

    def move_to(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if now - self._reported_at >= 0.1 or done >= self._total:
            self._reported_at = now
            self._progress(done, max(self._total, done), self.what)


def is_whole(path: Path, file: FileSpec) -> bool:
    """Whether ``path`` exists and has the hash that the manifest states; False without one."""
    file = file.as_found(path)
    if file.sha256 is None or not path.is_file() or file.size not in (None, path.stat().st_size):
        return False
    return sha256_of(path) == file.sha256


def check_file(path: Path, size: int | None, sha256: str | None) -> None:
    """Check a downloaded file against its known size and hash; a wrong one is removed.

    Raises:
        SourceFailed: it is missing or wrong.
    """
    if not path.is_file():
        raise SourceFailed(f"{path.name} is missing")
    found_size = path.stat().st_size
    if size not in (None, found_size):
        path.unlink()
        raise SourceFailed(f"{path.name} has {found_size} bytes, expected {size}")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        path.unlink()
        raise SourceFailed(f"{path.name} has the wrong hash (sha256 {found})")


def human(size: int) -> str:
    """A number of bytes for people to read."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
