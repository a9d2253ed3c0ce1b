"""The moderation model that a worker keeps loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loguru import logger

from common.errors import ModerationOff, ModerationUnusable
from common.settings import ModerationSettings
from worker.memory import Memory

if TYPE_CHECKING:
    from common.moderation.moderation import Moderation

RETRY_S = 60.0
"""How long a model that cannot be loaded is not tried again."""


class WarmModeration:
    """Loads the moderation once; caches the error of a failed load for `RETRY_S`."""

    def __init__(self, settings: ModerationSettings, memory: Memory) -> None:
        self._settings = settings
        self._memory = memory
        self._loaded: Moderation | None = None
        self._broken: ModerationOff | ModerationUnusable | None = None
        self._broken_until = 0.0

    def get(self) -> Moderation:
        """The moderation.

        Raises:
            ModerationOff, ModerationUnusable: it cannot be loaded.
        """
        if self._loaded is not None:
            return self._loaded
        if self._broken is not None and time.monotonic() < self._broken_until:
            raise type(self._broken)(**self._broken.details)  # a new one: tracebacks pile up
        from common.moderation.loading import load_moderation

        try:
            self._loaded = load_moderation(self._settings)
        except (ModerationOff, ModerationUnusable) as error:
            self._broken, self._broken_until = error, time.monotonic() + RETRY_S
            raise
        self._memory.note_loaded()
        logger.info("loaded the moderation model {}", self._loaded.by.model)
        return self._loaded
