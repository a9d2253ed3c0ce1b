"""How often a loop of the dispatcher asks Postgres: seldom, where there is nothing to do."""

from __future__ import annotations

import random
import threading
import time


class Pace:
    """When a loop is to look for work.

    ``idle_s`` is how long it rests where there is nothing to do, unless it is woken; more or less,
    so that several loops do not go in step.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._woken = threading.Event()
        self._look_at = 0.0

    def wake(self) -> None:
        """Look now; called from any thread."""
        self._woken.set()

    def wait(self) -> None:
        """Return when it is time to look."""
        self._woken.wait(max(0.0, self._look_at - time.monotonic()))

    def is_due(self) -> bool:
        """Whether to look now."""
        if self._woken.is_set():
            self._woken.clear()
            return True
        return time.monotonic() >= self._look_at

    @property
    def hurries(self) -> bool:
        """Whether there was work when it looked last."""
        return self._look_at == 0.0

    def hurry(self) -> None:
        """There is work: look again at once."""
        self._look_at = 0.0

    def rest(self, due_s: float | None = None) -> None:
        """There is nothing to do, or not for ``due_s`` seconds."""
        pause_s = self._idle_s * random.uniform(0.8, 1.2)  # noqa: S311 - it only spreads the load
        self._look_at = time.monotonic() + (pause_s if due_s is None else min(pause_s, due_s))
