"""Fetch: download a recording from its URL into the storage, as if it had been uploaded.

Errors and logs name the host and never the rest of the URL, whose query may be a signature.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urljoin

import httpcore
import httpx
from loguru import logger

from common.audio.probe import check_length, probe
from common.db.steps import Claim, fetched_id
from common.db.transcriptions import NewRecording, recording_fetched
from common.domain.webhooks import RETRIED, RETRY_AFTER, retry_after_s
from common.errors import FetchFailed, FetchInterrupted, StenoError, TooLarge, Transient, UrlRefused
from common.filenames import display_name
from common.net.egress import Outbound, headers_of, parse_url
from common.storage.storage import storage_errors
from worker.context import Context, with_retries

USER_AGENT = "Stenopool/1"
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
LONGEST_REASON = 200
LOWEST_COPY_RATE = 5_000_000
"""Bytes a second at which a fetched recording is copied to the storage."""
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]+|\*)/([0-9]{1,18}|\*)")


def run(context: Context, claim: Claim) -> Claim | None:
    """Fetch the recording of the claimed job; returns the claim of the next step, if any.

    Raises:
        FetchFailed, UrlRefused, TooLarge, NotAudio: permanently.
        FetchInterrupted, StaleClaim, StorageFull, Unavailable: as in every step.
    """
    started = time.monotonic()
    source = claim.job.source_url or ""
    for attempt in range(1, claim.attempt):  # killed attempts left their files
        with_retries(context.storage.discard, fetched_id(claim.step_id, attempt))
    recording_id = fetched_id(claim.step_id, claim.attempt)
    path = context.storage.incoming(recording_id)
    committing = False
    try:
        # Created before the claim is checked, and never again: an erased file must not come back.
        context.storage.create(recording_id).close()
        with_retries(context.steps.check, claim)
        fetched = asyncio.run(_fetch(context, source, path))
        found = probe(path)
        check_length(found.duration_ms, context.settings.upload.max_audio_hours)
        recording = NewRecording(
            id=recording_id,
            filename=fetched.name,
            container=found.container,
            codec=found.codec,
            size_bytes=fetched.size,
            sha256=fetched.sha256,
            duration_ms=found.duration_ms,
            upload_ms=round((time.monotonic() - started) * 1000),
            tracks=found.tracks,
        )
        with_retries(context.steps.check, claim)
        with_retries(context.storage.secure, recording_id)
        committing = True
        following = context.finish(claim, within=recording_fetched(recording))
    except BaseException:
        # The dispatcher settles a recording that may have been committed.
        if not (committing and with_retries(context.transcriptions.is_stored, recording_id)):
            with suppress(Transient):
                context.storage.discard(recording_id)
        raise
    with suppress(Transient):  # otherwise its first reader moves it
        context.storage.keep(recording_id)
    logger.info("fetched {} bytes", fetched.size)
    return following


def limit_s(context: Context, claim: Claim) -> float:  # noqa: ARG001
    """The time limit: that of the download, and the time to copy the file to the storage."""
    settings = context.settings
    copy_s = settings.upload.max_bytes / LOWEST_COPY_RATE
    return settings.chunk.timeout + settings.fetch.timeout + copy_s


async def _fetch(context: Context, source: str, path: Path) -> _Download:
    limits = context.settings.fetch
    url = parse_url(source)
    with storage_errors(), path.open("r+b") as file:
        download = _Download(url, file, context.settings.upload.max_bytes)
        try:
            async with (
                asyncio.timeout(limits.timeout),
                Outbound(context.egress, timeout_s=limits.stall) as outbound,
            ):
                await download.run(outbound, limits.tries)
        except TimeoutError:
            reason = f"it took more than {limits.timeout:g} s"
            raise FetchFailed(host=url.host, reason=reason) from None
        file.flush()
        os.fsync(file.fileno())
    return download


class _Interrupted(Exception):
    """A request failed for a transient reason; ``pause_s`` is the server's Retry-After."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Download:
    """Downloads one file by one or more requests.

    After an interruption it resumes if the server confirms that the file is unchanged (RFC 9110,
    section 13.1.5); otherwise it starts over.
    """

    def __init__(self, url: httpx.URL, file: BinaryIO, max_bytes: int) -> None:
        self._url = url
        self._file = file
        self._max_bytes = max_bytes
        self._name: str | None = None
        self._validator: str | None = None
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def name(self) -> str:
        """As its server names it, or its URL."""
        return display_name(self._name or unquote(self._url.path))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def run(self, outbound: Outbound, tries: int) -> None:
        """Fetch the whole file; ``tries`` is how many requests in a row may bring no bytes.

        Raises:
            FetchFailed, UrlRefused, TooLarge, StorageFull, Unavailable: another try is useless.
            FetchInterrupted: too many requests brought no bytes.
        """
        fruitless = 0
        while True:
            before = self.size
            try:
                await self._try(outbound)
            except _Interrupted as interrupted:
                fruitless = 0 if self.size > before else fruitless + 1
                if fruitless >= tries:
                    raise FetchInterrupted(host=self._url.host, reason=str(interrupted)) from None
                pause_s = interrupted.pause_s or FIRST_PAUSE_S * 2**fruitless
                logger.debug("interrupted after {} bytes: {}", self.size, interrupted)
                await asyncio.sleep(min(pause_s, LONGEST_PAUSE_S))
            else:
                return

    async def _try(self, outbound: Outbound) -> None:
        """Make one request; raises `_Interrupted`, and what `run` raises."""
        headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": USER_AGENT}
        if self.size and self._validator:
            headers |= {"range": f"bytes={self.size}-", "if-range": self._validator}
        else:
            self._start_over()
        try:
            async with self._opened(outbound, headers) as response:
                await self._receive(response)
        except httpcore.TimeoutException as error:
            raise _Interrupted("it sent nothing for too long") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _Interrupted((str(error) or type(error).__name__)[:LONGEST_REASON]) from error

    @asynccontextmanager
    async def _opened(
        self, outbound: Outbound, headers: Mapping[str, str]
    ) -> AsyncIterator[httpcore.Response]:
        """The response after all redirects, each of which is validated like the first URL."""
        url = self._url
        for _ in range(1 + MAX_REDIRECTS):
            async with outbound.send("GET", url, headers) as response:
                if response.status not in REDIRECTS:
                    yield response
                    return
                location = headers_of(response).get("location")
            if not location:
                raise self._failed("it redirects to nowhere")
            try:
                following = parse_url(urljoin(str(url), location.replace(" ", "%20")))
            except ValueError:  # of urljoin
                raise self._failed("it redirects to what is no URL") from None
            if url.scheme == "https" and following.scheme != "https":
                raise UrlRefused(field="url", reason="it redirects from https to http")
            url = following
        raise self._failed(f"it redirects more than {MAX_REDIRECTS} times")

    async def _receive(self, response: httpcore.Response) -> None:
        total = self._check(response.status, headers_of(response))
        if response.status == RANGE_NOT_SATISFIABLE:  # the file is complete already
            return
        async for part in response.aiter_stream():
            self._check_size(self.size + len(part))
            self._file.write(part)
            self._digest.update(part)
            self.size += len(part)
        if total is not None and self.size != total:
            raise _Interrupted(f"{self.size} of {total} bytes were received")

    def _check(self, status: int, headers: httpx.Headers) -> int | None:
        """Check status and headers; returns the size of the whole file, if it is known."""
        if status in RETRIED or status >= 500:
            asked = headers.get("retry-after") if status in RETRY_AFTER else None
            raise _Interrupted(f"it answered {status}", retry_after_s(asked, datetime.now(UTC)))
        begin, total = _content_range(headers)
        if status == RANGE_NOT_SATISFIABLE and self.size:
            if total != self.size:
                self._start_over()
                raise _Interrupted("the file has changed")
        elif status == PARTIAL_CONTENT and self.size:
            if begin != self.size:
                self._start_over()
                raise _Interrupted("it sent another range than the requested one")
        elif status == 200:
            self._start_over()
            length = headers.get("content-length", "")
            total = int(length) if length.isdecimal() else None
            self._validator = _validator(headers)
            self._name = _file_name(headers)
        else:
            raise self._failed(f"it answered {status}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise self._failed("it sent a compressed file, which was not requested")
        self._check_size(total or 0)
        return total

    def _start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            limit = f"{self._max_bytes // 1_000_000} MB"
            raise TooLarge(field="file", limit=limit, value=f"at least {size} bytes")

    def _failed(self, reason: str) -> StenoError:
        return FetchFailed(host=self._url.host, reason=reason)


def _content_range(headers: httpx.Headers) -> tuple[int | None, int | None]:
    """Where the range begins and the size of the whole file; None: not stated."""
    if not (match := _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))):
        return None, None
    begin, total = match.groups()
    return int(begin) if begin else None, None if total == "*" else int(total)


def _validator(headers: httpx.Headers) -> str | None:
    """What identifies this version of the file: a strong ETag, or else its date."""
    if etag := headers.get("etag"):
        return None if etag.startswith("W/") else str(etag)
    return headers.get("last-modified") or None


def _file_name(headers: httpx.Headers) -> str | None:
    """From Content-Disposition (RFC 6266)."""
    message = Message()
    message["content-disposition"] = headers.get("content-disposition", "")
    with suppress(ValueError, LookupError, UnicodeError):
        return message.get_filename()
    return None
