"""The stored form of a chunk, and its content hash."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from common.domain.values import Chunk, Span, Window


def windows_to_json(windows: Iterable[Window]) -> list[list[int]]:
    """One ``[core start, core end, audio start, audio end, speech]`` a window, in ms."""
    return [
        [it.core.start_ms, it.core.end_ms, it.audio.start_ms, it.audio.end_ms, it.speech_ms]
        for it in windows
    ]


def windows_from_json(document: Sequence[Sequence[int]]) -> tuple[Window, ...]:
    """Read the output of `windows_to_json`."""
    return tuple(
        Window(Span(core_start, core_end), Span(audio_start, audio_end), speech_ms)
        for core_start, core_end, audio_start, audio_end, speech_ms in document
    )


def chunk_to_json(chunk: Chunk) -> list[Any]:
    """Its windows as of `windows_to_json`; of a single channel, after the channel."""
    windows = windows_to_json(chunk.windows)
    return windows if chunk.channel is None else [chunk.channel, *windows]


def chunk_from_json(index: int, document: Sequence[Any]) -> Chunk:
    """Read the output of `chunk_to_json`."""
    if document and isinstance(document[0], int):
        return Chunk(index, windows_from_json(document[1:]), document[0])
    return Chunk(index, windows_from_json(document))


def content_hash(chunk: Chunk, pcm: bytes, decoding: dict[str, Any]) -> str:
    """The address of a chunk's result: chunks of equal hash have the same text.

    ``decoding`` is everything else that the text depends on: engine, weights, language, options.
    The chunk's position in the recording, and its channel, are not part of it: the engine does not
    know them.
    """
    origin = chunk.audio.start_ms
    windows = [
        [window.audio.start_ms - origin, window.audio.end_ms - origin] for window in chunk.windows
    ]
    key = json.dumps([windows, decoding], sort_keys=True, separators=(",", ":"))
    return sha256(key.encode() + b"\0" + pcm).hexdigest()
