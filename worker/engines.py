"""The engine that a worker keeps loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loguru import logger

from common.settings import AsrSettings
from common.weights.store import Weights, WeightsStore
from worker.memory import Memory

if TYPE_CHECKING:
    from common.asr.engine import SpeechEngine


class Engines:
    """Loads engines and keeps the last one: most jobs use the same weights."""

    def __init__(self, store: WeightsStore, settings: AsrSettings, memory: Memory) -> None:
        self.store = store
        self._settings = settings
        self._memory = memory
        self._loaded: tuple[Weights, SpeechEngine] | None = None

    def get(self, engine: str, model: str) -> SpeechEngine:
        """The engine with these weights; loads it unless it is loaded already.

        Raises:
            WeightsMissing: the weights are missing.
        """
        from common.asr.encoders import choose_encoder, has_openvino, processor_flags
        from common.asr.loading import load_engine

        weights = self.store.resolve(engine, model)
        if self._loaded is not None and self._loaded[0] == weights:
            return self._loaded[1]
        self._loaded = None  # two sets of weights at once may not fit
        logger.info("loading {} {}", engine, model)
        settings = self._settings
        choice = choose_encoder(
            settings.encoder,
            device=settings.device,
            compute_type=settings.compute_type,
            flags=processor_flags(),
            installed=has_openvino(),
        )
        loaded = load_engine(
            engine,
            weights.path,
            threads=settings.threads,
            device=settings.device,
            compute_type=settings.compute_type,
            encoder=choice.encoder,
        )
        logger.info("encoder {}; {} is chosen: {}", loaded.encoder, choice.encoder, choice.reason)
        self._loaded = (weights, loaded)
        self._memory.note_loaded()
        return loaded
