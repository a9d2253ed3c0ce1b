"""The tables. Postgres is the source of truth: what is not committed has not happened."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB, TIMESTAMP, TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from common.domain.job import JobStatus, Priority, StepStatus
from common.domain.transcript import Origin
from common.domain.webhooks import DeliveryStatus


class Kind(StrEnum):
    """The source of a text: a recording (of a job), or a live stream; or what else was deleted."""

    JOB = "job"
    STREAM = "stream"
    VOICE = "voice"


OfJob = Annotated[UUID, mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)]
"""The job of a row whose key begins with it."""

NOW = func.statement_timestamp()
"""For conditions: unlike clock_timestamp() it can be used with an index."""


def _one_of(column: str, values: type) -> str:
    allowed = ", ".join(f"'{value}'" for value in values)  # type: ignore[attr-defined]
    return f"{column} IN ({allowed})"


def _partial(name: str, *columns: Any, where: str, unique: bool = False) -> Index:
    """An index of the rows that match ``where``."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where))


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can drop them by name."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
        str: Text,
    }


class Recording(Base):
    """Stored audio, as it was uploaded or fetched."""

    __tablename__ = "recordings"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    filename: Mapped[str]
    container: Mapped[str]
    codec: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    duration_ms: Mapped[int | None]
    """As the container claims; decoding finds the true value."""
    upload_ms: Mapped[int]
    """How long the upload took."""
    audio_tracks: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    """See `common.domain.tracks`; empty for recordings of versions that did not probe them."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Job(Base):
    """One resolved request, which never changes, and its progress.

    The columns of one kind of job are in a separate table, such as `Transcription`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of("status", JobStatus), name="status"),
        Index("ix_jobs_tenant_created_at", "tenant", "created_at"),
        Index("ix_jobs_tenant_status", "tenant", "status", "created_at", "id"),
        Index("ix_jobs_tenant_model", "tenant", "model", "status", "created_at", "id"),
        _partial(
            "ix_jobs_tenant_recording",
            "tenant",
            "client_recording_id",
            "created_at",
            where="client_recording_id IS NOT NULL",
        ),
        _partial(
            "ix_jobs_key_unfinished",
            "key_id",
            where="status IN ('PENDING_UPLOAD', 'PENDING', 'PROCESSING')",
        ),
        _partial(
            "ix_jobs_unfinished",
            "status",
            text("coalesce(retried_at, created_at)"),
            where="status IN ('PENDING', 'PROCESSING')",
        ),
        _partial(
            "ix_jobs_processing",
            text("coalesce(resumed_at, started_at)"),
            where="status = 'PROCESSING'",
        ),
        _partial(
            "uq_jobs_tenant_idempotency_key",
            "tenant",
            "idempotency_key",
            unique=True,
            where="idempotency_key IS NOT NULL",
        ),
        _partial("ix_jobs_lately", "engine", "model", "completed_at", where="status = 'COMPLETED'"),
        _partial("ix_jobs_awaited", "created_at", where="status = 'PENDING_UPLOAD'"),
        _partial("ix_jobs_review", "paused_at", where="status = 'REVIEW'"),
        _partial("ix_jobs_sweep_at", "sweep_at", where="sweep_at IS NOT NULL"),
        _partial("ix_jobs_delete_at", "delete_at", where="delete_at IS NOT NULL"),
        _partial("ix_jobs_source", "source_id", where="source_id IS NOT NULL"),
        _partial(
            "ix_jobs_tenant_kind",
            "tenant",
            "kind",
            "created_at",
            "id",
            where="source_id IS NOT NULL",
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    source_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    """The job whose transcript it works on, and whose recording it shares: it is deleted with that
    one. None: it has a transcript of its own."""
    key_id: Mapped[str | None]
    """The API key of the request; None: none was required."""
    recording_id: Mapped[UUID | None] = mapped_column(ForeignKey("recordings.id"), index=True)
    """None until it is stored: in PENDING_UPLOAD, or before the fetch from ``source_url``."""
    kind: Mapped[str] = mapped_column(server_default="transcription")
    """The kind of a pipeline (`common.domain.pipeline`)."""
    status: Mapped[str] = mapped_column(default=JobStatus.PENDING)
    phase: Mapped[str | None]
    """The current or last phase of its pipeline; None: none has begun."""
    priority: Mapped[int] = mapped_column(SmallInteger, default=Priority.NORMAL)
    engine: Mapped[str]
    model: Mapped[str]
    language: Mapped[str]
    """As requested: a Whisper code, or ``auto``."""
    options: Mapped[dict[str, Any]]
    """The rest of the resolved request (see `common.domain.request`)."""
    parts_total: Mapped[int] = mapped_column(server_default=text("0"))
    """The number of parts found so far."""
    parts_known: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether all parts are found."""
    units_total: Mapped[int | None] = mapped_column(BigInteger)
    """The total work, in the unit of its pipeline (milliseconds of the recording, pages); an
    estimate until all parts are known."""
    units_done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The finished work, once for each kind of step that counts."""
    warnings: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    source_url: Mapped[str | None]
    webhook_url: Mapped[str | None]
    """Notified of the job's end, like the tenant's own endpoints."""
    client_metadata: Mapped[Any | None] = mapped_column("metadata", JSON(none_as_null=True))
    """The client's own, returned unchanged: JSON, not JSONB, which would sort its keys."""
    client_recording_id: Mapped[str | None]
    """The client's own name for the recording, returned unchanged."""
    idempotency_key: Mapped[str | None]
    """A repeated request with this key returns the same job."""
    request_sha256: Mapped[str | None]
    """Of the request with the idempotency key, its recording included."""
    delete_after_s: Mapped[int | None]
    """Seconds after its end at which the job is deleted with all its data; None: never."""
    delete_at: Mapped[datetime | None]
    """The time of that, once it has ended."""
    sweep_at: Mapped[datetime | None]
    """When to delete its chunk files (again); None: there are none, or they are needed."""
    request_id: Mapped[str | None]
    """Of the HTTP request that created it, for the logs of workers."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retried_at: Mapped[datetime | None]
    """When it was last retried after a failure; None: never."""
    started_at: Mapped[datetime | None]
    resumed_at: Mapped[datetime | None]
    """When it was last resumed after it had waited for a person; None: never."""
    paused_at: Mapped[datetime | None]
    """When it last began to wait for a person. None: never, or it was resumed and has later phases.
    It stays while the job is retried, so that it can wait again."""
    reviewed_by: Mapped[str | None]
    """The API key that approved its result; None: none was required, or nobody has."""
    completed_at: Mapped[datetime | None]

    recording: Mapped[Recording | None] = relationship(lazy="raise")
    transcription: Mapped[Transcription] = relationship(lazy="raise", viewonly=True)


class Transcription(Base):
    """The columns of a transcription job; created with the job."""

    __tablename__ = "transcriptions"

    job_id: Mapped[OfJob]
    detected_language: Mapped[str | None]
    language_probabilities: Mapped[dict[str, Any] | None]
    """Of the detected languages, if detection was requested."""
    audio_track: Mapped[int | None] = mapped_column(SmallInteger)
    """The index of the transcribed track; None: the one FFmpeg would play."""
    weights_sha256: Mapped[str | None]
    """Of the weights that the plan found; every chunk must be transcribed by the same ones."""
    models: Mapped[dict[str, Any] | None]
    """With several languages, the `ChosenModel` of each, and of `ANY_LANGUAGE`: that which detects
    them."""
    channels: Mapped[list[Any] | None]
    """The channels that are transcribed separately, by number; None: the mix is, or the job is not
    planned yet."""
    charged_ms: Mapped[int] = mapped_column(server_default=text("0"))
    """The audio charged for it in `DailyUsage`."""


class StreamSession(Base):
    """A live stream. Its audio is not stored; its text is in `StoredFinal`."""

    __tablename__ = "stream_sessions"
    __table_args__ = (
        Index("ix_stream_sessions_tenant_created_at", "tenant", "created_at"),
        _partial("ix_stream_sessions_live", "seen_at", where="ended_at IS NULL"),
        _partial("ix_stream_sessions_delete_at", "delete_at", where="delete_at IS NOT NULL"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str | None]
    """The API key of the request; None: none was required."""
    request_id: Mapped[str | None]
    """Of the HTTP request that opened it."""
    engine: Mapped[str]
    model: Mapped[str]
    language: Mapped[str]
    """The current value, like engine and model: a client may change them during the stream."""
    moderation: Mapped[bool]
    client_recording_id: Mapped[str | None]
    client_metadata: Mapped[Any | None] = mapped_column("metadata", JSON(none_as_null=True))
    """The client's own, as in `Job`."""
    audio_ms: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Received audio; all of it is charged in `DailyUsage`."""
    latency_ms: Mapped[int | None]
    """Median over its finals, once it has ended; None: it had none."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """The last heartbeat of its gateway."""
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    """``completed``, ``interrupted`` (its gateway sent no more heartbeats), or the code of the
    error that ended it."""
    delete_after_s: Mapped[int | None]
    """Seconds after its end at which it is deleted; None: never."""
    delete_at: Mapped[datetime | None]
    """The time of that, once it has ended."""


class StoredFinal(Base):
    """The text of one utterance of a stream. It never changes, but moderation is added."""

    __tablename__ = "stream_finals"

    session_id: Mapped[UUID] = mapped_column(
        ForeignKey("stream_sessions.id", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True)
    """The number of its message to the client; ascending, with gaps."""
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    """On the stream's own clock."""
    engine: Mapped[str]
    model: Mapped[str]
    language: Mapped[str]
    segments: Mapped[list[Any]]
    """As in `TranscriptRevision`, with moderation."""
    latency_ms: Mapped[int]
    """From the end of the utterance to its text."""
    moderation: Mapped[dict[str, Any] | None]
    """The model that moderated the segments; None: they are not moderated."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Deletion(Base):
    """The record of a deleted job, stream or voice, and of its verified erasure."""

    __tablename__ = "deletions"
    __table_args__ = (
        CheckConstraint(_one_of("kind", Kind), name="kind"),
        Index("ix_deletions_tenant_requested_at", "tenant", "requested_at"),
        _partial("ix_deletions_due", "requested_at", where="erased_at IS NULL"),
    )

    id: Mapped[UUID] = mapped_column("job_id", primary_key=True)
    """The id of the job, the stream or the voice."""
    kind: Mapped[str] = mapped_column(server_default=Kind.JOB)
    tenant: Mapped[str]
    recording_id: Mapped[UUID | None]
    """The recording to erase."""
    reason: Mapped[str]
    """``request`` or ``retention``."""
    rows: Mapped[int]
    """Deleted in Postgres, in the transaction that created this row."""
    files: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Erased in the storage so far."""
    requested_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased_at: Mapped[datetime | None]
    """Set once erasure is verified: the storage has nothing of the job, and no worker can write for
    it any more. Streams and voices have no files: it is set at once."""


class Part(Base):
    """A part of a job with steps of its own: a chunk of a recording, a page."""

    __tablename__ = "parts"

    job_id: Mapped[OfJob]
    index: Mapped[int] = mapped_column(primary_key=True)
    units: Mapped[int]
    """Its share of the job's ``units_total``."""
    data: Mapped[list[Any]]
    """The data of its pipeline. Of a chunk, its windows: one ``[core start, core end,
    audio start, audio end, speech]`` each, in ms; of a single channel, after its number."""
    content_hash: Mapped[str] = mapped_column(index=True)
    """Of everything its result depends on: equal hashes, equal results. Of a chunk: PCM, windows,
    engine, weights and options."""


class Step(Base):
    """A unit of work of a job's pipeline that a worker claims, and its result."""

    __tablename__ = "steps"
    __table_args__ = (
        CheckConstraint(_one_of("status", StepStatus), name="status"),
        UniqueConstraint("job_id", "kind", "part", postgresql_nulls_not_distinct=True),
        _partial(
            "ix_steps_unfinished", "status", "job_id", where="status IN ('pending', 'running')"
        ),
        _partial(
            "ix_steps_handed_out",
            "status",
            "kind",
            where="status = 'running' OR (status = 'pending' AND rq_job_id IS NOT NULL)",
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str]
    part: Mapped[int | None]
    """The index of its part; None: it is about the whole job."""
    status: Mapped[str] = mapped_column(default=StepStatus.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    """How often it was claimed."""
    failures: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    token: Mapped[UUID | None]
    """Proof of the claim: only the holder of the newest token may write."""
    lease_until: Mapped[datetime | None]
    run_after: Mapped[datetime] = mapped_column(server_default=func.now())
    worker: Mapped[str | None]
    rq_job_id: Mapped[str | None]
    """The RQ job in which it was published, or runs; None: it is not published."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    result: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    """Its result, if that is stored here (`common.transcripts`)."""
    elapsed_ms: Mapped[int | None]
    """How long its work took, as the step measured it; 0 if the result was reused."""
    stored_count: Mapped[int] = mapped_column(server_default=text("0"))
    """How often its end was recorded: at most once."""


class StepFailure(Base):
    """Why an attempt at a step failed."""

    __tablename__ = "failures"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str]
    part: Mapped[int | None]
    attempt: Mapped[int]
    code: Mapped[str]
    message: Mapped[str]
    cost: Mapped[dict[str, Any] | None]
    """What it used up, such as tokens (`common.errors.StenoError.cost`)."""
    worker: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Outbox(Base):
    """Steps to be published; written in the transaction that adds the step.

    The dispatcher queues a due step (`JobTurn`) and then fills in the columns it is found by.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        _partial("ix_outbox_new", "due_at", "id", where="job_id IS NULL"),
        _partial(
            "ix_outbox_in_line",
            "job_id",
            text("part NULLS FIRST"),
            "id",
            where="job_id IS NOT NULL",
        ),
        _partial(
            "ix_outbox_waiting",
            "priority",
            "kind",
            "due_at",
            # Not of job_id, or Postgres might look for a job's steps here.
            where="kind IS NOT NULL",
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    step_id: Mapped[UUID] = mapped_column(ForeignKey("steps.id", ondelete="CASCADE"), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """The ``run_after`` of its step."""
    job_id: Mapped[UUID | None]
    """None until it is queued. No foreign key: it would lock the job's row."""
    priority: Mapped[int | None] = mapped_column(SmallInteger)
    kind: Mapped[str | None]
    part: Mapped[int | None]


class JobTurn(Base):
    """A job with queued steps; see `common.domain.fair_order`.

    Written by the holder of `TURNS_LOCK`.
    It may outlive its job or the steps for a while: a foreign key would lock the job's row.
    """

    __tablename__ = "job_turns"
    __table_args__ = (
        Index("ix_job_turns_shortest", "remote", "priority", "tenant", "size", "since"),
        Index("ix_job_turns_longest", "remote", "priority", "tenant", "since"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger)
    tenant: Mapped[str]
    remote: Mapped[bool]
    """Whether it waits for a step of a limited kind, such as a fetch."""
    size: Mapped[int] = mapped_column(SmallInteger)
    since: Mapped[int] = mapped_column(BigInteger)
    passed: Mapped[int] = mapped_column(SmallInteger, default=0)


class TenantTurn(Base):
    """A tenant with queued jobs; ``size`` is that of its shortest job, and may be outdated."""

    __tablename__ = "tenant_turns"
    __table_args__ = (
        Index("ix_tenant_turns_shortest", "remote", "priority", "size", "since"),
        Index("ix_tenant_turns_longest", "remote", "priority", "since"),
    )

    priority: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    remote: Mapped[bool] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(SmallInteger)
    since: Mapped[int] = mapped_column(BigInteger)
    passed: Mapped[int] = mapped_column(SmallInteger, default=0)


TURNS = Sequence("turns", metadata=Base.metadata)
"""Numbers the turns."""
TURNS_LOCK = 7_319_483
"""The key of the advisory lock of the publishing dispatcher, arbitrary but fixed."""


class TranscriptRevision(Base):
    """A version of a recording's text; a job's newest revision is its result.

    The first is that of the merge, numbered 1. Later ones are never changed or deleted either, as
    long as the job exists; only the times and the moderation of edited words are completed.
    """

    __tablename__ = "transcripts"

    job_id: Mapped[OfJob]
    revision: Mapped[int] = mapped_column(primary_key=True)
    language: Mapped[str]
    duration_ms: Mapped[int]
    word_count: Mapped[int]
    segments: Mapped[list[Any]]
    diarization: Mapped[dict[str, Any] | None]
    """Who speaks when (`common.domain.speakers.Diarization`); None: that was not requested."""
    manifest: Mapped[dict[str, Any]]
    origin: Mapped[str] = mapped_column(server_default=Origin.MERGE)
    """What made it: an `Origin`."""
    key_id: Mapped[str | None]
    """The API key of who made it; None: a worker did, or none was required."""
    note: Mapped[str | None]
    """Why, in the words of who made it."""
    changes: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    """What it changed of the revision before."""
    refinements: Mapped[int] = mapped_column(server_default=text("0"))
    """How often the times of its words, or its moderation, were completed. Its text never
    changes."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class StoredEnhancement(Base):
    """What the second AI step has made of a revision of a transcript; its request is in `Job`.

    It is there once the transcript is divided.
    """

    __tablename__ = "enhancements"

    job_id: Mapped[OfJob]
    revision: Mapped[int]
    """Of the transcript of the job's source: all segments are numbered as in it."""
    language: Mapped[str]
    """Of the answer."""
    result: Mapped[dict[str, Any] | None]
    """See `common.domain.enhancement.combine`; None: there is none yet."""
    missing: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    """The segments that the result knows nothing of (`common.domain.enhancement.missing`)."""
    model: Mapped[str | None]
    """As the server names it."""
    input_tokens: Mapped[int | None] = mapped_column(BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(BigInteger)
    """Of all answers, those that were rejected too; None: the server does not count them."""
    elapsed_ms: Mapped[int | None] = mapped_column(BigInteger)
    """How long these answers took, one after the other."""


class StoredPassage(Base):
    """A passage of a job's newest transcript, or of an ended stream: what a search finds.

    Its text and lexemes are stored outside the row: a search for frequent words reads many rows,
    and of few of them more than when and whose they are.
    """

    __tablename__ = "passages"
    __table_args__ = (
        Index("ix_passages_lexemes", "lexemes", postgresql_using="gin"),
        Index("ix_passages_source", "source_id"),
        {"postgresql_with": {"toast_tuple_target": 128}},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """Ascends with the time at which a text was stored."""
    tenant: Mapped[str]
    kind: Mapped[str]
    """``job`` or ``stream``."""
    source_id: Mapped[UUID]
    """The job or the stream, without a foreign key as it is one of either."""
    created_at: Mapped[datetime]
    """When the job or the stream was created."""
    segments: Mapped[list[Any]]
    """See `common.domain.searching.Passage`, as the text is shown: masked if the upload asked for
    it."""
    shared: Mapped[int] = mapped_column(SmallInteger)
    lexemes: Mapped[Any] = mapped_column(TSVECTOR)
    """See `common.domain.searching.lexemes_of`; and whose and how old it is
    (`common.db.search`)."""


class Unindexed(Base):
    """A job or a stream whose text has no passages yet.

    It was stored before there were any, or before an update that changes what is indexed.
    """

    __tablename__ = "unindexed"

    source_id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(index=True)
    """Of the job or the stream."""


class JobMetrics(Base):
    """Where a finished job's time went, in milliseconds."""

    __tablename__ = "job_metrics"

    job_id: Mapped[OfJob]
    audio_ms: Mapped[int] = mapped_column(Integer)
    speech_ms: Mapped[int] = mapped_column(Integer)
    upload_ms: Mapped[int] = mapped_column(Integer)
    waited_ms: Mapped[int] = mapped_column(Integer)
    """From creation, or the last retry, to the first claim."""
    plan_ms: Mapped[int] = mapped_column(Integer)
    engine_ms: Mapped[int] = mapped_column(Integer)
    """Summed over chunks: more than the wall time when several workers shared the job."""
    moderation_ms: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """Summed likewise."""
    diarization_ms: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    merge_ms: Mapped[int] = mapped_column(Integer)
    wall_ms: Mapped[int] = mapped_column(Integer)
    """From creation, or the last retry, to completion."""
    attempts: Mapped[int] = mapped_column(Integer)
    """Attempts over all existing steps; the number of steps if nothing went wrong."""


class Tenant(Base):
    """The settings of a tenant; one without a row has the defaults."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    tier: Mapped[str] = mapped_column(server_default="standard")
    """Its class in metrics: many tenants, few classes."""
    delete_after_s: Mapped[int | None]
    """The default of its jobs; None: that of the settings."""
    review: Mapped[bool] = mapped_column(server_default=text("false"))
    """The default of its jobs: whether a person has to approve their text."""
    secrets: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    """These sign messages to jobs' own webhook URLs (see `WebhookEndpoint.secrets`)."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class StoredChatServer(Base):
    """A tenant's own server of language models, in place of that of the settings."""

    __tablename__ = "chat_servers"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    base_url: Mapped[str]
    model: Mapped[str]
    api_key: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    """Encrypted if SECRETS_KEY is set (`common.db.vault.Cipher.seal`)."""
    context_tokens: Mapped[int | None]
    max_output_tokens: Mapped[int | None]
    """None: those of the settings."""
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Voice(Base):
    """An enrolled voice: what a person who agreed to it is recognized by."""

    __tablename__ = "voices"
    __table_args__ = (Index("ix_voices_tenant_created_at", "tenant", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant: Mapped[str]
    name: Mapped[str]
    embedding: Mapped[Any] = mapped_column(JSONB)
    """In base64; encrypted if VOICE_KEY is set (`common.db.vault.Cipher.seal`)."""
    sampled_ms: Mapped[int]
    """Of the speech that the embedding was made of."""
    network: Mapped[str]
    """The network that made the embedding: only those of the same one are compared."""
    narrow: Mapped[bool]
    """Whether it came over a telephone."""
    consent_by: Mapped[str]
    """Who agreed, as the client says."""
    consent_note: Mapped[str | None]
    key_id: Mapped[str | None]
    """The API key that enrolled it; None: none was required."""
    job_id: Mapped[UUID]
    speaker: Mapped[str]
    """Whose voice it is in that job. The job may be deleted, the voice stays."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it was enrolled, and the consent recorded."""


class StoredGlossary(Base):
    """A tenant's named list of words (`common.domain.glossary`)."""

    __tablename__ = "glossaries"
    __table_args__ = (
        UniqueConstraint("tenant", "name", name="uq_glossaries_tenant_name"),
        Index("ix_glossaries_tenant_created_at", "tenant", "created_at", "id"),
        _partial("uq_glossaries_default", "tenant", unique=True, where="is_default"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant: Mapped[str]
    name: Mapped[str]
    entries: Mapped[list[Any]]
    """``{"word": ..., "instead_of": [...]}`` each."""
    rewrite: Mapped[bool]
    """Whether the spellings are replaced in texts."""
    language: Mapped[str | None]
    """The language of jobs that may use it; None: all."""
    is_default: Mapped[bool]
    """Whether jobs that name no glossary use it; one of a tenant."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Replacement(Base):
    """Words that a person has replaced in a job's transcript."""

    __tablename__ = "replacements"
    __table_args__ = (Index("ix_replacements_tenant", "tenant", "before", "after", "at"),)

    job_id: Mapped[OfJob]
    before: Mapped[str] = mapped_column(primary_key=True)
    """In small letters."""
    after: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """An API key; its secret part is not stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    """The public part of the key."""
    tenant: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str]
    """Of the secret part, which has 256 random bits: a slow hash would add nothing."""
    scopes: Mapped[list[Any]]
    limits: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """Those that differ from the settings."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""


class LinkSecret(Base):
    """The secret that signs links (`api.auth.links`): one row, which the migration makes."""

    __tablename__ = "link_secret"

    secret: Mapped[bytes] = mapped_column(primary_key=True)


class DailyUsage(Base):
    """The usage of a key on one day (UTC). Deleting jobs does not lower it."""

    __tablename__ = "usage_days"
    __table_args__ = (
        Index("ix_usage_days_key", "key_id", "day"),
        Index("ix_usage_days_tenant", "tenant", "day"),
    )

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    """Empty: no key was required."""
    day: Mapped[date] = mapped_column(primary_key=True)
    jobs: Mapped[int] = mapped_column(server_default=text("0"))
    audio_ms: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """As the recordings' containers claim, corrected after decoding; of streams as received."""


class WebhookEndpoint(Base):
    """A URL of a tenant that is notified of the ends of its jobs."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    tenant: Mapped[str] = mapped_column(index=True)
    url: Mapped[str]
    events: Mapped[list[Any]]
    description: Mapped[str] = mapped_column(server_default="")
    secrets: Mapped[list[Any]]
    """``{"secret": "whsec_...", "until": null}``, and after a rotation also the earlier one for a
    while: messages are signed with all valid secrets. Encrypted if SECRETS_KEY is set
    (`common.db.vault`).
    """
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Failed deliveries since the last successful one."""
    paused_at: Mapped[datetime | None]
    paused_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """A message to one URL, written in the transaction that ends its job."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint(_one_of("status", DeliveryStatus), name="status"),
        _partial("ix_webhook_deliveries_due", "due_at", where="status = 'pending'"),
        Index("ix_webhook_deliveries_tenant_created_at", "tenant", "created_at"),
        Index("ix_webhook_deliveries_tenant_status", "tenant", "status", "created_at", "id"),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "status", "created_at", "id"),
        _partial(
            "ix_webhook_deliveries_leased",
            "lease_until",
            where="status = 'pending' AND lease_until IS NOT NULL",
        ),
        _partial("ix_webhook_deliveries_ended", "ended_at", where="status <> 'pending'"),
        _partial(
            "ix_webhook_deliveries_orphaned",
            "id",
            where="job_id IS NULL AND event <> 'test' AND status <> 'pending'",
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    """The ``webhook-id``, the same in every attempt."""
    tenant: Mapped[str]
    endpoint_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
    )
    """None: to the job's own ``webhook_url``."""
    job_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    """None: a test, or the job was deleted before delivery."""
    event: Mapped[str]
    url: Mapped[str]
    lane: Mapped[str] = mapped_column(
        Computed("tenant || ' ' || substring(url from '^[^/]*//[^/?#]*')", persisted=True)
    )
    """Its tenant and host: a hanging host must not delay the messages of other lanes."""
    payload: Mapped[str]
    """The body, byte for byte: what is signed must be what is sent."""
    status: Mapped[str] = mapped_column(default=DeliveryStatus.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    """How often sending it was begun."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Failed attempts since it was written or redelivered."""
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    token: Mapped[UUID | None]
    """Proof of the sender's claim, valid until ``lease_until``."""
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """The outcome of one attempt at a delivery."""

    __tablename__ = "webhook_attempts"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    delivery_id: Mapped[UUID] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), index=True
    )
    attempt: Mapped[int]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    """Why there was no response, or why it was an error."""
    duration_ms: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Tally(Base):
    """The value of a counter, increased in the transaction of the counted event."""

    __tablename__ = "tallies"

    name: Mapped[str] = mapped_column(primary_key=True)
    labels: Mapped[str] = mapped_column(primary_key=True)
    """The values of the metric's labels in its own order, as a JSON array; a histogram's counts
    have a bound at the end."""
    value: Mapped[float] = mapped_column(server_default=text("0"))
