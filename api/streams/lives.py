"""The live streams of one gateway process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import Restarting

if TYPE_CHECKING:
    from api.streams.live import Live


class Lives:
    """All that are under way, so that they can be ended in time."""

    def __init__(self) -> None:
        self._lives: set[Live] = set()
        self._closing = False

    def add(self, live: Live) -> None:
        """One has begun.

        Raises:
            Restarting: the gateway is about to end.
        """
        if self._closing:
            raise Restarting
        self._lives.add(live)

    def discard(self, live: Live) -> None:
        self._lives.discard(live)

    def __len__(self) -> int:
        return len(self._lives)

    def finish(self) -> None:
        """The gateway is about to end: have all come to their ends, and let none begin."""
        self._closing = True
        for live in list(self._lives):
            live.finish(Restarting())
