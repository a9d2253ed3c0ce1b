"""Measures how much a process has grown since it last loaded a model."""

from __future__ import annotations

import ctypes
import sys

import psutil


class Memory:
    """This process's resident memory, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._after_load = self.held

    @property
    def held(self) -> int:
        return self._process.memory_info().rss

    def has_grown(self, limit: int) -> bool:
        """Whether it is more than ``limit`` bytes above what it was when a model was last loaded.

        Freed memory does not count: it is returned to the system before the answer is yes.
        """
        if self.held - self._after_load > limit:
            _return_freed_memory()
        return self.held - self._after_load > limit

    def note_loaded(self) -> None:
        """Take the current size as the base for `has_grown`: a model was just loaded.

        What loading has freed is returned to the system: with Whisper small some 400 MB, as its
        weights are converted. Otherwise it stays, in pieces too small for the decoder's blocks.
        """
        _return_freed_memory()
        self._after_load = self.held


def _return_freed_memory() -> None:
    """Have glibc return free pages to the system; the engines' settings keep it from doing so."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
