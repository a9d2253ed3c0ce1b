"""Waiting for a job's end, for requests that are answered with its text."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

from starlette.requests import Request

from api.http.bodies import while_connected
from api.jobs.feeds import JobFeed
from api.jobs.uploads import IGNORED
from common.db.snapshots import Snapshot
from common.domain.job import no_text
from common.errors import JobStillRunning, NotFound, NotReady

JOB_ID = "X-Job-Id"
"""The header that names the job of a response."""
REVISION = "X-Revision"
"""The header that names the revision of a text."""
HEADERS = {
    JOB_ID: {"schema": {"type": "string", "format": "uuid"}},
    REVISION: {
        "description": "The revision of the text; the newest one of a job that was sent before",
        "schema": {"type": "integer"},
    },
    IGNORED: {
        "description": "Parameters of the request that were ignored",
        "schema": {"type": "string"},
    },
}
"""The headers of such responses, for the documentation."""


async def wait_for_end(request: Request, feed: JobFeed, limit_s: float | None = None) -> None:
    """Return when the job has ended, this gateway is about to end, or ``limit_s`` has passed.

    Raises:
        starlette.requests.ClientDisconnect: the client has disconnected; the job continues.
    """
    await while_connected(request, _wait(feed, limit_s))


async def _wait(feed: JobFeed, limit_s: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not feed.over:
                await feed.changed.wait()


def check_completed(snapshot: Snapshot | None, job_id: UUID) -> Snapshot:
    """The job's ``snapshot`` if it is completed.

    Raises:
        JobStillRunning: it has not ended.
        Conflict: it failed or was cancelled.
        NotFound: it was deleted.
    """
    if snapshot is None:
        raise NotFound(what="job", value=job_id)
    try:
        check_ready(snapshot)
    except NotReady:
        raise JobStillRunning(job_id=job_id, status_now=snapshot.status.value) from None
    return snapshot


def check_ready(snapshot: Snapshot) -> None:
    """Pass if the job has its text.

    Raises:
        Conflict: it failed or was cancelled.
        NotReady: it has not ended.
    """
    if not snapshot.has_text:
        raise no_text(snapshot.status, snapshot.source_id, snapshot.error_message)
