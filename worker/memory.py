"""Measures how much a process has grown since it last loaded a model."""

from __future__ import annotations

import psutil


class Memory:
    """This process's resident memory, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._after_load = self.held

    @property
    def held(self) -> int:
        return self._process.memory_info().rss

    @property
    def grown(self) -> int:
        """Bytes more than when a model was last loaded."""
        return self.held - self._after_load

    def note_loaded(self) -> None:
        """Take the current size as the base for `grown`: a model was just loaded."""
        self._after_load = self.held
