"""Queries of the gateway about jobs, always within one tenant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import starmap, takewhile
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, joinedload

from common.db.counting import count_submission
from common.db.database import Database
from common.db.flow import Flow, end_job, locked_job, retry_job
from common.db.snapshots import NO_CLIENT_DATA, ClientData, Snapshot, snapshot
from common.db.steps import running_steps
from common.db.tables import Job, Recording, Tenant, Transcription
from common.db.transcriptions import (
    ChunkResult,
    NewRecording,
    newest_number,
    newest_revision,
    select_chunks,
    transcript_in,
)
from common.db.usage import NO_QUOTA, Quota, charge, check_quota
from common.domain.job import WITH_TEXT, JobStatus, Priority, is_final, no_text
from common.domain.pipeline import TRANSCRIPTION
from common.domain.request import Options
from common.domain.splicing import whole_words
from common.domain.tracks import check_channels
from common.errors import Conflict, IdempotencyConflict, NotFound


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's idempotency key, and the sha256 of the request including its recording.

    ``good_s``: how many seconds after its end a job still answers the same request, unless it
    failed or was cancelled. None: any job does, as long as it exists.
    """

    key: str
    request_sha256: str
    good_s: int | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A resolved request, not committed yet; ``language`` is a Whisper code or ``auto``.

    ``source_url`` is the URL from which the recording is fetched. ``delete_after_s`` counts from
    the job's end. ``key_id`` and ``request_id`` name the API key and the HTTP request; ``quota`` is
    that of the key. ``kind`` is one of `PIPELINES`. ``source_id`` is the job whose transcript it
    works on. ``own_options`` are stored in place of ``options`` by a kind that has others.
    """

    id: UUID
    engine: str
    model: str
    language: str
    priority: Priority
    options: Options
    source_url: str | None = None
    webhook_url: str | None = None
    client: ClientData = NO_CLIENT_DATA
    delete_after_s: int | None = None
    idempotency: Idempotency | None = None
    key_id: str | None = None
    quota: Quota = NO_QUOTA
    request_id: str | None = None
    kind: str = TRANSCRIPTION.kind
    source_id: UUID | None = None
    own_options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """The job of a request; ``replayed``: an earlier request with the same key created it."""

    job_id: UUID
    status: JobStatus
    replayed: bool


@dataclass(frozen=True, slots=True)
class Text:
    """A job's text so far.

    If ``complete``, it is the transcript: ``segments`` and ``diarization`` as stored JSON, its
    ``manifest``, and the number of its ``revision`` (None in lists). Until then it is ``chunks``:
    those before the first unfinished chunk, so that the text a client shows only grows at its end.
    ``options`` are the job's.
    """

    segments: list[Any]
    chunks: list[ChunkResult]
    language: str
    duration_ms: int
    options: Options
    complete: bool
    manifest: dict[str, Any] | None
    diarization: dict[str, Any] | None = None
    revision: int | None = None


class Jobs:
    """The jobs of one tenant.

    Methods with a ``job_id`` raise `NotFound` if the tenant has no such job; only `chunks_since`
    returns nothing.
    """

    def __init__(
        self, database: Database, tenant: str, *, delete_after_s: int | None = None
    ) -> None:
        """``delete_after_s`` is the default of jobs and tenants; None: never."""
        self._database = database
        self._tenant = tenant
        self._delete_after_s = delete_after_s

    def create(self, job: NewJob) -> Created:
        """Commit a job without its recording, which is uploaded or fetched later.

        Raises:
            IdempotencyConflict: its key was used for another request.
            TooManyJobs, TooMuchAudio: it exceeds the quota of the API key.
        """
        with self._database.transaction() as session:
            created = self._create(session, job)
            if not created.replayed:
                charge(session, job.id, job.quota)
            return created

    def submit(self, recording: NewRecording, job: NewJob) -> Created:
        """Commit a recording and its job: both or nothing, and nothing if it is a replay.

        Raises:
            IdempotencyConflict: its key was used for another request.
            TooManyJobs, TooMuchAudio: it exceeds the quota of the API key.
            UnknownOption: it lacks the requested audio track.
        """
        with self._database.transaction() as session:
            created = self._create(session, job)
            if created.replayed:
                return created
            self._attach(session, job.id, recording)
            charge(session, job.id, job.quota, audio_ms=recording.duration_ms or 0)
            return replace(created, status=JobStatus.PENDING)

    def source(self, job_id: UUID) -> Job:
        """A job with a transcript that others may work on, with its transcription.

        Raises:
            NotReady: it has none yet, or a retry is about to change it.
            Conflict: it never will have one.
        """
        with self._database.transaction() as session:
            return self._source(session, job_id)

    def create_from_source(self, job: NewJob) -> Created:
        """Commit a job that works on the transcript of another one, its ``source_id``.

        The span of a rerun is extended to whole words (`whole_words`) of the newest revision.

        Raises:
            NotReady, Conflict: as `source`; or it is a rerun, and another one is under way.
            IdempotencyConflict: its key was used for another request.
            TooManyJobs, TooMuchAudio: it exceeds the quota of the API key.
        """
        assert job.source_id is not None  # noqa: S101 - what this method is for
        key = job.idempotency
        with self._database.transaction() as session:
            locked_job(session, job.source_id)
            if key is not None and (known := self._known(session, key)):
                return known
            source = self._source(session, job.source_id)
            span = job.options.span
            if span is not None:
                self._check_no_other(session, job)
                newest = session.scalars(newest_revision(job.source_id)).one()
                span = whole_words(transcript_in(newest), span)
                job = replace(job, options=replace(job.options, span=span))
            if not self._insert(session, job, JobStatus.PENDING, source.recording_id):
                # Only by a request about another source at the same time.
                raise IdempotencyConflict(field="Idempotency-Key", value=key and key.key)
            if span is not None:
                theirs = source.transcription
                session.add(
                    Transcription(
                        job_id=job.id, audio_track=theirs.audio_track, channels=theirs.channels
                    )
                )
            session.flush()
            self._start(session, job.id)
            charge(session, job.id, job.quota, audio_ms=span.duration_ms if span else 0)
            return Created(job.id, JobStatus.PENDING, replayed=False)

    def attach(self, job_id: UUID, recording: NewRecording, quota: Quota = NO_QUOTA) -> None:
        """Commit the recording that a job waits for.

        Raises:
            Conflict: it does not wait for one.
            TooMuchAudio: it exceeds the quota of the job's API key.
            UnknownOption: it lacks the audio track that the job asks for.
        """
        with self._database.transaction() as session:
            job = self._job(session, job_id)
            if not self._attach(session, job_id, recording):
                job = self._job(session, job_id)
                raise _not_awaited(job)
            charge(session, job_id, quota, jobs=0, audio_ms=recording.duration_ms or 0)

    def check_awaits(self, job_id: UUID) -> None:
        """Raise as `attach` would, before the upload."""
        with self._database.transaction() as session:
            job = self._job(session, job_id)
            if job.status != JobStatus.PENDING_UPLOAD:
                raise _not_awaited(job)

    def snapshot(self, job_id: UUID) -> Snapshot:
        """The state of the job."""
        with self._database.transaction() as session:
            found = snapshot(session, self._tenant, job_id)
        if found is None:
            raise NotFound(what="job", value=job_id)
        return found

    def text(self, job_id: UUID) -> Text:
        """The text so far."""
        with self._database.transaction() as session:
            job = self._job(session, job_id)
            transcript = session.scalar(newest_revision(job_id))
            if transcript is not None:
                return Text(
                    segments=transcript.segments,
                    chunks=[],
                    language=transcript.language,
                    duration_ms=transcript.duration_ms,
                    options=Options.from_json(job.options),
                    complete=True,
                    manifest=transcript.manifest,
                    diarization=transcript.diarization,
                    revision=transcript.revision,
                )
            transcription = session.get(Transcription, job_id)
            return Text(
                segments=[],
                chunks=_transcribed(session.execute(select_chunks(job_id))),
                language=(transcription and transcription.detected_language) or job.language,
                duration_ms=job.units_total or 0,
                options=Options.from_json(job.options),
                complete=False,
                manifest=None,
            )

    def chunks_since(self, job_id: UUID, index: int) -> list[ChunkResult]:
        """The transcribed chunks from ``index`` on, before the first that is not transcribed."""
        with self._database.transaction() as session:
            of_tenant = select(Job.id).where(Job.id == job_id, Job.tenant == self._tenant)
            rows = session.execute(select_chunks(job_id, index).where(of_tenant.exists()))
            return _transcribed(rows)

    def recording(self, job_id: UUID) -> Recording:
        """The recording of the job.

        Raises:
            NotFound: the tenant has no such job, or it has no recording yet.
        """
        with self._database.transaction() as session:
            recording_id = self._job(session, job_id).recording_id
            if recording_id is None:
                raise NotFound(what="recording of job", value=job_id)
            return session.get_one(Recording, recording_id)

    def cancel(self, job_id: UUID) -> list[tuple[str, str]]:
        """Cancel the job; returns (worker, RQ job) of each step that ran until now.

        Raises:
            Conflict: it has ended already, other than by cancellation.
        """
        with self._database.transaction() as session:
            job = self._locked(session, job_id)  # so no step can be claimed before the end
            running = running_steps(session, job_id)
            if end_job(session, job_id, JobStatus.CANCELLED):
                kept = running_steps(session, job_id)  # they follow a change of the job's result
                return [step for step in running if step not in kept]
            if job.status != JobStatus.CANCELLED:
                raise Conflict(reason=f"The job is {job.status} and cannot be cancelled")
            return []

    def retry(self, job_id: UUID, quota: Quota = NO_QUOTA) -> None:
        """Retry the missing steps of a job; steps that are done stay done.

        One that was in REVIEW returns to it.

        Raises:
            Conflict: it is not FAILED, and no step of it failed.
            TooManyJobs: it exceeds the quota of the job's API key.
        """
        with self._database.transaction() as session:
            job = self._locked(session, job_id)
            if not retry_job(session, job):
                needed = "only a FAILED job, or one with failed steps, can be retried"
                raise Conflict(reason=f"The job is {job.status}; {needed}")
            # Its audio was charged already.
            check_quota(session, job.key_id, Quota(quota.concurrent_jobs), jobs=1)

    def resume(self, job_id: UUID) -> None:
        """Resume a job that waits for a person.

        Raises:
            Conflict: it is not waiting.
        """
        with self._database.transaction() as session:
            Flow(session, self._locked(session, job_id)).resume()

    def approve(self, job_id: UUID, key_id: str | None = None) -> None:
        """Complete a job in REVIEW; ``key_id`` is the API key of who approves its text.

        Raises:
            Conflict: it is not in REVIEW.
        """
        with self._database.transaction() as session:
            job = self._locked(session, job_id)
            if job.status != JobStatus.REVIEW:
                needed = "only a job in REVIEW can be approved"
                raise Conflict(reason=f"The job is {job.status}; {needed}")
            job.reviewed_by = key_id
            Flow(session, job).resume()

    # --- inside one transaction ---------------------------------------------------------------

    def _create(self, session: Session, job: NewJob) -> Created:
        fetched = job.source_url is not None
        status = JobStatus.PENDING if fetched else JobStatus.PENDING_UPLOAD
        key = job.idempotency
        while not self._insert(session, job, status):
            assert key is not None  # noqa: S101 - nothing else of a new job can conflict
            known = self._known(session, key)
            if known is None:  # just deleted: the key is free again
                continue
            if key.good_s is not None and _release(session, known.job_id, key.good_s):
                continue
            return known
        if job.kind == TRANSCRIPTION.kind:
            session.add(Transcription(job_id=job.id))
            session.flush()
        if fetched:
            self._start(session, job.id)
        return Created(job.id, status, replayed=False)

    def _known(self, session: Session, key: Idempotency) -> Created | None:
        """The job that an earlier request with this key has created.

        Raises:
            IdempotencyConflict: that was another request.
        """
        known = session.execute(
            select(Job.id, Job.status, Job.request_sha256).where(
                Job.tenant == self._tenant, Job.idempotency_key == key.key
            )
        ).one_or_none()
        if known is None:
            return None
        if known.request_sha256 != key.request_sha256:
            raise IdempotencyConflict(field="Idempotency-Key", value=key.key)
        return Created(known.id, JobStatus(known.status), replayed=True)

    def _check_no_other(self, session: Session, job: NewJob) -> None:
        same = (Job.source_id == job.source_id, Job.kind == job.kind)
        for other in session.scalars(select(Job).where(*same).order_by(Job.created_at.desc())):
            if not is_final(JobStatus(other.status)):
                raise Conflict(reason=f"The {job.kind} {other.id} of this job is {other.status}")

    def _start(self, session: Session, job_id: UUID) -> None:
        job = locked_job(session, job_id)
        assert job is not None  # noqa: S101 - this transaction has inserted it
        Flow(session, job).start()
        count_submission(session, job_id)

    def _source(self, session: Session, job_id: UUID) -> Job:
        job = session.scalar(
            select(Job)
            .where(Job.id == job_id, Job.tenant == self._tenant)
            .options(joinedload(Job.transcription))
        )
        if job is None:
            raise NotFound(what="job", value=job_id)
        status = JobStatus(job.status)
        if status not in WITH_TEXT or session.scalar(newest_number(job_id)) is None:
            raise no_text(status, job.source_id, job.error_message)
        return job

    def _insert(
        self,
        session: Session,
        job: NewJob,
        status: JobStatus,
        recording_id: UUID | None = None,
    ) -> bool:
        """Insert the job; False if the tenant has one with this key, however new."""
        delete_after_s, review = self._defaults(session, job)
        inserted = (
            upsert(Job)
            .values(
                id=job.id,
                tenant=self._tenant,
                kind=job.kind,
                source_id=job.source_id,
                recording_id=recording_id,
                units_total=job.options.span and job.options.span.duration_ms,
                key_id=job.key_id,
                status=status,
                priority=job.priority,
                engine=job.engine,
                model=job.model,
                language=job.language,
                options=replace(job.options, review=review).to_json()
                if job.own_options is None
                else job.own_options,
                source_url=job.source_url,
                webhook_url=job.webhook_url,
                client_metadata=job.client.metadata,
                client_recording_id=job.client.recording_id,
                idempotency_key=job.idempotency and job.idempotency.key,
                request_sha256=job.idempotency and job.idempotency.request_sha256,
                delete_after_s=delete_after_s,
                request_id=job.request_id,
            )
            .on_conflict_do_nothing(
                index_elements=[Job.tenant, Job.idempotency_key],
                index_where=Job.idempotency_key.is_not(None),
            )
        )
        return session.scalar(inserted.returning(Job.id)) is not None

    def _attach(self, session: Session, job_id: UUID, recording: NewRecording) -> bool:
        """Attach a recording; False if the job waits for none: then commit nothing."""
        session.add(recording.row(self._tenant))
        session.flush()
        options = session.scalar(
            update(Job)
            .where(Job.id == job_id, Job.status == JobStatus.PENDING_UPLOAD)
            .values(
                status=JobStatus.PENDING,
                recording_id=recording.id,
                units_total=recording.duration_ms,
            )
            .returning(Job.options)
        )
        if options is None:
            return False
        asked = Options.from_json(options)
        check_channels(recording.tracks, asked.audio_track, asked.channels)
        self._start(session, job_id)
        return True

    def _defaults(self, session: Session, job: NewJob) -> tuple[int | None, bool]:
        """When to delete the job, and whether to review it.

        As the request says, else the tenant's row, else the settings.
        """
        tenant = session.get(Tenant, self._tenant)
        choices = (job.delete_after_s, tenant and tenant.delete_after_s, self._delete_after_s)
        delete_after_s = next((it for it in choices if it is not None), None) or None
        of_tenant = tenant is not None and tenant.review
        review = of_tenant if job.options.review is None else job.options.review
        return delete_after_s, review

    def _locked(self, session: Session, job_id: UUID) -> Job:
        self._job(session, job_id)
        job = locked_job(session, job_id)
        if job is None:
            raise NotFound(what="job", value=job_id)
        return job

    def _job(self, session: Session, job_id: UUID) -> Job:
        job = session.scalar(
            select(Job)
            .where(Job.id == job_id, Job.tenant == self._tenant)
            .execution_options(populate_existing=True)
        )
        if job is None:
            raise NotFound(what="job", value=job_id)
        return job


def _transcribed(rows: Iterable[Any]) -> list[ChunkResult]:
    """The chunks of `select_chunks` before the first that is not transcribed."""
    return list(takewhile(lambda chunk: chunk.result is not None, starmap(ChunkResult, rows)))


def _release(session: Session, job_id: UUID, good_s: int) -> bool:
    """Remove the key of a job that no longer answers its request; False if it still does."""
    too_old = Job.completed_at < func.now() - timedelta(seconds=good_s)
    released = session.scalar(
        update(Job)
        .where(
            Job.id == job_id,
            Job.status.in_([JobStatus.FAILED, JobStatus.CANCELLED]) | too_old,
        )
        .values(idempotency_key=None)
        .returning(Job.id)
    )
    return released is not None


def _not_awaited(job: Job) -> Conflict:
    return Conflict(reason=f"The job is {job.status} and does not accept a recording")
