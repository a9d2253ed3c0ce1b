"""Reports to the gateways which weights a worker has: only workers know it for sure."""

from __future__ import annotations

from pathlib import Path

from loguru import logger
from redis import Redis

from common.redis import presence
from common.weights.store import WeightsStore


class Announcement:
    """Reports the weights of one worker; call `renew` with each heartbeat."""

    def __init__(self, redis: Redis, name: str, store: WeightsStore) -> None:
        self._redis = redis
        self._name = name
        self._store = store
        self._weights: list[tuple[str, str]] = []
        self._changes: frozenset[tuple[str, int]] | None = None

    def renew(self) -> None:
        """Report them again. The disk is searched only after an entry was added or removed."""
        try:
            changes = _changes(self._store.root)
            if changes != self._changes:
                self._weights, self._changes = self._store.present(), changes
        except OSError as error:  # a folder was removed in the meantime, or cannot be read
            logger.warning("the weights cannot be listed: {}", error)
        presence.report_weights(self._redis, self._name, self._weights)


def _changes(root: Path) -> frozenset[tuple[str, int]]:
    """``root`` and its folders, with the time (ns) at which an entry was last added or removed."""
    if not root.is_dir():
        return frozenset()
    folders = [root, *(path for path in root.iterdir() if path.is_dir())]
    return frozenset((path.name, path.stat().st_mtime_ns) for path in folders)
