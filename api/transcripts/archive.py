"""The route for the texts of several jobs, as one ZIP archive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import PurePosixPath
from typing import Annotated, Literal
from uuid import UUID
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from api.auth.callers import Reader
from api.http.headers import disposition
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.services import Services, ServicesDep
from api.transcripts.downloads import WITH_SPEAKERS, DownloadOptions, text_file
from common.db.jobs import Jobs
from common.db.listing import JobLists
from common.db.snapshots import Snapshot
from common.domain.formats import RTTM, DocumentFormat, TextFormat
from common.errors import OptionConflict, StenoError, TextsMissing
from common.filenames import NAMELESS, distinct_names

router = APIRouter(tags=["jobs"], responses=documented(422, 503), dependencies=ONLY_KNOWN)

MOST_JOBS = 1_000
MOST_NAMED = 20
"""How many jobs an error names."""
ZIP = "application/zip"
NAME = "transcripts.zip"
READABLE = 0o644 << 16
"""The permissions of a file, where an archive has them."""


class NewArchive(DownloadOptions):
    """Jobs, and the options of the download of each."""

    model_config = ConfigDict(extra="forbid")

    job_ids: Annotated[list[UUID], Field(min_length=1, max_length=MOST_JOBS)]
    """The jobs, in the order of their files; a repeated one counts once."""
    format: Literal[TextFormat, DocumentFormat] = "txt"
    """The kind of the files."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive: the text of a job, which ended then."""

    job_id: UUID
    name: str
    ended_at: datetime


@router.post(
    "/archive",
    summary="Download the texts of several jobs",
    response_class=Response,
    responses={
        200: {
            "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}},
            "description": "The archive",
        },
        **documented(404, 409),
    },
)
async def archive(wanted: NewArchive, services: ServicesDep, caller: Reader) -> Response:
    """A ZIP archive with a file of each job, named as its download is.

    If names are equal, the later ones get a number. All jobs are checked before anything is sent:
    404 names one that does not exist, 409 those that have no text. If a job is deleted while the
    archive is being sent, the connection is broken off.
    """
    wanted.check()
    lists = JobLists(services.database, caller.tenant)
    entries = await services.in_thread(_entries, lists, wanted)
    content = _zipped(services, services.jobs(caller.tenant), entries, wanted)
    headers = {"Content-Disposition": disposition(NAME)}
    return StreamingResponse(content, media_type=ZIP, headers=headers)


def _entries(lists: JobLists, wanted: NewArchive) -> list[Entry]:
    """What the archive will have, if every job has what is asked for."""
    jobs = lists.named(list(dict.fromkeys(wanted.job_ids)))
    if without := [job.job_id for job in jobs if not job.has_text]:
        raise _texts_missing(without)
    _check_moderated(jobs, wanted)
    if wanted.format == RTTM and (job_id := lists.without_speakers(wanted.job_ids)):
        raise OptionConflict(field="format", value=RTTM, needed=f"{WITH_SPEAKERS}; not {job_id}")
    stems = [PurePosixPath(job.filename or NAMELESS).stem for job in jobs]
    names = distinct_names(stems, wanted.format)
    return [
        Entry(job.job_id, name, job.completed_at or job.created_at)
        for job, name in zip(jobs, names, strict=True)
    ]


def _texts_missing(without: Sequence[UUID]) -> TextsMissing:
    more = len(without) - MOST_NAMED
    named = ", ".join(map(str, without[:MOST_NAMED]))
    return TextsMissing(job_ids=f"{named} and {more} more" if more > 0 else named)


def _check_moderated(jobs: Sequence[Snapshot], wanted: NewArchive) -> None:
    """Raise `OptionConflict` for an option that needs moderation, where a job has none."""
    options = {"flag": wanted.flag, "filter_profanity": wanted.filter_profanity}
    given = next((name for name, value in options.items() if value), None)
    job_id = next((job.job_id for job in jobs if not job.options.moderation), None)
    if given is not None and job_id is not None:
        needed = f"jobs with moderation=true; not {job_id}"
        raise OptionConflict(field=given, value="true", needed=needed)


async def _zipped(
    services: Services, jobs: Jobs, entries: Sequence[Entry], wanted: NewArchive
) -> AsyncIterator[bytes]:
    """The archive, file by file; only one is in memory."""
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_DEFLATED) as file:
        for entry in entries:
            try:
                text = await services.in_thread(text_file, jobs, entry.job_id, wanted)
            except StenoError as error:
                # The response must not look complete.
                raise ConnectionAbortedError(f"job {entry.job_id} cannot be sent") from error
            info = ZipInfo(entry.name, entry.ended_at.astimezone(UTC).timetuple()[:6])
            info.external_attr = READABLE
            info.compress_type = ZIP_DEFLATED
            await asyncio.to_thread(partial(file.writestr, info, bytes(text.body)))
            yield sink.take()
    yield sink.take()


class _Sink:
    """What `ZipFile` writes, without the methods of a file in which it could go back."""

    def __init__(self) -> None:
        self._buffer = BytesIO()

    def write(self, content: bytes) -> int:
        return self._buffer.write(content)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def take(self) -> bytes:
        """What was written since the last time."""
        written = self._buffer.getvalue()
        self._buffer = BytesIO()
        return written
