"""A pipeline that does nothing of use: what the engine of jobs is tested with.

`register` makes it known to the process that calls it. What a job's steps do is in the job's client
metadata (`Behaviour`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, Self
from uuid import UUID

from common.db.database import Database
from common.db.flow import NewPart
from common.db.jobs import Jobs, NewJob
from common.db.snapshots import ClientData
from common.db.steps import Claim
from common.domain.job import JobStatus
from common.domain.pipeline import PIPELINES, Pause, Phase, Pipeline, StepType
from common.errors import DecodeFailed
from tests.support.factories import TENANT, new_job
from worker.context import Context, with_retries
from worker.runner import STEPS

PARTS = 50
RATING_FAILED = "rating_failed"

MADE_UP = Pipeline(
    "made-up",
    phases=(
        Phase(
            "sheets",
            StepType("lay_out", stage="laying out"),
            each=(
                StepType("look", stage="looking", counts=True, reads_files=True),
                StepType("rate", stage="rating", after="look", warning=RATING_FAILED),
            ),
            pause=Pause(JobStatus.REVIEW),
        ),
        Phase("lines", each=(StepType("write", stage="writing", counts=True),)),
        Phase("book", StepType("bind", stage="binding")),
    ),
)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What goes wrong, by kind of step: the indexes of the parts in which it does.

    ``killed``: the process dies at the first attempt. ``failing``: every attempt fails for good.
    ``slow_s``: how long each step takes.
    """

    killed: dict[str, list[int]] = field(default_factory=dict)
    failing: dict[str, list[int]] = field(default_factory=dict)
    slow_s: float = 0.0

    @classmethod
    def of(cls, claim: Claim) -> Self:
        return cls(**(claim.job.client_metadata or {}))


def submit(database: Database, behaviour: Behaviour | None = None, **fields: Any) -> UUID:
    """Submit a job of this kind; ``fields`` are those of `NewJob`."""
    job: NewJob = new_job(
        kind=MADE_UP.kind,
        source_url="https://made.up/",
        client=ClientData(metadata=asdict(behaviour or Behaviour())),
        **fields,
    )
    Jobs(database, TENANT).create(job)
    return job.id


def register() -> None:
    """Have this process know the pipeline and its steps."""
    PIPELINES[MADE_UP.kind] = MADE_UP
    STEPS[MADE_UP.kind] = {}
    for step in MADE_UP.steps:
        name = STEPS[MADE_UP.kind][step.kind] = f"made_up_{step.kind}"
        run = _lay_out if step.kind == "lay_out" else _work
        sys.modules[name] = SimpleNamespace(run=run, limit_s=_limit_s)  # type: ignore[assignment]


def _lay_out(context: Context, claim: Claim) -> Claim | None:
    parts = [NewPart(index, 1, [index], f"made up {index}") for index in range(PARTS)]
    for first in range(0, PARTS, 20):
        _misbehave(claim, first)
        with_retries(context.steps.add_parts, claim, parts[first : first + 20])
        context.events.work_to_do()

    def sized(_session: Any, job: Any) -> None:
        job.units_total = PARTS

    return context.finish(claim, within=sized)


def _work(context: Context, claim: Claim) -> Claim | None:
    _misbehave(claim, claim.part_index)
    return context.finish(claim, result={"kind": claim.kind, "previous": claim.previous})


def _misbehave(claim: Claim, index: int | None) -> None:
    behaviour = Behaviour.of(claim)
    time.sleep(behaviour.slow_s)
    if claim.attempt == 1 and index in behaviour.killed.get(claim.kind, ()):
        os.kill(os.getpid(), signal.SIGKILL)
    if index in behaviour.failing.get(claim.kind, ()):
        raise DecodeFailed(reason="made up")


def _limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    return 60.0
