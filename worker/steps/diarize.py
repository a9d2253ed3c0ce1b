"""Diarize: one chunk's audio to stretches of voices, which the merge compares with all others."""

from __future__ import annotations

import time

from common.db.steps import Claim
from common.db.voices import opened, sealed
from common.domain.models import SPEAKER_NETWORKS
from common.domain.speakers import stretches_to_json
from worker.context import Context
from worker.steps.audio import chunk_of, read_chunk, samples_of

SLOWEST = 0.5
"""Diarization that takes more than this share of the audio's length counts as hung."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Find who speaks when in the claimed chunk; returns the claim of the next step, if any.

    Raises:
        WeightsMissing, WeightsCorrupt, WeightsUnusable, RecordingLost, ChunkAudioLost: permanently.
        EngineFailed, ModelFetchFailed, StaleClaim, Unavailable: as in every step.
    """
    if chunk_of(claim.part).channel is not None:  # the channels are the speakers
        return context.finish(claim, elapsed_ms=0)
    started = time.monotonic()
    identity = context.diarizer.identity()
    known = opened(claim.known, context.voice_cipher)
    if known is not None and known["by"] == identity:
        return context.finish(claim, result=sealed(known, context.voice_cipher), elapsed_ms=0)
    samples = samples_of(read_chunk(context, claim))
    stretches = context.diarizer.get().diarize(samples)
    result = sealed({"by": identity, **stretches_to_json(stretches)}, context.voice_cipher)
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, result=result, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the length of the chunk."""
    audio_s = chunk_of(claim.part).audio.duration_ms / 1000
    fetch_s = sum(context.models.fetch_limit_s([name]) for name in SPEAKER_NETWORKS)
    return context.settings.chunk.timeout + SLOWEST * audio_s + fetch_s
