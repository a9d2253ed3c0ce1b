"""Recordings as they were sent: from this machine's disk, or by a link to where they are."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID

from starlette.responses import FileResponse, RedirectResponse, Response

from api.filenames import disposition
from api.gateway import Gateway
from common.db.jobs import Jobs

UNKNOWN = "application/octet-stream"
CONTAINERS = {
    "aac": "audio/aac",
    "ac3": "audio/ac3",
    "aiff": "audio/aiff",
    "amr": "audio/amr",
    "asf": "video/x-ms-asf",
    "au": "audio/basic",
    "avi": "video/x-msvideo",
    "caf": "audio/x-caf",
    "eac3": "audio/eac3",
    "flac": "audio/flac",
    "flv": "video/x-flv",
    "matroska,webm": "video/x-matroska",
    "mov,mp4,m4a,3gp,3g2,mj2": "video/mp4",
    "mp3": "audio/mpeg",
    "mpeg": "video/mpeg",
    "mpegts": "video/mp2t",
    "ogg": "audio/ogg",
    "wav": "audio/wav",
}
"""Media types of what FFmpeg calls so; video/mp4 and the like may have no pictures."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part of the recording that the header Range asks for"},
    307: {
        "description": "The recording is to be had at the URL in Location for a while, without a "
        "key: do not send yours there"
    },
    400: {"description": "The header Range cannot be understood"},
    416: {"description": "The recording has no such part"},
}


async def original(gateway: Gateway, jobs: Jobs, job_id: UUID) -> Response:
    """The response with a job's recording, which has the name it was sent under.

    Raises:
        NotFound: there is no such job in the tenant, or no recording of it.
    """
    recording = await gateway.in_thread(jobs.recording, job_id)
    media_type = CONTAINERS.get(recording.container, UNKNOWN)
    header = disposition(recording.filename)
    offer = partial(gateway.storage.offer, media_type=media_type, disposition=header)
    offered = await asyncio.to_thread(offer, recording.id)
    if isinstance(offered, Path):
        return FileResponse(offered, media_type=media_type, headers={"Content-Disposition": header})
    return RedirectResponse(
        offered, HTTPStatus.TEMPORARY_REDIRECT, headers={"Cache-Control": "no-store"}
    )
