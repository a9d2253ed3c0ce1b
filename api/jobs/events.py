"""The route for a job's events, sent while it runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header
from starlette.responses import Response

from api.auth.callers import Reader
from api.http.problems import documented
from api.http.sse import HEARTBEAT, MEDIA_TYPE, EventStream, event
from api.jobs.feeds import JobFeed, watch_job
from api.jobs.schemas import Status
from api.services import ServicesDep
from common.domain.job import is_at_rest, is_final
from common.domain.results import finding_document, segment_document
from common.errors import Malformed
from common.transcripts import words_in

router = APIRouter(tags=["jobs"])

RECONNECT_MS = 2_000
END = "-end"
"""Ends the id of the last event: a client that reconnects with it has missed nothing."""
_ID = re.compile(rf"(\d{{1,9}})({END})?")
EVENT = {
    "type": "object",
    "properties": {
        "event": {
            "enum": ["status", "progress", "segment", "review", "completed", "failed", "cancelled"]
        },
        "id": {"type": "string", "pattern": f"^\\d+({END})?$"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "id", "data"],
}
"""The fields of one event."""
EXAMPLE = """retry: 2000

event: status
id: 0
data: {"job_id": "3fa85f64-5717-4562-b3fc-2c963f66afa6", "status": "PROCESSING", ...}

event: progress
id: 0
data: {"progress": 40, "chunks_completed": 4, "chunks_total": 10, "planned": true, ...}

event: segment
id: 1
data: {"id": 0, "start": 0.0, "end": 3.2, "text": "Xin chào các bạn.", ...}

event: completed
id: 1-end
data: {"job_id": "3fa85f64-5717-4562-b3fc-2c963f66afa6", "status": "COMPLETED", ...}
"""


@router.get(
    "/jobs/{job_id}/events",
    summary="Watch a job",
    response_class=Response,
    responses={
        200: {
            "content": {MEDIA_TYPE: {"schema": EVENT, "example": EXAMPLE}},
            "description": "Events until the job has ended",
        },
        204: {"description": "The job has ended, and `Last-Event-ID` is its last event"},
        **documented(400, 404, 422, 503),
    },
)
async def events(
    job_id: UUID,
    services: ServicesDep,
    caller: Reader,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event received, to resume after it.")
    ] = None,
) -> Response:
    """A job's events, as server-sent events, until it has ended.

    `status` (a status document) when its status, stage or place in the queue changes; `progress`;
    `segment` for each piece of the text, in order and never changed afterwards, with `moderation`
    where the job is moderated; `review`, with a status document, when a person has to approve the
    text, which is complete then; at last `completed`, `failed` or `cancelled`, with a status
    document. An event's id is the number of words sent so far (a segment without words counts as
    one). Reconnect with `Last-Event-ID` to resume.
    """
    sent, ended = _parse(last_event_id)
    stack = AsyncExitStack()
    feed = await stack.enter_async_context(watch_job(services, caller.tenant, job_id))
    if ended and feed.snapshot is not None and is_final(feed.snapshot.status):
        await stack.aclose()
        return Response(status_code=204)
    heartbeat_s = services.settings.events.heartbeat
    return EventStream(_events(feed, sent, heartbeat_s), stack)


async def _events(feed: JobFeed, sent: int, heartbeat_s: float) -> AsyncIterator[str]:
    """All events after the first ``sent`` words, as they arrive.

    Words are counted, since segments may be split at the end of a job.
    """
    yield f"retry: {RECONNECT_MS}\n\n"
    last_status: dict[str, Any] = {}
    last_progress: dict[str, Any] = {}
    seen, words = 0, 0
    """How many segments, and words, of the feed were sent, by this watch or an earlier one."""
    while True:
        changed, snapshot, over = feed.changed, feed.snapshot, feed.over
        if snapshot is None:
            return
        status = Status.model_validate(snapshot).model_dump(mode="json")
        progress = {key: status[key] for key in _PROGRESS}
        final, at_rest = is_final(snapshot.status), is_at_rest(snapshot.status)
        is_new = any(status[key] != last_status.get(key) for key in _STATUS)
        if is_new and not at_rest:
            yield event(status, name="status", number=sent)
        for number, segment in enumerate(feed.segments[seen:], start=seen):
            seen, words = seen + 1, words + words_in(segment)
            if words <= sent:
                continue
            found = {"moderation": finding_document(number, segment)}
            document = segment_document(number, segment, snapshot.language) | found
            sent = words
            yield event(document, name="segment", number=sent)
        if not final and any(progress[key] != last_progress.get(key) for key in _COUNTS):
            yield event(progress, name="progress", number=sent)
        if is_new and at_rest:
            event_id = f"{sent}{END}" if final else sent
            yield event(status, name=snapshot.status.lower(), number=event_id)
        last_status, last_progress = status, progress
        if over:
            return
        try:
            await asyncio.wait_for(changed.wait(), heartbeat_s)
        except TimeoutError:
            yield HEARTBEAT


_STATUS = ("status", "stage", "queue_position", "warnings")
_COUNTS = ("progress", "chunks_completed", "chunks_total")
_PROGRESS = (*_COUNTS, "planned", "eta_seconds")


def _parse(last_event_id: str | None) -> tuple[int, bool]:
    """How many words were sent, and whether the end was."""
    if not last_event_id:
        return 0, False
    match = _ID.fullmatch(last_event_id)
    if match is None:
        raise Malformed(reason="Last-Event-ID is not an id of this stream")
    return int(match[1]), match[2] is not None
