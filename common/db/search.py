"""Full-text search over a tenant's texts, and the passages that it finds.

A search has to be fast for rare words, and for words that nearly every passage has. So the index
alone must find a tenant's newest passages with some words, in a range of time: each passage has as
lexemes also its tenant with its *block*, which is the second when its text was created, divided by
a power of two, for a few of these. A search reads the newest blocks first, and then ever larger
ones, until there is enough to rank: of frequent words the newest passages, of rare ones all.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from math import isfinite
from typing import Self
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import TSQUERY, TSVECTOR
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.paging import LONGEST_ECHO
from common.db.tables import (
    Job,
    Kind,
    Recording,
    StoredFinal,
    StoredPassage,
    StreamSession,
    TranscriptRevision,
    Unindexed,
)
from common.domain.job import JobStatus
from common.domain.masking import masked
from common.domain.request import Options
from common.domain.searching import (
    FoundText,
    Passage,
    Wanted,
    find,
    lexemes_of,
    of_language,
    of_speaker,
    passages_of,
    quoted,
    to_tsquery,
    to_tsvector,
)
from common.domain.speakers import Diarization
from common.domain.transcript import Transcript, segments_from_json
from common.errors import OutOfRange

MOST_RANKED = 500
"""Passages that one search ranks: the newest ones of each tier (`Wanted.tiers`)."""
SHIFTS = (12, 16, 20, 24, 62)
"""The powers of two of blocks: about an hour, 18 hours, 12 days, 194 days, and all time. A search
reads two of a size."""
CLOCKS_DIFFER = timedelta(minutes=5)
"""At most, before and after a failover of Postgres, whose clock gives the times of texts."""


_ID = StoredPassage.id + 0
"""The sum keeps Postgres from reading all passages of a range by their primary key."""


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """Which texts; None: any. Both times are those of jobs and streams, and exclusive."""

    kind: Kind | None = None
    language: str | None = None
    speaker: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    source_id: UUID | None = None
    """One job or stream."""


@dataclass(frozen=True, slots=True)
class SearchCursor:
    """A position in the results of a search: after the passage ``id``.

    ``newest``: the newest passage at the time of the first page. Later ones are not found, so that
    nothing moves between two pages.
    """

    newest: int
    tier: int = -1
    rank: float = 0.0
    id: int = 0

    @property
    def key(self) -> tuple[int, float, int]:
        """Ascends in the order of the results."""
        return self.tier, -self.rank, -self.id

    def __str__(self) -> str:
        place = f"{self.newest} {self.tier} {self.rank!r} {self.id}"
        return base64.urlsafe_b64encode(place.encode()).decode()

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Parse the output of `str`.

        Raises:
            OutOfRange: it is malformed.
        """
        try:
            place = base64.b64decode(cursor, b"-_", validate=True).decode().split(" ")
            newest, tier, rank, passage_id = place
            parsed = cls(int(newest), int(tier), float(rank), int(passage_id))
        except ValueError:
            parsed = None
        if parsed is None or not (0 <= parsed.newest < 2**63 and isfinite(parsed.rank)):
            limit = "a next_cursor of this search"
            raise OutOfRange(field="cursor", limit=limit, value=cursor[:LONGEST_ECHO])
        return parsed


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, and the id of its job or stream.

    ``rank``: the larger, the better it matches, in one search. ``filename`` is None for a stream;
    ``recording_id`` is the client's own name.
    """

    kind: Kind
    id: UUID
    created_at: datetime
    found: FoundText
    rank: float
    filename: str | None
    recording_id: str | None


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Some of a search's results; ``is_complete``: all passages that match were ranked."""

    hits: list[Hit]
    is_complete: bool
    next: SearchCursor | None


@dataclass(frozen=True, slots=True)
class _Scope:
    """Which passages one search reads: up to ``newest``, of texts created until ``latest_s``."""

    which: SearchFilter
    newest: int
    latest_s: int


class Search:
    """Search over one tenant's texts."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def page(
        self, wanted: Wanted, which: SearchFilter, *, limit: int, after: SearchCursor | None
    ) -> SearchPage:
        """The best passages, by the tier (`Wanted.tiers`) that they are in.

        Within one, by how often the words are there, and how near one another.
        """
        with self._database.transaction() as session:
            newest, now = _prepare(session)
            start = after or SearchCursor(newest)
            latest = now + CLOCKS_DIFFER
            if which.created_before is not None:
                latest = min(latest, which.created_before)
            scope = _Scope(which, start.newest, max(0, int(latest.timestamp())))
            ranked, is_complete = self._ranked(session, wanted, scope)
            hits: list[tuple[SearchCursor, Hit]] = []
            rest = [place for place in ranked if place.key > start.key]
            for at in range(0, len(rest), limit + 1):
                hits += self._hits(session, wanted, rest[at : at + limit + 1])
                if len(hits) > limit:
                    break
        more = len(hits) > limit
        return SearchPage(
            [hit for _, hit in hits[:limit]], is_complete, hits[limit - 1][0] if more else None
        )

    def _ranked(
        self, session: Session, wanted: Wanted, scope: _Scope
    ) -> tuple[list[SearchCursor], bool]:
        """The places of the best passages, in order, and whether they are all."""
        tiers = wanted.tiers()

        @cache
        def ids_of(tier: int) -> list[int]:
            """The newest passages of a tier, the newest first."""
            rows = session.execute(self._candidates(tiers[tier], scope))
            return [passage_id for _, passage_id in sorted(rows, reverse=True)]

        tier_of: dict[int, int] = {}
        count = 0
        for tier, lexemes in enumerate(tiers):
            # Where the next tier needs less of the same, and has nothing, this one has nothing.
            has_wider = tier + 1 < len(tiers) and set(tiers[tier + 1]) < set(lexemes)
            ids = ids_of(tier) if not has_wider or ids_of(tier + 1) else []
            for passage_id in ids:
                tier_of.setdefault(passage_id, tier)
            count = len(ids)
            if len(tier_of) >= MOST_RANKED:
                break
        chosen = list(tier_of)[:MOST_RANKED]  # in the order of tiers, in each the newest first
        words = cast(literal(to_tsquery(tiers[-1])), TSQUERY)
        rows = session.execute(
            select(StoredPassage.id, func.ts_rank_cd(StoredPassage.lexemes, words)).where(
                StoredPassage.id == func.any(chosen)
            )
        )
        places = (SearchCursor(scope.newest, tier_of[it], rank, it) for it, rank in rows)
        is_complete = len(tier_of) < MOST_RANKED or count < MOST_RANKED
        return sorted(places, key=lambda it: it.key), is_complete

    def _candidates(self, lexemes: Sequence[str], scope: _Scope) -> Select[datetime, int]:
        """Selects the newest passages with ``lexemes``, and when their texts were created."""
        blocks = union_all(*self._blocks(lexemes, scope)).subquery()
        return select(blocks.c.created_at, blocks.c.id).limit(MOST_RANKED)

    def _blocks(self, lexemes: Sequence[str], scope: _Scope) -> Iterator[Select[datetime, int]]:
        """Selects passages with ``lexemes`` of the newest blocks, of ever larger ones, each once.

        Postgres reads a block only if those before it have too few.
        """
        which = scope.which
        conditions = [
            StoredPassage.tenant == self._tenant,
            scope.newest >= _ID,
            *_conditions(which),
        ]
        words = to_tsquery([*lexemes, *_filter_lexemes(which)])
        for shift in SHIFTS:
            block = scope.latest_s >> shift
            theirs = " | ".join(
                quoted(_of_block(self._tenant, shift, each))
                for each in (block, block - 1)
                if each >= 0
            )
            query = cast(literal(f"({theirs}) & {words}"), TSQUERY)
            yield (
                select(StoredPassage.created_at, StoredPassage.id)
                .where(StoredPassage.lexemes.op("@@")(query), *conditions)
                .order_by(StoredPassage.created_at.desc(), _ID.desc())
                .limit(MOST_RANKED)
            )
            if block <= 1:
                return
            begin = datetime.fromtimestamp((block - 1) << shift, UTC)
            if which.created_after is not None and which.created_after >= begin:
                return
            conditions = [*conditions, StoredPassage.created_at < begin]

    def _hits(
        self, session: Session, wanted: Wanted, places: Sequence[SearchCursor]
    ) -> Iterator[tuple[SearchCursor, Hit]]:
        """Those of some places that prove right."""
        rows = {
            row.id: row
            for row in session.execute(
                select(
                    StoredPassage.id,
                    StoredPassage.kind,
                    StoredPassage.source_id,
                    StoredPassage.created_at,
                    StoredPassage.segments,
                    StoredPassage.shared,
                    func.coalesce(Job.client_recording_id, StreamSession.client_recording_id).label(
                        "recording_id"
                    ),
                    Recording.filename,
                )
                .outerjoin(Job, Job.id == StoredPassage.source_id)
                .outerjoin(Recording, Recording.id == Job.recording_id)
                .outerjoin(StreamSession, StreamSession.id == StoredPassage.source_id)
                .where(
                    StoredPassage.tenant == self._tenant,
                    StoredPassage.id.in_([place.id for place in places]),
                    # One that was cancelled in REVIEW has no text any more.
                    Job.status.is_distinct_from(JobStatus.CANCELLED),
                )
            )
        }
        tiers = len(wanted.tiers())
        for place in places:
            row = rows.get(place.id)
            found = row and find(Passage.from_json(row.segments, row.shared), wanted)
            if row and found:
                yield (
                    place,
                    Hit(
                        kind=Kind(row.kind),
                        id=row.source_id,
                        created_at=row.created_at,
                        found=found,
                        rank=tiers - 1 - place.tier + place.rank / (1 + place.rank),
                        filename=row.filename,
                        recording_id=row.recording_id,
                    ),
                )


def _prepare(session: Session) -> tuple[int, datetime]:
    """Let Postgres search by the index, whatever it estimates.

    Returns the newest passage's id, 0 if there is none, and the time.

    It takes rows for cheap to read, as it does not count what is stored outside them. Parallel
    workers and compilation cost more than a search.
    """
    session.execute(
        text(
            "SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),"
            " set_config('max_parallel_workers_per_gather', '0', true)"
        )
    )
    newest, now = session.execute(select(func.max(StoredPassage.id), func.now())).one()
    return newest or 0, now


def _conditions(which: SearchFilter) -> Iterator[ColumnElement[bool]]:
    if which.created_after is not None:
        yield StoredPassage.created_at > which.created_after
    if which.created_before is not None:
        yield StoredPassage.created_at < which.created_before
    if which.source_id is not None:
        yield StoredPassage.source_id == which.source_id


def _filter_lexemes(which: SearchFilter) -> Iterator[str]:
    if which.kind is not None:
        yield _of_kind(which.kind)
    if which.language is not None:
        yield of_language(which.language)
    if which.speaker is not None:
        yield of_speaker(which.speaker)


def _of_kind(kind: Kind) -> str:
    return f"@{kind}"


def _of_block(tenant: str, shift: int, block: int) -> str:
    """The lexeme of a tenant's passages in a block of time."""
    return f"@{shift}.{block}.{tenant}"


# --- what is found --------------------------------------------------------------------------------


def index_transcript(session: Session, job: Job, revision: TranscriptRevision) -> None:
    """Replace the passages of ``job``, whose row is locked, by those of its newest revision."""
    diarization = revision.diarization
    transcript = Transcript(
        revision.language,
        revision.duration_ms,
        segments_from_json([{**it, "words": []} for it in revision.segments]),
        diarization=None if diarization is None else Diarization.from_json(diarization),
    )
    if Options.from_json(job.options).filter_profanity:
        transcript = masked(transcript)
    _index(session, job, Kind.JOB, transcript)


def index_stream(session: Session, stream: StreamSession) -> None:
    """Replace the passages of ``stream``, whose row is locked, by those of its finals."""
    finals = session.execute(
        select(StoredFinal.language, StoredFinal.segments)
        .where(StoredFinal.session_id == stream.id)
        .order_by(StoredFinal.seq)
    )
    segments = tuple(
        replace(segment, language=segment.language or language)
        for language, stored in finals
        for segment in segments_from_json([{**it, "words": []} for it in stored])
    )
    transcript = Transcript(stream.language, stream.audio_ms, segments)
    _index(session, stream, Kind.STREAM, transcript)


def index_next(session: Session) -> UUID | None:
    """Add the passages of one text that was stored before there were any; None: all have them."""
    row = session.scalar(
        select(Unindexed)
        .order_by(Unindexed.created_at)
        .limit(1)
        # Whoever has locked one replaces its passages, or deletes them.
        .with_for_update(skip_locked=True)
    )
    if row is None:
        return None
    source_id = row.source_id
    if row.kind == Kind.STREAM:
        stream = session.get(StreamSession, source_id)
        if stream is not None:
            index_stream(session, stream)
    else:
        job = session.get(Job, source_id)
        newest = session.scalar(
            select(TranscriptRevision)
            .where(TranscriptRevision.job_id == source_id)
            .order_by(TranscriptRevision.revision.desc())
            .limit(1)
        )
        if job is not None and newest is not None:
            index_transcript(session, job, newest)
    session.execute(delete(Unindexed).where(Unindexed.source_id == source_id))
    return source_id


def _index(
    session: Session, source: Job | StreamSession, kind: Kind, transcript: Transcript
) -> None:
    # In this order: `index_next` holds a lock on the first.
    session.execute(delete(Unindexed).where(Unindexed.source_id == source.id))
    passages = list(passages_of(transcript))
    of_source = StoredPassage.source_id == source.id
    stored = session.execute(
        select(StoredPassage.id, StoredPassage.segments, StoredPassage.shared)
        .where(of_source)
        .order_by(StoredPassage.id)
    ).all()
    # An edit changes few passages of a long text, and an index of words takes long to write.
    if len(stored) == len(passages):
        for old, passage in zip(stored, passages, strict=True):
            if (old.segments, old.shared) != (passage.to_json(), passage.shared):
                lexemes = stored_lexemes(source, kind, passage)
                session.execute(
                    update(StoredPassage)
                    .where(StoredPassage.id == old.id)
                    .values(
                        segments=passage.to_json(),
                        shared=passage.shared,
                        lexemes=cast(lexemes, TSVECTOR),
                    )
                    .execution_options(synchronize_session=False)
                )
        return
    session.execute(delete(StoredPassage).where(of_source))
    if not passages:
        return
    session.flush()
    session.execute(
        _INSERT,
        [
            {
                "tenant": source.tenant,
                "kind": kind,
                "source_id": source.id,
                "created_at": source.created_at,
                "segments": passage.to_json(),
                "shared": passage.shared,
                "in_text_form": stored_lexemes(source, kind, passage),
            }
            for passage in passages
        ],
    )


_INSERT = insert(StoredPassage.__table__).values(  # type: ignore[arg-type]
    lexemes=cast(bindparam("in_text_form"), TSVECTOR)
)


def stored_lexemes(source: Job | StreamSession, kind: Kind, passage: Passage) -> str:
    """All lexemes of a stored passage, as text."""
    created_s = int(source.created_at.timestamp())
    blocks = (_of_block(source.tenant, shift, created_s >> shift) for shift in SHIFTS)
    return to_tsvector({**lexemes_of(passage), **dict.fromkeys([*blocks, _of_kind(kind)], ())})
