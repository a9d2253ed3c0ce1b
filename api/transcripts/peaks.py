"""The route for the peaks of a recording, by which pages draw its waveform."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response
from starlette.status import HTTP_304_NOT_MODIFIED

from api.auth.callers import Reader
from api.http.fields import Document
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.processes.peaks import PeakProcesses
from api.services import Services, ServicesDep
from common.audio.peaks import PER_SECOND, resampled, to_json
from common.db.jobs import Jobs
from common.db.snapshots import Snapshot
from common.domain.job import is_final
from common.errors import NotFound, NotPlanned, StorageFull
from common.storage.storage import Storage

router = APIRouter(tags=["jobs"], responses=documented(422, 503), dependencies=ONLY_KNOWN)

BINARY, JSON = "application/octet-stream", "application/json"
RETRY_AFTER_S = 2
FASTEST = 1
"""The level of compression: it halves the peaks, and more would take longer than it saves."""


class PeaksDocument(Document):
    """Peaks as audiowaveform's JSON."""

    version: int
    channels: int
    sample_rate: int
    samples_per_pixel: int
    """Of each pair: it begins at its number times this, divided by `sample_rate`."""
    bits: int
    length: int
    """The number of pairs."""
    data: list[int]
    """The minimum and the maximum of each pair, in turn, from -128 to 127."""


@router.get(
    "/jobs/{job_id}/peaks",
    summary="Get the peaks of the recording, to draw its waveform",
    response_class=Response,
    responses={
        200: {
            "content": {
                BINARY: {"schema": {"type": "string", "format": "binary"}},
                JSON: {"schema": PeaksDocument.model_json_schema()},
            },
            "description": "The peaks, as JSON if Accept names it",
            "headers": {"ETag": {"schema": {"type": "string"}}},
        },
        304: {"description": "They are those of If-None-Match"},
        **documented(404, 409),
    },
)
async def peaks(
    job_id: UUID,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    per_second: Annotated[
        int,
        Query(ge=1, le=PER_SECOND, description="Pairs a second, rounded to whole samples of each."),
    ] = PER_SECOND,
    if_none_match: Annotated[str | SkipJsonSchema[None], Header()] = None,
) -> Response:
    """The minima and maxima of the recording's mix at 16 kHz, in 8 bits, for peaks.js and others.

    They are known once the job is planned; until then the answer is 409. Where none are stored, as
    of jobs of earlier versions, the recording is read again: if that takes long, the answer is 503
    meanwhile. With `Accept: application/json` they are JSON, else audiowaveform's binary format.
    """
    found = await _find(services, services.jobs(caller.tenant), job_id)
    wants_json = JSON in request.headers.get("accept", "")
    tag = f'W/"{sha256(found).hexdigest()[:32]}-{per_second}-{"json" if wants_json else "dat"}"'
    headers = {
        "ETag": tag,
        "Cache-Control": "private, no-cache",  # it may be stored, and is asked for again
        "Vary": "Accept, Accept-Encoding",
    }
    known = [each.strip() for each in (if_none_match or "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    content = await asyncio.to_thread(_written, found, per_second, as_json=wants_json)
    if "gzip" in request.headers.get("accept-encoding", ""):
        content = await asyncio.to_thread(gzip.compress, content, FASTEST)
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=JSON if wants_json else BINARY, headers=headers)


def _written(found: bytes, per_second: int, *, as_json: bool) -> bytes:
    wanted = resampled(found, per_second)
    return to_json(wanted) if as_json else wanted


async def _find(services: Services, jobs: Jobs, job_id: UUID) -> bytes:
    """The stored peaks of a job, or those of its recording."""
    job = await services.in_thread(_of_recording, jobs, job_id)
    with suppress(NotFound):
        return await asyncio.to_thread(services.storage.read_peaks, job.job_id)
    if not job.planned and not is_final(job.status):
        raise NotPlanned(status_now=job.status.value, retry_after_s=RETRY_AFTER_S)
    recording = await services.in_thread(jobs.recording, job.job_id)
    store = partial(_store, services.storage, jobs, job.job_id)
    return await services.get(PeakProcesses).find(recording.id, job.audio_track, store)


def _of_recording(jobs: Jobs, job_id: UUID) -> Snapshot:
    """The job that a job has its recording from."""
    job = jobs.snapshot(job_id)
    return job if job.source_id is None else jobs.snapshot(job.source_id)


def _store(storage: Storage, jobs: Jobs, job_id: UUID, found: bytes) -> None:
    """Store the peaks of a job.

    Raises:
        NotFound: it was deleted meanwhile.
    """
    storage.begin("peaks", job_id)
    jobs.snapshot(job_id)  # after that: the deletion of a job that exists finds its place
    with suppress(StorageFull):
        storage.write_peaks(job_id, found)
