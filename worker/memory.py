"""How much a process has grown beyond what it holds on purpose."""

from __future__ import annotations

import psutil


class Memory:
    """This process's resident memory, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._meant = self.held

    @property
    def held(self) -> int:
        """Bytes at this moment."""
        return self._process.memory_info().rss

    @property
    def grown(self) -> int:
        """Bytes more than when a model was last loaded."""
        return self.held - self._meant

    def note_loaded(self) -> None:
        """A model was just loaded: what is held now is meant to be."""
        self._meant = self.held
