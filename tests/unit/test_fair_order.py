"""What the order of turns promises, whatever comes in, simulated with the rule itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.fair_order import (
    CLIPS_FIRST,
    SHORTER_FIRST,
    size_class,
    turns_before,
    turns_left,
)
from tests.support.lines import Lines


@dataclass(frozen=True, slots=True)
class Arrival:
    at: int
    tenant: str
    priority: int
    chunks: int


@dataclass(slots=True)
class QueuedJob:
    arrival: Arrival
    left: int
    in_hand: int = 0
    bound: int = 0
    """Turns of its tenant in which it is to have its next one."""


arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 60),
        tenant=st.sampled_from("abc"),
        priority=st.integers(0, 2),
        chunks=st.integers(1, 40),
    ),
    min_size=1,
    max_size=25,
)


@dataclass(slots=True)
class Simulation:
    """Workers that take what is next, each chunk for as many ticks as there is to choose from."""

    workers: int
    coming: list[Arrival]
    lines: Lines = field(default_factory=Lines)
    jobs: dict[int, QueuedJob] = field(default_factory=dict)
    busy: list[tuple[int, int]] = field(default_factory=list)
    now: int = 0

    def run(self) -> Iterator[int]:
        """Each turn as it is given: the job's number, before its consequences."""
        self.coming.sort(key=lambda each: each.at)
        while self.coming or self.busy or any(map(self.lines.tenants, range(3))):
            self._arrive()
            while len(self.busy) < self.workers and (job := self.lines.next()) is not None:
                yield job
                self._begin(job)
            self._tick()

    def _arrive(self) -> None:
        while self.coming and self.coming[0].at <= self.now:
            arrival = self.coming.pop(0)
            number = len(self.jobs)
            self.jobs[number] = QueuedJob(arrival, arrival.chunks)
            self.lines.join(number, arrival.tenant, arrival.priority, arrival.chunks)
            self.bind(number)

    def _begin(self, number: int) -> None:
        job = self.jobs[number]
        job.in_hand += 1
        heappush(self.busy, (self.now + 1 + (number * 7 + job.left) % 5, number))
        if job.in_hand < job.left:
            self.lines.stay(number, job.left)
        else:
            self.lines.leave(number)
        self.bind(number)

    def bind(self, number: int) -> None:
        arrival = self.jobs[number].arrival
        others = len(self.lines.waiting(arrival.tenant, arrival.priority))
        self.jobs[number].bound = (1 + CLIPS_FIRST) * max(1, others)

    def _tick(self) -> None:
        upcoming = [each[0] for each in self.busy[:1]] + [each.at for each in self.coming[:1]]
        self.now = max(self.now, min(upcoming)) if upcoming else self.now
        while self.busy and self.busy[0][0] <= self.now:
            _, number = heappop(self.busy)
            self.jobs[number].in_hand -= 1
            self.jobs[number].left -= 1


@given(arrivals, st.integers(1, 6))
def test_each_job_has_its_turn_in_time_and_ends(coming: list[Arrival], workers: int) -> None:
    simulation = Simulation(workers, coming)
    for served in simulation.run():
        at = simulation.jobs[served].arrival
        for other in simulation.lines.waiting(at.tenant, at.priority):
            simulation.jobs[other].bound -= 1
            assert simulation.jobs[other].bound >= 0
    assert all(job.left == 0 for job in simulation.jobs.values())


@given(arrivals, st.integers(1, 6))
def test_no_turn_comes_while_a_higher_priority_waits(coming: list[Arrival], workers: int) -> None:
    simulation = Simulation(workers, coming)
    for served in simulation.run():
        for higher in range(simulation.jobs[served].arrival.priority):
            assert not simulation.lines.tenants(higher)


@given(arrivals, st.integers(1, 6))
def test_each_tenant_has_a_turn_in_two_rounds(coming: list[Arrival], workers: int) -> None:
    simulation = Simulation(workers, coming)
    due: dict[tuple[int, object], int] = {}
    for served in simulation.run():
        at = simulation.jobs[served].arrival
        tenants = simulation.lines.tenants(at.priority)
        due.pop((at.priority, at.tenant), None)
        for tenant in tenants:
            if tenant != at.tenant:
                left = due.get((at.priority, tenant), (1 + SHORTER_FIRST) * len(tenants))
                due[at.priority, tenant] = left - 1
                assert left > 0


@given(
    arrivals.map(lambda found: [each for each in found if each.chunks > 1]),
    st.integers(1, 6),
    st.integers(0, 80),
)
def test_a_clip_among_long_jobs_is_soon_next(coming: list[Arrival], workers: int, at: int) -> None:
    """Next, but for a turn that another tenant is owed: each worker is waited for once at most."""
    clip = Arrival(at, "a", 0, 1)
    alone = [Arrival(each.at, "a", each.priority, each.chunks) for each in coming]
    for others, most in ((alone, 0), (coming, 1)):
        simulation = Simulation(workers, [*others, clip])
        before = 0
        for served in simulation.run():
            job = simulation.jobs[served]
            if job.arrival is clip:
                assert before <= most
                break
            short = any(
                each.left == 1 and each.arrival is not clip and each.arrival.priority == 0
                for each in simulation.jobs.values()
            )
            if short:  # the last chunk of another is as short
                break
            before += any(each.arrival is clip for each in simulation.jobs.values())


def test_long_jobs_of_a_size_take_turns() -> None:
    lines = Lines()
    for job in "abc":
        lines.join(job, "tenant", 1, 100)
    order = []
    for _ in range(9):
        order.append(job := lines.next())
        lines.stay(job, 100)
    assert order == list("abcabcabc")


def test_clips_without_end_leave_each_fifth_turn_to_a_long_job() -> None:
    lines = Lines()
    lines.join("long", "tenant", 1, 100)
    order = []
    for clip in range(40):
        if lines.waiting("tenant", 1) == ["long"]:
            lines.join(clip, "tenant", 1, 1)
        order.append(job := lines.next())
        lines.stay(job, 99) if job == "long" else lines.leave(job)
    assert order[:10] == [*order[:3], "long", *order[4:8], "long", order[9]]
    assert order.count("long") == 8


def test_a_flood_of_new_tenants_leaves_each_second_turn_to_the_old_ones() -> None:
    lines = Lines()
    for tenant in ("old", "older"):
        lines.join(tenant, tenant, 1, 100)
    order = []
    for new in range(40):
        lines.join(new, f"new-{new}", 1, 1)
        order.append(job := lines.next())
        lines.stay(job, 99) if isinstance(job, str) else lines.leave(job)
    # Each second turn is for who has waited the longest, the new ones in their order included.
    assert order.count("old") >= 4
    assert order.count("older") >= 4


KNOWN = {"parts_known": True, "parts_total": 36}


@pytest.mark.parametrize(
    ("known", "turns"),
    [
        ({"units_total": 6_000}, 1),
        ({"units_total": 30_001}, 2),
        ({"units_total": 3_600_000}, 120),
        ({"units_total": None}, 1),
        ({"units_total": None, "parts_total": 9}, 10),
        ({"units_total": 3_600_000, "units_done": 3_300_000, **KNOWN}, 3),
        ({"units_total": 3_600_000, "units_done": 3_600_000, **KNOWN}, 1),
        ({"units_total": 3_600_000, "units_done": 3_600_000, "rounds": 2, **KNOWN}, 36),
        ({"units_total": 600_000, "parts_known": True, "parts_total": 1}, 1),
    ],
)
def test_the_remaining_turns_of_a_job(known: dict[str, int | None], turns: int) -> None:
    new: dict[str, int] = {"units_done": 0, "parts_total": 0, "parts_known": False, "rounds": 1}
    assert turns_left(units_a_part=30_000, **new | known) == turns  # type: ignore[arg-type]


def test_sizes_double() -> None:
    sizes = [size_class(turns) for turns in (1, 2, 3, 4, 5, 8, 9, 120)]
    assert sizes == [0, 1, 2, 2, 3, 3, 4, 7]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 30))
def test_a_place_is_0_for_the_next_alone_and_is_never_less_than_what_goes_before(
    lengths: list[int], given_before: int
) -> None:
    """Against the simulation of one tenant's jobs, none of which gets shorter."""
    lines = Lines()
    for job, turns in enumerate(lengths):
        lines.join(job, "tenant", 1, turns)
    for _ in range(given_before):
        lines.stay(job := lines.next(), lengths[job])
    standing = dict(lines._jobs[1, "tenant"])
    oldest = min(standing.values(), key=lambda it: it.since)
    smallest = min(it.size for it in standing.values())
    places = {}
    for job, own in standing.items():
        others = [it for it in standing.values() if it is not own]
        places[job] = turns_before(
            ahead=sum(it.since < own.since and it.size <= own.size for it in others),
            longer=sum(it.since < own.since and it.size > own.size for it in others),
            shorter=sum(it.since > own.since and it.size < own.size for it in others),
            passed=oldest.passed,
            may_pass=SHORTER_FIRST if own.size else CLIPS_FIRST,
            others_may=SHORTER_FIRST if smallest else CLIPS_FIRST,
        )
    following = lines.next()
    assert [job for job, place in places.items() if place == 0] == [following]
