"""Fetch model: have the weights that a job needs on this machine before it is planned."""

from __future__ import annotations

import time

from common.db.steps import Claim
from common.db.tables import Job
from common.domain.models import ANY_LANGUAGE, Names
from common.domain.request import Options
from worker.context import Context


def run(context: Context, claim: Claim) -> Claim | None:
    """Have one of the models that the job begins with; returns the claim of the next step, if any.

    With a language that is to be detected, that is the model which detects it.

    Raises:
        WeightsMissing: none is here, and none may be fetched; permanently.
        ModelFetchFailed, StaleClaim, Unavailable: as in every step.
    """
    started = time.monotonic()
    context.models.have_one(_names(claim.job))
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the size of all models that may be tried."""
    return context.settings.chunk.timeout + context.models.fetch_limit_s(_names(claim.job))


def _names(job: Job) -> Names:
    models = Options.from_json(job.options).models
    return models.get(ANY_LANGUAGE) or next(iter(models.values()))
