"""``steno bench enhancing``: the second AI step on a long transcript, while a worker is killed.

The language model is a server of ours: it answers each request after the same time, with one
sentence that cites all that the request is about. So what is measured is the work around it: the
parts, who asks for them and how often, and what of the text the result has.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import click
from sqlalchemy import func, select

from common.db.database import Database
from common.db.tables import Job, Part, Recording, Transcription, TranscriptRevision
from common.domain.job import JobStatus
from common.domain.keys import DEFAULT_TENANT
from common.domain.request import Options
from common.domain.transcript import Transcript, segments_to_json
from common.errors import SetupProblem
from common.settings import Settings
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, counted
from scripts.bench.run import Findings, Progress, cores_option, json_option, working
from scripts.bench.scripted_chat import ChatScript, Scripted, SeenChat, written
from scripts.bench.search import Words
from scripts.bench.service import UnderTest, until
from scripts.cli.cli import load_settings
from scripts.cli.console import make_console

WORKERS = 2
POLL_S = 0.05
CALLED_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class EnhancingSize:
    """How much is measured: a transcript of so many minutes, asked about in such a context."""

    minutes: int = 69
    context_tokens: int = 8192
    answer_s: float = 2.0
    """How long the model takes for each answer."""


QUICK = EnhancingSize(minutes=20)


class Model:
    """Answers about summaries, and counts: ``calls`` by what was asked, ``cut`` connections."""

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self.reset()

    def reset(self) -> None:
        self.calls: Counter[str] = Counter()
        self.begun = self.ended = self.cut = 0

    def respond(self, seen: SeenChat) -> Scripted:
        """The answer to a request, which takes its time."""
        messages = seen.body["messages"]
        self.calls[json.dumps(messages)] += 1
        schema = seen.body["response_format"]["json_schema"]["schema"]
        (field,) = schema["properties"]
        cited = _cited(json.loads(messages[-1]["content"]), is_last=field == "sentences")
        entries = [
            {"text": f"From segment {ids[0]} to {ids[-1]}.", "segments": ids} for ids in cited
        ]
        return Scripted(self._slowly(written(json.dumps({field: entries}))))

    def _slowly(self, events: list[bytes]) -> Iterator[bytes]:
        self.begun += 1
        is_whole = False
        try:
            for event in events:
                time.sleep(self._answer_s / len(events))
                yield event
            is_whole = True
        finally:
            self.ended += 1
            self.cut += not is_whole


def _cited(data: dict[str, Any], *, is_last: bool) -> list[list[int]]:
    """The segments of each sentence: one of a part's transcript; of notes one, at last one each."""
    notes: list[list[int]] = [note["segments"] for note in data.get("notes", ())]
    if notes and is_last:
        return notes
    said = [it["id"] for it in data.get("transcript", ())]
    return [sorted({*said, *(number for note in notes for number in note)})]


@dataclass(frozen=True, slots=True)
class Summarised:
    """A summary: how long it took, and how often each request was made."""

    seconds: float
    parts: int
    calls: tuple[int, ...]
    cut: int
    cites_all: bool
    is_in_order: bool


class EnhancingBench:
    """Summarises transcripts with one worker, with two, and while one of these is killed."""

    def __init__(
        self, settings: Settings, folder: Path, *, size: EnhancingSize, progress: Progress
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._size = size
        self._progress = progress
        self._texts = 0

    def run(self) -> Iterator[BenchPart]:
        """Measure all.

        Raises:
            SetupProblem: a summary failed, or the workers did not ask.
        """
        model = Model(self._size.answer_s)
        found: dict[str, Summarised] = {}
        with ChatScript(model.respond) as server:
            for workers in (1, WORKERS):
                with self._service(workers, server) as service:
                    name = "one worker" if workers == 1 else "two workers"
                    self._summarised(service, model, "warming up", self._size.minutes // 4)
                    found[name] = self._summarised(service, model, name)
                    if workers == WORKERS:
                        name = "two workers, one killed"
                        found[name] = self._summarised(service, model, name, kills=True)
        yield self._part(found)

    def _service(self, workers: int, server: ChatScript) -> UnderTest:
        return UnderTest(
            workers,
            self._folder / f"stack-{workers}",
            settings=self._settings,
            env={
                "ENHANCED_AI_BASE_URL": server.base_url,
                "ENHANCED_AI_MODEL": "scripted",
                "ENHANCED_AI_CONTEXT_TOKENS": str(self._size.context_tokens),
                "ENHANCED_AI_CONCURRENCY": str(WORKERS),
            },
        )

    def _summarised(
        self,
        service: UnderTest,
        model: Model,
        name: str,
        minutes: int | None = None,
        *,
        kills: bool = False,
    ) -> Summarised:
        """Summarise a transcript about which no request was ever made."""
        self._texts += 1
        transcript = Words(self._texts).transcript(minutes or self._size.minutes, words=True)
        source_id = stored(service.database, transcript)
        model.reset()
        self._progress(f"summarising: {name}")
        started = time.monotonic()
        job_id = UUID(service.gateway.enhance(str(source_id), "summary")["enhanced_job_id"])
        if kills:
            # Both workers are asking, and there is more for them to do.
            if until(lambda: model.begun - model.ended == WORKERS, CALLED_WITHIN_S, POLL_S) is None:
                raise SetupProblem(
                    problem="The workers did not ask at the same time",
                    remedy=f"The logs were in {service.stack.log_dir}",
                )
            service.kill_worker()
        service.wait(job_id)
        seconds = time.monotonic() - started
        result = service.gateway.enhancement(str(job_id))["result"]
        cited = [sentence["segments"] for sentence in result["sentences"]]
        with service.database.transaction() as session:
            parts = session.scalar(select(func.count()).where(Part.job_id == job_id)) or 0
        return Summarised(
            seconds,
            parts,
            tuple(model.calls.values()),
            model.cut,
            {number for ids in cited for number in ids} == set(range(len(transcript.segments))),
            all(one[-1] < other[0] for one, other in pairwise(cited)),
        )

    def _part(self, found: dict[str, Summarised]) -> BenchPart:
        table = Comparison(
            (
                Column("takes", "s"),
                Column("parts", "", 0),
                Column("called once", "", 0),
                Column("twice", "", 0),
                Column("more often", "", 0),
                Column("calls cut off", "", 0),
                Column("of one worker's time"),
            )
        )
        alone_s = found["one worker"].seconds
        for name, it in found.items():
            often = [min(count, 3) for count in it.calls]
            table.add(
                name,
                it.seconds,
                it.parts,
                *(often.count(count) for count in (1, 2, 3)),
                it.cut,
                it.seconds / alone_s,
            )
        all_found = found.values()
        size = self._size
        never = sum(it.parts - len(it.calls) for it in all_found)
        killed = found["two workers, one killed"]
        return BenchPart(
            "summary",
            f"A transcript of {size.minutes} minutes summarised in a context of"
            f" {size.context_tokens} tokens, {size.answer_s:g} s for each answer",
            (
                counted("parts never called", never, Target(0)),
                counted(
                    "parts called more than twice",
                    sum(count > 2 for it in all_found for count in it.calls),
                    Target(0),
                ),
                counted(
                    "parts called again without a kill",
                    sum(sum(it.calls) - len(it.calls) for it in all_found if it is not killed),
                ),
                counted("calls cut off by the kill", killed.cut, Target(1, at_least=True)),
                counted(
                    "summaries that lack a segment",
                    sum(not it.cites_all for it in all_found),
                    Target(0),
                ),
                counted(
                    "summaries out of order", sum(not it.is_in_order for it in all_found), Target(0)
                ),
                Figure(
                    "time with two workers, of one's",
                    (found["two workers"].seconds / alone_s,),
                    digits=2,
                ),
            ),
            table,
        )


def stored(database: Database, transcript: Transcript) -> UUID:
    """A COMPLETED job with this transcript, of which no recording is stored."""
    job_id = uuid4()
    with database.transaction() as session:
        session.add(
            Recording(
                id=job_id,
                tenant=DEFAULT_TENANT,
                filename="talk.mp3",
                container="mp3",
                codec="mp3float",
                size_bytes=1,
                sha256="",
                duration_ms=transcript.duration_ms,
                upload_ms=0,
                audio_tracks=[],
            )
        )
        session.flush()
        session.add(
            Job(
                id=job_id,
                tenant=DEFAULT_TENANT,
                recording_id=job_id,
                status=JobStatus.COMPLETED,
                phase="merge",
                engine="faster-whisper",
                model="base",
                language=transcript.language,
                options=Options().to_json(),
                units_total=transcript.duration_ms,
                parts_known=True,
                completed_at=func.now(),
            )
        )
        session.flush()
        session.add(Transcription(job_id=job_id, detected_language=transcript.language))
        session.add(
            TranscriptRevision(
                job_id=job_id,
                revision=1,
                language=transcript.language,
                duration_ms=transcript.duration_ms,
                word_count=transcript.word_count,
                segments=segments_to_json(transcript.segments),
                manifest={},
            )
        )
    return job_id


@click.command()
@click.option("--quick", is_flag=True, help="Summarise 20 minutes: a smoke test.")
@cores_option
@json_option
@click.pass_context
def enhancing(context: click.Context, quick: bool, cores: int, as_json: Path | None) -> None:
    """Measure the second AI step: a generated transcript of 69 minutes is summarised.

    Once by one worker, once by two, and once by two of which one is killed in the middle of a
    request. The language model is a server of the benchmark. The exit code is 1 where a target is
    missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    settings = load_settings()
    findings = Findings(make_console(), cores=cores, quick=quick, as_json=as_json)
    size = QUICK if quick else EnhancingSize()
    with working(settings) as (place, progress):
        for part in EnhancingBench(settings, place, size=size, progress=progress).run():
            findings.take(part)
    if not findings.sum_up():
        context.exit(1)
