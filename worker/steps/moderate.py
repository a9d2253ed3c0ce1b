"""Moderate: how offensive each segment of one transcribed chunk is."""

from __future__ import annotations

import time
from uuid import UUID

from common.db.steps import Claim
from common.domain.transcript import segments_from_json
from common.transcripts import moderation_to_json
from worker.context import Context, persist


def moderate(context: Context, claim: Claim) -> UUID | None:
    """Judge the claimed chunk's segments; returns the merge step when it was the job's last chunk.

    Raises:
        ModerationOff, ModerationUnusable: for good.
        ModerationFailed, StaleClaim, Unavailable: as everywhere.
    """
    chunk = persist(lambda: context.steps.chunk_of(claim))
    windows = [segments_from_json(segments) for segments in chunk.result or []]
    started = time.monotonic()
    moderation = context.moderation.get()
    verdicts = iter(moderation.classify([segment.text for window in windows for segment in window]))
    judged = moderation_to_json(
        moderation.by, [[next(verdicts) for _ in window] for window in windows]
    )
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return persist(
        lambda: context.steps.finish_moderation(claim, moderation=judged, elapsed_ms=elapsed_ms)
    )
