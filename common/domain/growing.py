"""Text that grows while its recording is still being heard, and is never taken back."""

from __future__ import annotations

from collections.abc import Iterable

from common.domain.merging import ChunkSegments, merge
from common.domain.values import Segment


class Growing:
    """Merges chunks as they come in order; what it gives is what merging all of them would.

    A chunk cut in silence shares no sound with the next one, so nothing said in it can change any
    more. One that was cut in the middle of speech is held back until its neighbour is here.
    """

    def __init__(self) -> None:
        self._held: list[ChunkSegments] = []

    def add(self, parts: Iterable[ChunkSegments]) -> tuple[Segment, ...]:
        """The segments that are certain now and were not before ``parts``."""
        self._held += parts
        certain = 0
        for count, (chunk, _) in enumerate(self._held, 1):
            if chunk.audio.end_ms <= chunk.core.end_ms:
                certain = count
        ready, self._held = self._held[:certain], self._held[certain:]
        return merge(ready).segments
