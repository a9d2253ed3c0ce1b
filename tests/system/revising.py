"""Chaos test of edits: no revision is lost or doubled while everything is killed.

Run ``scripts/test --system revising FOLDER``.

It starts a stack of its own and has it transcribe recordings of FOLDER, for review. Then several
people at once edit, restore, transcribe again and approve these transcripts, while the faults of
`tests.system.chaos` happen. A request without an answer may have been carried out: its sender looks
for its note among the revisions before sending it again. In the end every change that was
acknowledged must be in one revision, and no other in more than one.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.tables import Job, Outbox, Step, TranscriptRevision, WebhookDelivery
from common.db.transcriptions import transcript_in
from common.domain.formats import MEDIA_TYPES, RTTM
from common.domain.job import JobStatus, StepStatus
from common.domain.pipeline import RERUN, StepKind
from common.domain.transcript import Origin
from common.domain.webhooks import DeliveryStatus
from common.errors import GatewayLost, RequestRejected
from scripts.bench.service import UnderTest, until
from scripts.cli.client import ENDED, Gateway, passing
from tests.system.aftermath import count, patiently, strays, verify_pages, wait_for_the_end
from tests.system.chaos import (
    SETTLED_WITHIN_S,
    ChaosPlan,
    ChaosRun,
    FaultInjector,
    FaultKind,
    faults,
    recordings,
    sleep_until,
    table,
)
from tests.system.receiver import Receiver

T = TypeVar("T")

EDITORS_OF_A_JOB = 2
APPROVED_AFTER = 0.6
"""The part of the time after which each job is approved; it is edited on."""
PAUSE_S = 0.1
"""Between two changes of an editor."""
RERUN_S = 8.0
"""Longer than the pauses of a talk."""
EVENTS = ("transcription.review", "transcription.completed")


@dataclass(slots=True)
class Change:
    """What one person wants to be a revision: a word appended, or (``restored``) an earlier one."""

    job_id: str
    note: str
    word: str | None = None
    restored: int | None = None
    revision: int | None = None
    """Its number, once the gateway has acknowledged it."""


@dataclass(slots=True)
class Revised:
    """What was done; only `Editors` writes to it."""

    changes: dict[str, Change] = field(default_factory=dict)
    """By note."""
    reruns: list[str] = field(default_factory=list)
    """The ids of those that were accepted."""
    approved: int = 0
    outdated: int = 0
    """Answers that somebody else was faster."""
    unanswered: int = 0


class Editors:
    """Several people who change the same transcripts until ``deadline``, on the monotonic clock."""

    def __init__(self, gateway: Gateway, done: Revised, *, deadline: float, seed: int) -> None:
        self._gateway = gateway
        self._done = done
        self._deadline = deadline
        self._seed = seed
        self._lock = threading.Lock()

    def approve(self, job_id: str, at: float) -> None:
        """Approve a job once."""
        sleep_until(at)

        def approved() -> None:
            try:
                self._gateway.approve(job_id)
            except RequestRejected as error:
                # It may have been approved by a request that got no answer.
                if error.details["status"] != HTTPStatus.CONFLICT:
                    raise
                if self._gateway.status(job_id)["status"] != JobStatus.COMPLETED:
                    raise

        self._patiently(approved)
        with self._lock:
            self._done.approved += 1

    def work(self, job_id: str, number: int) -> None:
        """Change the transcript again and again, as editor ``number``."""
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311 - nothing secret
        for at in range(10_000):
            if time.monotonic() > self._deadline:
                return
            if chance.random() < 0.15:
                self._rerun(job_id, chance)
            else:
                restores = chance.random() < 0.15
                note = f"editor {number}, change {at}"
                change = Change(job_id, note, None if restores else f"word{number}x{at}")
                with self._lock:
                    self._done.changes[note] = change
                self._make(change, chance)
            time.sleep(PAUSE_S)

    def _rerun(self, job_id: str, chance: random.Random) -> None:
        """Transcribe a span again, unless that is done already; not twice, answered or not."""
        length_s = self._patiently(lambda: self._gateway.status(job_id))["duration_seconds"]
        start_s = round(chance.random() * max(0.0, length_s - RERUN_S), 2)
        try:
            made = self._gateway.rerun(job_id, start_s, min(length_s, start_s + RERUN_S))
        except (RequestRejected, GatewayLost) as error:
            if not passing(error) and error.details["status"] != HTTPStatus.CONFLICT:
                raise
        else:
            with self._lock:
                self._done.reruns.append(made["job_id"])

    def _make(self, change: Change, chance: random.Random) -> None:
        """Make a change once, however often it must be sent."""
        unanswered = False
        while True:
            document, tag = self._patiently(lambda: self._gateway.transcript(change.job_id))
            if unanswered and (made := self._found(change)) is not None:
                break
            try:
                made = self._send(change, document, tag, chance)
                break
            except RequestRejected as error:
                if error.details["status"] == HTTPStatus.PRECONDITION_FAILED:
                    self._count("outdated")
                elif passing(error):
                    unanswered = True
                    self._count("unanswered")
                else:
                    raise
            except GatewayLost:
                unanswered = True
                self._count("unanswered")
            if unanswered and time.monotonic() > self._deadline:
                return  # one that is never acknowledged
        change.revision = made

    def _send(
        self, change: Change, document: Mapping[str, Any], tag: str, chance: random.Random
    ) -> int:
        """Send a change of the revision with this ETag; returns the new one's number."""
        if change.word is None:
            # Every try restores the same: any of them may be the one that was carried out.
            change.restored = change.restored or chance.randint(1, document["revision"])
            made = self._gateway.restore(change.job_id, change.restored, tag, change.note)
        else:
            segment = chance.choice(document["segments"])
            text = f"{segment['text'].strip()} {change.word}"
            edit = {"op": "replace", "segment": segment["id"], "text": text}
            made = self._gateway.edit(change.job_id, [edit], tag, change.note)
        number: int = made["revision"]
        return number

    def _found(self, change: Change) -> int | None:
        """The revision that a request without an answer has made."""

        def find() -> int | None:
            for revision in self._gateway.revisions(change.job_id):
                if revision["note"] == change.note:
                    number: int = revision["revision"]
                    return number
            return None

        return self._patiently(find)

    def _patiently(self, ask: Callable[[], T]) -> T:
        return patiently(ask, on_retry=lambda: self._count("unanswered"))

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self._done, what, getattr(self._done, what) + 1)


# --- what must hold in the end ------------------------------------------------------------------


@dataclass(slots=True)
class Revisions:
    """The figures, and every promise that was broken, in words."""

    violations: list[str] = field(default_factory=list)
    of: Counter[str] = field(default_factory=Counter)
    """How many revisions there are, by origin."""

    def check(self, kept: bool, broken: str) -> None:
        """Note a promise that is not kept."""
        if not kept:
            self.violations.append(broken)


def words_of(row: TranscriptRevision) -> Counter[str]:
    """How often each word is in a revision."""
    return Counter(word for it in transcript_in(row).segments for word in it.text.split())


def examine_rows(
    found: Revisions, session: Session, done: Revised, first: Mapping[str, list[Any]]
) -> None:
    """Check what Postgres holds, once nothing is left to do.

    ``first`` has the stored segments of each job's first revision before the faults.
    """
    jobs = session.scalars(select(Job)).all()
    reruns = {it.id: it for it in jobs if it.kind == RERUN.kind}
    for job in jobs:
        found.check(
            job.status == JobStatus.COMPLETED,
            f"{job.kind} {job.id} is {job.status}: {job.error_code} {job.error_message}",
        )
    lost = set(done.reruns) - {str(it) for it in reruns}
    found.check(not lost, f"{len(lost)} accepted rerun(s) are not there")
    made_by: Counter[str] = Counter()
    notes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for job_id, segments in first.items():
        rows = session.scalars(
            select(TranscriptRevision)
            .where(TranscriptRevision.job_id == UUID(job_id))
            .order_by(TranscriptRevision.revision)
        ).all()
        found.of.update(it.origin for it in rows)
        found.check(
            [it.revision for it in rows] == list(range(1, len(rows) + 1)),
            f"job {job_id} has the revisions {[it.revision for it in rows]}",
        )
        found.check(
            rows[0].segments == segments and rows[0].origin == Origin.MERGE,
            f"the first revision of job {job_id} was changed",
        )
        for row in rows:
            if row.note is not None:
                notes[row.note].append((job_id, row.revision))
            if row.origin == Origin.RERUN:
                made_by[row.manifest["reruns"][-1]["job_id"]] += 1
        _manifests(found, rows, done.changes)
        _texts(found, rows, done.changes)
    found.check(
        made_by == Counter(map(str, reruns)), "not every rerun has made exactly one revision"
    )
    for note, change in done.changes.items():
        places = notes.pop(note, [])
        found.check(len(places) < 2, f"{note} is in the revisions {places}")
        if change.revision is not None:
            found.check(
                places == [(change.job_id, change.revision)],
                f"{note} was revision {change.revision}, and is in {places}",
            )
    found.check(not notes, f"nobody has made the revisions {list(notes.values())}")
    _steps(found, session)


def _manifests(
    found: Revisions, rows: Sequence[TranscriptRevision], changes: Mapping[str, Change]
) -> None:
    """The reruns in a manifest are those of the revision before, and the one that has made it.

    Of a restoration they are those of what it restores.
    """
    of_each: list[list[str]] = []
    for row in rows:
        listed = [it["job_id"] for it in row.manifest.get("reruns", ())]
        expected = of_each[-1] if of_each else []
        if row.origin == Origin.RERUN:
            expected = [*expected, *listed[-1:]]
        elif row.origin == Origin.RESTORE and (change := changes.get(row.note or "")):
            expected = of_each[(change.restored or 0) - 1]
        found.check(
            listed == expected,
            f"revision {row.revision} of job {row.job_id} lists {listed} and not {expected}",
        )
        of_each.append(expected)


def _texts(
    found: Revisions, rows: Sequence[TranscriptRevision], changes: Mapping[str, Change]
) -> None:
    """Each edit has added its word to the revision before it; each restoration is what it names."""
    words = [words_of(row) for row in rows]
    for number, row in enumerate(rows[1:], start=1):
        change = changes.get(row.note or "")
        if change is None:
            continue
        if change.word is not None:
            kept = words[number] == words[number - 1] + Counter([change.word])
        else:
            kept = words[number] == words[(change.restored or 0) - 1]
        found.check(
            kept, f"revision {row.revision} of job {row.job_id} is not what {row.note} made"
        )


def _steps(found: Revisions, session: Session) -> None:
    for step in session.scalars(select(Step)):
        found.check(
            step.status == StepStatus.DONE and step.stored_count == 1,
            f"{step.kind} {step.part} of job {step.job_id} is {step.status}, "
            f"and was stored {step.stored_count} times",
        )
    refined = set(session.scalars(select(Step.job_id).where(Step.kind == StepKind.REFINE)))
    edited = set(
        session.scalars(select(TranscriptRevision.job_id).where(TranscriptRevision.revision > 1))
    )
    found.check(refined == edited, "not every edited transcript was refined")
    found.check(count(session, Outbox) == 0, "the outbox is not empty")


def examine_messages(found: Revisions, receiver: Receiver, job_ids: Iterable[str]) -> None:
    """Check that each job has been reported once, in review and at its end."""
    sent: dict[tuple[str, str], set[str]] = defaultdict(set)
    for arrival in receiver.arrivals():
        message = json.loads(arrival.body)
        sent[message["type"], message["data"]["job_id"]].add(arrival.message_id)
    for job_id in job_ids:
        for event in EVENTS:
            ids = len(sent.pop((event, job_id), ()))
            found.check(ids == 1, f"{event} of job {job_id} was sent {ids} times")
    found.check(not sent, f"there are other messages: {list(sent)}")


def examine_files(found: Revisions, service: UnderTest, job_ids: Iterable[str]) -> None:
    """Check that the files of each job have its newest revision."""
    for job_id in job_ids:
        folder = service.stack.settings.storage.results / job_id
        for ending in sorted(set(MEDIA_TYPES) - {RTTM}):
            with service.gateway.download(job_id, ending) as (_, pieces):
                newest = b"".join(pieces)
            written = (folder / f"transcript.{ending}").read_bytes()
            if ending == "json":  # Postgres orders the names of a manifest
                kept = json.loads(written) == json.loads(newest)
            else:
                kept = written == newest
            found.check(kept, f"the {ending} file of job {job_id} lacks its newest revision")


# --- the run --------------------------------------------------------------------------------------


def revise(
    asked: ChaosPlan, audio: Path, data_dir: Path, report_line: Callable[[str], None]
) -> tuple[Revisions, Revised, ChaosRun]:
    """Do all of it on a new stack in ``data_dir``, which is empty.

    Raises:
        SetupProblem: it cannot be done here.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    found, done, run = Revisions(), Revised(), ChaosRun()
    clips, talks = recordings(asked, audio, data_dir)
    env = {"JOB_TIMEOUT": "0", "EGRESS_ALLOW": "127.0.0.0/8", "WEBHOOK_RETRY_DELAYS": "1,1,1,1"}
    with Receiver() as receiver, UnderTest(asked.workers, data_dir, env=env) as service:
        report_line(f"{asked.jobs} jobs are transcribed undisturbed")
        options = {
            "language": asked.language,
            "review": "true",
            "moderation": "true",
            "webhook_url": f"{receiver.url}/ok",
        }
        paths = [
            (*talks, *clips)[number % (len(talks) + len(clips))] for number in range(asked.jobs)
        ]
        job_ids = [str(service.submit(path, options)) for path in paths]
        first = {job_id: _first(service, job_id) for job_id in job_ids}
        examine_files(found, service, job_ids)
        report_line(f"edits and faults over {asked.seconds:g} s, seed {asked.seed}")
        started = time.monotonic()
        editors = Editors(service.gateway, done, deadline=started + asked.seconds, seed=asked.seed)
        injector = FaultInjector(service, run, outage_s=asked.outage_s, report_line=report_line)
        people = len(job_ids) * EDITORS_OF_A_JOB
        with (
            ThreadPoolExecutor(people + len(job_ids)) as threads,
            ThreadPoolExecutor(len(FaultKind)) as injectors,
        ):
            work: list[Future[object]] = []
            for job_id in job_ids:
                approved_at = started + APPROVED_AFTER * asked.seconds
                work.append(threads.submit(editors.approve, job_id, approved_at))
            for number in range(people):
                job_id = job_ids[number % len(job_ids)]
                work.append(threads.submit(editors.work, job_id, number))
            for fault in faults(asked):
                sleep_until(started + fault.at_s)
                work.append(injectors.submit(injector.inject, fault))
        for each in work:
            if (error := each.exception()) is not None:
                found.violations.append(f"{type(error).__name__}: {error}")
        report_line(f"the last is over after {time.monotonic() - started:.0f} s")
        wait_for_the_end(service.database, SETTLED_WITHIN_S)
        until(lambda: not _left(service.database), SETTLED_WITHIN_S)
        with service.database.transaction() as session:
            examine_rows(found, session, done, first)
        examine_messages(found, receiver, job_ids)
        examine_files(found, service, job_ids)
    found.violations += [f"{name} outlived the stack" for name in strays(data_dir)]
    found.violations += verify_pages(data_dir / "postgres" / "cluster")
    return found, done, run


def _first(service: UnderTest, job_id: str) -> list[Any]:
    """The stored segments of a job's only revision, once it waits for review."""
    while service.gateway.status(job_id, wait_s=30)["status"] not in ENDED:
        continue
    with service.database.transaction() as session:
        return session.get_one(TranscriptRevision, (UUID(job_id), 1)).segments


def _left(database: Database) -> bool:
    """Whether there are steps to do, or messages to send."""
    with database.transaction() as session:
        return bool(
            count(session, Step, Step.status.in_((StepStatus.PENDING, StepStatus.RUNNING)))
            or count(session, WebhookDelivery, WebhookDelivery.status == DeliveryStatus.PENDING)
        )


# --- the report -----------------------------------------------------------------------------------


def report(found: Revisions, done: Revised, run: ChaosRun) -> Iterator[str]:
    """What happened, line by line."""
    acknowledged = sum(it.revision is not None for it in done.changes.values())
    yield from table("fault", run.faults)
    yield ""
    yield from table(
        "changes",
        {
            "acknowledged": acknowledged,
            "never acknowledged": len(done.changes) - acknowledged,
            "reruns accepted": len(done.reruns),
            "approved jobs": done.approved,
            "outdated, and made on a newer revision": done.outdated,
            "requests without an answer": done.unanswered,
        },
    )
    yield ""
    yield from table("revisions", found.of)
    yield ""
    yield from (f"VIOLATED: {violation}" for violation in found.violations)
    yield f"{len(found.violations)} promise(s) broken" if found.violations else "All kept."


DEFAULT = ChaosPlan(jobs=6, seconds=120)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--jobs", default=DEFAULT.jobs, show_default=True, help="Transcripts.")
@click.option(
    "--seconds", default=DEFAULT.seconds, show_default=True, help="How long faults happen, in s."
)
@click.option("--seed", default=DEFAULT.seed, show_default=True)
@click.option("--workers", default=DEFAULT.workers, show_default=True)
@click.option("--language", default=DEFAULT.language, show_default=True)
def main(folder: Path, **asked: Any) -> None:
    """Run, print, and exit with 1 when a promise was broken."""
    where = Path(tempfile.mkdtemp(prefix="stenopool-revising-"))
    found, done, run = revise(ChaosPlan(**asked), folder, where, click.echo)
    for line in report(found, done, run):
        click.echo(line)
    if found.violations:
        click.echo(f"Logs and data: {where}")
        sys.exit(1)
    shutil.rmtree(where)
