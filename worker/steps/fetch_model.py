"""Fetch model: have the weights that a job needs on this machine before it is planned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from common.db.steps import Claim
from common.db.tables import Job
from common.domain.models import ANY_LANGUAGE, SPEAKER_NETWORKS, ModelName, Names, candidates
from common.domain.request import Options
from common.errors import ModelFetchFailed, WeightsMissing
from worker.context import Context


def run(context: Context, claim: Claim) -> Claim | None:
    """Have one of the models that the job begins with; returns the claim of the next step, if any.

    With a language that is to be detected, that is the model which detects it; with several
    languages, those of each as well.

    Raises:
        WeightsMissing: none is here, and none may be fetched; permanently.
        ModelFetchFailed, StaleClaim, Unavailable: as in every step.
    """
    started = time.monotonic()
    for names in _needed(claim.job):
        context.models.have_one(names)
    for name in _speaker_networks(claim.job):
        with suppress(ModelFetchFailed, WeightsMissing):  # a failed diarization fails no job
            context.models.have_one([name])
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(claim, elapsed_ms=elapsed_ms)


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the size of all models that may be tried."""
    needed = [*_needed(claim.job), *((name,) for name in _speaker_networks(claim.job))]
    return context.settings.chunk.timeout + sum(map(context.models.fetch_limit_s, needed))


def _needed(job: Job) -> Iterable[Names]:
    """The models to choose from, for each that is needed."""
    options = Options.from_json(job.options)
    if options.languages:
        needed = (candidates(options.models, code) for code in (ANY_LANGUAGE, *options.languages))
        return dict.fromkeys(needed)
    first = options.models.get(ANY_LANGUAGE) or next(iter(options.models.values()), None)
    return [] if first is None else [first]


def _speaker_networks(job: Job) -> Sequence[ModelName]:
    return SPEAKER_NETWORKS if job.options.get("diarize") else ()
