"""``steno bench search``: how fast texts are found, and what being found costs.

A Postgres of its own is filled with generated texts: words of one to three syllables of Vietnamese
and English, of which some are far more frequent than others, as in any language (Zipf's law).
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.migrate import upgrade
from common.db.search import SHIFTS, Search, SearchFilter, SearchPage, index_transcript
from common.db.tables import Job, Kind, TranscriptRevision
from common.domain.searching import Wanted, fold, lexemes_of, passages_of, to_tsvector
from common.domain.transcript import Transcript, segments_to_json
from common.domain.values import Segment, Span, Word
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, counted
from scripts.bench.run import Findings, Progress, cores_option, json_option, working
from scripts.cli.cli import load_settings
from scripts.cli.console import make_console
from scripts.stack.embedded import EmbeddedPostgres

LIMIT_MS = 100.0
"""Target: what a search takes at most."""
HUGE, SMALL = "huge", "small"
"""Tenants: every tenth transcript is the second one's."""
SEGMENT_WORDS, SEGMENT_MS = 15, 6_000
"""150 words a minute."""
WORDS = 30_000
"""Different ones."""
PAGE = 20
DIFFERENT = 1_000
"""Texts that are generated."""
INITIALS = "b c ch d đ g gi h kh l m n ng nh p ph qu r s t th tr v x"
RIMES = (
    "a á à ả ã ạ ăn ắc ang áng anh ánh ao áo âm ấm ân âu ấu ây ấy e ẻ em én eo ê ế ên ết i ì in ình"
    " inh o ò on óng ô ồ ôi ối ôn ông ổng ơ ở ơi ơn u ú ung ưa ừng ươi ường ượng y ý uyên uyết"
)
ENGLISH = (
    "ing er ter al re con tion tive pro com ex in un dis ment able ous ful ly est ness ship ward th"
    " st br cl dr fr gr pl tr sw sp str"
)
VOWELS = "a e i o u ai ea ou"
"""Parts of words, and of syllables of Vietnamese."""


class Words:
    """Words by rank: the first are the most frequent ones. A seed gives the same always."""

    def __init__(self, seed: int) -> None:
        self._random = random = np.random.default_rng(seed)
        vietnamese = ["".join(parts) for parts in product(INITIALS.split(), RIMES.split())]
        english = [
            "".join(parts) for parts in product(ENGLISH.split(), VOWELS.split(), ENGLISH.split())
        ]
        syllables = [*random.permutation(vietnamese), *random.permutation(english)]
        # The most frequent words are single syllables, most others have two.
        pairs = random.integers(0, len(vietnamese), (WORDS, 2))
        rare = [f"{vietnamese[one]} {vietnamese[other]}" for one, other in pairs]
        self.words = np.array([*syllables[:300], *rare, *syllables[300:]][:WORDS], dtype=object)
        chances = 1 / np.arange(1, len(self.words) + 1)
        self._bounds = np.cumsum(chances / chances.sum())

    def draw(self, count: int) -> NDArray[np.object_]:
        """So many words, by chance."""
        drawn = np.searchsorted(self._bounds, self._random.random(count))
        found: NDArray[np.object_] = self.words[np.minimum(drawn, len(self.words) - 1)]
        return found

    def transcript(self, minutes: int, *, words: bool = False) -> Transcript:
        """A text of so many minutes, with the times of ``words`` or without."""
        count = minutes * 60_000 // SEGMENT_MS
        drawn = " ".join(self.draw(count * SEGMENT_WORDS)).split()
        return Transcript(
            "vi",
            minutes * 60_000,
            tuple(
                _segment(at, drawn[at * SEGMENT_WORDS : (at + 1) * SEGMENT_WORDS], words)
                for at in range(count)
            ),
        )


def _segment(at: int, said: Sequence[str], with_words: bool) -> Segment:
    start = at * SEGMENT_MS
    each = SEGMENT_MS // SEGMENT_WORDS
    words = (
        Word(f" {word}", Span(start + n * each, start + (n + 1) * each), 0.9)
        for n, word in enumerate(said)
    )
    span = Span(start, start + SEGMENT_MS)
    return Segment(span, " ".join(said), words=tuple(words) if with_words else ())


class Explained(Database):
    """Keeps the plans of the last transaction's queries over passages, as documents."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pool_size=1)
        self.url = url
        self.plans: list[dict[str, Any]] = []

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """As any database's."""
        self.plans = []
        with super().transaction() as session:
            connection = session.connection()

            def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
                if "FROM passages" in statement and not statement.startswith("EXPLAIN"):
                    cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
                    self.plans.append(cursor.fetchone()[0][0]["Plan"])

            event.listen(connection, "before_cursor_execute", explain)
            yield session


def sequential_scans(plan: dict[str, Any]) -> int:
    """How many tables a plan reads from end to end."""
    own = int(plan["Node Type"] == "Seq Scan")
    return own + sum(map(sequential_scans, plan.get("Plans", ())))


@dataclass(frozen=True, slots=True)
class SearchSize:
    """How much is measured: transcripts of so many minutes, and the storing of a long one."""

    transcripts: int
    minutes: int = 30
    long_minutes: int = 600
    repeats: int = 7


QUICK = SearchSize(transcripts=100, minutes=5, long_minutes=10, repeats=2)


def fill(url: str, size: SearchSize, words: Words, progress: Progress) -> None:
    """Store jobs and the passages of their texts, in order of time.

    `DIFFERENT` texts are generated; Postgres stores each several times, and adds to every text a
    word of its own.
    """
    different = min(size.transcripts, DIFFERENT)
    with Database(url) as database, database.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
        session.execute(text("DROP INDEX ix_passages_lexemes"))
        session.execute(_JOBS, {"count": size.transcripts, "options": json.dumps({})})
        session.execute(_GENERATED)
        cursor = session.connection().connection.cursor()
        with cursor.copy("COPY generated FROM STDIN") as copy:
            for number in range(different):
                progress(f"generating text {number + 1} of {different}")
                for at, passage in enumerate(passages_of(words.transcript(size.minutes))):
                    segments = json.dumps(passage.to_json(), ensure_ascii=False)
                    lexemes = to_tsvector(lexemes_of(passage))
                    copy.write_row((number, at, segments, passage.shared, lexemes))
        for first in range(0, size.transcripts, different):
            progress(f"storing texts from {first + 1} on, of {size.transcripts}")
            session.execute(_PASSAGES, {"first": first, "last": size.transcripts})
        progress("building the index")
        session.execute(text("CREATE INDEX ix_passages_lexemes ON passages USING gin (lexemes)"))
    progress("analysing")
    with psycopg.connect(url, autocommit=True) as connection:  # in no transaction
        connection.execute("VACUUM ANALYZE")


_GENERATED = text(
    "CREATE TEMPORARY TABLE generated"
    " (number int, at int, segments jsonb, shared int, lexemes tsvector) ON COMMIT DROP"
)
_BLOCKS = ", ".join(
    f"'@{it}.' || (CAST(floor(extract(epoch FROM created_at)) AS bigint) >> {it}) || '.' || tenant"
    for it in SHIFTS
)
_PASSAGES = text(
    f"""
    INSERT INTO passages (tenant, kind, source_id, created_at, segments, shared, lexemes)
    SELECT tenant, 'job', source_id, created_at,
        CASE WHEN at = 3 THEN
            jsonb_set(segments, ARRAY['0', '3'], to_jsonb((segments->0->>3) || ' ' || own))
        ELSE segments END,
        shared,
        lexemes || array_to_tsvector(ARRAY[{_BLOCKS}]) || array_to_tsvector(ARRAY['@job', own])
    FROM (
        SELECT *, now() - interval '1 minute' * (:last - source_number) AS created_at
        FROM (
            SELECT *, :first + number + 1 AS source_number,
                CAST(lpad(to_hex(:first + number + 1), 32, '0') AS uuid) AS source_id,
                CASE WHEN (:first + number + 1) % 10 = 0 THEN 'small' ELSE 'huge' END AS tenant,
                CASE WHEN at = 3 THEN 'own' || (:first + number + 1) ELSE '@' END AS own
            FROM generated
            WHERE :first + number < :last
            ORDER BY number, at
        ) AS ordered
    ) AS dated
    """  # noqa: S608 - numbers of our own
)
_JOBS = text(
    """
    WITH numbers AS (
        SELECT number, CAST(lpad(to_hex(number), 32, '0') AS uuid) AS id,
            CASE WHEN number % 10 = 0 THEN 'small' ELSE 'huge' END AS tenant
        FROM generate_series(1, :count) AS number
    ), stored AS (
        INSERT INTO recordings
            (id, tenant, filename, container, codec, size_bytes, sha256, upload_ms)
        SELECT id, tenant, 'talk-' || number || '.mp3', 'mp3', 'mp3float', 1, '', 0 FROM numbers
    )
    INSERT INTO jobs (id, tenant, recording_id, status, priority, engine, model, language, options)
    SELECT id, tenant, id, 'COMPLETED', 1, 'faster-whisper', 'base', 'vi',
        CAST(:options AS jsonb)
    FROM numbers
    """
)


# --- what is measured -----------------------------------------------------------------------------


def queries(words: Words, size: SearchSize) -> dict[str, str]:
    """What is searched for, by what it stands for."""
    frequent, other, *_ = words.words
    middle, rare = words.words[1_000], words.words[WORDS - 1_000]
    number = size.transcripts - size.transcripts // 3
    return {
        "a word of one text": f"own{number - (number % 10 == 0)}",
        "the most frequent word": frequent,
        "the same without marks": fold(frequent),
        "the two most frequent words": f"{frequent} {other}",
        "the same as a phrase": f'"{frequent} {other}"',
        "a word of two syllables": middle,
        "its syllables in the other order": " ".join(reversed(middle.split())),
        "a rare word of two syllables": rare,
        "a rare and a frequent word": f"{rare} {frequent}",
        "two rare words": f"{rare} {words.words[WORDS - 2_000]}",
        "the ten most frequent words": " ".join(words.words[:10]),
        "nothing that was said": "nothing",
    }


class SearchBench:
    """Measures searches over the filled Postgres at ``url``."""

    def __init__(self, url: str, size: SearchSize, words: Words, progress: Progress) -> None:
        self._database = Explained(url)
        self._size = size
        self._words = words
        self._progress = progress
        self._scans = 0

    def run(self, fill_s: float) -> Iterator[BenchPart]:
        """Measure everything."""
        with self._database:
            yield self._stored(fill_s)
            yield self._searches()
            yield self._indexing()

    def _stored(self, fill_s: float) -> BenchPart:
        with self._database.transaction() as session:
            rows, total, index = session.execute(
                text(
                    "SELECT (SELECT count(*) FROM passages), pg_total_relation_size('passages'),"
                    " pg_relation_size('ix_passages_lexemes')"
                )
            ).one()
        count, minutes = self._size.transcripts, self._size.minutes
        return BenchPart(
            "stored",
            f"1. {count} transcripts of {minutes} minutes, filled by SQL",
            (
                counted("passages", rows),
                Figure("filled in", (fill_s,), "s", 0),
                Figure("all", (total / 2**20,), "MB", 0),
                Figure("of it the index", (index / 2**20,), "MB", 0),
                Figure("a transcript", (total / 1024 / count,), "KB", 0),
            ),
        )

    def _searches(self) -> BenchPart:
        table = Comparison(
            (
                Column("best", "ms", 1),
                Column("results on the page", "", 0),
                Column("complete", "", 0),
                Column("processor time", "ms", 1),
            )
        )
        best: list[float] = []

        def measure(name: str, tenant: str, query: str, which: SearchFilter, pages: int) -> None:
            self._progress(f"searching: {name}")
            took_ms, processor_ms, page = self._search(tenant, query, which, pages)
            best.append(took_ms)
            table.add(name, took_ms, len(page.hits), page.is_complete, processor_ms)

        some = queries(self._words, self._size)
        for name, query in some.items():
            measure(name, HUGE, query, SearchFilter(), 1)
        frequent = some["the most frequent word"]
        measure("the most frequent word, page 20", HUGE, frequent, SearchFilter(), 20)
        measure("the most frequent word, other tenant", SMALL, frequent, SearchFilter(), 1)
        earlier = datetime.now(UTC) - timedelta(minutes=self._size.transcripts // 2)
        half = SearchFilter(created_before=earlier)
        measure("the most frequent word, earlier half", HUGE, frequent, half, 1)
        hour = SearchFilter(created_after=earlier - timedelta(hours=1), created_before=earlier)
        measure("the most frequent word, one hour of that", HUGE, frequent, hour, 1)
        ten = some["the ten most frequent words"]
        measure("the ten most frequent words, that hour", HUGE, ten, hour, 1)
        measure("the most frequent word, streams", HUGE, frequent, SearchFilter(Kind.STREAM), 1)
        one = SearchFilter(source_id=UUID(int=1))
        measure("the most frequent word, one recording", HUGE, frequent, one, 1)
        return BenchPart(
            "searches",
            f"2. A search for a page of {PAGE}, best of {self._size.repeats}: {HUGE} has nine"
            f" tenths of the transcripts, {SMALL} one",
            (
                Figure("slowest search", (max(best),), "ms", 1, Target(LIMIT_MS)),
                counted("tables read from end to end", self._scans, Target(0)),
            ),
            table,
        )

    def _search(
        self, tenant: str, query: str, which: SearchFilter, pages: int
    ) -> tuple[float, float, SearchPage]:
        """The last of so many pages: its milliseconds at best, of the processor, and the page.

        The processor's time is that of Postgres and the gateway's code. Unlike the other one it is
        nearly the same on a busy machine.
        """
        wanted = Wanted.parse(query)
        after = None
        with Database(self._database.url, pool_size=1) as plain:
            search = Search(plain, tenant)
            for _ in range(pages - 1):
                after = search.page(wanted, which, limit=PAGE, after=after).next
            with plain.transaction() as session:
                server = psutil.Process(session.scalar(text("SELECT pg_backend_pid()")))
            took_ms = []
            before_s = time.process_time() + sum(server.cpu_times()[:2])
            for _ in range(self._size.repeats):
                started = time.perf_counter()
                page = search.page(wanted, which, limit=PAGE, after=after)
                took_ms.append(1000 * (time.perf_counter() - started))
            processor_s = time.process_time() + sum(server.cpu_times()[:2]) - before_s
        Search(self._database, tenant).page(wanted, which, limit=PAGE, after=after)
        self._scans += sum(map(sequential_scans, self._database.plans))
        return min(took_ms), 1000 * processor_s / self._size.repeats, page

    def _indexing(self) -> BenchPart:
        """What the passages add to the transaction that stores a long transcript."""
        minutes = self._size.long_minutes
        self._progress(f"storing a transcript of {minutes} minutes")
        transcript = self._words.transcript(minutes, words=True)
        segments = segments_to_json(transcript.segments)
        store_s, index_s = [], []
        for number in range(1, self._size.repeats + 1):
            with Database(self._database.url) as database, database.transaction() as session:
                job = session.get_one(Job, UUID(int=number))
                revision = TranscriptRevision(
                    job_id=job.id,
                    revision=1,
                    language="vi",
                    duration_ms=transcript.duration_ms,
                    word_count=transcript.word_count,
                    segments=segments,
                    manifest={},
                )
                started = time.perf_counter()
                session.add(revision)
                session.flush()
                stored = time.perf_counter()
                index_transcript(session, job, revision)
                session.flush()
                index_s.append(time.perf_counter() - stored)
                store_s.append(stored - started)
                session.rollback()
        return BenchPart(
            "indexing",
            f"3. A transcript of {minutes} minutes with the times of its words",
            (
                Figure("stored in", (min(store_s),), "s", 2),
                Figure("indexed in", (min(index_s),), "s", 2),
                Figure(
                    "indexed, of the transaction that stores it",
                    (min(index_s) / min(store_s),),
                    "times",
                    2,
                ),
            ),
        )


@click.command()
@click.option(
    "--transcripts", type=click.IntRange(min=100), default=10_000, help="How many [10000]."
)
@click.option("--quick", is_flag=True, help="Search 100 transcripts of 5 minutes: a smoke test.")
@cores_option
@json_option
@click.pass_context
def search(
    context: click.Context, transcripts: int, quick: bool, cores: int, as_json: Path | None
) -> None:
    """Measure how fast texts are found, among 10,000 generated transcripts of 30 minutes.

    It starts a Postgres of its own, which takes some minutes to fill, and 3 GB of disk. The exit
    code is 1 where a target is missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    settings = load_settings()
    findings = Findings(make_console(), cores=cores, quick=quick, as_json=as_json)
    size = QUICK if quick else SearchSize(transcripts)
    words = Words(1)
    with (
        working(settings) as (place, progress),
        EmbeddedPostgres(place / "postgres", options={"fsync": "off"}) as server,
    ):
        upgrade(server.url)
        started = time.perf_counter()
        fill(server.url, size, words, progress)
        fill_s = time.perf_counter() - started
        for part in SearchBench(server.url, size, words, progress).run(fill_s):
            findings.take(part)
    if not findings.sum_up():
        context.exit(1)
