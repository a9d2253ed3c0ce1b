"""Wake-ups over Redis: that something about a job has changed, never what.

The content is in Postgres; a lost message costs the reader one polling interval.
"""

from __future__ import annotations

import contextlib
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

JOB_CHANNEL = "steno:job"
"""Carries the id of a job that changed."""
WORK_CHANNEL = "steno:work"
"""Says that there may be something to dispatch: a new step, or a worker that became free."""


class Events:
    """The sender's side."""

    def __init__(self, connection: Redis) -> None:
        self._redis = connection

    def job_changed(self, job_id: UUID) -> None:
        self._send(JOB_CHANNEL, str(job_id))

    def work_to_do(self) -> None:
        self._send(WORK_CHANNEL, "")

    def _send(self, channel: str, message: str) -> None:
        # Whoever listens also polls: losing a wake-up must not fail the work it tells of.
        with contextlib.suppress(RedisError):
            self._redis.publish(channel, message)
