"""The protocol of diarizers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.domain.speakers import Stretch

Samples = NDArray[np.float32]
"""Mono audio at 16 kHz in [-1, 1], shape (samples,), of any length."""


class Diarizer(Protocol):
    """Loaded weights that tell voices apart. Not thread-safe; one per process."""

    def diarize(self, samples: Samples) -> list[Stretch]:
        """Who speaks when in a chunk's audio, in order of time; times count from its start.

        The stretches depend on the audio alone, so chunks need nothing of each other.

        Raises:
            common.errors.EngineFailed: the engine failed (transient).
        """
