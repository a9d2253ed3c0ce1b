"""Receives a recording: written to disk while it arrives, probed, committed, and then answered.

Whatever fails before the commit leaves nothing behind, a disconnected client included.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, ClassVar
from urllib.parse import quote
from uuid import UUID, uuid4

from fastapi import Request
from loguru import logger

from api.auth.callers import Caller
from api.http.bodies import Body
from api.http.headers import answer_with
from api.http.multipart import MAX_IGNORED, FormReader
from api.jobs.idempotency import idempotency, idempotency_key, mark_replay
from api.jobs.resolving import Resolver, form_options, resolved
from api.jobs.schemas import Accepted, UploadOptions
from api.processes.prober import Prober
from api.services import Services
from common.audio.probe import Probe, check_length
from common.audio.wav import RIFF_LIMIT, SAMPLE_BYTES, container_of, wav_header
from common.db.jobs import Created, Idempotency
from common.db.transcriptions import NewRecording
from common.db.usage import RETRY_S, Usage
from common.domain.job import JobStatus
from common.domain.values import SAMPLE_RATE
from common.errors import (
    FieldMissing,
    NotFound,
    OptionConflict,
    OutcomeUnknown,
    TooLarge,
    TooManyJobs,
    Transient,
)
from common.filenames import display_name
from common.storage.storage import storage_errors

BLOCK_BYTES = 1 << 20
FORM_BYTES = 1 << 20
"""Largest size of a form without its file."""
MOST_BARE_BYTES = RIFF_LIMIT - 100
"""A WAV file cannot be larger; that is more than a day."""
IGNORED = "X-Ignored-Parameters"
"""The header that names the parameters of a request that were ignored."""


def name_ignored(request: Request, names: Iterable[str]) -> None:
    """Name the ignored parameters in a header of the response."""
    if named := ", ".join(quote(name[:100], safe="[]") for name in islice(names, MAX_IGNORED)):
        answer_with(request.scope, {IGNORED: named})


class IncomingFile:
    """A file that is written and hashed in threads while more of it is received.

    With ``may_be_bare`` samples without a header (16 bit, little endian, mono, 16 kHz) become a WAV
    file; a file that has a header is left as it is.
    """

    def __init__(
        self, path: Path, create: Callable[[], BinaryIO], *, may_be_bare: bool = False
    ) -> None:
        self.path = path
        self._create = create
        self._may_be_bare = may_be_bare
        self._is_bare = False
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._blocks: list[bytes] = []
        self._held = 0
        self._writing: asyncio.Future[None] | None = None

    async def take(self, data: bytes) -> None:
        """Add bytes to the file.

        Raises:
            StorageFull, Unavailable: earlier bytes could not be written.
        """
        self._blocks.append(data)
        self._held += len(data)
        self.size += len(data)
        if self._held >= BLOCK_BYTES:
            await self._pass_on()

    async def seal(self) -> str:
        """Flush the file to disk; returns its sha256 in lower-case hex."""
        await self._pass_on()
        await self._settle()
        await asyncio.to_thread(self._close)
        return self._digest.hexdigest()

    async def abandon(self) -> None:
        """Close and delete the file, in whatever state it is."""
        with suppress(Transient):
            await self._settle()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self.path.unlink(missing_ok=True)

    async def _pass_on(self) -> None:
        await self._settle()
        blocks, self._blocks, self._held = self._blocks, [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, blocks)

    async def _settle(self) -> None:
        if self._writing is not None:
            # A thread cannot be cancelled, and the file must stay open until it is done.
            await asyncio.wait([self._writing])
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, blocks: list[bytes]) -> None:
        with storage_errors():
            if self._file is None:
                self._file = self._create()
                if self._may_be_bare and container_of(b"".join(blocks)[:16]) is None:
                    self._is_bare = True
                    blocks.insert(0, wav_header(SAMPLE_RATE, 1, 0))
            for block in blocks:
                self._file.write(block)
                self._digest.update(block)

    def _close(self) -> None:
        if self._file is not None:
            with storage_errors():
                if self._is_bare:
                    self._complete_header(self._file)
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()

    def _complete_header(self, file: BinaryIO) -> None:
        header = wav_header(SAMPLE_RATE, 1, min(self.size, MOST_BARE_BYTES) // SAMPLE_BYTES)
        file.seek(0)
        file.write(header)
        self.size += len(header)
        file.seek(0)
        self._digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            self._digest.update(block)


@dataclass(frozen=True, slots=True)
class Form:
    """A form with a recording in its field ``file``.

    ``fields`` may come once each, ``lists`` several times, before or after the file; other fields
    are rejected, or with ``ignores_unknown`` ignored and named to the client, after what was
    ``ignored`` already. ``options`` turns them into `UploadOptions`; it is called again once all
    fields have arrived. ``filename`` replaces the form's. ``may_be_bare`` is as for `IncomingFile`.

    Raises, from ``options``:
        FieldMissing, OptionConflict: a field is missing.
        BadInput: a field is wrong.
    """

    fields: Collection[str]
    lists: Collection[str] = ()
    options: Callable[[FormReader], Mapping[str, str]] = lambda form: form.options
    file: str = "file"
    filename: str | None = None
    ignores_unknown: bool = False
    ignored: Collection[str] = ()
    may_be_bare: bool = False


UPLOAD = Form(tuple(UploadOptions.model_fields))


class UploadSlots:
    """Limits the uploads in progress of each key: they are not jobs yet, but fill the disk."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, key_id: str | None, limit: int) -> Iterator[None]:
        """Hold one of the key's ``limit`` slots; without a key or a limit there are no slots.

        Raises:
            TooManyJobs: all are taken.
        """
        if key_id is None or not limit:
            yield
            return
        if self._taken[key_id] >= limit:
            raise TooManyJobs(
                field="concurrent_jobs",
                limit=limit,
                value=self._taken[key_id] + 1,
                retry_after_s=RETRY_S,
            )
        self._taken[key_id] += 1
        try:
            yield
        finally:
            self._taken[key_id] -= 1
            if not self._taken[key_id]:
                del self._taken[key_id]


class _Incoming(ABC):
    """A recording that is being received, from its first byte to the response."""

    _new_jobs: ClassVar[int] = 1

    def __init__(self, services: Services, caller: Caller, form: Form, job_id: UUID) -> None:
        self._services = services
        self._caller = caller
        self._jobs = services.jobs(caller.tenant)
        self._form = form
        self._job_id = job_id
        self._recording_id = uuid4()
        self._file = IncomingFile(
            services.storage.incoming(self._recording_id),
            partial(services.storage.create, self._recording_id),
            may_be_bare=form.may_be_bare,
        )
        self._max_bytes = services.settings.upload.max_bytes
        self._securing = False
        self._handed_over = False

    async def accept(self, request: Request) -> Accepted:
        """Read the request's form and commit what it asks for.

        Raises:
            BadInput: the form, the file or an option is wrong.
            TooManyJobs, TooMuchAudio: it exceeds the limits of the API key.
            StorageFull, Unavailable: the storage, Postgres or Redis cannot take it.
        """
        slots = self._services.get(UploadSlots)
        with slots.take(self._caller.key_id, self._caller.quota.concurrent_jobs):
            return await self._accept(request)

    async def _accept(self, request: Request) -> Accepted:
        started = time.monotonic()
        body = Body(request)
        length = request.headers.get("content-length", "")
        if length.isdecimal():
            self._check_size(int(length) - FORM_BYTES)
        await self._services.in_turn(self._check_room, request)
        form = FormReader(
            request.headers.get("content-type"),
            file_field=self._form.file,
            known=self._form.fields,
            repeatable=self._form.lists,
            ignores_unknown=self._form.ignores_unknown,
        )
        try:
            await self._receive(form, request, body)
            await self._check(form, request)
            sha256 = await self._file.seal()
            upload_ms = round((time.monotonic() - started) * 1000)
            probe = await self._services.get(Prober).probe(self._file.path)
            check_length(probe.duration_ms, self._services.settings.upload.max_audio_hours)
            recording = self._recording(form, probe, sha256, upload_ms)
            self._securing = True
            await asyncio.to_thread(self._services.storage.secure, self._recording_id)
            return await self._services.in_turn(self._commit, recording, request)
        except BaseException:
            if not self._handed_over:
                await self._abandon()
            raise

    @abstractmethod
    async def _check_early(self, form: FormReader, request: Request) -> None:
        """Raise `BadInput` for what no later field can correct."""

    @abstractmethod
    async def _check(self, form: FormReader, request: Request) -> None:
        """Raise `BadInput` where the complete ``form`` is invalid."""

    @abstractmethod
    def _store(self, recording: NewRecording, request: Request) -> Created:
        """Commit the recording; may be called once `_check` has seen the whole form."""

    def _may_be_replay(self, request: Request) -> bool:
        """Whether the recording may turn out to have a job already."""
        return idempotency_key(request) is not None

    def _check_room(self, request: Request) -> None:
        """Reject early what the commit would; of a replay, which is free, only the commit knows."""
        self._services.database.ping()
        self._services.check_queue()
        self._services.check_space()
        if not self._may_be_replay(request):
            caller = self._caller
            usage = Usage(self._services.database, caller.tenant, caller.key_id)
            usage.check(caller.quota, jobs=self._new_jobs)

    async def _abandon(self) -> None:
        await self._file.abandon()
        if self._securing:  # the dispatcher finds what is still being stored
            with suppress(Transient):
                await asyncio.to_thread(self._services.storage.discard, self._recording_id)

    async def _receive(self, form: FormReader, request: Request, body: Body) -> None:
        received = 0
        checked = False
        async for data in body:
            received += len(data)
            for piece in form.feed(data):
                await self._file.take(piece)
            self._check_size(max(self._file.size, received - FORM_BYTES))
            if form.file_begun and not checked:
                await self._check_early(form, request)
                checked = True
        form.finish()
        name_ignored(request, [*self._form.ignored, *form.ignored])
        if not form.file_begun:
            raise FieldMissing(field=self._form.file)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            limit = f"{self._services.settings.upload.max_upload_size_mb} MB"
            raise TooLarge(field="file", limit=limit, value=f"more than {size} bytes")

    def _recording(
        self, form: FormReader, probe: Probe, sha256: str, upload_ms: int
    ) -> NewRecording:
        return NewRecording(
            id=self._recording_id,
            filename=display_name(self._form.filename or form.filename),
            container=probe.container,
            codec=probe.codec,
            size_bytes=self._file.size,
            sha256=sha256,
            duration_ms=probe.duration_ms,
            upload_ms=upload_ms,
            tracks=probe.tracks,
        )

    def _commit(self, recording: NewRecording, request: Request) -> Accepted:
        """Commit, and keep or discard the file accordingly, even if the client has disconnected."""
        self._handed_over = True
        try:
            self._services.check_queue()
            created = self._store(recording, request)
        except OutcomeUnknown:
            # If it did take effect, the file is needed; if not, the dispatcher deletes it.
            if not self._is_committed():
                raise
            created = Created(self._job_id, JobStatus.PENDING, replayed=False)
        except BaseException:
            self._discard()
            raise
        mark_replay(request, created)
        if created.replayed:
            self._discard()
            logger.info("job {job_id} was submitted again", job_id=created.job_id)
            message = "The recording was received before"
        else:
            with suppress(Transient):  # otherwise whoever needs the file first moves it
                self._services.storage.keep(recording.id)
            self._services.events.work_to_do()
            size, job_id = recording.size_bytes, created.job_id
            logger.info("job {job_id} accepted: {} bytes", size, job_id=job_id)
            message = "The recording was received and is waiting to be transcribed"
        return Accepted(
            job_id=created.job_id,
            status=created.status,
            message=message,
            estimated_time_seconds=self._estimate_s(created.job_id),
        )

    def _discard(self) -> None:
        with suppress(Transient):
            self._services.storage.discard(self._recording_id)

    def _is_committed(self) -> bool:
        try:
            return self._jobs.recording(self._job_id).id == self._recording_id
        except (NotFound, Transient):
            return False

    def _estimate_s(self, job_id: UUID) -> float | None:
        try:
            estimate = self._jobs.snapshot(job_id).estimate_s
        except (NotFound, Transient):
            return None
        return None if estimate is None else round(estimate, 1)


class Upload(_Incoming):
    """A recording that comes with the options of its job."""

    def __init__(self, services: Services, caller: Caller, form: Form = UPLOAD) -> None:
        super().__init__(services, caller, form, uuid4())

    async def _check_early(self, form: FormReader, request: Request) -> None:
        idempotency_key(request)
        with suppress(FieldMissing, OptionConflict):
            options = form_options(self._form.options(form))
            await self._services.get(Resolver).check_names(options)

    async def _check(self, form: FormReader, request: Request) -> None:
        self._options = form_options(self._form.options(form))
        self._job = await resolved(
            self._services, self._caller, request, self._job_id, self._options
        )

    def _store(self, recording: NewRecording, request: Request) -> Created:
        return self._submit(recording, idempotency(request, self._options, recording.sha256))

    def _submit(self, recording: NewRecording, once: Idempotency | None) -> Created:
        return self._jobs.submit(recording, replace(self._job, idempotency=once))


class AwaitedUpload(_Incoming):
    """The recording of a job that was made before."""

    _new_jobs = 0

    def __init__(self, services: Services, caller: Caller, job_id: UUID) -> None:
        super().__init__(services, caller, Form(fields=()), job_id)

    async def _check_early(self, form: FormReader, request: Request) -> None:
        await self._check(form, request)

    async def _check(self, form: FormReader, request: Request) -> None:  # noqa: ARG002
        await self._services.in_thread(self._jobs.check_awaits, self._job_id)

    def _store(self, recording: NewRecording, request: Request) -> Created:  # noqa: ARG002
        self._jobs.attach(self._job_id, recording, self._caller.quota)
        return Created(self._job_id, JobStatus.PENDING, replayed=False)
