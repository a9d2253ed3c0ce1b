"""The queue order: which job gets the next free worker.

Higher priorities always come first. Within a priority tenants take turns, and within a tenant its
jobs do. Each of these queues has two candidates: the one that has waited the longest since its last
turn, and the shortest one (of several, the one that has waited the longest). The shortest goes
first, so that short work never waits for long work. But it may pass over the longest-waiting one
only a few times in a row. So each job in a queue of n gets a turn within
``(1 + CLIPS_FIRST) * n`` turns of its tenant, whatever is submitted meanwhile, since a new job has
not waited yet.

If all have the same size, none is passed over, and this is a round robin.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

SHORTER_FIRST = 1
"""How often in a row a shorter job may pass over the longest-waiting job, and a tenant with a
shorter job the longest-waiting tenant: every second turn is for the longest-waiting one."""
CLIPS_FIRST = 3
"""The same for jobs that need only one turn."""


class Candidate(Protocol):
    """A job or a tenant in its queue."""

    size: int
    """The size class of its remaining work; of a tenant, that of its shortest job."""
    since: int
    """The turn in which it was last served, or was queued: the smaller, the longer it waits."""
    passed: int
    """How often in a row others were served while it was the longest-waiting one."""


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

    A job of unknown size needs one turn to find its size; only that one is counted.

    Args:
        units_total: its total work (milliseconds of a recording, pages of a document).
        units_done: the finished work, counted once a round.
        units_a_part: the work of one part, until its parts are known.
        parts_total: the number of parts found so far.
        parts_known: whether all parts are found.
        rounds: how many counted steps each part needs.
    """
    if units_total is None:
        return parts_total + 1 if parts_total else 1
    parts = parts_total if parts_known else -(-units_total // units_a_part)
    to_do = max(0, units_total * rounds - units_done)
    return max(1, -(-parts * to_do // max(1, units_total)))


def size_class(turns: int) -> int:
    """0: one turn (>= 1), then doubled: 1 up to 2, 2 up to 4, 3 up to 8, ..."""
    return (turns - 1).bit_length()


def next_served(longest: P, shortest: P, may_pass: int = SHORTER_FIRST) -> P:
    """Which of two tenants is served next, or which of two jobs; they may be the same.

    ``may_pass``: how often in a row the shortest may pass over the longest-waiting one.
    """
    return longest if longest.passed >= may_pass else shortest


def passes_allowed(size: int) -> int:
    """How often in a row a job of ``size`` may pass over the longest-waiting one."""
    return SHORTER_FIRST if size else CLIPS_FIRST


def serve(served: Candidate, longest: Candidate, turn: int) -> None:
    """Record that ``served`` has turn number ``turn``; ``longest`` had waited the longest."""
    if served is not longest:
        longest.passed += 1
    served.since, served.passed = turn, 0


def turns_before(
    *, ahead: int, longer: int, shorter: int, passed: int, may_pass: int, others_may: int
) -> int:
    """How many turns of a queue come before that of a candidate, if no others join; 0: it is next.

    Args:
        ahead: others that have waited longer and are not longer: they are served first.
        longer: others that have waited longer and are longer.
        shorter: others that have not waited as long and are shorter.
        passed: how often the longest-waiting one was passed over.
        may_pass: how often the candidate may pass over it.
        others_may: how often the shortest one may.
    """
    before = ahead + shorter
    as_shortest = before + min(longer, (before + passed) // may_pass)
    waited = ahead + longer
    as_longest = waited + min(shorter, max(0, others_may * (waited + 1) - passed))
    return min(as_shortest, as_longest)
