"""What was asked for with which key, day by day (UTC), and whether it may be more.

A job is charged in the transaction that commits it: its recording by what its container claims. A
recording that is fetched is charged once it is here. What is decoded beyond that is charged while
it is decoded, so that it stays charged when the job is deleted meanwhile; in the end the job is
charged what was decoded. A stream is charged as its sound comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Date,
    Integer,
    Select,
    Update,
    and_,
    cast,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.tables import NOW, DailyUsage, Job, Recording, StreamSession, Transcription
from common.domain.job import JobStatus
from common.domain.keys import Limits
from common.errors import TooManyJobs, TooManyStreams, TooMuchAudio

UNFINISHED = (JobStatus.PENDING_UPLOAD, JobStatus.PENDING, JobStatus.PROCESSING)
"""The jobs that count as concurrent; one that waits for its recording holds its place."""
SILENT_S = 45.0
"""A stream whose gateway has not said for so long that it lives is taken to be over."""
RETRY_S = 5
"""When somebody with too many jobs or streams is told to try again."""
HOUR_MS = 3_600_000

OVER_QUOTA = 1000
"""How many of a key's jobs beyond those that it may have are counted at most."""

NO_KEY = ""
"""In place of a key's id where none was needed."""


@dataclass(frozen=True, slots=True)
class Quota:
    """How many jobs and streams at once, and how much audio a day, a key may have; 0: any."""

    concurrent_jobs: int = 0
    audio_ms_per_day: int = 0
    concurrent_streams: int = 0

    @classmethod
    def of(cls, limits: Limits) -> Quota:
        return cls(
            limits.concurrent_jobs,
            round(limits.audio_hours_per_day * HOUR_MS),
            limits.concurrent_streams,
        )


NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class Spent:
    """A key's unfinished jobs, its streams, and the audio charged to it today, in any tenant.

    No more than `OVER_QUOTA` jobs beyond the quota are counted.
    """

    concurrent_jobs: int = 0
    concurrent_streams: int = 0
    audio_ms: int = 0


@dataclass(frozen=True, slots=True)
class Day:
    """A tenant's usage on one day, and one key's share of it."""

    day: date
    jobs: int
    audio_ms: int
    own_jobs: int
    own_audio_ms: int


def charge(
    session: Session, job_id: UUID, quota: Quota, *, jobs: int = 1, audio_ms: int = 0
) -> None:
    """Charge a job, or (``jobs`` 0) the recording of one that waited for it, to the job's key.

    It comes last in a transaction that others may wait for.

    Raises:
        TooManyJobs, TooMuchAudio: the key may not have it, so that nothing is to be committed.
    """
    tenant, key_id = session.execute(select(Job.tenant, Job.key_id).where(Job.id == job_id)).one()
    _hold(session, key_id, quota, jobs=jobs, audio_ms=audio_ms)
    _add(session, tenant, key_id, _today(), jobs=jobs, audio_ms=audio_ms)
    charged_ms = Transcription.charged_ms + audio_ms
    session.execute(_of(job_id).values(charged_ms=charged_ms))


def check_stream(session: Session, key_id: str | None, quota: Quota) -> None:
    """Let a stream that was begun in this transaction have its place; it comes last.

    Raises:
        TooManyStreams, TooMuchAudio: the key may not have it, so that nothing is to be committed.
    """
    _hold(session, key_id, quota, streams=1)


def charge_stream(session: Session, tenant: str, key_id: str | None, audio_ms: int) -> None:
    """Charge sound that has come in, whether there may be more or not; it comes last."""
    _add(session, tenant, key_id, _today(), jobs=0, audio_ms=audio_ms)


def is_live() -> ColumnElement[bool]:
    """Whether a stream counts as one that goes on."""
    return and_(StreamSession.ended_at.is_(None), ~is_silent())


def is_silent() -> ColumnElement[bool]:
    """Whether nothing was heard of a stream's gateway for too long."""
    return StreamSession.seen_at <= NOW - timedelta(seconds=SILENT_S)


def check_restart(session: Session, job_id: UUID, quota: Quota) -> None:
    """Let a job that had ended, and was charged for, go on again where its key has room for it.

    Raises:
        TooManyJobs: the key may have no more at once.
    """
    key_id = session.scalar(select(Job.key_id).where(Job.id == job_id))
    _hold(session, key_id, Quota(quota.concurrent_jobs), jobs=1)


def charge_decoded(session: Session, job_id: UUID, decoded_ms: int) -> None:
    """Charge what has been decoded so far, where less is charged; the job's row is locked."""
    if decoded_ms > session.scalars(_charged(job_id)).one():
        correct(session, job_id, decoded_ms)


def correct(session: Session, job_id: UUID, duration_ms: int) -> None:
    """Charge what the recording has turned out to be, in place of what it was taken for."""
    tenant, key_id, charged_ms, day = session.execute(
        select(
            Job.tenant,
            Job.key_id,
            _charged(job_id).scalar_subquery(),
            func.timezone("UTC", Recording.created_at).cast(Date),
        )
        .join(Recording, Recording.id == Job.recording_id)
        .where(Job.id == job_id)
    ).one()
    if charged_ms != duration_ms:
        session.execute(_of(job_id).values(charged_ms=duration_ms))
        _add(session, tenant, key_id, day, jobs=0, audio_ms=duration_ms - charged_ms)


def _charged(job_id: UUID) -> Select[int]:
    return select(Transcription.charged_ms).where(Transcription.job_id == job_id)


def _of(job_id: UUID) -> Update:
    return update(Transcription).where(Transcription.job_id == job_id)


class Usage:
    """The usage of one tenant, asked for with one key (None: none was needed)."""

    def __init__(self, database: Database, tenant: str, key_id: str | None) -> None:
        self._database = database
        self._tenant = tenant
        self._key_id = key_id

    def check(self, quota: Quota, *, jobs: int = 1) -> None:
        """Say early what `charge` would say, before anything is sent.

        Raises:
            TooManyJobs, TooMuchAudio: the key may have no more.
        """
        if self._key_id is not None and quota != NO_QUOTA:
            spent = self.spent(quota)
            after = replace(spent, concurrent_jobs=spent.concurrent_jobs + jobs)
            _check(after, quota, jobs=jobs)

    def spent(self, quota: Quota = NO_QUOTA) -> Spent:
        """What counts against the key's ``quota`` at this moment."""
        with self._database.transaction() as session:
            return Spent() if self._key_id is None else _spent(session, self._key_id, quota)

    def days(self, count: int) -> list[Day]:
        """The last ``count`` days on which there was anything, today first."""
        own = func.coalesce(self._key_id, NO_KEY) == DailyUsage.key_id
        with self._database.transaction() as session:
            rows = session.execute(
                select(
                    DailyUsage.day,
                    func.sum(DailyUsage.jobs),
                    func.sum(DailyUsage.audio_ms),
                    func.coalesce(func.sum(DailyUsage.jobs).filter(own), 0),
                    func.coalesce(func.sum(DailyUsage.audio_ms).filter(own), 0),
                )
                .where(
                    DailyUsage.tenant == self._tenant,
                    DailyUsage.day > _today() - literal(count, Integer),
                )
                .group_by(DailyUsage.day)
                .order_by(DailyUsage.day.desc())
            )
            return [Day(day, *map(int, sums)) for day, *sums in rows]


def seconds_to_midnight() -> int:
    """Until the next day begins (UTC), at least 1."""
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((midnight - now).total_seconds()) + 1


def _hold(
    session: Session,
    key_id: str | None,
    quota: Quota,
    *,
    jobs: int = 0,
    streams: int = 0,
    audio_ms: int = 0,
) -> None:
    if key_id is not None and quota != NO_QUOTA:
        # One at a time, as each has to see what the others have.
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key_id, 0))))
        spent = _spent(session, key_id, quota)
        _check(spent, quota, jobs=jobs, streams=streams, audio_ms=audio_ms)


def _check(
    spent: Spent, quota: Quota, *, jobs: int = 0, streams: int = 0, audio_ms: int = 0
) -> None:
    """``spent`` has the jobs or streams in question, not yet their audio, which may be unknown (0).

    ``jobs`` and ``streams``: how many of them there are.
    """
    if jobs and 0 < quota.concurrent_jobs < spent.concurrent_jobs:
        raise TooManyJobs(
            field="concurrent_jobs",
            limit=quota.concurrent_jobs,
            value=spent.concurrent_jobs,
            retry_after_s=RETRY_S,
        )
    if streams and 0 < quota.concurrent_streams < spent.concurrent_streams:
        raise TooManyStreams(
            field="concurrent_streams",
            limit=quota.concurrent_streams,
            value=spent.concurrent_streams,
            retry_after_s=RETRY_S,
        )
    if 0 < quota.audio_ms_per_day < spent.audio_ms + max(1, audio_ms):
        raise TooMuchAudio(
            field="audio_hours_per_day",
            limit=quota.audio_ms_per_day / HOUR_MS,
            value=round((spent.audio_ms + audio_ms) / HOUR_MS, 4),
            retry_after_s=seconds_to_midnight(),
        )


def _spent(session: Session, key_id: str, quota: Quota) -> Spent:
    unfinished = (
        select(Job.id)
        .where(Job.key_id == key_id, Job.status.in_(UNFINISHED))
        .limit(quota.concurrent_jobs + OVER_QUOTA)
        .subquery()
    )
    jobs = select(func.count()).select_from(unfinished).scalar_subquery()
    streams = (
        select(func.count()).where(StreamSession.key_id == key_id, is_live()).scalar_subquery()
    )
    audio_ms = (
        select(func.coalesce(func.sum(DailyUsage.audio_ms), 0))
        .where(DailyUsage.key_id == key_id, DailyUsage.day == _today())
        .scalar_subquery()
    )
    found = session.execute(select(jobs, streams, audio_ms)).one()
    return Spent(*map(int, found))


def _add(
    session: Session,
    tenant: str,
    key_id: str | None,
    day: date | ColumnElement[date],
    *,
    jobs: int,
    audio_ms: int,
) -> None:
    row: dict[str, Any] = {"tenant": tenant, "key_id": key_id or NO_KEY, "day": day}
    session.execute(
        insert(DailyUsage)
        .values(row | {"jobs": jobs, "audio_ms": max(0, audio_ms)})
        .on_conflict_do_update(
            index_elements=[DailyUsage.tenant, DailyUsage.key_id, DailyUsage.day],
            set_={
                "jobs": DailyUsage.jobs + jobs,
                "audio_ms": func.greatest(0, DailyUsage.audio_ms + audio_ms),
            },
        )
    )


def _today() -> ColumnElement[date]:
    """The day (UTC), by Postgres' clock."""
    return cast(func.timezone("UTC", func.now()), Date)
