"""The engines that a worker keeps loaded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import astuple
from typing import TYPE_CHECKING

from loguru import logger

from common.domain.models import ModelName
from common.settings import AsrSettings
from common.weights.manifest import FASTER_WHISPER
from common.weights.store import Weights
from worker.memory import Memory
from worker.models import Models

if TYPE_CHECKING:
    from common.asr.engine import SpeechEngine


class Engines:
    """Loads engines, and keeps those that were used last.

    Their models may have ``ENGINES_MB`` on disk together. Before another one is loaded, those that
    were not used for the longest time are unloaded until it fits; alone, any model fits.
    """

    def __init__(self, models: Models, settings: AsrSettings, memory: Memory) -> None:
        self._models = models
        self._settings = settings
        self._memory = memory
        self._loaded: OrderedDict[Weights, SpeechEngine] = OrderedDict()
        """The one that was used last comes last."""

    def get(self, name: ModelName) -> SpeechEngine:
        """The engine with these weights; loads it unless it is loaded already.

        Raises:
            WeightsMissing, ModelFetchFailed: the weights are missing.
        """
        weights = self._models.resolve(name)
        if weights not in self._loaded:
            self._make_room(weights)
            self._loaded[weights] = self._load(weights)
            self._memory.note_loaded()
        self._loaded.move_to_end(weights)
        return self._loaded[weights]

    def _make_room(self, weights: Weights) -> None:
        limit = self._settings.engines_mb * 1_000_000
        while self._loaded and sum(each.size for each in (weights, *self._loaded)) > limit:
            unloaded, _ = self._loaded.popitem(last=False)
            logger.info("unloading {} {}", unloaded.engine, unloaded.model)

    def _load(self, weights: Weights) -> SpeechEngine:
        from common.asr.encoders import choose_encoder, has_openvino, processor_flags
        from common.asr.loading import load_engine

        logger.info("loading {} {}", weights.engine, weights.model)
        settings = self._settings
        choice = choose_encoder(
            settings.encoder,
            device=settings.device,
            compute_type=settings.compute_type,
            flags=processor_flags(),
            installed=has_openvino(),
        )
        loaded = load_engine(
            weights.engine,
            weights.path,
            threads=settings.threads,
            device=settings.device,
            compute_type=settings.compute_type,
            encoder=choice.encoder,
        )
        if weights.engine == FASTER_WHISPER:
            logger.info("encoder {}; {} is chosen: {}", loaded.encoder, *astuple(choice))
        return loaded
