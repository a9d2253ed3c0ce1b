"""Queries about the second AI step: of its steps for all tenants, of the gateway within one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.flow import OPEN
from common.db.jobs import Jobs
from common.db.listing import JobFilter, JobLists
from common.db.paging import Cursor, Page
from common.db.snapshots import Snapshot
from common.db.steps import StaleClaim, Within
from common.db.tables import (
    Job,
    Part,
    Step,
    StepFailure,
    StoredEnhancement,
    TranscriptRevision,
)
from common.db.transcriptions import newest_number, newest_revision, transcript_in
from common.domain.enhancement import Enhancement, NumberedSegment, Result, numbered
from common.domain.enhancing.options import EnhancementOptions
from common.domain.job import StepStatus
from common.domain.pipeline import ENHANCEMENT, StepKind
from common.domain.request import Options
from common.errors import AnswerRejected, NotFound, NotModerated


@dataclass(frozen=True, slots=True)
class Material:
    """What an enhancement works on: ``segments`` of a ``revision`` of its source's transcript."""

    work: Enhancement
    revision: int
    duration_ms: int
    segments: tuple[NumberedSegment, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A request as it is stored, ``data``, and the result of its step.

    ``result`` is None if it failed; ``answer`` has its tokens and its model beside it.
    """

    index: int
    data: list[Any]
    answer: Mapping[str, Any] | None
    elapsed_ms: int | None

    @property
    def result(self) -> Result | None:
        return None if self.answer is None else self.answer["result"]


class Enhancing:
    """What the steps of enhancements read and store, for all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def material(self, job: Job) -> Material:
        """What ``job`` works on: the newest revision when it was divided, or is about to be.

        It is masked if its source is (`Options.filter_profanity`).

        Raises:
            StaleClaim: the source is deleted.
            NotModerated: before it is divided, the last change of a masked source is not moderated.
        """
        with self._database.transaction() as session:
            assert job.source_id is not None  # noqa: S101 - what such jobs are about
            stored = session.get(StoredEnhancement, job.id)
            wanted = newest_revision(job.source_id)
            if stored is not None:
                wanted = wanted.where(TranscriptRevision.revision == stored.revision)
            row = session.scalar(wanted)
            source = session.scalar(select(Job.options).where(Job.id == job.source_id))
            if row is None or source is None:
                raise StaleClaim
            hide = Options.from_json(source).filter_profanity
            if hide and stored is None and _is_refined_later(session, job.source_id):
                raise NotModerated
            transcript = transcript_in(row)
        options = options_of(job.options)
        return Material(
            replace(options.work(transcript.language), is_masked=hide),
            row.revision,
            transcript.duration_ms,
            numbered(transcript, hide=hide),
        )

    def answers(self, job_id: UUID) -> list[Answered]:
        """All requests of a job, in order, with their answers."""
        done = and_(
            Step.job_id == Part.job_id,
            Step.part == Part.index,
            Step.kind == StepKind.ASK,
            Step.status == StepStatus.DONE,
        )
        with self._database.transaction() as session:
            rows = session.execute(
                select(Part.index, Part.data, Step.result, Step.elapsed_ms)
                .outerjoin(Step, done)
                .where(Part.job_id == job_id)
                .order_by(Part.index)
            )
            return [Answered(*row) for row in rows]

    def lost_costs(self, job_id: UUID) -> list[Mapping[str, int]]:
        """What attempts at requests of a job took that have no usable answer."""
        with self._database.transaction() as session:
            rows = session.scalars(
                select(StepFailure.cost).where(
                    StepFailure.job_id == job_id,
                    StepFailure.kind == StepKind.ASK,
                    StepFailure.cost.is_not(None),
                )
            )
            return [cost for cost in rows if cost is not None]

    def rejected(self, job_id: UUID, part: int) -> AnswerRejected | None:
        """Why the last answer to a request was rejected; None: it was not."""
        failure = self._failure(StepFailure.job_id == job_id, StepFailure.part == part)
        if failure is None or failure.code != AnswerRejected.code:
            return None
        beginning = AnswerRejected(reason="").message
        return AnswerRejected(reason=failure.message.removeprefix(beginning))

    def last_error(self, job_id: UUID) -> str:
        """Why the last request of a job failed."""
        failure = self._failure(StepFailure.job_id == job_id, StepFailure.kind == StepKind.ASK)
        return "" if failure is None else failure.message

    def _failure(self, *where: Any) -> StepFailure | None:
        with self._database.transaction() as session:
            return session.scalar(
                select(StepFailure).where(*where).order_by(StepFailure.id.desc()).limit(1)
            )


def _is_refined_later(session: Session, job_id: UUID) -> bool:
    of_job = (Step.job_id == job_id, Step.kind == StepKind.REFINE)
    return session.scalar(select(Step.id).where(*of_job, Step.status.in_(OPEN))) is not None


def divided(material: Material) -> Within:
    """Stores what an enhancement works on; its units are milliseconds of the recording."""

    def store(session: Session, job: Job) -> None:
        session.merge(
            StoredEnhancement(
                job_id=job.id, revision=material.revision, language=material.work.language
            )
        )
        job.language = material.work.language
        job.units_total = material.duration_ms
        job.parts_known = True

    return store


@dataclass(frozen=True, slots=True)
class Spent:
    """What the requests of an enhancement took so far; None: the server does not count tokens."""

    input_tokens: int | None
    output_tokens: int | None
    elapsed_ms: int | None


def spent(answers: Sequence[Answered], lost: Sequence[Mapping[str, int]]) -> Spent:
    """What ``answers`` took, and attempts without a usable one (`Enhancing.lost_costs`).

    Each attempt is stored once, as an answer or as a failure, so it counts once.
    """
    given = [it.answer for it in answers if it.answer is not None]

    def total(name: str, numbers: Sequence[int | None]) -> int | None:
        known = [cost[name] for cost in lost if name in cost]
        if None in numbers or not (numbers or known):
            return None
        return sum(number or 0 for number in numbers) + sum(known)

    return Spent(
        total("input_tokens", [it["input_tokens"] for it in given]),
        total("output_tokens", [it["output_tokens"] for it in given]),
        total("elapsed_ms", [it.elapsed_ms for it in answers if it.answer is not None]),
    )


def failed_after(usage: Spent) -> Within:
    """Stores what an enhancement without a result took."""

    def store(session: Session, job: Job) -> None:
        _note_spent(session.get_one(StoredEnhancement, job.id), usage)

    return store


def combined(
    result: Result, missing: Sequence[Result], model: str, usage: Spent, warnings: Sequence[str]
) -> Within:
    """Stores the result of an enhancement, the ``model`` that made it, and what it took."""

    def store(session: Session, job: Job) -> None:
        row = session.get_one(StoredEnhancement, job.id)
        row.result = result
        row.missing = list(missing)
        row.model = model
        _note_spent(row, usage)
        job.warnings = list(warnings)

    return store


def _note_spent(row: StoredEnhancement, usage: Spent) -> None:
    row.input_tokens = usage.input_tokens
    row.output_tokens = usage.output_tokens
    row.elapsed_ms = usage.elapsed_ms


def options_of(options: Mapping[str, Any]) -> EnhancementOptions:
    """The request in the options of a job."""
    return EnhancementOptions.from_json(options[ENHANCEMENT.kind])


@dataclass(frozen=True, slots=True)
class FoundEnhancement:
    """An enhancement, its request, and what is stored of it.

    ``newest`` is the number of the newest revision of its source's transcript.
    """

    snapshot: Snapshot
    options: EnhancementOptions
    row: StoredEnhancement | None
    newest: int


class Enhancements:
    """The enhancements of one tenant."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def get(self, job_id: UUID) -> FoundEnhancement:
        """One of them.

        Raises:
            NotFound: the tenant has no such enhancement.
        """
        try:
            snapshot = Jobs(self._database, self._tenant).snapshot(job_id)
        except NotFound:
            raise NotFound(what="enhancement", value=job_id) from None
        if snapshot.kind != ENHANCEMENT.kind:
            raise NotFound(what="enhancement", value=job_id)
        found = self._completed([snapshot])
        if not found:
            raise NotFound(what="enhancement", value=job_id)
        return found[0]

    def page(self, which: JobFilter, *, limit: int, after: Cursor | None) -> Page[FoundEnhancement]:
        """Some of them, the newest first."""
        page = JobLists(self._database, self._tenant).page(which, limit=limit, after=after)
        return Page(self._completed(page.items), page.next)

    def _completed(self, snapshots: Sequence[Snapshot]) -> list[FoundEnhancement]:
        ids = [it.job_id for it in snapshots]
        newest = newest_number(Job.source_id).correlate(Job).scalar_subquery()
        with self._database.transaction() as session:
            rows = session.execute(
                select(Job.id, Job.options, StoredEnhancement, newest)
                .outerjoin(StoredEnhancement, StoredEnhancement.job_id == Job.id)
                .where(Job.id.in_(ids))
            )
            stored = {row[0]: row[1:] for row in rows}
        return [
            FoundEnhancement(it, options_of(options), row, number)
            for it in snapshots
            if it.job_id in stored
            for options, row, number in [stored[it.job_id]]
        ]
