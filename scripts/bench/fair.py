"""How long a short clip waits behind long recordings that were sent before it.

Run ``python -m scripts.bench.fair LONG CLIP``: any recording of more than some ten minutes, and one
of a few seconds. It starts a stack of its own, has so many jobs of LONG under way that each has had
its turn, and then sends CLIP again and again, a moment after the one before has completed. Prints,
for each number of long jobs, how long clips took from the end of their upload to COMPLETED, in
seconds and in chunk times: what the chunks of LONG took that were worked on meanwhile.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from uuid import UUID

import click
import numpy as np
from sqlalchemy import ColumnElement, func, select

from common.db.tables import Job, Step
from common.domain.job import StepStatus
from common.domain.pipeline import StepKind
from scripts.bench.report import BenchPart, Figure, Target, all_met, show, summary
from scripts.bench.service import UnderTest, until
from scripts.cli.console import make_console

LIMIT = 1.5
"""Target: chunk times at the 95th percentile."""
_TOOK_S = func.extract("epoch", Step.finished_at - Step.started_at)
PATIENCE_S = 1800.0


@dataclass(frozen=True, slots=True)
class ClipTiming:
    """One clip: seconds until it was complete, and what a chunk took meanwhile."""

    took_s: float
    chunk_s: float

    @property
    def chunks(self) -> float:
        return self.took_s / self.chunk_s


class FairnessTrial:
    """Clips sent behind long jobs; ``options`` are those of all jobs."""

    def __init__(self, service: UnderTest, options: dict[str, str]) -> None:
        self._service = service
        self._database = service.database
        self._options = options
        self._luck = random.Random(1)  # noqa: S311 - it only spreads the clips

    def run(self, long: Path, clip: Path, count: int, clips: int) -> BenchPart:
        """Send ``count`` times LONG, then ``clips`` times CLIP; then all are cancelled."""
        service = self._service
        jobs = [service.submit(long, self._options) for _ in range(count)]
        if until(lambda: self._chunks_of(jobs) >= count, PATIENCE_S) is None:
            raise click.ClickException(f"not all of {count} long jobs have had a turn")
        sent = []
        for _ in range(clips):
            time.sleep(self._luck.uniform(0, self._chunk_s(jobs)))
            sent.append(clip_id := service.submit(clip, self._options))
            service.wait(clip_id)
        last = max(self._span(clip_id)[1] for clip_id in sent)
        if until(lambda: self._nothing_from_before(jobs, last), PATIENCE_S) is None:
            raise click.ClickException("chunks from before the last clip's end are not done")
        taken = [self._taken(clip_id, jobs) for clip_id in sent]
        for job_id in jobs:
            service.cancel(job_id)
        return report(count, taken)

    def _chunks_of(self, jobs: Sequence[UUID]) -> int:
        """Done, once all jobs have had a turn for one: at least their number."""
        with self._database.transaction() as session:
            done = select(Step.job_id, func.count()).where(*_chunks(jobs)).group_by(Step.job_id)
            counts = [count for _, count in session.execute(done)]
        return sum(counts) if len(counts) == len(jobs) else 0

    def _chunk_s(self, jobs: Sequence[UUID]) -> float:
        with self._database.transaction() as session:
            return float(median(session.scalars(select(_TOOK_S).where(*_chunks(jobs)))))

    def _nothing_from_before(self, jobs: Sequence[UUID], end: datetime) -> bool:
        """Whether the chunks that were under way at ``end`` have ended."""
        running = select(func.count()).where(
            Step.job_id.in_(jobs), Step.status == StepStatus.RUNNING, Step.started_at < end
        )
        with self._database.transaction() as session:
            return not session.scalar(running)

    def _span(self, job_id: UUID) -> tuple[datetime, datetime]:
        with self._database.transaction() as session:
            job = session.get_one(Job, job_id)
            assert job.completed_at is not None  # noqa: S101 - it was waited for
            return job.created_at, job.completed_at

    def _taken(self, clip_id: UUID, jobs: Sequence[UUID]) -> ClipTiming:
        sent, completed = self._span(clip_id)
        meanwhile = (Step.started_at < completed, Step.finished_at > sent)
        with self._database.transaction() as session:
            took = session.scalar(select(func.avg(_TOOK_S)).where(*_chunks(jobs), *meanwhile))
        return ClipTiming((completed - sent).total_seconds(), float(took or 0))


def _chunks(jobs: Sequence[UUID]) -> tuple[ColumnElement[bool], ...]:
    return (
        Step.job_id.in_(jobs),
        Step.kind == StepKind.TRANSCRIBE,
        Step.status == StepStatus.DONE,
    )


def report(count: int, clips: Sequence[ClipTiming]) -> BenchPart:
    """The figures of the clips that were sent behind ``count`` long jobs."""
    chunks = [clip.chunks for clip in clips]
    return BenchPart(
        f"{count} long jobs",
        f"{len(clips)} clips behind {count} long jobs",
        (
            Figure("a chunk took, mean", (mean(clip.chunk_s for clip in clips),), "s", 2),
            Figure("clip: median", (median(clip.took_s for clip in clips),), "s", 2),
            Figure("clip: most", (max(clip.took_s for clip in clips),), "s", 2),
            Figure("clip: median", (median(chunks),), "chunk times", 2),
            Figure(
                f"{count} long jobs: clip, 95th percentile",
                (float(np.percentile(chunks, 95)),),
                "chunk times",
                2,
                Target(LIMIT),
            ),
        ),
    )


@click.command()
@click.argument("long", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("clip", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--workers", default=2, show_default=True)
@click.option("--clips", default=20, show_default=True, help="How often CLIP is sent each time.")
@click.option(
    "--jobs",
    "counts",
    multiple=True,
    type=int,
    default=[3, 10, 50],
    show_default=True,
    help="How often LONG is sent before; may be given several times.",
)
@click.option("--engine", default="faster-whisper base", show_default=True, help="And its weights.")
def main(
    long: Path, clip: Path, workers: int, clips: int, counts: tuple[int, ...], engine: str
) -> None:
    """Send CLIP behind LONG; exits with 1 where it took more than 1.5 chunk times (p95)."""
    parts = []
    console = make_console()
    with UnderTest(workers) as service:
        name, _, model = engine.partition(" ")
        trial = FairnessTrial(service, {"language": "en", "engine": name, "model": model})
        for count in counts:
            parts.append(trial.run(long, clip, count, clips))
            show(parts[-1], console)
    console.print(summary(parts))
    sys.exit(not all_met(parts))


if __name__ == "__main__":
    main()
