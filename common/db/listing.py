"""Lists of a tenant's jobs and streams, newest first, by page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Select, func, literal, null, select, union_all
from sqlalchemy.dialects.postgresql import JSONPATH, aggregate_order_by
from sqlalchemy.orm import aliased

from common.db.database import Database
from common.db.jobs import Text
from common.db.paging import Cursor, Page, beyond, page_of
from common.db.snapshots import ClientData, Snapshot, snapshots
from common.db.tables import Job, JobMetrics, Kind, StoredFinal, StreamSession, TranscriptRevision
from common.db.transcriptions import newest_number
from common.domain.job import JobStatus
from common.domain.pipeline import ENHANCEMENT
from common.domain.request import Options
from common.errors import NotFound

_BEGINNING = "$[0 to 39]"
"""The first segments of a transcript: more than enough for a preview."""
_FIRST_FINALS = 40
"""As many finals of a stream."""
_SEGMENTS = "$[*][*]"
"""All segments of several finals."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; None: any. Both times are exclusive."""

    statuses: Sequence[JobStatus] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    recording_id: str | None = None
    model: str | None = None
    source_id: UUID | None = None
    """Those that work on the transcript of this one; None: those that work on no other's."""
    kind: str | None = None
    """Those of this kind, whatever they work on."""
    task: str | None = None
    """Of enhancements: those with this task."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A COMPLETED job or an ended stream, and the beginning of its text.

    ``latency_ms`` of a job is from its creation to its completion. That of a stream is the median
    over its utterances, from the end to the text; None: it had none.
    """

    id: UUID
    kind: Kind
    engine: str
    model: str
    created_at: datetime
    completed_at: datetime
    latency_ms: int | None
    beginning: Text
    client: ClientData


class JobLists:
    """The lists of one tenant's jobs and streams."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def page(self, which: JobFilter, *, limit: int, after: Cursor | None) -> Page[Snapshot]:
        """Jobs in any state."""
        with self._database.transaction() as session:
            asked = [
                _newest(
                    select(Job.id, Job.created_at).where(
                        Job.tenant == self._tenant,
                        *status,
                        *_conditions(which),
                        *beyond(after, Job.created_at, Job.id),
                    ),
                    limit + 1,
                )
                for status in _by_status(which)
            ]
            newest = _newest(select(union_all(*asked).subquery()), limit + 1).subquery()
            found = snapshots(session, Job.id.in_(select(newest.c.id)), limit=limit + 1)
        return page_of(found, limit, lambda it: Cursor(it.created_at, it.job_id))

    def named(self, job_ids: Sequence[UUID]) -> list[Snapshot]:
        """These jobs, in any state, in their order.

        Raises:
            NotFound: the tenant does not have one of them.
        """
        with self._database.transaction() as session:
            of_tenant = (Job.tenant == self._tenant, Job.id.in_(job_ids))
            found = snapshots(session, *of_tenant, limit=len(job_ids))
        by_id = {job.job_id: job for job in found}
        for job_id in job_ids:
            if job_id not in by_id:
                raise NotFound(what="job", value=job_id)
        return [by_id[job_id] for job_id in job_ids]

    def without_speakers(self, job_ids: Sequence[UUID]) -> UUID | None:
        """One of these jobs whose newest transcript has no speakers; None: all have some."""
        newest = newest_number(Job.id).correlate(Job).scalar_subquery()
        with self._database.transaction() as session:
            return session.scalar(
                select(Job.id)
                .join(TranscriptRevision, TranscriptRevision.job_id == Job.id)
                .where(
                    Job.tenant == self._tenant,
                    Job.id.in_(job_ids),
                    TranscriptRevision.revision == newest,
                    TranscriptRevision.diarization.is_(None),
                )
                .limit(1)
            )

    def finished(self, *, limit: int, after: Cursor | None) -> Page[Finished]:
        """COMPLETED jobs and ended streams, in one list."""
        jobs = select(Job.id, Job.created_at).where(
            Job.tenant == self._tenant,
            Job.status == JobStatus.COMPLETED,
            Job.source_id.is_(None),
            *beyond(after, Job.created_at, Job.id),
        )
        streams = select(StreamSession.id, StreamSession.created_at).where(
            StreamSession.tenant == self._tenant,
            StreamSession.ended_at.is_not(None),
            *beyond(after, StreamSession.created_at, StreamSession.id),
        )
        both = union_all(*(_newest(each, limit + 1) for each in (jobs, streams))).subquery()
        page = _newest(select(both), limit + 1).cte("page")
        found = union_all(_jobs_of(page), _streams_of(page)).subquery()
        with self._database.transaction() as session:
            rows = session.execute(
                select(found).order_by(found.c.created_at.desc(), found.c.id.desc())
            ).all()
        return page_of(list(map(_finished, rows)), limit, lambda it: Cursor(it.created_at, it.id))


def _newest(rows: Select[*tuple[Any, ...]], limit: int) -> Select[*tuple[Any, ...]]:
    """The newest ``limit`` of ``rows``; their columns are an id and a time."""
    row_id, at = rows.selected_columns
    return select(rows.order_by(at.desc(), row_id.desc()).limit(limit).subquery())


def _jobs_of(page: CTE) -> Select[Any]:
    """The jobs on ``page``, with the columns of `_finished`."""
    revision = aliased(TranscriptRevision)
    newest = select(func.max(revision.revision)).where(revision.job_id == page.c.id)
    return (
        select(
            Job.id,
            Job.created_at,
            literal(Kind.JOB.value).label("kind"),
            Job.engine,
            Job.model,
            TranscriptRevision.language,
            TranscriptRevision.duration_ms.label("lasts_ms"),
            Job.completed_at,
            JobMetrics.wall_ms.label("latency_ms"),
            func.jsonb_path_query_array(
                TranscriptRevision.segments, literal(_BEGINNING, JSONPATH)
            ).label("beginning"),
            Job.options,
            Job.client_recording_id,
            Job.client_metadata,
        )
        .join(page, page.c.id == Job.id)
        .join(JobMetrics, JobMetrics.job_id == page.c.id)
        .join(
            TranscriptRevision,
            (TranscriptRevision.job_id == page.c.id)
            & (TranscriptRevision.revision == newest.scalar_subquery()),
        )
    )


def _streams_of(page: CTE) -> Select[Any]:
    """The streams on ``page``, likewise."""
    first = (
        select(StoredFinal.seq, StoredFinal.segments)
        .where(StoredFinal.session_id == page.c.id)
        .order_by(StoredFinal.seq)
        .limit(_FIRST_FINALS)
        .correlate(page)
        .subquery()
    )
    segments = func.jsonb_agg(aggregate_order_by(first.c.segments, first.c.seq))
    beginning = select(func.jsonb_path_query_array(segments, literal(_SEGMENTS, JSONPATH)))
    return select(
        StreamSession.id,
        StreamSession.created_at,
        literal(Kind.STREAM.value),
        StreamSession.engine,
        StreamSession.model,
        StreamSession.language,
        StreamSession.audio_ms,
        StreamSession.ended_at,
        StreamSession.latency_ms,
        beginning.scalar_subquery(),
        null(),
        StreamSession.client_recording_id,
        StreamSession.client_metadata,
    ).join(page, page.c.id == StreamSession.id)


def _by_status(which: JobFilter) -> Iterator[list[ColumnElement[bool]]]:
    """One condition a status, if an index has the jobs of each in the order of the list."""
    if not which.statuses and which.model is None:
        yield []
    for status in which.statuses or (JobStatus if which.model is not None else ()):
        yield [Job.status == status]


def _conditions(which: JobFilter) -> Iterator[ColumnElement[bool]]:
    if which.source_id is not None:
        yield Job.source_id == which.source_id
    else:
        yield Job.source_id.is_(None) if which.kind is None else Job.source_id.is_not(None)
    if which.kind is not None:
        yield Job.kind == which.kind
    if which.task is not None:
        yield Job.options[ENHANCEMENT.kind]["task"].astext == which.task
    if which.created_after is not None:
        yield Job.created_at > which.created_after
    if which.created_before is not None:
        yield Job.created_at < which.created_before
    if which.recording_id is not None:
        yield Job.client_recording_id == which.recording_id
    if which.model is not None:
        yield Job.model == which.model


def _finished(row: Any) -> Finished:
    return Finished(
        id=row.id,
        kind=Kind(row.kind),
        engine=row.engine,
        model=row.model,
        created_at=row.created_at,
        completed_at=row.completed_at,
        latency_ms=row.latency_ms,
        beginning=Text(
            segments=row.beginning or [],
            chunks=[],
            language=row.language,
            duration_ms=row.lasts_ms,
            # A stream's text is never masked.
            options=Options() if row.options is None else Options.from_json(row.options),
            complete=True,
            manifest=None,
        ),
        client=ClientData(row.client_recording_id, row.client_metadata),
    )
