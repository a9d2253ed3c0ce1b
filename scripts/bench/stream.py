"""``steno bench stream``: latency, accuracy and capacity of live streams, and bad clients.

The gateway is one of its own, with workers beside it; clients, gateway and recognizers share the
cores. Audio is sent in real time.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import psutil

from common.errors import RequestRejected
from common.settings import Settings
from common.weights.manifest import EVERY_LANGUAGE, FASTER_WHISPER, ZIPFORMER, Manifest
from common.weights.store import WeightsStore
from common.weights.transfer import SourceFailed
from scripts.bench.corpus import (
    ClipSet,
    Corpus,
    LongRecording,
    read_corpus,
    require_scorers,
    wer,
    write_wav,
)
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, counted
from scripts.bench.run import (
    Findings,
    Progress,
    cores_option,
    json_option,
    parts_option,
    working,
)
from scripts.bench.service import UnderTest
from scripts.bench.stream_clients import IDLE_S, StreamTarget, bad_clients, short_sessions
from scripts.bench.stream_play import (
    Played,
    Programme,
    Waits,
    median,
    p95,
    play_all,
    string_together,
    waits_of,
)
from scripts.cli.cli import load_settings
from scripts.cli.console import make_console

PARTS = ("english", "vietnamese", "several", "clients", "batch")
SHARED = ("several", "clients", "batch")
"""Parts that any of the voices can measure."""
MODEL = "base"
ROOMY = {
    "STREAM_MAX_WHISPER": "64",
    "STREAM_MAX_ZIPFORMER": "64",
    "LIMIT_CONCURRENT_STREAMS": "0",
}
"""Limits beyond the capacity, which is what is measured."""
WARM_UP_S = 1.0
OF_WAITS = (
    "Waits count from when the audio was sent: for a first partial the start of the utterance's "
    "first word, for a final the utterance's end."
)
OF_TIMES = (
    "Times are the engines' processing times (RTF): the stream's with STREAM_THREADS threads, the "
    "job's with one."
)
FULL = 503
"""The status where no stream is free."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Targets of an engine: medians in seconds, and the RTF."""

    first_s: float
    final_s: float
    rtf: float

    def kept_by(self, waits: Waits) -> bool:
        return median(waits.firsts) <= self.first_s and median(waits.finals) <= self.final_s


PROMISES = {FASTER_WHISPER: Promise(1.2, 1.0, 0.6), ZIPFORMER: Promise(0.8, 1.0, 0.15)}
COLUMNS = (
    Column("first partial", "s"),
    Column("95 %", "s"),
    Column("final", "s"),
    Column("95 %", "s"),
    Column("to one alone", "x"),
)
"""Of comparisons: waits in the median and at the 95th percentile."""
WER_POINTS = 2.0
"""How many WER points finals may lose against the batch path on the same audio."""
GROWTH_MB = 30.0
"""By how much processes may grow over the short sessions; a session's audio alone is 30 kB."""


@dataclass(frozen=True, slots=True)
class StreamSize:
    """How much is measured; ``steps`` are the numbers of streams at once that are tried.

    ``unread``: whether a client that reads nothing is waited for; it is cut off after a minute.
    """

    stream_s: float = 450.0
    several_s: float = 40.0
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10, 12, 16)
    pause_s: float = 4 * IDLE_S
    fast_s: float = 90.0
    unread: bool = True
    sessions: int = 300


QUICK = StreamSize(stream_s=30.0, several_s=15.0, steps=(1, 2), fast_s=5.0, sessions=20)
LONG_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Voice:
    """Clips in one language, and the engine that recognizes them."""

    clips: ClipSet
    engine: str
    model: str

    @property
    def options(self) -> dict[str, str]:
        return {"engine": self.engine, "model_id": self.model}

    @property
    def promise(self) -> Promise:
        return PROMISES[self.engine]

    def programme(self, seconds: float, seed: int = 0) -> Programme:
        return string_together(self.clips.clips, self.clips.language, seconds, seed=seed)

    def __str__(self) -> str:
        return f"{self.clips.name} on {self.engine} {self.model}"


def processor_s(processes: Sequence[psutil.Process]) -> float:
    """Processor time of all their threads so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


class StreamBench:
    """Measures the requested parts. ``folder`` takes everything that is written."""

    def __init__(
        self,
        corpus: Corpus,
        settings: Settings,
        folder: Path,
        *,
        cores: int,
        size: StreamSize,
        progress: Progress,
    ) -> None:
        self._corpus = corpus
        self._settings = settings
        self._folder = folder
        self._cores = cores
        self._size = size
        self._progress = progress
        self._key = settings.key.of_client
        self._kept_pace: dict[str, int] = {}
        self._voices: dict[str, Voice] = {}
        self.skipped: list[str] = []
        """What could not be measured, and why."""

    def run(self, wanted: Sequence[str], found: Callable[[BenchPart], None]) -> None:
        """Measure ``wanted``; calls ``found`` with each part as soon as it is measured."""
        for name, find in (("english", self._english), ("vietnamese", self._vietnamese)):
            if set(wanted) & {name, *SHARED} and (voice := find()) is not None:
                self._voices[name] = voice
        if set(wanted) - {"clients"} and self._voices:
            with self._service("roomy", self._cores, ROOMY) as roomy:
                self._with_room(roomy, wanted, found)
        if "clients" in wanted and self._voices:
            with self._narrow() as narrow:
                self._with_limits(narrow, found)

    def _with_room(
        self, service: UnderTest, wanted: Sequence[str], found: Callable[[BenchPart], None]
    ) -> None:
        for name, voice in self._voices.items():
            if name in wanted:
                found(self._one(service, name, voice))
        if "several" in wanted:
            for voice in self._voices.values():
                found(self._several(service, voice))
        if "batch" in wanted:
            if self._corpus.recording is not None:
                found(self._beside_a_job(service, self._corpus.recording))
            else:
                self.skipped.append("batch: the folder has no long recording")

    def _with_limits(self, service: UnderTest, found: Callable[[BenchPart], None]) -> None:
        for voice in self._voices.values():
            found(self._one_too_many(service, voice))
        found(self._bad_clients(service))
        found(self._sessions(service))

    def _service(self, name: str, workers: int, env: Mapping[str, str]) -> UnderTest:
        return UnderTest(workers, self._folder / name, settings=self._settings, env=env)

    # --- voices ---------------------------------------------------------------------------

    @property
    def _voice(self) -> Voice:
        """The first voice."""
        return next(iter(self._voices.values()))

    def _english(self) -> Voice | None:
        clips = self._clips("en", "english")
        return None if clips is None else Voice(clips, FASTER_WHISPER, MODEL)

    def _vietnamese(self) -> Voice | None:
        clips = self._clips("vi", "vietnamese")
        if clips is None:
            return None
        store = WeightsStore(self._settings.asr.models_dir, Manifest.load())
        for state in store.states():
            speaks = state.languages == EVERY_LANGUAGE or "vi" in state.languages
            if state.engine == ZIPFORMER and state.state == "present" and speaks:
                return Voice(clips, ZIPFORMER, state.model)
        self._progress("fetching Vietnamese weights for zipformer")
        try:
            from scripts.bench.vietnamese_weights import bring

            place = bring(self._settings.asr.models_dir)
        except (SourceFailed, ImportError, OSError) as error:
            self.skipped.append(f"vietnamese: there are no weights for zipformer: {error}")
            return None
        return Voice(clips, ZIPFORMER, place.name.removeprefix(f"{ZIPFORMER}-"))

    def _clips(self, language: str, name: str) -> ClipSet | None:
        for clips in self._corpus.clip_sets:
            if clips.language == language:
                return clips
        self.skipped.append(f"{name}: the folder has no clips in {language}")
        return None

    # --- 1: one stream ------------------------------------------------------------------------

    def _one(self, service: UnderTest, part: str, voice: Voice) -> BenchPart:
        programme = voice.programme(self._size.stream_s)
        self._warm_up(service, voice)
        self._progress(f"{voice}: one stream of {programme.duration_s:.0f} s")
        played, spent_s = self._measured(service, voice, [programme])
        stream = played[0]
        self._progress(f"{voice}: the same audio as a job")
        audio = np.frombuffer(programme.pcm, "<i2")
        file = write_wav(self._folder / f"{part}.wav", [audio])
        job = service.run(file, {"language": programme.language, "model": MODEL})
        texts = {"stream": stream.text, "job": job.text}
        wers = {
            way: wer([programme.reference], [text], programme.language)
            for way, text in texts.items()
        }
        rtfs = {
            "stream": stream.processing_s / programme.duration_s,
            "job": job.engine_s / programme.duration_s,
        }
        comparison = Comparison(
            (Column("WER", "%"), Column("time / audio", digits=3), Column("to the job's", "x"))
        )
        for way, name in (("stream", f"stream, {voice.engine}"), ("job", f"job, {FASTER_WHISPER}")):
            comparison.add(name, wers[way], rtfs[way], rtfs[way] / rtfs["job"])
        # Promised of the same weights on both paths.
        target = Target(WER_POINTS) if voice.engine == FASTER_WHISPER else None
        points = wers["stream"] - wers["job"]
        rtf, cores = Target(voice.promise.rtf), spent_s / programme.duration_s
        return BenchPart(
            part,
            f"1. One stream: {voice}, {programme.duration_s:.0f} s",
            (
                *_waits(part, waits_of(stream), voice.promise),
                Figure(f"{part}: WER above the job's", (points,), "points", 2, target),
                Figure(f"{part}: real time factor", (rtfs["stream"],), "", 3, rtf),
                Figure(f"{part}: processor time of all threads / audio", (cores,), "", 3),
            ),
            comparison,
            (OF_WAITS, OF_TIMES),
            tuple(
                {"way": way, "text": text}
                for way, text in {"reference": programme.reference, **texts}.items()
            ),
        )

    # --- 2: several ---------------------------------------------------------------------------

    def _several(self, service: UnderTest, voice: Voice) -> BenchPart:
        self._warm_up(service, voice)
        comparison = Comparison((*COLUMNS, Column("cores")))
        alone: Waits | None = None
        kept = 0
        for count in self._size.steps:
            programmes = [voice.programme(self._size.several_s, seed) for seed in range(count)]
            self._progress(f"{voice}: {count} streams at once")
            played, spent_s = self._measured(service, voice, programmes)
            waits = waits_of(*played)
            alone = alone or waits
            cores = spent_s / programmes[0].duration_s
            comparison.add(f"{count} at once", *_row(waits, alone), cores)
            behind = sum(each.states("behind") for each in played)
            if not voice.promise.kept_by(waits) or behind:
                break
            kept = count
        self._kept_pace[voice.engine] = kept
        limit = self._settings.stream.limit_of(voice.engine)
        return BenchPart(
            f"several {voice.engine}",
            f"2. Several streams at once: {voice}",
            (
                counted(
                    f"{voice.engine}: streams at once that keep what is promised of one",
                    kept,
                    Target(1, at_least=True),
                ),
            ),
            comparison,
            (f"The gateway's configured limit: {limit}.", OF_WAITS),
        )

    def _narrow(self) -> UnderTest:
        """A gateway limited to the measured capacity, with a short idle timeout."""
        whisper, zipformer = (
            max(1, self._kept_pace.get(engine, 1)) for engine in (FASTER_WHISPER, ZIPFORMER)
        )
        env = {
            "STREAM_MAX_WHISPER": str(whisper),
            "STREAM_MAX_ZIPFORMER": str(zipformer),
            "STREAM_IDLE": f"{IDLE_S:g}",
            "LIMIT_CONCURRENT_STREAMS": "0",
        }
        return self._service("narrow", 0, env)

    def _one_too_many(self, service: UnderTest, voice: Voice) -> BenchPart:
        limit = max(1, self._kept_pace.get(voice.engine, 1))
        self._warm_up(service, voice)
        self._progress(f"{voice}: {limit} streams and one too many")
        programmes = [voice.programme(self._size.several_s, seed) for seed in range(limit)]
        played, refusal = asyncio.run(self._with_one_more(service, voice, programmes))
        refused = refusal is not None and refusal.details["status"] == FULL
        answer = "it was not refused" if refusal is None else refusal.message
        name = f"{voice.engine}, one too many"
        return BenchPart(
            f"limit {voice.engine}",
            f"2. One stream too many: {voice}, limit {limit}",
            (
                counted(f"{name}: refused", refused, Target(1, at_least=True)),
                *_waits(f"{name}: the others", waits_of(*played), voice.promise),
            ),
            remarks=(f"The answer: {answer}", OF_WAITS),
        )

    async def _with_one_more(
        self, service: UnderTest, voice: Voice, programmes: Sequence[Programme]
    ) -> tuple[list[Played], RequestRejected | None]:
        """Play all, and half-way through request one more."""
        others = asyncio.create_task(
            play_all(service.address, self._key, programmes, **voice.options)
        )
        await asyncio.sleep(self._size.several_s / 2)
        refusal = None
        try:
            await play_all(
                service.address, self._key, [voice.programme(WARM_UP_S)], **voice.options
            )
        except RequestRejected as error:
            refusal = error
        return await others, refusal

    # --- 3: bad clients, and many -------------------------------------------------------------

    def _bad_clients(self, service: UnderTest) -> BenchPart:
        voice = self._voice
        self._warm_up(service, voice)
        self._progress("misbehaving clients")
        answers = asyncio.run(
            bad_clients(
                self._place(service, voice),
                voice.programme(WARM_UP_S),
                pause_s=self._size.pause_s,
                fast_s=self._size.fast_s,
                unread=self._size.unread,
            )
        )
        wrong = sum(not answer.as_promised for answer in answers)
        return BenchPart(
            "clients",
            "3. Misbehaving clients",
            (
                counted("bad clients", len(answers)),
                counted("misbehaving clients with an unexpected response", wrong, Target(0)),
            ),
            remarks=tuple(map(str, answers)),
        )

    def _sessions(self, service: UnderTest) -> BenchPart:
        places = [self._place(service, voice) for voice in self._voices.values()]
        speech = self._voice.programme(WARM_UP_S)
        count = self._size.sessions
        self._progress("a few short sessions")
        asyncio.run(short_sessions(places, speech, 2 * len(places)))
        before = _family(service)
        self._progress(f"{count} short sessions")
        failed = asyncio.run(short_sessions(places, speech, count))
        after = _family(service)
        comparison = Comparison(
            (Column("before", "MB", 1), Column("after", "MB", 1), Column("ratio", "x"))
        )
        for role in dict.fromkeys((*before, *after)):
            old, new = (sum(found.get(role, ())) for found in (before, after))
            comparison.add(role, old, new, new / old if old else math.inf)
        counts = [sum(map(len, found.values())) for found in (before, after)]
        sizes = [sum(map(sum, found.values())) for found in (before, after)]
        return BenchPart(
            "sessions",
            f"3. {count} short sessions, one after the other",
            (
                counted("sessions that did not end as they should", failed, Target(0)),
                counted("processes left over", counts[1] - counts[0], Target(0)),
                Figure("memory left over", (sizes[1] - sizes[0],), "MB", 1, Target(GROWTH_MB)),
            ),
            comparison,
            (f"{counts[1]} processes: the gateway and its children.",),
        )

    # --- 4: beside a job ----------------------------------------------------------------------

    def _beside_a_job(self, service: UnderTest, recording: LongRecording) -> BenchPart:
        voice = self._voice
        programme = voice.programme(self._size.several_s)
        self._warm_up(service, voice)
        waits = {}
        self._progress(f"{voice}: one stream alone")
        waits["the stream alone"] = waits_of(*self._measured(service, voice, [programme])[0])
        self._progress(f"{voice}: one stream, and {recording.path.name}")
        job = service.submit(recording.path, {"language": recording.language, "model": MODEL})
        service.wait_until_under_way(job)
        waits["beside the job"] = waits_of(*self._measured(service, voice, [programme])[0])
        over = service.ended(job)
        if not over:
            service.cancel(job)
        comparison = Comparison(COLUMNS)
        for name, each in waits.items():
            comparison.add(name, *_row(each, waits["the stream alone"]))
        return BenchPart(
            "batch",
            f"4. Beside a job: {voice}, {service.workers} workers at {recording.path.name}",
            (),
            comparison,
            (OF_WAITS, *(["The job ended before the stream: use a longer recording."] * over)),
        )

    # --- all ----------------------------------------------------------------------------------

    def _place(self, service: UnderTest, voice: Voice) -> StreamTarget:
        options = {**voice.options, "language": voice.clips.language}
        return StreamTarget(service.address, self._key, options, tuple(service.gateway_pids))

    def _warm_up(self, service: UnderTest, voice: Voice) -> None:
        """Load the recognizer and use it once."""
        if service.recognizers(voice.engine):
            return
        self._progress(f"{voice}: loading")
        programme = voice.programme(WARM_UP_S)
        asyncio.run(play_all(service.address, self._key, [programme], **voice.options))

    def _measured(
        self, service: UnderTest, voice: Voice, programmes: Sequence[Programme]
    ) -> tuple[list[Played], float]:
        """Streams, and the processor time their recognizer spent."""
        before = processor_s(service.recognizers(voice.engine))
        played = asyncio.run(play_all(service.address, self._key, programmes, **voice.options))
        return played, processor_s(service.recognizers(voice.engine)) - before


def _family(service: UnderTest) -> dict[str, list[float]]:
    """The resident size in MB of the gateway's process and its children, by what they do."""
    found: dict[str, list[float]] = {}
    for pid in service.gateway_pids:
        process = psutil.Process(pid)
        words = process.cmdline()
        role = words[words.index("-m") + 1] if "-m" in words else process.name()
        found.setdefault(role, []).append(process.memory_info().rss / 1e6)
    return found


def _row(waits: Waits, alone: Waits) -> tuple[float, ...]:
    """A row of a comparison that has `COLUMNS`; ``alone`` is what one undisturbed stream met."""
    return (
        median(waits.firsts),
        p95(waits.firsts),
        median(waits.finals),
        p95(waits.finals),
        median(waits.finals) / median(alone.finals),
    )


def _waits(name: str, waits: Waits, promise: Promise) -> tuple[Figure, ...]:
    first, final = Target(promise.first_s), Target(promise.final_s)
    return (
        counted(f"{name}: utterances", len(waits.finals)),
        Figure(f"{name}: first partial, median", (median(waits.firsts),), "s", 2, first),
        Figure(f"{name}: first partial, 95th percentile", (p95(waits.firsts),), "s", 2),
        Figure(f"{name}: final, median", (median(waits.finals),), "s", 2, final),
        Figure(f"{name}: final, 95th percentile", (p95(waits.finals),), "s", 2),
        Figure(f"{name}: final since the last word, median", (median(waits.words),), "s", 2),
    )


# --- the command ------------------------------------------------------------------------------


@click.command()
@click.argument(
    "folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@parts_option(PARTS)
@click.option("--quick", is_flag=True, help="Measure a minute of each: a smoke test.")
@click.option(
    "--long", "long_pause", is_flag=True, help="Let the client that pauses do so for 10 minutes."
)
@cores_option
@json_option
@click.pass_context
def stream(
    context: click.Context,
    folder: Path,
    parts: tuple[str, ...],
    quick: bool,
    long_pause: bool,
    cores: int,
    as_json: Path | None,
) -> None:
    """Measure live streams on the recordings in FOLDER [the current one].

    FOLDER is as for `steno bench`: with clips in English and in Vietnamese, and for the part batch
    with a long recording. The exit code is 1 where a target is missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    require_scorers()
    corpus = read_corpus(folder)
    settings = load_settings()
    size = QUICK if quick else StreamSize()
    if long_pause:
        size = replace(size, pause_s=LONG_PAUSE_S)
    console = make_console()
    findings = Findings(console, cores=cores, quick=quick, as_json=as_json)
    with working(settings) as (place, progress):
        bench = StreamBench(corpus, settings, place, cores=cores, size=size, progress=progress)
        bench.run(parts, findings.take)
    for line in bench.skipped:
        console.print(f"Skipped: {line}", style="yellow")
    if not findings.sum_up():
        context.exit(1)
