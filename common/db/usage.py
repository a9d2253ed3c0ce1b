"""The usage of keys by day (UTC), and the check of their quotas.

A job is charged in the transaction that commits it, for the duration that its recording's container
claims. A fetched recording is charged when it is stored. Audio decoded beyond that is charged
during decoding, so that it stays charged if the job is deleted; in the end the job is charged for
the decoded duration. A stream is charged as its audio is received.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Date,
    Integer,
    Select,
    Update,
    and_,
    case,
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
"""The jobs that count as concurrent; one that waits for its recording is among them."""
SILENT_S = 45.0
"""A stream without a heartbeat for so long counts as interrupted."""
RETRY_S = 5
"""``Retry-After`` for clients with too many jobs or streams."""
HOUR_MS = 3_600_000

OVER_QUOTA = 1000
"""At most so many jobs beyond a key's quota are counted."""

NO_KEY = ""
"""The key id of requests without a key."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A key's limits on concurrent jobs and streams, and on audio a day; 0: no limit."""

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
    """A key's unfinished jobs, live streams, and audio of today, in any tenant.

    At most `OVER_QUOTA` jobs beyond the quota are counted.
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
    """Charge a job, or (``jobs`` 0) the recording that it waited for, to the job's key.

    Call it last in the transaction: others may wait for its locks.

    Raises:
        TooManyJobs, TooMuchAudio: it exceeds the key's quota; do not commit.
    """
    tenant, key_id = session.execute(select(Job.tenant, Job.key_id).where(Job.id == job_id)).one()
    check_quota(session, key_id, quota, jobs=jobs, audio_ms=audio_ms)
    add_usage(session, tenant, key_id, jobs=jobs, audio_ms=audio_ms)
    charged_ms = Transcription.charged_ms + audio_ms
    session.execute(_of(job_id).values(charged_ms=charged_ms))


def is_live() -> ColumnElement[bool]:
    """Whether a stream counts as live."""
    return and_(StreamSession.ended_at.is_(None), ~is_silent())


def is_silent() -> ColumnElement[bool]:
    """Whether the last heartbeat of a stream is older than `SILENT_S`."""
    return StreamSession.seen_at <= NOW - timedelta(seconds=SILENT_S)


def charge_decoded(session: Session, job_id: UUID, decoded_ms: int) -> None:
    """Charge the audio decoded so far, if less is charged; the job's row is locked."""
    if decoded_ms > session.scalars(_charged(job_id)).one():
        correct(session, job_id, decoded_ms)


def correct(session: Session, job_id: UUID, duration_ms: int) -> None:
    """Charge the true duration of the recording in place of the claimed one."""
    tenant, key_id, charged_ms, day = session.execute(
        select(
            Job.tenant,
            Job.key_id,
            _charged(job_id).scalar_subquery(),
            # A job that works on another's transcript shares the recording of that one.
            func.timezone(
                "UTC",
                case((Job.source_id.is_(None), Recording.created_at), else_=Job.created_at),
            ).cast(Date),
        )
        .join(Recording, Recording.id == Job.recording_id)
        .where(Job.id == job_id)
    ).one()
    if charged_ms != duration_ms:
        session.execute(_of(job_id).values(charged_ms=duration_ms))
        more_ms = duration_ms - charged_ms
        add_usage(session, tenant, key_id, audio_ms=more_ms, day=day)


def _charged(job_id: UUID) -> Select[int]:
    return select(Transcription.charged_ms).where(Transcription.job_id == job_id)


def _of(job_id: UUID) -> Update:
    return update(Transcription).where(Transcription.job_id == job_id)


class Usage:
    """The usage of one tenant, as seen by one key (None: no key)."""

    def __init__(self, database: Database, tenant: str, key_id: str | None) -> None:
        self._database = database
        self._tenant = tenant
        self._key_id = key_id

    def check(self, quota: Quota, *, jobs: int = 1) -> None:
        """Check early what `charge` will check, before an upload.

        Raises:
            TooManyJobs, TooMuchAudio: the key's quota is used up.
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


def check_quota(
    session: Session,
    key_id: str | None,
    quota: Quota,
    *,
    jobs: int = 0,
    streams: int = 0,
    audio_ms: int = 0,
) -> None:
    """Check the quota for jobs or streams of this transaction, and their audio; call it last.

    Raises:
        TooManyJobs, TooManyStreams, TooMuchAudio: it is exceeded; do not commit.
    """
    if key_id is not None and quota != NO_QUOTA:
        # One transaction at a time: each must see the jobs of the others.
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key_id, 0))))
        spent = _spent(session, key_id, quota)
        _check(spent, quota, jobs=jobs, streams=streams, audio_ms=audio_ms)


def _check(
    spent: Spent, quota: Quota, *, jobs: int = 0, streams: int = 0, audio_ms: int = 0
) -> None:
    """``spent`` has the jobs or streams in question, not yet their audio, which may be unknown (0).

    ``jobs`` and ``streams``: how many of them there are.
    """
    for field, asked, error in (
        ("concurrent_jobs", jobs, TooManyJobs),
        ("concurrent_streams", streams, TooManyStreams),
    ):
        limit, value = getattr(quota, field), getattr(spent, field)
        if asked and 0 < limit < value:
            raise error(field=field, limit=limit, value=value, retry_after_s=RETRY_S)
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


def add_usage(
    session: Session,
    tenant: str,
    key_id: str | None,
    *,
    jobs: int = 0,
    audio_ms: int,
    day: date | None = None,
) -> None:
    """Add to the usage of a day (None: today), also beyond the quota; call it last."""
    row = {"tenant": tenant, "key_id": key_id or NO_KEY, "day": day or _today()}
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
    """Today (UTC), by Postgres' clock."""
    return cast(func.timezone("UTC", func.now()), Date)
