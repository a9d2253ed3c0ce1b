"""Recordings as they were uploaded: from the local disk, or from an object storage."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from api.http.headers import disposition
from api.services import Services
from common.db.jobs import Jobs
from common.errors import StenoError
from common.storage.storage import Stored

UNKNOWN = "application/octet-stream"
PIECE_BYTES = 1 << 20
"""Size of the pieces in which a recording is passed on."""
RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})|bytes=-(\d{1,15})", re.ASCII | re.IGNORECASE)
MATROSKA, WEBM = "video/x-matroska", "video/webm"
WEBM_CODECS = frozenset({"opus", "vorbis"})
"""FFmpeg has one name for both. All browsers play WebM, which has only these codecs."""
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
    "matroska,webm": MATROSKA,
    "mov,mp4,m4a,3gp,3g2,mj2": "video/mp4",
    "mp3": "audio/mpeg",
    "mpeg": "video/mpeg",
    "mpegts": "video/mp2t",
    "ogg": "audio/ogg",
    "wav": "audio/wav",
}
"""Media types by FFmpeg's names of containers; a video type may have audio only."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part of the recording that the header Range asks for"},
    307: {
        "description": "The recording is at the URL in Location for a limited time, without "
        "an API key: do not send yours there"
    },
    416: {"description": "The recording has no such part"},
}


async def original(request: Request, services: Services, jobs: Jobs, job_id: UUID) -> Response:
    """A response with a job's recording, under the name it was uploaded with.

    Raises:
        NotFound: the tenant has no such job, or the job no recording.
    """
    recording = await services.in_thread(jobs.recording, job_id)
    media_type = CONTAINERS.get(recording.container, UNKNOWN)
    if media_type == MATROSKA and recording.codec in WEBM_CODECS:
        media_type = WEBM
    header = disposition(recording.filename)
    offer = partial(services.storage.offer, media_type=media_type, disposition=header)
    offered = await asyncio.to_thread(offer, recording.id)
    if isinstance(offered, Path):
        return FileResponse(offered, media_type=media_type, headers={"Content-Disposition": header})
    if isinstance(offered, Stored):
        # Recordings never change.
        headers = {"Content-Disposition": header, "ETag": f'"{recording.id}"'}
        return _passed_on(request, offered, media_type, headers)
    return RedirectResponse(
        offered, HTTPStatus.TEMPORARY_REDIRECT, headers={"Cache-Control": "no-store"}
    )


def _passed_on(
    request: Request, stored: Stored, media_type: str, headers: dict[str, str]
) -> Response:
    whole = range(stored.size)
    part = whole
    if request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        part = _part(request.headers.get("range", ""), whole)
    headers |= {"Accept-Ranges": "bytes", "Content-Length": str(len(part))}
    if not part and whole:
        headers |= {"Content-Range": f"bytes */{stored.size}"}
        return Response(status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
    status = HTTPStatus.OK
    if part != whole:
        status = HTTPStatus.PARTIAL_CONTENT
        headers |= {"Content-Range": f"bytes {part.start}-{part.stop - 1}/{stored.size}"}
    return StreamingResponse(_pieces(stored, part), status, headers, media_type)


def _part(wanted: str, whole: range) -> range:
    """The bytes that a header Range asks for.

    All of them, where it asks for none or for several ranges (allowed by RFC 9110, 14.2).
    """
    match = RANGE.fullmatch(wanted)
    if match is None:
        return whole
    first, last, suffix = match.groups()
    if suffix is not None:
        return whole[max(len(whole) - int(suffix), 0) :]
    return whole[int(first) : int(last) + 1 if last else None]


async def _pieces(stored: Stored, part: range) -> AsyncIterator[bytes]:
    for start in part[::PIECE_BYTES]:
        count = min(PIECE_BYTES, part.stop - start)
        try:
            yield await asyncio.to_thread(stored.fetch, start, count)
        except StenoError as error:
            # The response must not look complete.
            raise ConnectionAbortedError("the recording cannot be read to its end") from error
