"""Builds a `Moderation` from the settings, and imports the heavy libraries only then."""

from __future__ import annotations

from common.domain.moderation import Label, Thresholds
from common.errors import ModerationOff
from common.moderation.lexicon import Lexicon
from common.moderation.moderation import Moderation
from common.moderation.moderator import Moderator
from common.settings import ModerationSettings


def load_moderation(settings: ModerationSettings) -> Moderation:
    """Load the model that the settings name, on one thread. Never call it before a fork.

    Raises:
        ModerationOff: AI_LOAD_MODELS is false.
        ModerationUnusable: the folder has no model, or an unusable one; the text says why.
    """
    if not settings.ai_load_models:
        raise ModerationOff
    return Moderation(load_moderator(settings), Lexicon())


def load_moderator(settings: ModerationSettings) -> Moderator:
    """The model alone, even where AI_LOAD_MODELS is false.

    Raises:
        ModerationUnusable: the folder has no model, or an unusable one; the text says why.
    """
    labels, thresholds = settings.moderation_labels, chosen_thresholds(settings)
    if settings.use_onnxruntime:
        from common.moderation.onnx import OnnxModerator

        return OnnxModerator(settings.phobert_onnx_dir, labels=labels, thresholds=thresholds)
    from common.moderation.hf import HfModerator

    return HfModerator(settings.phobert_checkpoint_dir, labels=labels, thresholds=thresholds)


def chosen_thresholds(settings: ModerationSettings) -> Thresholds:
    """The thresholds that the settings set."""
    chosen = {
        Label.OFFENSIVE: settings.moderation_threshold_offensive,
        Label.HATE: settings.moderation_threshold_hate,
    }
    return {label: value for label, value in chosen.items() if value is not None}
