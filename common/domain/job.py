"""The states of a job and of its steps, their transitions, and the limits on retries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from uuid import UUID

from common.errors import Conflict, NotReady, StenoError


class JobStatus(StrEnum):
    """The status of a job, as clients see it."""

    PENDING_UPLOAD = "PENDING_UPLOAD"
    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    REVIEW = "REVIEW"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class StepStatus(StrEnum):
    """The status of a step."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Publication:
    """A step that the dispatcher hands to RQ as the job ``rq_job_id``."""

    step_id: UUID
    rq_job_id: str
    description: str


class Priority(IntEnum):
    """Which job is served first; smaller comes before larger."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


JOB_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING_UPLOAD: frozenset({JobStatus.PENDING, JobStatus.CANCELLED}),
    JobStatus.PENDING: frozenset(
        {
            JobStatus.PROCESSING,
            JobStatus.REVIEW,
            JobStatus.COMPLETED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.PROCESSING: frozenset(
        {JobStatus.REVIEW, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.REVIEW: frozenset(
        {JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.COMPLETED, JobStatus.CANCELLED}
    ),
    JobStatus.COMPLETED: frozenset({JobStatus.PENDING}),
    JobStatus.FAILED: frozenset({JobStatus.PENDING}),
    JobStatus.CANCELLED: frozenset(),
}


WITH_TEXT = (JobStatus.REVIEW, JobStatus.COMPLETED)
"""In these a job has its text, and people may change it."""


def is_final(status: JobStatus) -> bool:
    """Whether a job stays in this status unless a client retries it."""
    return JOB_TRANSITIONS[status] <= {JobStatus.PENDING}


def is_at_rest(status: JobStatus) -> bool:
    """Whether nothing changes a job's result by itself: it has ended, or waits for a person."""
    return is_final(status) or status is JobStatus.REVIEW


def no_text(status: JobStatus, source_id: UUID | None, failure: str | None) -> StenoError:
    """Why a job has no text, or none that can be changed now.

    ``source_id`` is the job whose transcript it works on; ``failure`` is the message of its error.
    """
    if source_id is not None:
        reason = f"The job works on the transcript of {source_id}, and has none of its own"
        return Conflict(reason=reason)
    if status is JobStatus.FAILED:
        return Conflict(reason=f"The job failed: {failure}")
    if status is JobStatus.CANCELLED:
        return Conflict(reason="The job was cancelled")
    return NotReady(status_now=status.value)


STEP_TRANSITIONS: dict[StepStatus, frozenset[StepStatus]] = {
    StepStatus.PENDING: frozenset({StepStatus.RUNNING, StepStatus.CANCELLED}),
    StepStatus.RUNNING: frozenset(
        {StepStatus.DONE, StepStatus.PENDING, StepStatus.FAILED, StepStatus.CANCELLED}
    ),
    StepStatus.DONE: frozenset(),
    StepStatus.FAILED: frozenset(),
    StepStatus.CANCELLED: frozenset(),
}

MODERATION_FAILED = "moderation_failed"
"""The warning of a job some of whose segments could not be moderated."""
DIARIZATION_FAILED = "diarization_failed"
"""The warning of a job some of whose chunks could not be diarized."""
ENHANCEMENT_INCOMPLETE = "enhancement_incomplete"
"""The language model gave no usable answer about some of the transcript."""
REFINEMENT_FAILED = "refinement_failed"
"""The warning of a transcript whose edited words could not be moderated and aligned."""
IDENTIFICATION_FAILED = "identification_failed"
"""The warning of a job whose speakers could not be compared with the enrolled voices."""
REVIEW_TIMED_OUT = "review_timed_out"
"""The warning of a job that nobody approved in time: it was completed without."""
IDENTIFICATION_AMBIGUOUS = "identification_ambiguous"
"""The warning of a job with a speaker who is like enrolled voices of several names."""
NOBODY_ENROLLED = "nobody_enrolled"
"""The warning of a job with ``identify`` whose tenant has no voices to compare with."""
CHANNELS_NOT_IDENTIFIED = "channels_not_identified"
"""The warning of a job with ``identify`` whose channels were separated: they are the speakers."""
OF_IDENTIFICATION = frozenset(
    {
        IDENTIFICATION_FAILED,
        IDENTIFICATION_AMBIGUOUS,
        NOBODY_ENROLLED,
        CHANNELS_NOT_IDENTIFIED,
    }
)

MAX_LOSSES = 20
"""How often a step may lose its worker (killed, host lost) before the step counts as the cause.

A lost worker is rarely the step's fault, so this is far above ``MAX_RETRIES``. It is finite so that
a recording that makes every worker run out of memory ends as FAILED and is not retried forever.
"""


RETRIES_AT_LIMIT = 1
"""How often a step is retried after it exceeded its time limit. Its work is the same each time:
unless the machine was only busy, another try occupies a worker just as long."""


def job_sources(target: JobStatus) -> list[JobStatus]:
    """The states from which a job may go to ``target``."""
    return [source for source, targets in JOB_TRANSITIONS.items() if target in targets]


def step_sources(target: StepStatus) -> list[StepStatus]:
    """The states from which a step may go to ``target``."""
    return [source for source, targets in STEP_TRANSITIONS.items() if target in targets]


def retry_delay_s(failures: int, first_s: float, limit_s: float = 60.0) -> float:
    """Seconds to wait before the retry after ``failures`` (>= 1) failures: doubled each time."""
    return min(limit_s, first_s * 2.0 ** (failures - 1))
