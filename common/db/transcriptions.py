"""The SQL of the transcription pipeline: what its steps read and store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import starmap
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from common.db.counting import count_durations
from common.db.database import Database
from common.db.flow import Flow
from common.db.search import index_transcript
from common.db.steps import Within
from common.db.tables import Job, JobMetrics, Part, Recording, Step, TranscriptRevision
from common.db.usage import charge_decoded, correct
from common.domain.chunks import chunk_from_json
from common.domain.job import StepStatus
from common.domain.models import ModelName
from common.domain.pipeline import StepKind
from common.domain.request import Options
from common.domain.speakers import Diarization
from common.domain.tracks import Track, check_channels
from common.domain.transcript import Origin, Transcript, segments_to_json
from common.domain.values import Chunk


@dataclass(frozen=True, slots=True)
class NewRecording:
    """A stored recording, not committed yet; ``sha256`` is lower-case hex."""

    id: UUID
    filename: str
    container: str
    codec: str
    size_bytes: int
    sha256: str
    duration_ms: int | None
    upload_ms: int
    tracks: tuple[Track, ...] = ()

    def row(self, tenant: str) -> Recording:
        """The row to commit."""
        values = asdict(self)
        return Recording(tenant=tenant, audio_tracks=list(values.pop("tracks")), **values)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """A chunk and the results of its steps; None: that step is not done.

    ``data``: its stored form (`common.domain.chunks`). ``result``: the segments of each window
    (`common.transcripts`). ``moderation``: their labels, and the model that gave them.
    ``diarization``: stretches of voices (`common.domain.speakers`), and what found them (``by``);
    only the merge reads it.
    """

    index: int
    data: list[Any]
    content_hash: str
    result: list[Any] | None
    engine_ms: int | None
    moderation: dict[str, Any] | None
    moderation_ms: int | None
    diarization: dict[str, Any] | None = None
    diarization_ms: int | None = None

    @property
    def chunk(self) -> Chunk:
        return chunk_from_json(self.index, self.data)


_TRANSCRIBED, _MODERATED, _DIARIZED = aliased(Step), aliased(Step), aliased(Step)


def select_chunks(job_id: UUID, first: int = 0) -> Select[Any]:
    """Selects a job's chunks from ``first`` on, in order, with the columns of `ChunkResult`."""
    return (
        select(
            Part.index,
            Part.data,
            Part.content_hash,
            _TRANSCRIBED.result,
            _TRANSCRIBED.elapsed_ms,
            _MODERATED.result.label("moderation"),
            _MODERATED.elapsed_ms.label("moderation_ms"),
        )
        .outerjoin(_TRANSCRIBED, _done(_TRANSCRIBED, StepKind.TRANSCRIBE))
        .outerjoin(_MODERATED, _done(_MODERATED, StepKind.MODERATE))
        .where(Part.job_id == job_id, Part.index >= first)
        .order_by(Part.index)
    )


def _done(step: Any, kind: StepKind) -> Any:
    return and_(
        step.job_id == Part.job_id,
        step.part == Part.index,
        step.kind == kind,
        step.status == StepStatus.DONE,
    )


class Transcriptions:
    """Queries of workers about transcriptions, for all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def is_stored(self, recording_id: UUID) -> bool:
        """Whether a recording is committed."""
        with self._database.transaction() as session:
            return session.get(Recording, recording_id) is not None

    def planned(self, job_id: UUID, kinds: Sequence[str]) -> dict[int, tuple[str, bool]]:
        """The chunks of an earlier attempt, by index.

        Of each the content hash, and whether its steps of all these ``kinds`` are done.
        """
        done = (
            select(func.count())
            .select_from(Step)
            .where(
                Step.job_id == Part.job_id,
                Step.part == Part.index,
                Step.kind.in_(kinds),
                Step.status == StepStatus.DONE,
            )
            .correlate(Part)
            .scalar_subquery()
        )
        with self._database.transaction() as session:
            rows = session.execute(
                select(Part.index, Part.content_hash, done == len(kinds)).where(
                    Part.job_id == job_id
                )
            )
            return {index: (content_hash, done) for index, content_hash, done in rows}

    def to_merge(self, job_id: UUID) -> tuple[list[ChunkResult], int]:
        """All chunks of a job, in order, and the duration of planning in ms."""
        plan = select(Step.elapsed_ms).where(Step.job_id == job_id, Step.kind == StepKind.PLAN)
        chunks_with_voices = (
            select_chunks(job_id)
            .add_columns(_DIARIZED.result.label("diarization"), _DIARIZED.elapsed_ms)
            .outerjoin(_DIARIZED, _done(_DIARIZED, StepKind.DIARIZE))
        )
        with self._database.transaction() as session:
            chunks = list(starmap(ChunkResult, session.execute(chunks_with_voices)))
            return chunks, session.scalar(plan) or 0

    def newest(self, job_id: UUID) -> TranscriptRevision:
        """The newest revision of a job that has one."""
        with self._database.transaction() as session:
            return session.scalars(newest_revision(job_id)).one()

    def revised(self, job_id: UUID) -> TranscriptRevision | None:
        """The newest revision, if there is any that the steps of the job have not made."""
        by_others = select(TranscriptRevision.revision).where(
            TranscriptRevision.job_id == job_id, TranscriptRevision.origin != Origin.MERGE
        )
        with self._database.transaction() as session:
            return session.scalar(newest_revision(job_id).where(by_others.exists()))

    def warnings(self, job_id: UUID) -> list[str]:
        """Those of a job; none if it is deleted."""
        with self._database.transaction() as session:
            return session.scalar(select(Job.warnings).where(Job.id == job_id)) or []

    def diarization(self, job_id: UUID) -> Diarization | None:
        """That of the newest transcript, if there is one."""
        newest = newest_revision(job_id).with_only_columns(TranscriptRevision.diarization)
        with self._database.transaction() as session:
            stored = session.scalar(newest)
        return None if stored is None else Diarization.from_json(stored)


def recording_fetched(recording: NewRecording) -> Within:
    """Store the fetched recording of a job.

    Raises:
        UnknownOption: it lacks the audio track that the job asks for.
        OutOfRange: that has too many channels to transcribe each.
    """

    def store(session: Session, job: Job) -> None:
        session.add(recording.row(job.tenant))
        session.flush()
        options = Options.from_json(job.options)
        check_channels(recording.tracks, options.audio_track, options.channels)
        job.recording_id, job.units_total = recording.id, recording.duration_ms
        # Its query may be a signature, and is no longer needed.
        job.source_url = (job.source_url or "").partition("?")[0]
        session.flush()
        charge_decoded(session, job.id, recording.duration_ms or 0)

    return store


def audio_decoded(decoded_ms: int) -> Within:
    """Charge the job at least ``decoded_ms``; they stay charged, however the job ends."""
    return lambda session, job: charge_decoded(session, job.id, decoded_ms)


def plan_begun(
    *,
    name: ModelName,
    weights_sha256: str,
    language: str,
    audio_track: int | None,
    replan: bool,
    models: dict[str, Any] | None = None,
    channels: Sequence[int] = (),
) -> Within:
    """Store what all chunks of the job share; with ``replan`` delete an earlier plan.

    ``models``: as in `Transcription`. ``channels``: those that are transcribed separately.
    """

    def store(session: Session, job: Job) -> None:
        job.engine, job.model = name.engine, name.model
        job.transcription.weights_sha256 = weights_sha256
        job.transcription.detected_language = language
        job.transcription.audio_track = audio_track
        job.transcription.models = models
        job.transcription.channels = list(channels) or None
        if replan:
            Flow(session, job).forget_parts()

    return store


def plan_ended(
    *, duration_ms: int, warnings: Iterable[str], languages: Mapping[str, float]
) -> Within:
    """Store what is known about the whole recording.

    ``languages``: the probabilities of the detected ones.
    """

    def store(session: Session, job: Job) -> None:
        job.units_total = duration_ms
        # A retry for what is missing keeps those of its text.
        if job.completed_at is None and job.paused_at is None:
            job.warnings = list(warnings)
        job.transcription.language_probabilities = dict(languages) or None
        correct(session, job.id, duration_ms)

    return store


def merged(transcript: TranscriptRevision, metrics: JobMetrics, warnings: list[str]) -> Within:
    """Store the transcript as the newest revision, and the durations of the stages."""

    def store(session: Session, job: Job) -> None:
        store_revision(session, job, transcript)
        job.warnings = warnings
        now = session.scalars(select(func.clock_timestamp())).one()
        asked_at = job.retried_at or job.created_at
        metrics.waited_ms = _ms(asked_at, job.started_at or now)
        metrics.wall_ms = _ms(asked_at, now)
        # Attempts with an outcome: those that were handed back have none.
        ended = Step.failures + Step.losses + case((Step.status == StepStatus.DONE, 1), else_=0)
        attempts = select(func.sum(ended)).where(Step.job_id == job.id)
        metrics.attempts = session.scalar(attempts) or 0
        session.merge(metrics)
        if transcript.revision == 1:  # otherwise they were counted
            count_durations(session, metrics)

    return store


def refined(transcript: Transcript, manifest: dict[str, Any]) -> Within:
    """Complete the newest revision: the times of its words and its moderation, not its text.

    Then searches find it: indexing it takes longer than an edit, and masks need the moderation.
    """

    def store(session: Session, job: Job) -> None:
        revision = session.scalars(newest_revision(job.id)).one()
        segments = segments_to_json(transcript.segments)
        if (revision.segments, revision.manifest) != (segments, manifest):
            revision.segments, revision.manifest = segments, manifest
            revision.refinements += 1
        index_transcript(session, job, revision)

    return store


def newest_revision(
    job_id: UUID | InstrumentedAttribute[UUID | None],
) -> Select[TranscriptRevision]:
    """Selects the newest revision of a job's transcript, if there is any."""
    return (
        select(TranscriptRevision)
        .where(TranscriptRevision.job_id == job_id)
        .order_by(TranscriptRevision.revision.desc())
        .limit(1)
    )


def newest_number(job_id: UUID | InstrumentedAttribute[UUID | None]) -> Select[int]:
    """Selects the number of that revision; its text, which may be long, is not read."""
    return newest_revision(job_id).with_only_columns(TranscriptRevision.revision)


def transcript_in(row: TranscriptRevision) -> Transcript:
    """The transcript of a revision."""
    return Transcript.from_json(
        row.segments,
        language=row.language,
        duration_ms=row.duration_ms,
        manifest=row.manifest,
        diarization=row.diarization,
    )


def row_of(
    job_id: UUID, transcript: Transcript, manifest: dict[str, Any], origin: Origin
) -> TranscriptRevision:
    """A revision with this transcript, before `store_revision` numbers and stores it."""
    return TranscriptRevision(
        job_id=job_id,
        language=transcript.language,
        duration_ms=transcript.duration_ms,
        word_count=transcript.word_count,
        segments=segments_to_json(transcript.segments),
        diarization=transcript.diarization and transcript.diarization.to_json(),
        manifest=manifest,
        origin=origin,
    )


def store_revision(session: Session, job: Job, transcript: TranscriptRevision) -> None:
    """Store ``transcript`` as the newest revision of ``job``, whose row is locked, and number it.

    One that the merge has not made is refined afterwards, and found by searches then.
    """
    transcript.revision = (session.scalar(newest_number(job.id)) or 0) + 1
    session.add(transcript)
    if transcript.origin == Origin.MERGE:
        index_transcript(session, job, transcript)
    else:
        Flow(session, job).add_afterwards(StepKind.REFINE)


def _ms(start: datetime, end: datetime) -> int:
    return round((end - start).total_seconds() * 1000)
