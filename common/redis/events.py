"""Wake-ups over Redis: that something about a job has changed, never what.

The content is in Postgres; a lost message costs the reader one polling interval.
"""

from __future__ import annotations

import contextlib
import json
from typing import Protocol
from uuid import UUID

from redis.exceptions import RedisError

JOB_CHANNEL = "steno:job"
"""Carries the id of a job that changed."""
WORK_CHANNEL = "steno:work"
"""Says that there may be something to dispatch: a new step, or a worker that became free."""
STOP_CHANNEL = "rq:pubsub:{}"
"""Where RQ has a worker listen for commands."""


class Publisher(Protocol):
    """A Redis client, as far as wake-ups need one."""

    def publish(self, channel: str, message: str) -> object:
        """Send a message to all who listen at this moment."""
        ...


class Events:
    """The sender's side."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def job_changed(self, job_id: UUID) -> None:
        self._send(JOB_CHANNEL, str(job_id))

    def work_to_do(self) -> None:
        self._send(WORK_CHANNEL, "")

    def stop(self, worker: str, doorbell: str) -> None:
        """Have the worker end at once the step that it runs in this RQ job."""
        self._send(
            STOP_CHANNEL.format(worker), json.dumps({"command": "stop-job", "job_id": doorbell})
        )

    def _send(self, channel: str, message: str) -> None:
        # Whoever listens also polls: losing a wake-up must not fail the work it tells of.
        with contextlib.suppress(RedisError):
            self._publisher.publish(channel, message)
