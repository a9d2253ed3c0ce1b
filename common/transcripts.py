"""From chunks as they are stored to text: the one way, for partial results and for the merge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from common.domain.chunks import windows_from_json
from common.domain.merging import Part, merge
from common.domain.transcript import segments_from_json, segments_to_json
from common.domain.values import Chunk, Segment


class StoredChunk(Protocol):
    """A transcribed chunk as it is kept: ``result`` has one list of segments a window."""

    @property
    def index(self) -> int: ...
    @property
    def windows(self) -> list[Any]: ...
    @property
    def result(self) -> list[Any] | None: ...


def result_to_json(windows: Iterable[Iterable[Segment]]) -> list[Any]:
    """A chunk's result as it is kept, from the segments of each of its windows."""
    return [segments_to_json(segments) for segments in windows]


def parts(chunks: Iterable[StoredChunk]) -> list[Part]:
    """What merging wants to know of the transcribed ones among ``chunks``."""
    return [
        (
            Chunk(chunk.index, windows_from_json(chunk.windows)),
            [segments_from_json(segments) for segments in chunk.result],
        )
        for chunk in chunks
        if chunk.result is not None
    ]


def assemble(chunks: Iterable[StoredChunk]) -> tuple[Segment, ...]:
    """The text of the transcribed ones among ``chunks``, which are in order, on one clock."""
    return merge(parts(chunks)).segments
