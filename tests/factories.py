"""Rows that tests start from."""

from __future__ import annotations

from uuid import UUID, uuid4

from common.db.database import Database
from common.db.jobs import Jobs, NewJob, NewRecording
from common.db.steps import Claim, PlannedRow, RetryPolicy, Steps
from common.domain.job import Priority
from common.domain.request import Options

TENANT = "default"


def submit_job(
    database: Database,
    *,
    tenant: str = TENANT,
    priority: Priority = Priority.NORMAL,
    duration_ms: int | None = 60_000,
) -> UUID:
    """Submit a recording of one minute; returns the job's id."""
    recording = NewRecording(
        id=uuid4(),
        filename="talk.mp3",
        container="mp3",
        codec="mp3float",
        size_bytes=1_000_000,
        sha256="0" * 64,
        duration_ms=duration_ms,
        upload_ms=10,
    )
    job = NewJob(
        id=uuid4(),
        engine="faster-whisper",
        model="base",
        language="en",
        priority=priority,
        options=Options(),
    )
    Jobs(database, tenant).submit(recording, job)
    return job.id


def make_steps(
    database: Database, *, lease_s: float = 30.0, max_retries: int = 3, delay_s: float = 0.0
) -> Steps:
    """The steps, with retries that need no waiting."""
    return Steps(database, lease_s=lease_s, retry=RetryPolicy(max_retries, delay_s))


def published(steps: Steps, limit: int = 1000) -> list[UUID]:
    """The steps the dispatcher would hand out now, in its order."""
    handed_out: list[UUID] = []
    steps.publish(limit, lambda rows: handed_out.extend(row.step_id for row in rows))
    return handed_out


def claim_next(steps: Steps, worker: str = "worker-1") -> Claim:
    """Claim whatever is handed out next."""
    (step_id,) = published(steps, 1)
    claim = steps.claim(step_id, worker)
    assert claim is not None
    return claim


def plan_chunks(steps: Steps, count: int, *, finish: bool = True) -> Claim:
    """Claim a plan and have it find ``count`` chunks of 10 s."""
    claim = claim_next(steps)
    assert claim.kind == "plan"
    store_plan(steps, claim, count, finish=finish)
    return claim


def store_plan(steps: Steps, claim: Claim, count: int, *, finish: bool = True) -> None:
    """Have a claimed plan find ``count`` chunks of 10 s."""
    steps.start_plan(claim, weights_sha256="w" * 64, language="en", replan=False)
    if count:
        steps.add_chunks(claim, [chunk_row(index) for index in range(count)])
    if finish:
        steps.finish_plan(claim, duration_ms=10_000 * count, warnings=[], elapsed_ms=5)


def chunk_row(index: int, content: str = "c") -> PlannedRow:
    """Chunk ``index`` as a plan stores it."""
    start, end = index * 10_000, (index + 1) * 10_000
    return PlannedRow(index, [[start, end, start, end, 9_000]], f"{content}{index}")


def finish_chunk(steps: Steps, claim: Claim) -> UUID | None:
    """End a claimed chunk with one segment."""
    segment = {
        "span": [0, 10_000],
        "text": f" chunk {claim.chunk_index}",
        "words": [],
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
        "temperature": 0.0,
        "flags": [],
    }
    return steps.finish_chunk(claim, result=[[segment]], core_ms=10_000, engine_ms=100)
