"""The route that makes links: addresses of downloads that need no key for a while."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, status
from pydantic import BaseModel, ConfigDict, Field

from api.auth.callers import Reader
from api.auth.links import Links, Signed
from api.http.parameters import ONLY_KNOWN
from api.http.problems import documented
from api.services import ServicesDep
from api.transcripts.downloads import DownloadOptions

router = APIRouter(tags=["jobs"], responses=documented(422, 503), dependencies=ONLY_KNOWN)

LASTS_S = 3600
LONGEST_S = 86_400


class NewLink(DownloadOptions):
    """A download, and how long the link to it is valid."""

    model_config = ConfigDict(extra="forbid")

    expires_in_seconds: Annotated[int, Field(ge=1, le=LONGEST_S)] = LASTS_S

    def query(self) -> list[tuple[str, str]]:
        """The parameters of the download: the format, and what is not as by default."""
        given = self.model_dump(exclude_defaults=True, exclude={"expires_in_seconds", "format"})
        texts = {name: str(value).lower() for name, value in given.items()}
        return list(({"format": self.format} | texts).items())


class Link(BaseModel):
    """An address that is answered without a key; give it only to whom the file may have."""

    url: str = Field(examples=["/api/v1/download/3fa85f64-5717-4562-b3fc-2c963f66afa6?format=..."])
    """Relative to the host of the request."""
    expires_at: datetime


@router.post(
    "/jobs/{job_id}/links",
    summary="Make a link to a file that needs no key",
    status_code=status.HTTP_201_CREATED,
    responses=documented(404),
)
async def create_link(job_id: UUID, wanted: NewLink, services: ServicesDep, caller: Reader) -> Link:
    """A URL of `GET /download/{id}` with these options, for players and for browsers' downloads.

    It is valid until it expires, or the API key that made it is revoked or expires, or the job is
    deleted: then the answer is 403, or 404 for the job. Make a new one then. The job may be
    unfinished. Requests by the link count as requests of that key.
    """
    wanted.check()
    await services.in_thread(services.jobs(caller.tenant).snapshot, job_id)
    expires_at = int(time.time()) + wanted.expires_in_seconds
    signed = Signed(expires_at, caller.key_id, caller.tenant)
    query = await services.get(Links).sign(signed, job_id, wanted.query())
    # A page must be able to use it, by whatever name it reaches the gateway.
    path = urlsplit(services.link(f"/api/v1/download/{job_id}")).path
    return Link(url=f"{path}?{query}", expires_at=datetime.fromtimestamp(expires_at, UTC))
