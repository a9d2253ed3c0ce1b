"""From chunks as they are stored to text: the one way, for partial results and for the merge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from common.domain.chunks import windows_from_json
from common.domain.job import MODERATION_FAILED
from common.domain.merging import Part, merge
from common.domain.moderation import ModeratedBy, Verdict
from common.domain.transcript import segments_from_json, segments_to_json
from common.domain.values import Chunk, Segment

SEVERAL_MODELS = "moderated_by_several_models"
"""The warning that segments were judged by different models, or by different thresholds."""


class StoredChunk(Protocol):
    """A chunk as it is kept: ``result`` has one list of segments a window, once transcribed.

    ``moderation`` is what `moderation_to_json` made, once it is moderated.
    """

    @property
    def index(self) -> int: ...
    @property
    def windows(self) -> list[Any]: ...
    @property
    def result(self) -> list[Any] | None: ...
    @property
    def moderation(self) -> dict[str, Any] | None: ...


def result_to_json(windows: Iterable[Iterable[Segment]]) -> list[Any]:
    """A chunk's result as it is kept, from the segments of each of its windows."""
    return [segments_to_json(segments) for segments in windows]


def moderation_to_json(by: ModeratedBy, windows: Iterable[Iterable[Verdict]]) -> dict[str, Any]:
    """A chunk's moderation as it is kept, from the verdicts on each window's segments."""
    return {
        "by": by.to_json(),
        "windows": [[verdict.to_json() for verdict in verdicts] for verdicts in windows],
    }


def parts(chunks: Iterable[StoredChunk]) -> list[Part]:
    """What merging wants to know of the transcribed ones among ``chunks``."""
    return [
        (
            Chunk(chunk.index, windows_from_json(chunk.windows)),
            list(_judged(chunk.result, chunk.moderation)),
        )
        for chunk in chunks
        if chunk.result is not None
    ]


def assemble(chunks: Iterable[StoredChunk]) -> tuple[Segment, ...]:
    """The text of the transcribed ones among ``chunks``, which are in order, on one clock."""
    return merge(parts(chunks)).segments


def moderated_by(chunks: Iterable[StoredChunk]) -> tuple[ModeratedBy, ...]:
    """All who judged one of ``chunks``, in order, each once."""
    found: list[ModeratedBy] = []
    for chunk in chunks:
        if chunk.moderation is not None:
            by = ModeratedBy.from_json(chunk.moderation["by"])
            if by not in found:
                found.append(by)
    return tuple(found)


def moderation_warnings(chunks: Sequence[StoredChunk]) -> Iterator[str]:
    """What is to be said of the moderation of all chunks of a job that wanted it."""
    if any(chunk.moderation is None for chunk in chunks):
        yield MODERATION_FAILED
    if len(moderated_by(chunks)) > 1:
        yield SEVERAL_MODELS


def _judged(result: list[Any], moderation: dict[str, Any] | None) -> Iterator[tuple[Segment, ...]]:
    windows = map(segments_from_json, result)
    if moderation is None:
        yield from windows
        return
    for segments, verdicts in zip(windows, moderation["windows"], strict=True):
        yield tuple(
            replace(segment, verdict=Verdict.from_json(verdict))
            for segment, verdict in zip(segments, verdicts, strict=True)
        )
