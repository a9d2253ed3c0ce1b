"""Combine: make the result of the answers of a language model, or further requests of them.

Each round of requests is parts of the job, so that they run side by side and a crash costs one.
Which rounds there are follows from the answers: this step makes the rounds again from the first one
on, and finds their parts by their data. Where parts of a round are not there yet, it adds them and
the job goes back to asking; then this step is done again. So a retry that brings a missing answer
has all rounds made of it that depend on it, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.db.enhancements import combined, failed_after, spent
from common.db.steps import Claim
from common.domain.enhancement import Part, Result, combine, missing, more_parts
from common.domain.job import ENHANCEMENT_INCOMPLETE
from common.errors import EnhancementFailed
from worker.context import Context, with_retries
from worker.steps.requests import data_of, new_part, part_of


def run(context: Context, claim: Claim) -> Claim | None:
    """Store the result, or go back to `worker.steps.ask` with the requests of the next round.

    Raises:
        EnhancementFailed: no request of a round has a usable answer.
        StaleClaim, Unavailable: as in every step.
    """
    job = claim.job
    material = with_retries(context.enhancing.material, job)
    work, segments = material.work, material.segments
    stored = with_retries(context.enhancing.answers, job.id)
    of_round = [it for it in stored if it.data[0] == 0]
    parts: Sequence[Part] = [part_of(it.data, material) for it in of_round]
    usage = spent(stored, with_retries(context.enhancing.lost_costs, job.id))
    lost: list[Result] = []
    number = 0
    while True:
        results = [it.result for it in of_round]
        if not any(result is not None for result in results):
            with_retries(context.steps.write, claim, failed_after(usage))
            raise EnhancementFailed(
                count=len(parts), reason=with_retries(context.enhancing.last_error, job.id)
            )
        lost += _missing(parts, results, material.segments)
        following = more_parts(work, parts, results)
        if not following:
            break
        number += 1
        known = {repr(it.data): it for it in stored if it.data[0] == number}
        found = [known.get(repr(data_of(part, number))) for part in following]
        lacking = [part for part, it in zip(following, found, strict=True) if it is None]
        if lacking:
            first = len(stored)
            added = [
                new_part(context, job, work, part, place, number)
                for place, part in enumerate(lacking, first)
            ]
            return with_retries(context.steps.finish, claim, parts=added, back_to="ask")
        parts, of_round = following, [it for it in found if it is not None]
    warnings = [ENHANCEMENT_INCOMPLETE] if lost else []
    *_, model = (it.answer["model"] for it in of_round if it.answer is not None)
    within = combined(combine(work, segments, results), lost, model, usage, warnings)
    return context.finish(claim, within=within)


def _missing(
    parts: Sequence[Part], results: Sequence[Result | None], segments: Sequence[Any]
) -> list[Result]:
    """What the result knows nothing of because requests of this round failed."""
    if parts[0].segments:
        return missing(parts, results)
    at = {segment.id: segment for segment in segments}
    lost = []
    for part, result in zip(parts, results, strict=True):
        if result is None and part.ids:
            cited = tuple(at[number] for number in sorted(part.ids))
            lost.append(Part(index=part.index, of=part.of, segments=cited))
    return missing(lost, [None] * len(lost))


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """As a division."""
    return context.settings.chunk.timeout
