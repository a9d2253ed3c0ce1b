"""The moderation that a worker keeps warm."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loguru import logger

from common.errors import ModerationOff, ModerationUnusable
from common.settings import ModerationSettings
from worker.memory import Memory

if TYPE_CHECKING:
    from common.moderation.moderation import Moderation

TRY_AGAIN_S = 60.0
"""A model that cannot be used is not looked at again for this long: nobody has repaired it yet."""


class WarmModeration:
    """Loads the moderation once; of one that cannot be loaded it remembers why for a while."""

    def __init__(self, settings: ModerationSettings, memory: Memory) -> None:
        self._settings = settings
        self._memory = memory
        self._loaded: Moderation | None = None
        self._broken: ModerationOff | ModerationUnusable | None = None
        self._broken_until = 0.0

    def get(self) -> Moderation:
        """The moderation.

        Raises:
            ModerationOff, ModerationUnusable: it cannot be had here.
        """
        if self._loaded is not None:
            return self._loaded
        if self._broken is not None and time.monotonic() < self._broken_until:
            raise type(self._broken)(**self._broken.details)  # raised anew, or its traces pile up
        from common.moderation.loading import load_moderation

        try:
            self._loaded = load_moderation(self._settings)
        except (ModerationOff, ModerationUnusable) as error:
            self._broken, self._broken_until = error, time.monotonic() + TRY_AGAIN_S
            raise
        self._memory.note_loaded()
        logger.info("loaded the moderation model {}", self._loaded.by.model)
        return self._loaded
