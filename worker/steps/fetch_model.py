"""Fetch model: have the weights that a job needs on this machine before it is planned."""

from __future__ import annotations

import time

from common.db.steps import Claim
from common.domain.request import Options
from worker.context import Context


def run(context: Context, claim: Claim) -> Claim | None:
    """Have one model for each of the job's languages; returns the claim of the next step, if any.

    Raises:
        PullFailed, WeightsMissing: of the models of a language, none can be had; permanently.
        StaleClaim, Unavailable: as in every step.
    """
    started = time.monotonic()
    for names in Options.from_json(claim.job.options).models.values():
        context.models.have_one(names)
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the size of all models that may be tried."""
    names = [name for each in Options.from_json(claim.job.options).models.values() for name in each]
    return context.settings.chunk.timeout + context.models.fetch_limit_s(names)
