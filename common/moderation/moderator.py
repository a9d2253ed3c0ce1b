"""The protocol behind which every moderation model stands."""

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
    """Who it is; its thresholds are the settings' where they say something, else the model's."""

    def scores(self, texts: Sequence[str]) -> Scores:
        """Score texts as they were written; it does its own normalising and segmenting.

        A text longer than the model's input is scored in overlapping windows, and has the scores
        of its worst one (least CLEAN). The same text gives the same scores in any company, within
        1e-4.

        Raises:
            common.errors.ModerationFailed: the model refused or broke (transient).
        """
        ...
