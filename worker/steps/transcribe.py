"""Transcribe: one chunk's sound into the segments of its windows."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from loguru import logger

from common.db.steps import Claim
from common.db.tables import Chunk, Job
from common.domain.chunks import content_hash, windows_from_json
from common.domain.values import Chunk as ChunkValue
from common.errors import ChunkAudioLost, NotFound, WeightsCorrupt
from common.transcripts import result_to_json
from worker.context import Context, persist
from worker.steps.sound import (
    cut_anew,
    cut_samples,
    decoding_identity,
    decoding_options,
    open_recording,
)


def transcribe(context: Context, claim: Claim) -> UUID | None:
    """Transcribe the claimed chunk; returns the step that follows from it, if any.

    Raises:
        WeightsMissing, WeightsCorrupt, RecordingLost, ChunkAudioLost: for good.
        EngineFailed, StaleClaim, Unavailable: as everywhere.
    """
    job, recording = persist(lambda: context.steps.job_of(claim))
    chunk = persist(lambda: context.steps.chunk_of(claim))
    result = None
    engine_ms = 0
    if context.settings.job.reuse_results:
        result = persist(lambda: context.steps.reusable(recording.tenant, chunk.content_hash))
    if result is None:
        started = time.monotonic()
        result = _hear(context, job, recording.id, chunk)
        engine_ms = round((time.monotonic() - started) * 1000)
    core = ChunkValue(chunk.index, windows_from_json(chunk.windows)).core
    return persist(
        lambda: context.steps.finish_chunk(
            claim, result=result, core_ms=core.duration_ms, engine_ms=engine_ms
        )
    )


def _hear(context: Context, job: Job, recording_id: UUID, stored: Chunk) -> list[Any]:
    chunk = ChunkValue(stored.index, windows_from_json(stored.windows))
    weights = context.engines.weights(job.engine, job.model)
    if weights.sha256 != job.weights_sha256:
        raise WeightsCorrupt(path=weights.path, found=weights.sha256, expected=job.weights_sha256)
    language = job.detected_language or job.language
    try:
        pcm = persist(lambda: context.storage.read_chunk(job.id, chunk.index))
    except NotFound:
        logger.warning("the sound of chunk {} is gone: it is cut anew", chunk.index)
        with open_recording(context, recording_id) as recording:
            pcm = cut_anew(recording, chunk.audio, job.audio_track)
        identity = decoding_identity(job, weights.sha256, language)
        if content_hash(chunk, pcm, identity) != stored.content_hash:
            raise ChunkAudioLost(index=chunk.index) from None
    heard = context.engines.get(job.engine, job.model).transcribe(
        cut_samples(pcm, chunk.windows, chunk.audio), decoding_options(job, language)
    )
    return result_to_json(heard)
