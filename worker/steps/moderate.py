"""Moderate: classify each segment of one transcribed chunk."""

from __future__ import annotations

import time

from common.db.steps import Claim
from common.domain.transcript import segments_from_json
from common.transcripts import moderation_to_json
from worker.context import Context


def run(context: Context, claim: Claim) -> Claim | None:
    """Label the claimed chunk's segments; returns the claim of the next step, if any.

    Raises:
        ModerationOff, ModerationUnusable: permanently.
        ModerationFailed, StaleClaim, Unavailable: as in every step.
    """
    windows = [segments_from_json(segments) for segments in claim.previous or []]
    started = time.monotonic()
    moderation = context.moderation.get()
    labels = iter(moderation.classify([segment.text for window in windows for segment in window]))
    result = moderation_to_json(
        moderation.by, [[next(labels) for _ in window] for window in windows]
    )
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, result=result, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """The time limit."""
    return context.settings.chunk.timeout
