"""Transcribe: one chunk's audio to the segments of its windows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from loguru import logger

from common.db.steps import Claim
from common.db.tables import Part
from common.domain.chunks import content_hash, windows_from_json
from common.domain.values import Chunk
from common.errors import ChunkAudioLost, NotFound, WeightsCorrupt
from common.transcripts import result_to_json
from worker.context import Context, with_retries
from worker.steps.audio import (
    SLOWEST_ENGINE,
    cut_again,
    cut_samples,
    decoding_identity,
    decoding_options,
    model_of,
    open_recording,
)


def run(context: Context, claim: Claim) -> Claim | None:
    """Transcribe the claimed chunk; returns the claim of the next step, if any.

    Raises:
        WeightsMissing, WeightsCorrupt, RecordingLost, ChunkAudioLost: permanently.
        EngineFailed, ModelFetchFailed, StaleClaim, Unavailable: as in every step.
    """
    if claim.known is not None:
        return context.finish(claim, result=claim.known, elapsed_ms=0)
    started = time.monotonic()
    result = _transcribe(context, claim)
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, result=result, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the chunk."""
    audio_s = _chunk(claim.part).audio.duration_ms / 1000
    fetch_s = context.models.fetch_limit_s([model_of(claim.job)])
    return context.settings.chunk.timeout + SLOWEST_ENGINE * audio_s + fetch_s


def _chunk(part: Part | None) -> Chunk:
    assert part is not None  # noqa: S101 - the pipeline has this step in parts
    return Chunk(part.index, windows_from_json(part.data))


def _transcribe(context: Context, claim: Claim) -> list[Any]:
    job, chunk = claim.job, _chunk(claim.part)
    name = model_of(job)
    weights = context.models.resolve(name)
    expected = job.transcription.weights_sha256
    if weights.sha256 != expected:
        raise WeightsCorrupt(path=weights.path, found=weights.sha256, expected=expected)
    language = job.transcription.detected_language or job.language
    pcm = _read(context, claim, chunk, decoding_identity(job, weights.sha256, language))
    engine = context.engines.get(name)
    windows = engine.transcribe(
        cut_samples(pcm, chunk.windows, chunk.audio), decoding_options(job, language)
    )
    return result_to_json(
        [replace(segment, encoder=engine.encoder) for segment in segments] for segments in windows
    )


def _read(context: Context, claim: Claim, chunk: Chunk, identity: dict[str, Any]) -> bytes:
    """The chunk's PCM; cut from the recording again if it is lost."""
    job, part = claim.job, claim.part
    try:
        return with_retries(context.storage.read_chunk, job.id, chunk.index)
    except NotFound:
        logger.warning("the audio of chunk {} is lost: it is cut again", chunk.index)
    with open_recording(context, job.recording) as recording:
        pcm = cut_again(recording, chunk.audio, job.transcription.audio_track)
    if part is None or content_hash(chunk, pcm, identity) != part.content_hash:
        raise ChunkAudioLost(index=chunk.index)
    return pcm
