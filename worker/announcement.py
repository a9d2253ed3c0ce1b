"""Which weights a worker has, for the gateways: only workers know it for sure."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from common import presence
from common.weights.store import WeightsStore


class Announcement:
    """What one worker announces of its weights; `renew` it with each heartbeat."""

    def __init__(self, redis: Redis, name: str, store: WeightsStore) -> None:
        self._redis = redis
        self._name = name
        self._store = store
        self._weights: list[tuple[str, str]] = []
        self._changed_at: int | None = None

    def renew(self) -> None:
        """Announce them again. The disk is searched only after an entry was added or removed."""
        changed_at = _changed_at(self._store.root)
        if changed_at != self._changed_at:
            self._changed_at, self._weights = changed_at, self._store.present()
        presence.announce_weights(self._redis, self._name, self._weights)


def _changed_at(folder: Path) -> int:
    """When an entry of ``folder`` was made or removed last, in ns; 0: it does not exist."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
