"""Queries about glossaries and what people replace, always within one tenant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.paging import Cursor, Page, beyond, page_of
from common.db.tables import Replacement, StoredGlossary
from common.domain.glossary import NO_GLOSSARY, Entry, Glossary
from common.errors import Conflict, GlossaryChanged, NotFound, UnknownOption

MOST_GLOSSARIES = 100
"""Of a tenant."""
MOST_REPLACEMENTS = 200
"""Of a job: a text that is written anew would suggest nothing."""
LEAST_JOBS = 3
"""In whose transcripts people made a replacement before it is suggested."""
CONSIDERED = 1_000
"""The most frequent replacements, of which those in no glossary are suggested."""


@dataclass(frozen=True, slots=True)
class ListedGlossary:
    """A glossary without its entries, which may be large; ``words``: how many there are."""

    id: UUID
    name: str
    rewrite: bool
    language: str | None
    is_default: bool
    created_at: datetime
    updated_at: datetime
    words: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A replacement that people made in the transcripts of so many ``jobs``, the last one then."""

    before: str
    after: str
    jobs: int
    last_at: datetime


class Glossaries:
    """The glossaries of one tenant.

    Methods with a ``glossary_id`` raise `NotFound` if the tenant has no such glossary.
    """

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def create(self, glossary: Glossary, *, default: bool) -> StoredGlossary:
        """Store a glossary; ``default``: in place of another default one.

        Raises:
            Conflict: the tenant has one of this name, or `MOST_GLOSSARIES` already.
        """
        with self._database.transaction() as session:
            self._lock(session)
            count = session.scalar(
                select(func.count())
                .select_from(StoredGlossary)
                .where(StoredGlossary.tenant == self._tenant)
            )
            if (count or 0) >= MOST_GLOSSARIES:
                raise Conflict(reason=f"The tenant has {count} glossaries, the maximum")
            row = StoredGlossary(tenant=self._tenant)
            self._fill(session, row, glossary, default=default)
            session.add(row)
            session.flush()
            session.refresh(row)
            return row

    def page(self, *, limit: int, after: Cursor | None) -> Page[ListedGlossary]:
        """The newest glossaries."""
        table = StoredGlossary
        with self._database.transaction() as session:
            rows = session.execute(
                select(
                    table.id,
                    table.name,
                    table.rewrite,
                    table.language,
                    table.is_default,
                    table.created_at,
                    table.updated_at,
                    func.jsonb_array_length(table.entries),
                )
                .where(
                    table.tenant == self._tenant,
                    *beyond(after, table.created_at, table.id),
                )
                .order_by(table.created_at.desc(), table.id.desc())
                .limit(limit + 1)
            )
            found = [ListedGlossary(*row) for row in rows]
        return page_of(found, limit, lambda it: Cursor(it.created_at, it.id))

    def glossary(self, glossary_id: UUID) -> StoredGlossary:
        """One glossary."""
        with self._database.transaction() as session:
            return self._glossary(session, glossary_id)

    def replace(
        self,
        glossary_id: UUID,
        glossary: Glossary,
        *,
        default: bool,
        version: str | None = None,
    ) -> StoredGlossary:
        """Give a glossary other contents; jobs that were created before keep theirs.

        ``version``: the one to replace (`version_of`); None: any.

        Raises:
            Conflict: the tenant has another one of this name.
            GlossaryChanged: it is another version.
        """
        with self._database.transaction() as session:
            self._lock(session)
            row = self._glossary(session, glossary_id)
            if version not in (None, version_of(row)):
                raise GlossaryChanged
            self._fill(session, row, glossary, default=default)
            row.updated_at = func.statement_timestamp()
            session.flush()
            session.refresh(row)
            return row

    def delete(self, glossary_id: UUID) -> None:
        """Delete a glossary; jobs that were created before keep its words."""
        with self._database.transaction() as session:
            self._lock(session)
            session.delete(self._glossary(session, glossary_id))

    def named(self, names: Sequence[str]) -> list[Glossary]:
        """The glossaries of these names, in their order.

        Raises:
            UnknownOption: the tenant has none of such a name.
        """
        with self._database.transaction() as session:
            rows = session.scalars(
                select(StoredGlossary).where(
                    StoredGlossary.tenant == self._tenant, StoredGlossary.name.in_(names)
                )
            ).all()
            found = {row.name: row for row in rows}
            for name in names:
                if name not in found:
                    known = ", ".join([NO_GLOSSARY, *session.scalars(self._names)])
                    raise UnknownOption(field="glossaries", allowed=known, value=name)
        return [glossary_of(found[name]) for name in dict.fromkeys(names)]

    def default(self) -> list[Glossary]:
        """The glossary of jobs that name none, if there is one."""
        with self._database.transaction() as session:
            rows = session.scalars(
                select(StoredGlossary).where(
                    StoredGlossary.tenant == self._tenant, StoredGlossary.is_default
                )
            ).all()
        return list(map(glossary_of, rows))

    def suggestions(self, limit: int) -> list[Suggestion]:
        """What people replace in `LEAST_JOBS` jobs or more and no glossary does, by frequency."""
        jobs, last_at = func.count(), func.max(Replacement.at)
        with self._database.transaction() as session:
            rows = session.execute(
                select(Replacement.before, Replacement.after, jobs, last_at)
                .where(Replacement.tenant == self._tenant)
                .group_by(Replacement.before, Replacement.after)
                .having(jobs >= LEAST_JOBS)
                .order_by(jobs.desc(), last_at.desc(), Replacement.before, Replacement.after)
                .limit(CONSIDERED)
            )
            found = [Suggestion(*row) for row in rows]
            known = self._known(session, {it.after for it in found})
        return [it for it in found if (it.before, it.after) not in known][:limit]

    def _known(self, session: Session, words: set[str]) -> set[tuple[str, str]]:
        """The spellings in small letters that glossaries have for these words, with the word."""
        entry = func.jsonb_array_elements(StoredGlossary.entries).table_valued("value").lateral()
        rows = session.scalars(
            select(entry.c.value)
            .select_from(StoredGlossary)
            .join(entry, onclause=entry.c.value.op("->>")("word").in_(words))
            .where(StoredGlossary.tenant == self._tenant)
        )
        entries = map(Entry.from_json, rows)
        return {(spelling.lower(), it.word) for it in entries for spelling in it.instead_of}

    @property
    def _names(self) -> Select[str]:
        of_tenant = StoredGlossary.tenant == self._tenant
        return select(StoredGlossary.name).where(of_tenant).order_by(StoredGlossary.name)

    def _fill(
        self, session: Session, row: StoredGlossary, glossary: Glossary, *, default: bool
    ) -> None:
        same_name = select(StoredGlossary.id).where(
            StoredGlossary.tenant == self._tenant,
            StoredGlossary.name == glossary.name,
            StoredGlossary.id != row.id if row.id else true(),
        )
        if session.scalar(same_name) is not None:
            raise Conflict(reason=f"There is a glossary {glossary.name!r} already")
        if default and not row.is_default:
            session.execute(
                update(StoredGlossary)
                .where(StoredGlossary.tenant == self._tenant, StoredGlossary.is_default)
                .values(is_default=False)
            )
        row.name = glossary.name
        row.entries = [entry.to_json() for entry in glossary.entries]
        row.rewrite = glossary.rewrite
        row.language = glossary.language
        row.is_default = default

    def _lock(self, session: Session) -> None:
        """Change the tenant's glossaries one at a time: there is one of a name, and one default."""
        key = func.hashtextextended(f"glossaries {self._tenant}", 0)
        session.execute(select(func.pg_advisory_xact_lock(key)))

    def _glossary(self, session: Session, glossary_id: UUID) -> StoredGlossary:
        row = session.scalar(
            select(StoredGlossary).where(
                StoredGlossary.id == glossary_id, StoredGlossary.tenant == self._tenant
            )
        )
        if row is None:
            raise NotFound(what="glossary", value=glossary_id)
        return row


def version_of(row: StoredGlossary) -> str:
    """Names the contents of a row: it differs after each change."""
    changed = f"{row.updated_at.timestamp():.6f}".replace(".", "")
    return f"{changed}-{row.is_default:d}"


def glossary_of(row: StoredGlossary) -> Glossary:
    """The glossary in a row."""
    entries = tuple(map(Entry.from_json, row.entries))
    return Glossary(row.name, entries, row.rewrite, row.language)


def count_replacements(
    session: Session, tenant: str, job_id: UUID, pairs: Iterable[tuple[str, str]]
) -> None:
    """Record what a person replaced in a job's transcript, each pair once for the job.

    ``pairs`` are those of `common.domain.glossary.replacements`. The job's row is locked. Its first
    `MOST_REPLACEMENTS` count. They are deleted with the job.
    """
    count = session.scalar(
        select(func.count()).select_from(Replacement).where(Replacement.job_id == job_id)
    )
    known = count or 0
    for before, after in dict.fromkeys(pairs):
        if known >= MOST_REPLACEMENTS:
            return
        added = session.scalar(
            insert(Replacement)
            .values(job_id=job_id, before=before, after=after, tenant=tenant)
            .on_conflict_do_nothing()
            .returning(Replacement.job_id)
        )
        known += added is not None
