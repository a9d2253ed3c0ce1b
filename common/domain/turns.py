"""Whose turn it is, when a worker is free.

Priorities go strictly first. Within one, tenants take turns, and within a tenant its jobs do. In
either line two are candidates: who has waited the longest since its last turn, and the shortest
(of which again who has waited the longest). The shortest goes first, so that short work never
waits for long work; but it passes over who has waited the longest only so often in a row. So each
job in a line of n gets a turn within ``(1 + CLIPS_FIRST) * n`` turns of its tenant, whatever comes
in meanwhile, as whoever joins a line has waited for no time at all.

Where all are of a size nobody is passed over, and this is a round robin.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

SHORTER_FIRST = 1
"""How often in a row a shorter job may go before the job that has waited the longest, and a tenant
with a shorter job before the tenant that has: each second turn is for those who wait."""
CLIPS_FIRST = 3
"""The same for jobs that need one turn, so that one of these finds no turn owed to others."""


class Candidate(Protocol):
    """Where a job, or a tenant, stands in its line."""

    size: int
    """Size class of what is left to do: of a tenant, that of its shortest job."""
    since: int
    """The turn in which it was served last, or joined: the smaller, the longer it waits."""
    passed: int
    """How often in a row others were served while it was the one that had waited the longest."""


P = TypeVar("P", bound=Candidate)


def turns_left(
    *,
    units_total: int | None,
    units_done: int,
    units_a_part: int,
    parts_total: int,
    parts_known: bool,
    rounds: int,
) -> int:
    """About how many turns a job needs, at least 1.

    Of a job of unknown size the first turn is to find out, and only that one is counted.

    Args:
        units_total: what there is of it (milliseconds of a recording, pages of a document).
        units_done: how much of that is done, counted once a round.
        units_a_part: how much one turn takes of it, until its parts are known.
        parts_total: the parts that were found so far.
        parts_known: whether these are all.
        rounds: how many steps each part needs.
    """
    if units_total is None:
        return parts_total + 1 if parts_total else 1
    parts = parts_total if parts_known else -(-units_total // units_a_part)
    to_do = max(0, units_total * rounds - units_done)
    return max(1, -(-parts * to_do // max(1, units_total)))


def size_class(turns: int) -> int:
    """0: one turn (>= 1), then doubled: 1 up to 2, 2 up to 4, 3 up to 8, ..."""
    return (turns - 1).bit_length()


def next_tenant(longest: P, shortest: P) -> P:
    """Which of the two candidates is served next; they may be the same."""
    return _next(longest, shortest, SHORTER_FIRST)


def next_job(longest: P, shortest: P) -> P:
    """The same of a tenant's jobs."""
    return _next(longest, shortest, passes_allowed(shortest.size))


def passes_allowed(size: int) -> int:
    """How often in a row a job of ``size`` may pass over who has waited the longest."""
    return SHORTER_FIRST if size else CLIPS_FIRST


def serve(served: Candidate, longest: Candidate, turn: int) -> None:
    """Note that ``served`` has turn number ``turn``; ``longest`` had waited the longest."""
    if served is not longest:
        longest.passed += 1
    served.since, served.passed = turn, 0


def turns_before(
    *, ahead: int, longer: int, shorter: int, passed: int, may_pass: int, others_may: int
) -> int:
    """How many turns of a line go before one's own, should nobody else join it; 0: one is next.

    Args:
        ahead: those no longer than oneself that have waited longer: they go first in any case.
        longer: those that are longer, and have waited longer.
        shorter: those that are shorter, and have not waited as long.
        passed: how often who has waited the longest was passed over.
        may_pass: how often one may pass over it oneself.
        others_may: how often the shortest may.
    """
    before = ahead + shorter
    as_shortest = before + min(longer, (before + passed) // may_pass)
    waited = ahead + longer
    as_longest = waited + min(shorter, max(0, others_may * (waited + 1) - passed))
    return min(as_shortest, as_longest)


def _next(longest: P, shortest: P, may_pass: int) -> P:
    return longest if longest.passed >= may_pass else shortest
