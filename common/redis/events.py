"""Notifications over Redis: a job has changed, or there is work; never the change itself.

The data is in Postgres; a lost notification delays a reader by one polling interval.
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
"""Sent when there may be something to dispatch: a new step, or a free worker."""
STOP_CHANNEL = "rq:pubsub:{}"
"""RQ's channel for commands to one worker."""


class Publisher(Protocol):
    """The part of a Redis client that notifications need."""

    def publish(self, channel: str, message: str) -> object:
        """Send a message to all current subscribers."""


class Events:
    """Sends notifications."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def job_changed(self, job_id: UUID) -> None:
        self._send(JOB_CHANNEL, str(job_id))

    def work_to_do(self) -> None:
        self._send(WORK_CHANNEL, "")

    def stop(self, worker: str, rq_job_id: str) -> None:
        """Stop at once the step that the worker runs in this RQ job."""
        self._send(
            STOP_CHANNEL.format(worker), json.dumps({"command": "stop-job", "job_id": rq_job_id})
        )

    def _send(self, channel: str, message: str) -> None:
        # Subscribers poll as well: a lost notification must not fail the work.
        with contextlib.suppress(RedisError):
            self._publisher.publish(channel, message)
