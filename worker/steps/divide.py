"""Divide: split a transcript into the requests that a language model's context can hold."""

from __future__ import annotations

from common.db.enhancements import divided
from common.db.steps import Claim
from common.domain.enhancement import first_parts
from worker.context import Context, with_retries
from worker.steps.requests import new_part


def run(context: Context, claim: Claim) -> Claim | None:
    """Add a part for each request of the first round, about the source's newest revision.

    Raises:
        EnhancementOff, ChatServerChanged, ChatKeyLocked: as `Context.chat`.
        NotModerated: the step waits for the moderation of the transcript's last change.
        TextMissing, ContextTooSmall: there is nothing to ask, or no room for it.
        StaleClaim, Unavailable: as in every step.
    """
    context.chat(claim.job)
    material = with_retries(context.enhancing.material, claim.job)
    parts = [
        new_part(context, claim.job, material.work, part, part.index, 0)
        for part in first_parts(material.work, material.segments)
    ]
    # The first request may have to wait until others have ended.
    return with_retries(
        context.steps.finish, claim, parts=parts, within=divided(material), take_next=False
    )


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """Measured: 0.2 s an hour of speech."""
    return context.settings.chunk.timeout
