"""Where the settings become a `Moderation`; only here are the heavy libraries imported."""

from __future__ import annotations

from common.moderation.moderation import Moderation
from common.settings import ModerationSettings


def load_moderation(settings: ModerationSettings) -> Moderation:
    """Load the model that the settings name, on one thread. Never call it before a fork.

    Raises:
        ModerationOff: AI_LOAD_MODELS is false.
        ModerationUnusable: the folder holds no model, or one that cannot be used; it says why.
    """
    raise NotImplementedError
