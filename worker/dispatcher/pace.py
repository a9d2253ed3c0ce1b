"""How often a loop of the dispatcher queries Postgres: seldom while there is no work."""

from __future__ import annotations

import random
import threading
import time


class Pace:
    """Decides when a loop checks for work.

    ``idle_s`` is the interval while there is no work, unless the loop is woken. It varies by a
    fifth, so that several loops do not run in step.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._woken = threading.Event()
        self._next_at = 0.0

    def wake(self) -> None:
        """Check now; may be called from any thread."""
        self._woken.set()

    def wait(self) -> None:
        """Wait until the next check is due."""
        self._woken.wait(max(0.0, self._next_at - time.monotonic()))

    def is_due(self) -> bool:
        if self._woken.is_set():
            self._woken.clear()
            return True
        return time.monotonic() >= self._next_at

    @property
    def hurries(self) -> bool:
        """Whether the last check found work."""
        return self._next_at == 0.0

    def hurry(self) -> None:
        """There is work: check again at once."""
        self._next_at = 0.0

    def rest(self, due_s: float | None = None) -> None:
        """There is no work, or none for ``due_s`` seconds."""
        pause_s = self._idle_s * random.uniform(0.8, 1.2)  # noqa: S311 - it only spreads the load
        self._next_at = time.monotonic() + (pause_s if due_s is None else min(pause_s, due_s))
