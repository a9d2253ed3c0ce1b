"""The stored state of live streams: their finals and heartbeats, within one tenant.

A stream's gateway sends a heartbeat every 15 s. After `SILENT_S` without one the stream counts as
interrupted; a later heartbeat reopens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, case, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.deletions import Reason, remove_stream, was_deleted
from common.db.search import index_stream
from common.db.snapshots import NO_CLIENT_DATA, ClientData
from common.db.tables import Kind, StoredFinal, StreamSession, Tenant
from common.db.tallies import count, observe
from common.db.usage import NO_QUOTA, Quota, Usage, add_usage, check_quota, is_silent
from common.domain import metrics
from common.domain.moderation import ModeratedBy, each_once
from common.domain.transcript import Transcript, join_text, segments_from_json, segments_to_json
from common.domain.values import Segment, Span
from common.errors import NotFound

COMPLETED = "completed"
INTERRUPTED = "interrupted"
"""The outcome of streams without heartbeats; gateways report the other outcomes."""


@dataclass(frozen=True, slots=True)
class NewStream:
    """A stream that begins; ``language`` is a Whisper code.

    ``moderation``: its finals are moderated. ``key_id`` and ``request_id`` name the API key and the
    HTTP request; ``quota`` is that of the key.
    """

    id: UUID
    engine: str
    model: str
    language: str
    moderation: bool
    key_id: str | None = None
    quota: Quota = NO_QUOTA
    request_id: str | None = None
    client: ClientData = NO_CLIENT_DATA


@dataclass(frozen=True, slots=True)
class StreamFinal:
    """The text of an utterance, and the engine that recognized it; times are on the stream's clock.

    ``seq`` ascends within a stream. ``moderated_by`` is None if the segments are not moderated.
    """

    seq: int
    span: Span
    engine: str
    model: str
    language: str
    segments: tuple[Segment, ...]
    latency_ms: int
    moderated_by: ModeratedBy | None = None

    @property
    def text(self) -> str:
        return join_text(self.segments)


@dataclass(frozen=True, slots=True)
class Stream:
    """The state of a stream at one instant, with its finals; see `StreamSession`."""

    id: UUID
    engine: str
    model: str
    language: str
    moderation: bool
    audio_ms: int
    created_at: datetime
    ended_at: datetime | None
    outcome: str | None
    delete_at: datetime | None
    client: ClientData
    finals: tuple[StreamFinal, ...]

    @property
    def latency_ms(self) -> int | None:
        """Median over the finals; None: there are none."""
        return round(median(each.latency_ms for each in self.finals)) if self.finals else None

    @property
    def transcript(self) -> Transcript:
        """The text so far."""
        models = each_once(final.moderated_by for final in self.finals)
        return Transcript(
            language=self.language,
            duration_ms=self.audio_ms,
            segments=tuple(segment for final in self.finals for segment in final.segments),
            moderated_by=models if self.moderation else None,
        )


class Streams:
    """The streams of one tenant.

    Methods with a ``stream_id`` raise `NotFound` if the tenant has no such stream (any more).
    """

    def __init__(
        self, database: Database, tenant: str, *, delete_after_s: int | None = None
    ) -> None:
        """``delete_after_s`` is the default of tenants; None: never."""
        self._database = database
        self._tenant = tenant
        self._delete_after_s = delete_after_s

    def open(self, stream: NewStream) -> None:
        """Commit a new stream.

        Raises:
            TooManyStreams, TooMuchAudio: it exceeds the quota of the API key.
        """
        of_tenant = select(Tenant.delete_after_s).where(Tenant.id == self._tenant)
        with self._database.transaction() as session:
            session.execute(
                insert(StreamSession).values(
                    id=stream.id,
                    tenant=self._tenant,
                    key_id=stream.key_id,
                    request_id=stream.request_id,
                    engine=stream.engine,
                    model=stream.model,
                    language=stream.language,
                    moderation=stream.moderation,
                    client_recording_id=stream.client.recording_id,
                    client_metadata=stream.client.metadata,
                    created_at=func.clock_timestamp(),
                    seen_at=func.clock_timestamp(),
                    delete_after_s=func.nullif(
                        func.coalesce(of_tenant.scalar_subquery(), self._delete_after_s), 0
                    ),
                )
            )
            count(session, metrics.STREAMS_OPENED, engine=stream.engine, model=stream.model)
            check_quota(session, stream.key_id, stream.quota, streams=1)

    def add(self, stream_id: UUID, finals: Sequence[StreamFinal]) -> None:
        """Commit finals; existing ones stay as they are."""
        if not finals:
            return
        with self._database.transaction() as session:
            existing = self._own(stream_id).with_for_update(read=True, key_share=True)
            if session.scalar(existing) is None:
                raise NotFound(what=Kind.STREAM, value=stream_id)
            new = session.execute(
                insert(StoredFinal)
                .values([_row(stream_id, final) for final in finals])
                .on_conflict_do_nothing()
                .returning(StoredFinal.latency_ms, StoredFinal.engine, StoredFinal.model)
            )
            for latency_ms, engine, model in new:
                latency_s = latency_ms / 1000
                observe(session, metrics.STREAM_LATENCY, latency_s, engine=engine, model=model)

    def moderate(
        self, stream_id: UUID, seq: int, segments: Sequence[Segment], by: ModeratedBy
    ) -> None:
        """Commit the moderation of the stored final ``seq``."""
        moderated = {"segments": segments_to_json(segments), "moderation": by.to_json()}
        with self._database.transaction() as session:
            updated = session.execute(
                update(StoredFinal)
                .where(
                    StoredFinal.session_id == self._own(stream_id).subquery().c.id,
                    StoredFinal.seq == seq,
                )
                .values(moderated)
                .returning(StoredFinal.seq)
            )
            if updated.one_or_none() is None:
                raise NotFound(what=Kind.STREAM, value=stream_id)

    def beat(
        self,
        stream_id: UUID,
        *,
        audio_ms: int,
        engine: str,
        model: str,
        language: str,
        quota: Quota,
    ) -> None:
        """Record a heartbeat, the audio received so far, and the current engine.

        Raises:
            TooMuchAudio: its API key has used up its quota of today; the audio is charged anyway.
        """
        with self._database.transaction() as session:
            key_id = self._note(
                session, stream_id, audio_ms, engine=engine, model=model, language=language
            )
        today = Quota(audio_ms_per_day=quota.audio_ms_per_day)
        Usage(self._database, self._tenant, key_id).check(today, jobs=0)

    def close(self, stream_id: UUID, *, audio_ms: int, outcome: str) -> None:
        """Record the end of the stream and its ``outcome``; an ended one stays as it is."""
        with self._database.transaction() as session:
            self._note(session, stream_id, audio_ms)
            _end(session, outcome, [stream_id])

    def get(self, stream_id: UUID) -> Stream:
        """The state of the stream."""
        with self._database.transaction() as session:
            row = session.scalar(self._own(stream_id))
            if row is None:
                raise NotFound(what=Kind.STREAM, value=stream_id)
            finals = session.scalars(
                select(StoredFinal)
                .where(StoredFinal.session_id == stream_id)
                .order_by(StoredFinal.seq)
            ).all()
        return _stream(row, finals)

    def delete(self, stream_id: UUID) -> None:
        """Delete a stream, also a live one; do nothing if it was deleted before.

        Raises:
            NotFound: the tenant has no such stream, and never had one.
        """
        with self._database.transaction() as session:
            row = session.scalar(self._own(stream_id).with_for_update())
            if row is not None:
                remove_stream(session, row, Reason.REQUEST)
            elif not was_deleted(session, self._tenant, stream_id, Kind.STREAM):
                raise NotFound(what=Kind.STREAM, value=stream_id)

    def _own(self, stream_id: UUID) -> Select[StreamSession]:
        return select(StreamSession).where(
            StreamSession.id == stream_id, StreamSession.tenant == self._tenant
        )

    def _note(
        self, session: Session, stream_id: UUID, audio_ms: int, **recognized_by: str
    ) -> str | None:
        """Record a heartbeat and charge the audio since the last one; returns the key's id.

        This reopens a stream that counted as interrupted.
        """
        before = (
            select(StreamSession.id, StreamSession.audio_ms)
            .where(StreamSession.id == stream_id, StreamSession.tenant == self._tenant)
            .with_for_update(key_share=True)
            .cte("before")
        )
        lost = StreamSession.outcome == INTERRUPTED
        row = session.execute(
            update(StreamSession)
            .where(StreamSession.id == before.c.id)
            .values(
                **recognized_by,
                seen_at=func.clock_timestamp(),
                audio_ms=func.greatest(StreamSession.audio_ms, audio_ms),
                ended_at=_unless(lost, StreamSession.ended_at),
                delete_at=_unless(lost, StreamSession.delete_at),
                outcome=_unless(lost, StreamSession.outcome),
            )
            .returning(
                StreamSession.key_id,
                StreamSession.engine,
                StreamSession.model,
                (StreamSession.audio_ms - before.c.audio_ms).label("more_ms"),
            )
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            raise NotFound(what=Kind.STREAM, value=stream_id)
        if row.more_ms:
            more_s = row.more_ms / 1000
            count(session, metrics.STREAM_AUDIO, more_s, engine=row.engine, model=row.model)
            add_usage(session, self._tenant, row.key_id, audio_ms=row.more_ms)
        key_id: str | None = row.key_id
        return key_id


def end_silent(session: Session) -> list[UUID]:
    """End the streams of all tenants without recent heartbeats; returns their ids."""
    silent = (
        select(StreamSession.id)
        .where(StreamSession.ended_at.is_(None), is_silent())
        # A transaction that has locked one records a heartbeat.
        .with_for_update(key_share=True, skip_locked=True)
    )
    stream_ids = session.scalars(silent).all()
    return _end(session, INTERRUPTED, stream_ids) if stream_ids else []


def _end(session: Session, outcome: str, stream_ids: Sequence[UUID]) -> list[UUID]:
    """End those of the streams that are live, at the time of their last heartbeat."""
    middle = func.percentile_cont(0.5).within_group(StoredFinal.latency_ms)
    typical = select(func.round(middle)).where(StoredFinal.session_id == StreamSession.id)
    ended_at = StreamSession.seen_at
    ended = session.execute(
        update(StreamSession)
        .where(StreamSession.id.in_(stream_ids), StreamSession.ended_at.is_(None))
        .values(
            ended_at=ended_at,
            outcome=outcome,
            latency_ms=typical.scalar_subquery().cast(Integer),
            # null where delete_after_s is
            delete_at=ended_at + func.make_interval(0, 0, 0, 0, 0, 0, StreamSession.delete_after_s),
        )
        .returning(StreamSession.id, StreamSession.engine, StreamSession.model)
        .execution_options(synchronize_session=False)
    ).all()
    for _, engine, model in ended:
        count(session, metrics.STREAMS_ENDED, outcome=outcome, engine=engine, model=model)
    for stream_id, _, _ in ended:
        index_stream(session, session.get_one(StreamSession, stream_id))
    return [stream_id for stream_id, _, _ in ended]


def _unless(condition: ColumnElement[bool], value: Any) -> ColumnElement[Any]:
    return case((condition, null()), else_=value)


def _row(stream_id: UUID, final: StreamFinal) -> dict[str, Any]:
    return {
        "session_id": stream_id,
        "seq": final.seq,
        "start_ms": final.span.start_ms,
        "end_ms": final.span.end_ms,
        "engine": final.engine,
        "model": final.model,
        "language": final.language,
        "segments": segments_to_json(final.segments),
        "latency_ms": final.latency_ms,
        "moderation": final.moderated_by and final.moderated_by.to_json(),
    }


def _stream(row: StreamSession, finals: Sequence[StoredFinal]) -> Stream:
    return Stream(
        id=row.id,
        engine=row.engine,
        model=row.model,
        language=row.language,
        moderation=row.moderation,
        audio_ms=row.audio_ms,
        created_at=row.created_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        delete_at=row.delete_at,
        client=ClientData(row.client_recording_id, row.client_metadata),
        finals=tuple(map(_final, finals)),
    )


def _final(row: StoredFinal) -> StreamFinal:
    return StreamFinal(
        seq=row.seq,
        span=Span(row.start_ms, row.end_ms),
        engine=row.engine,
        model=row.model,
        language=row.language,
        segments=segments_from_json(row.segments),
        latency_ms=row.latency_ms,
        moderated_by=None if row.moderation is None else ModeratedBy.from_json(row.moderation),
    )
