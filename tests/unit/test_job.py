"""The states of a job and of its steps."""

from __future__ import annotations

import pytest

from common.domain.job import (
    JOB_TRANSITIONS,
    STEP_TRANSITIONS,
    JobStatus,
    StepStatus,
    is_final,
    job_sources,
    retry_delay_s,
    step_sources,
)


def test_every_state_has_its_transitions() -> None:
    assert set(JOB_TRANSITIONS) == set(JobStatus)
    assert set(STEP_TRANSITIONS) == set(StepStatus)


@pytest.mark.parametrize("end", [JobStatus.COMPLETED, JobStatus.CANCELLED])
def test_a_job_that_has_ended_stays_as_it_is(end: JobStatus) -> None:
    assert JOB_TRANSITIONS[end] <= {JobStatus.PENDING}
    assert is_final(end)


def test_only_a_job_under_way_can_be_completed() -> None:
    under_way = {JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.REVIEW}
    assert set(job_sources(JobStatus.COMPLETED)) == under_way


def test_only_a_running_step_can_be_done() -> None:
    assert step_sources(StepStatus.DONE) == [StepStatus.RUNNING]


def test_the_delay_before_a_retry_doubles_up_to_a_minute() -> None:
    assert [retry_delay_s(failures, 2.0) for failures in (1, 2, 3, 20)] == [2.0, 4.0, 8.0, 60.0]
