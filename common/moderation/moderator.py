"""The protocol of all moderation models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.domain.moderation import ModeratedBy

Scores = NDArray[np.float32]
"""Probabilities, shape (texts, 3), columns in the order of `Label`, each row summing to 1."""


class Moderator(Protocol):
    """A loaded model that scores texts. Not thread-safe; one per process."""

    by: ModeratedBy
    """Its name, hash and thresholds: those of the settings where set, else the model's."""

    def scores(self, texts: Sequence[str]) -> Scores:
        """Score raw texts; normalising and segmenting are done here.

        A text longer than the model's input is scored in overlapping windows, and has the scores
        of the worst one (least CLEAN). Scores do not depend on the other texts of the call, within
        1e-4.

        Raises:
            common.errors.ModerationFailed: the model failed (transient).
        """
