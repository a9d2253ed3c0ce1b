"""The queues of `common.domain.fair_order` in memory; `common.db.due_steps` has them in tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from common.domain.fair_order import next_served, passes_allowed, serve, size_class


@dataclass(slots=True, eq=False)
class Standing:
    """A job in line, or a tenant with such jobs."""

    size: int
    since: int
    passed: int = 0


@dataclass(slots=True)
class Lines:
    """Jobs in line, by priority and tenant; a job is whatever the test calls it."""

    _turns: count[int] = field(default_factory=count)
    _jobs: dict[tuple[int, Any], dict[Any, Standing]] = field(default_factory=dict)
    _tenants: dict[tuple[int, Any], Standing] = field(default_factory=dict)

    def join(self, job: Any, tenant: Any, priority: int, turns: int) -> None:
        """A job with ``turns`` left has something to do; one that is in line keeps its place."""
        size = size_class(turns)
        jobs = self._jobs.setdefault((priority, tenant), {})
        if job in jobs:
            jobs[job].size = size
        else:
            jobs[job] = Standing(size, next(self._turns))
        line = self._tenants.setdefault((priority, tenant), Standing(size, next(self._turns)))
        line.size = min(line.size, size)

    def waiting(self, tenant: Any, priority: int) -> list[Any]:
        """A tenant's jobs of a priority."""
        return list(self._jobs.get((priority, tenant), ()))

    def tenants(self, priority: int) -> list[Any]:
        """The tenants with such jobs."""
        return [tenant for at, tenant in self._tenants if at == priority]

    def next(self) -> Any:
        """The job whose turn it is; then `stay` or `leave` follows."""
        if not self._tenants:
            return None
        first = min(priority for priority, _ in self._tenants)
        tenants = {at: line for at, line in self._tenants.items() if at[0] == first}
        oldest = _oldest(tenants)
        line = next_served(oldest, _shortest(tenants))
        at = next(at for at, each in tenants.items() if each is line)
        jobs = self._jobs[at]
        shortest = _shortest(jobs)
        standing = next_served(_oldest(jobs), shortest, passes_allowed(shortest.size))
        turn = next(self._turns)
        serve(standing, _oldest(jobs), turn)
        serve(line, oldest, turn)
        return next(job for job, each in jobs.items() if each is standing)

    def stay(self, job: Any, turns: int) -> None:
        """The job that was next has more that could be done now: ``turns`` are left."""
        at = self._place(job)
        self._jobs[at][job].size = size_class(turns)
        self._resize(at)

    def leave(self, job: Any) -> None:
        """The job has nothing (more) that could be done now."""
        at = self._place(job)
        del self._jobs[at][job]
        self._resize(at)

    def _resize(self, at: tuple[int, Any]) -> None:
        if self._jobs[at]:
            self._tenants[at].size = min(each.size for each in self._jobs[at].values())
        else:
            del self._jobs[at], self._tenants[at]

    def _place(self, job: Any) -> tuple[int, Any]:
        return next(at for at, jobs in self._jobs.items() if job in jobs)


def _oldest(line: dict[Any, Standing] | dict[tuple[int, Any], Standing]) -> Standing:
    return min(line.values(), key=lambda it: it.since)


def _shortest(line: dict[Any, Standing] | dict[tuple[int, Any], Standing]) -> Standing:
    return min(line.values(), key=lambda it: (it.size, it.since))
