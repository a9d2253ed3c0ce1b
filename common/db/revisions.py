"""Changes to a finished transcript, each of which is a new revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from sqlalchemy import select

from common.db.database import Database
from common.db.flow import locked_job
from common.db.tables import TranscriptRevision
from common.domain.job import JobStatus, is_final
from common.domain.speakers import Diarization, marked_overlaps
from common.domain.transcript import segments_from_json, segments_to_json
from common.errors import Conflict, NotFound, NotReady


class Revisions:
    """The revisions of one tenant's transcripts."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def change_speakers(self, job_id: UUID, changes: Mapping[str, str | None]) -> None:
        """Rename or merge the speakers of a job; ``changes`` as of `Diarization.changed`.

        Raises:
            NotFound: the tenant has no such job.
            NotReady: it has no transcript yet.
            Conflict: its speakers were not requested.
            UnknownOption, OptionConflict: a change is impossible; then none is made.
        """
        with self._database.transaction() as session:
            job = locked_job(session, job_id)
            if job is None or job.tenant != self._tenant:
                raise NotFound(what="job", value=job_id)
            if not is_final(JobStatus(job.status)):  # a merge is to come
                raise NotReady(status_now=job.status)
            newest = session.scalar(
                select(TranscriptRevision)
                .where(TranscriptRevision.job_id == job_id)
                .order_by(TranscriptRevision.revision.desc())
                .limit(1)
            )
            if newest is None:
                raise NotReady(status_now=job.status)
            if newest.diarization is None:
                raise Conflict(reason="The job has no speakers: it was sent without diarize=true")
            diarization, into = Diarization.from_json(newest.diarization).changed(changes)
            segments = (
                replace(it, speaker=into.get(it.speaker or "", it.speaker))
                for it in segments_from_json(newest.segments)
            )
            session.add(
                TranscriptRevision(
                    job_id=job_id,
                    revision=newest.revision + 1,
                    language=newest.language,
                    duration_ms=newest.duration_ms,
                    word_count=newest.word_count,
                    segments=segments_to_json(marked_overlaps(segments, diarization.turns)),
                    diarization=diarization.to_json(),
                    manifest=newest.manifest,
                )
            )
