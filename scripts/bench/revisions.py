"""``steno bench revisions FOLDER``: what correcting a long transcript costs, over HTTP.

Text that people edit is the middle of the long recording of FOLDER: the farther in it is, the more
a worker could have to decode to align its words.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

import click
import psutil
from sqlalchemy import select, text

from common.db.tables import Job, Step
from common.domain.job import StepStatus
from common.domain.pipeline import StepKind
from common.errors import SetupProblem
from common.settings import Settings
from scripts.bench.corpus import TRANSCRIPT, DecodedRecording, LongRecording, read_corpus
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, counted
from scripts.bench.run import Findings, Progress, cores_option, json_option, working
from scripts.bench.service import Run, UnderTest, until
from scripts.cli.cli import load_settings
from scripts.cli.console import make_console

SRT_LIMIT_S, REFINED_LIMIT_S = 0.3, 3.0
RERUN_EXTRA_S = 1.0
"""Targets: what a rerun may take beyond what its audio has cost in the first job."""
EDITED_WORDS = 5
REFINED_WITHIN_S = 300.0
POLL_S = 0.01
KB = 1e3


@dataclass(frozen=True, slots=True)
class RevisionsSize:
    """How much is measured: seconds of the recording (0: all), how often, and seconds of a rerun.

    ``edits`` follow one another at once; after each of ``refined`` the refinement is awaited.
    """

    recording_s: float = 0.0
    refined: int = 6
    edits: int = 20
    reads: int = 5
    reruns: int = 3
    rerun_s: float = 60.0


QUICK = RevisionsSize(recording_s=600.0, refined=2, edits=4, reads=2, reruns=1)


@dataclass(frozen=True, slots=True)
class Timed:
    """How long something took, and the processor time that the gateway used meanwhile."""

    seconds: float
    gateway_s: float


class RevisionsBench:
    """Transcribes a long recording, and corrects its text."""

    def __init__(
        self,
        recording: LongRecording,
        settings: Settings,
        folder: Path,
        *,
        cores: int,
        size: RevisionsSize,
        progress: Progress,
    ) -> None:
        self._recording = recording
        self._settings = settings
        self._folder = folder
        self._cores = cores
        self._size = size
        self._progress = progress

    def run(self) -> Iterator[BenchPart]:
        """Measure all, and give out each part as soon as it is measured.

        Raises:
            SetupProblem: a job or a refinement failed, or there is too little text.
        """
        path = self._excerpt()
        with UnderTest(self._cores, self._folder / "stack", settings=self._settings) as service:
            self._progress("transcribing the recording")
            first = service.run(path, {"language": self._recording.language})
            editor = Editor(service, first)
            yield self._edits(service, first, editor)
            yield self._reruns(service, first, editor)
            yield _sizes(service, first.metrics.job_id)

    def _excerpt(self) -> Path:
        """The recording, or its beginning."""
        if not self._size.recording_s:
            return self._recording.path
        decoded = DecodedRecording(self._recording.path, self._folder / "recording.pcm")
        seconds = min(self._size.recording_s, decoded.duration_s)
        return decoded.cut(self._folder / "recording.wav", 0, seconds)

    def _edits(self, service: UnderTest, first: Run, editor: Editor) -> BenchPart:
        gateway, job_id = service.gateway, str(first.metrics.job_id)
        edited, refined = [], []
        for number in range(self._size.refined):
            self._progress(f"edit {number + 1} of {self._size.refined}, and its refinement")
            started = time.monotonic()
            edited.append(editor.edit())
            editor.wait_until_refined()
            refined.append(time.monotonic() - started)
        document, _ = gateway.transcript(job_id)
        estimated = sum(word["estimated"] for it in document["segments"] for word in it["words"])
        in_a_row = []
        for number in range(self._size.edits):
            self._progress(f"edit {number + 1} of {self._size.edits} in a row")
            in_a_row.append(editor.edit())
        editor.wait_until_refined()
        self._progress("reading the transcript")

        def repeated(read: Callable[[], object]) -> list[Timed]:
            times = []
            for _ in range(self._size.reads):
                with timed(service) as found:
                    read()
                times += found
            return times

        table = Comparison(
            (Column("median", "s", 3), Column("longest", "s", 3), Column("gateway's CPU", "s", 3))
        )
        for row, times in {
            "edit and SRT": edited,
            f"likewise, {len(in_a_row)} in a row": in_a_row,
            "transcript": repeated(lambda: gateway.transcript(job_id)),
            "difference from revision 1": repeated(
                lambda: gateway.difference(job_id, 1, editor.revision)
            ),
        }.items():
            seconds = [it.seconds for it in times]
            gateway_s = median(it.gateway_s for it in times)
            table.add(row, median(seconds), max(seconds), gateway_s)
        srt_s = tuple(it.seconds for it in edited)
        return BenchPart(
            "edits",
            f"1. {EDITED_WORDS} words edited in the middle of"
            f" {first.metrics.audio_ms / 60_000:.0f} minutes",
            (
                Figure("from the edit to the new SRT", srt_s, "s", 3, Target(SRT_LIMIT_S)),
                Figure("until refined", tuple(refined), "s", 2, Target(REFINED_LIMIT_S)),
                counted("words written as they are said", EDITED_WORDS * (len(edited) // 2)),
                counted("of them not aligned", estimated),
            ),
            table,
        )

    def _reruns(self, service: UnderTest, first: Run, editor: Editor) -> BenchPart:
        recording_s = first.metrics.audio_ms / 1000
        length_s = min(self._size.rerun_s, recording_s / 2)
        work_s = first.engine_s / recording_s * length_s
        walls = []
        for number in range(self._size.reruns):
            self._progress(f"rerun {number + 1} of {self._size.reruns}")
            start_s = (recording_s - length_s) / 2 + number  # other chunks than before
            started = time.monotonic()
            made = service.gateway.rerun(str(first.metrics.job_id), start_s, start_s + length_s)
            job_id = UUID(made["job_id"])
            service.wait(job_id)
            walls.append(time.monotonic() - started)
            editor.wait_until_refined()
        limit = Target(round(work_s + RERUN_EXTRA_S, 2))
        audio = f"{length_s:.0f} s of audio"
        return BenchPart(
            "rerun",
            f"2. {audio} in the middle transcribed again",
            (
                Figure("rerun, until it is COMPLETED", tuple(walls), "s", 2, limit),
                Figure(f"engine's time for {audio} in the first job", (work_s,), "s", 2),
            ),
            _steps(service, job_id),
            remarks=(
                f"The target is that time and {RERUN_EXTRA_S:g} s. The steps are the last rerun's.",
            ),
        )


class Editor:
    """Edits the newest revision of a job again and again, from its middle on.

    Each second edit writes what the one before it has replaced, as it was.
    """

    def __init__(self, service: UnderTest, job: Run) -> None:
        self._service = service
        self._job_id = str(job.result["job_id"])
        document, self._tag = service.gateway.transcript(self._job_id)
        self.revision: int = document["revision"]
        self._texts = [" ".join(it["text"].split()) for it in document["segments"]]
        long = [n for n, it in enumerate(self._texts) if len(it.split()) > EDITED_WORDS + 1]
        if len(long) < 2:
            raise SetupProblem(
                problem="The recording has too few words", remedy="Take a longer one"
            )
        half = len(long) // 2
        self._before, self._after = long[:half], long[half:]
        self._edits = 0

    def edit(self) -> Timed:
        """Replace words of one segment, and get the SRT; what both take."""
        pair, writes_right = divmod(self._edits, 2)
        index = self._after[pair % len(self._after)]
        words = self._texts[index].split()
        if not writes_right:
            others = self._texts[self._before[pair % len(self._before)]].split()
            words[1 : 1 + EDITED_WORDS] = others[:EDITED_WORDS]
        wanted = " ".join(words)
        self._edits += 1
        gateway = self._service.gateway
        with timed(self._service) as times:
            edits = [{"op": "replace", "segment": index, "text": wanted}]
            self.revision = gateway.edit(self._job_id, edits, self._tag)["revision"]
            with gateway.download(self._job_id, "srt") as (_, pieces):
                srt = b"".join(pieces)
        self._tag = f'"{self.revision}"'
        if wanted not in " ".join(srt.decode().split()):
            raise SetupProblem(problem="The SRT after an edit lacks it", remedy="Report this")
        return times[0]

    def wait_until_refined(self) -> None:
        """Until a worker has refined the newest revision.

        Raises:
            SetupProblem: it failed, or takes too long.
        """
        refinement = select(Step.status).where(
            Step.job_id == UUID(self._job_id), Step.kind == StepKind.REFINE
        )
        ended: list[str | None] = []

        def has_ended() -> bool:
            with self._service.database.transaction() as session:
                ended[:] = [session.scalar(refinement)]
            return ended[0] in (StepStatus.DONE, StepStatus.FAILED)

        until(has_ended, REFINED_WITHIN_S, POLL_S)
        if ended != [StepStatus.DONE]:
            raise SetupProblem(
                problem=f"The refinement of revision {self.revision} is {ended[0]}",
                remedy=f"The logs were in {self._service.stack.log_dir}",
            )


@contextmanager
def timed(service: UnderTest) -> Iterator[list[Timed]]:
    """Measures what is done within; the list has it afterwards."""
    found: list[Timed] = []
    before_s, started = _processor_s(service.gateway_pids), time.monotonic()
    yield found
    seconds = time.monotonic() - started
    found.append(Timed(seconds, _processor_s(service.gateway_pids) - before_s))


def _processor_s(pids: Iterable[int]) -> float:
    """The processor time of these processes, without that of others they have started."""
    times = (psutil.Process(pid).cpu_times() for pid in pids)
    return sum(it.user + it.system for it in times)


def _steps(service: UnderTest, job_id: UUID) -> Comparison:
    """When the steps of a job began, and how long each took."""
    table = Comparison((Column("begins after", "s"), Column("takes", "s")))
    with service.database.transaction() as session:
        created = session.get_one(Job, job_id).created_at
        steps = session.scalars(
            select(Step).where(Step.job_id == job_id).order_by(Step.started_at)
        ).all()
        for step in steps:
            name = step.kind if step.part is None else f"{step.kind} {step.part + 1}"
            begun, ended = step.started_at, step.finished_at
            if begun is not None and ended is not None:
                table.add(name, (begun - created).total_seconds(), (ended - begun).total_seconds())
    return table


_SIZES = text(
    """
    SELECT pg_column_size(transcripts), pg_column_size(segments), pg_column_size(manifest),
        pg_column_size(changes), octet_length(segments::text),
        (SELECT sum(pg_column_size(passages)) FROM passages WHERE source_id = job_id)
    FROM transcripts WHERE job_id = :job_id ORDER BY revision DESC LIMIT 1
    """
)
"""Of the newest row, of what it has, and of the passages, which only the newest revision has."""


def _sizes(service: UnderTest, job_id: UUID) -> BenchPart:
    names = (
        "row of a revision",
        "its segments and words",
        "its manifest",
        "its changes",
        "segments and words, not compressed",
        "passages to search, of the newest revision only",
    )
    with service.database.transaction() as session:
        found = session.execute(_SIZES, {"job_id": job_id}).one()
    sizes = (Figure(name, (value / KB,), "kB") for name, value in zip(names, found, strict=True))
    return BenchPart("size", "3. What a revision takes in Postgres", tuple(sizes))


@click.command()
@click.argument(
    "folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--quick", is_flag=True, help="Edit the first ten minutes: a smoke test.")
@cores_option
@json_option
@click.pass_context
def revisions(
    context: click.Context, folder: Path, quick: bool, cores: int, as_json: Path | None
) -> None:
    """Measure edits and reruns of the long recording in FOLDER [the current one].

    FOLDER is as for `steno bench`. The recording is transcribed once, by Whisper base, and
    then edited in its middle. The exit code is 1 where a target is missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    recording = read_corpus(folder).recording
    if recording is None:
        raise SetupProblem(
            problem=f"{folder} has no long recording",
            remedy=f"Put NAME{TRANSCRIPT} beside NAME.mp3 into one of its folders",
        )
    settings = load_settings()
    findings = Findings(make_console(), cores=cores, quick=quick, as_json=as_json)
    size = QUICK if quick else RevisionsSize()
    with working(settings) as (place, progress):
        bench = RevisionsBench(
            recording, settings, place, cores=cores, size=size, progress=progress
        )
        for part in bench.run():
            findings.take(part)
    if not findings.sum_up():
        context.exit(1)
