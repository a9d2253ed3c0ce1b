"""The diarizer that a worker keeps loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loguru import logger

from common.domain.models import SPEAKER_NETWORKS
from worker.memory import Memory
from worker.models import Models

if TYPE_CHECKING:
    from common.diarization.diarizer import Diarizer

DIARIZER_REVISION = 1
"""Increased when our own code changes the stretches of the same audio."""


class WarmDiarizer:
    """Loads the diarizer when it is first needed, and again when its weights have changed."""

    def __init__(self, models: Models, memory: Memory) -> None:
        self._models = models
        self._memory = memory
        self._loaded: tuple[dict[str, Any], Diarizer] | None = None

    def identity(self) -> dict[str, Any]:
        """Everything but the audio that its result depends on; fetches weights that are missing.

        Raises:
            WeightsMissing, WeightsCorrupt, ModelFetchFailed: they cannot be had.
        """
        hashes = {it.model: self._models.resolve(it).sha256 for it in SPEAKER_NETWORKS}
        return {"revision": DIARIZER_REVISION, "weights": hashes}

    def get(self) -> Diarizer:
        """The diarizer.

        Raises:
            WeightsMissing, WeightsCorrupt, ModelFetchFailed: its weights cannot be had.
            WeightsUnusable: they do not load.
        """
        identity = self.identity()
        if self._loaded is None or self._loaded[0] != identity:
            from common.diarization.onnx import OnnxDiarizer

            segmentation, embedding = (self._models.resolve(it).path for it in SPEAKER_NETWORKS)
            self._loaded = identity, OnnxDiarizer(segmentation, embedding)
            self._memory.note_loaded()
            logger.info("loaded the diarizer")
        return self._loaded[1]
