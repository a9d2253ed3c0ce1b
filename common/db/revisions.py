"""The revisions of transcripts, always within one tenant. A change is always a new revision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from common.db.database import Database
from common.db.flow import locked_job
from common.db.glossaries import count_replacements
from common.db.tables import Job, Step, TranscriptRevision
from common.db.transcriptions import (
    newest_number,
    newest_revision,
    row_of,
    store_revision,
    transcript_in,
)
from common.domain.differences import difference
from common.domain.glossary import replacements
from common.domain.job import WITH_TEXT, JobStatus, StepStatus, no_text
from common.domain.pipeline import StepKind
from common.domain.speakers import marked_overlaps
from common.domain.transcript import Origin, Transcript
from common.errors import NoSpeakers, NotFound, StaleRevision

Change = Callable[[Transcript], Transcript]
"""Makes the next transcript of the newest one."""
Manifest = dict[str, Any]
"""What a transcript depends on."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a revision: the API key (None: none was required); and why, in their own words."""

    key_id: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a job's transcript.

    ``refining`` is the status of the step that completes the newest one; None: it needs none.
    """

    row: TranscriptRevision
    transcript: Transcript
    refining: StepStatus | None


class Revisions:
    """The revisions of one tenant's transcripts.

    All methods raise `NotFound` if the tenant has no such job, `NotReady` if it has no transcript
    yet, and `Conflict` if it never will.
    """

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def get(self, job_id: UUID, number: int | None = None) -> Revision:
        """A revision; None: the newest.

        Raises:
            NotFound: also if there is no such revision.
        """
        with self._database.transaction() as session:
            newest = self._newest(session, self._job(session, job_id))
            asked = newest if number is None else number
            row = session.get(TranscriptRevision, (job_id, asked))
            if row is None:
                raise NotFound(what="revision", value=asked)
            refining = None
            if asked == newest:
                of_job = (Step.job_id == job_id, Step.kind == StepKind.REFINE)
                refining = session.scalar(select(Step.status).where(*of_job))
        return Revision(row, transcript_in(row), None if refining is None else StepStatus(refining))

    def page(
        self, job_id: UUID, *, limit: int, before: int | None
    ) -> tuple[list[TranscriptRevision], int | None]:
        """At most ``limit`` revisions below ``before``, the newest first, without their text.

        Returns also the ``before`` of the next page; None: there is none.
        """
        with self._database.transaction() as session:
            self._newest(session, self._job(session, job_id))
            of_job = [TranscriptRevision.job_id == job_id]
            if before is not None:
                of_job.append(TranscriptRevision.revision < before)
            rows = session.scalars(
                select(TranscriptRevision)
                .where(*of_job)
                .options(
                    defer(TranscriptRevision.segments, raiseload=True),
                    defer(TranscriptRevision.diarization, raiseload=True),
                    defer(TranscriptRevision.manifest, raiseload=True),
                )
                .order_by(TranscriptRevision.revision.desc())
                .limit(limit + 1)
            ).all()
        more = len(rows) > limit
        return list(rows[:limit]), rows[limit - 1].revision if more else None

    def change(
        self,
        job_id: UUID,
        change: Change,
        *,
        origin: Origin,
        author: Author,
        based_on: int | None = None,
        made_by: Callable[[Manifest], Manifest] = dict,
        beside: Sequence[Mapping[str, Any]] = (),
    ) -> TranscriptRevision:
        """Store what ``change`` makes of the newest revision as the next one; returns it.

        Nothing is stored if it raises. ``made_by`` and ``beside``: as of `add_revision`.

        Raises:
            StaleRevision: the newest revision is not ``based_on`` (None: any may be).
            NotReady: also while the job is retried: a merge is to come.
        """
        with self._database.transaction() as session:
            job = self._job(session, job_id, lock=True)
            return add_revision(
                session,
                job,
                change,
                origin=origin,
                author=author,
                based_on=based_on,
                made_by=made_by,
                beside=beside,
            )

    def restore(
        self, job_id: UUID, number: int, *, author: Author, based_on: int | None = None
    ) -> TranscriptRevision:
        """Store an earlier revision as the newest one; returns that.

        Raises:
            NotFound: also if there is no such revision.
            StaleRevision, NotReady: as `change`.
        """
        earlier = self.get(job_id, number)
        return self.change(
            job_id,
            lambda _newest: earlier.transcript,
            origin=Origin.RESTORE,
            author=author,
            based_on=based_on,
            made_by=lambda _newest: earlier.row.manifest,
        )

    def change_speakers(
        self, job_id: UUID, changes: Mapping[str, str | None], author: Author
    ) -> None:
        """Rename or merge the speakers of a job; ``changes`` as of `Diarization.changed`.

        Raises:
            NoSpeakers: its speakers were not requested.
            UnknownOption, OptionConflict: a change is impossible; then none is made.
        """

        def change(transcript: Transcript) -> Transcript:
            if transcript.diarization is None:
                raise NoSpeakers
            diarization, into = transcript.diarization.changed(changes)
            segments = (
                replace(it, speaker=into.get(it.speaker or "", it.speaker))
                for it in transcript.segments
            )
            return replace(
                transcript,
                segments=marked_overlaps(segments, diarization.turns),
                diarization=diarization,
            )

        named = {"op": "speakers", "speakers": dict(changes)}
        self.change(job_id, change, origin=Origin.SPEAKERS, author=author, beside=[named])

    # --- inside one transaction ---------------------------------------------------------------

    def _job(self, session: Session, job_id: UUID, *, lock: bool = False) -> Job:
        job = locked_job(session, job_id) if lock else session.get(Job, job_id)
        if job is None or job.tenant != self._tenant:
            raise NotFound(what="job", value=job_id)
        return job

    def _newest(self, session: Session, job: Job) -> int:
        """The number of the newest revision."""
        number = session.scalar(newest_number(job.id))
        status = JobStatus(job.status)
        if number is None or status is JobStatus.CANCELLED:
            raise no_text(status, job.source_id, job.error_message)
        return number


def add_revision(
    session: Session,
    job: Job,
    change: Change,
    *,
    origin: Origin,
    author: Author,
    based_on: int | None = None,
    made_by: Callable[[Manifest], Manifest] = dict,
    beside: Sequence[Mapping[str, Any]] = (),
) -> TranscriptRevision:
    """Store a revision of a job, whose row is locked; as `Revisions.change`.

    ``made_by`` makes its manifest of that of the newest one. ``beside``: what it changes beside its
    segments.
    """
    newest = session.scalar(newest_revision(job.id))
    status = JobStatus(job.status)
    if newest is None or status not in WITH_TEXT:
        raise no_text(status, job.source_id, job.error_message)
    if based_on is not None and newest.revision != based_on:
        raise StaleRevision(newest=newest.revision, value=based_on)
    before = transcript_in(newest)
    transcript = change(before)
    changes = [*beside, *difference(before, transcript)]
    manifest = made_by(newest.manifest) | {"encoders": transcript.encoders}
    if transcript.moderated_by is not None:
        manifest["moderation"] = transcript.models_to_json()
    revision = row_of(job.id, transcript, manifest, origin)
    revision.key_id, revision.note, revision.changes = author.key_id, author.note, changes
    store_revision(session, job, revision)
    if origin is Origin.EDIT:
        count_replacements(session, job.tenant, job.id, _replaced(changes))
    session.flush()
    session.refresh(revision, ["created_at", "refinements"])
    return revision


def _replaced(changes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What was replaced by what, in the changes of an edit."""
    for change in changes:
        old, new = (
            " ".join(segment["text"] for segment in change.get(side, ()))
            for side in ("before", "after")
        )
        yield from replacements(old, new)
