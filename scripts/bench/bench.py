"""``steno bench``: speed, accuracy and memory, compared with the engines used directly.

Everything runs one after the other on the same cores, the service in a stack of its own and each
engine in a process of its own, so that the figures of one run can be compared.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from common.domain.models import BATCH_ENGINES, ModelName
from common.domain.values import SAMPLE_RATE
from common.errors import SetupProblem
from common.settings import Settings
from common.weights.manifest import FASTER_WHISPER, SHERPA_ONNX, WHISPER_CPP, Manifest
from common.weights.store import WeightsStore
from scripts.bench import direct
from scripts.bench.corpus import (
    ClipSet,
    Corpus,
    DecodedRecording,
    LongRecording,
    decode,
    read_corpus,
    require_scorers,
    wer,
    write_wav,
)
from scripts.bench.direct import Way
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, counted
from scripts.bench.run import Findings, cores_option, json_option, parts_option, working
from scripts.bench.service import Run, UnderTest
from scripts.cli.cli import load_settings
from scripts.cli.console import make_console

PARTS = ("long", "overhead", "latency", "clips", "memory", "mixed", "scaling")
MODEL = "base"
OURS = "Stenopool"
CLIP_S = 10.0
CLIPS = 10
"""How many excerpts of the long recording are sent as clips."""
PAUSE_SAMPLES = SAMPLE_RATE // 2
"""Between clips in one recording."""
PEAKS_EVERY_S = 0.5
"""A worker's engine process may be replaced; the peaks of the earlier ones count too."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. ``recording_s`` 0: the whole recording; ``clips`` 0: all of them.

    ``warm_up``: whether engines are used once before they are measured.
    """

    recording_s: float = 0.0
    clips: int = 0
    sent: int = CLIPS
    upload_mb: int = 500
    planned_s: float = 3 * 3600.0
    chunks: int = 200
    warm_up: bool = True


QUICK = Size(recording_s=600.0, clips=4, sent=3, upload_mb=50, planned_s=1800.0, chunks=30)


class Bench:
    """Measures the requested parts. ``folder`` takes everything that is written."""

    def __init__(
        self,
        corpus: Corpus,
        settings: Settings,
        folder: Path,
        *,
        cores: int,
        size: Size,
        rounds: int,
        progress: Callable[[str], None],
    ) -> None:
        self._corpus = corpus
        self._settings = settings
        self._folder = folder
        self._cores = cores
        self._size = size
        self._rounds = rounds
        self._progress = progress
        self._long_runs: list[Run] = []
        self._alone: dict[str, str] = {}
        self._weights = WeightsStore(settings.asr.models_dir, Manifest.load())
        self._engines: dict[Way, direct.DirectEngine] = {}

    def run(self, wanted: Sequence[str], found: Callable[[BenchPart], None]) -> None:
        """Measure ``wanted``; calls ``found`` with each part as soon as it is measured."""
        if not set(wanted) <= {"clips"} and self._corpus.recording is None:
            raise SetupProblem(
                problem="The folder has no long recording",
                remedy="Add one, or measure --parts clips, which needs only short clips",
            )
        beside = tuple(Way) if set(wanted) & {"long", "clips"} else (Way.SEQUENTIAL,)
        self._engines = {
            way: self._engine(way) for way in beside
        }  # fails early if weights are missing
        if set(wanted) - {"memory", "mixed"}:
            with self._service(self._cores, "all") as service:
                self._with_all_workers(service, wanted, found)
        if set(wanted) & {"scaling", "memory"}:
            with self._service(1, "one") as service:
                if "scaling" in wanted:
                    found(self._scaling(service))
                if "memory" in wanted:
                    found(self._memory(service))
        if "mixed" in wanted:
            found(self._mixed())

    def _with_all_workers(
        self, service: UnderTest, wanted: Sequence[str], found: Callable[[BenchPart], None]
    ) -> None:
        if set(wanted) & {"long", "overhead", "scaling"}:
            beside = self._long_rounds(service, direct_too="long" in wanted)
            if "long" in wanted:
                found(self._long(service, beside))
        if "overhead" in wanted:
            found(self._overhead(service))
        if "latency" in wanted:
            found(self._latency(service))
        if "clips" in wanted:
            for clip_set in self._corpus.clip_sets:
                found(self._clips(service, clip_set))
            first: dict[str, ClipSet] = {}
            for clip_set in self._corpus.clip_sets:
                first.setdefault(clip_set.language, clip_set)
            if len(first) > 1:
                found(self._in_turn(service, list(first.values())[:2]))

    def _service(self, workers: int, name: str, **env: str) -> UnderTest:
        return UnderTest(workers, self._folder / name, settings=self._settings, env=env)

    # --- what is measured on ------------------------------------------------------------------

    @property
    def _recording(self) -> LongRecording:
        if self._corpus.recording is None:
            raise AssertionError("checked before anything is measured")
        return self._corpus.recording

    @cached_property
    def _decoded(self) -> DecodedRecording:
        self._progress(f"decoding {self._recording.path.name}")
        return DecodedRecording(self._recording.path, self._folder / "recording.pcm")

    @cached_property
    def _long_file(self) -> Path:
        if not self._size.recording_s or self._size.recording_s >= self._decoded.duration_s:
            return self._recording.path
        return self._decoded.cut(self._folder / "long.wav", 0, self._size.recording_s)

    @cached_property
    def _long_s(self) -> float:
        whole = self._decoded.duration_s
        return min(whole, self._size.recording_s) if self._size.recording_s else whole

    @cached_property
    def _scored_file(self) -> Path:
        return self._decoded.cut(self._folder / "scored.wav", 0, self._recording.scored_s)

    @cached_property
    def _ten_seconds(self) -> list[Path]:
        step = max(CLIP_S, (self._decoded.duration_s - CLIP_S) / CLIPS)
        return [
            self._decoded.cut(self._folder / f"clip-{n}.wav", n * step, CLIP_S)
            for n in range(CLIPS)
        ]

    @property
    def _options(self) -> dict[str, str]:
        return {"language": self._recording.language, "model": MODEL}

    def _engine(self, way: Way) -> direct.DirectEngine:
        name = WHISPER_CPP if way is Way.WHISPER_CPP else FASTER_WHISPER
        asr = self._settings.asr
        weights = self._weights.resolve(name, MODEL).path
        return direct.DirectEngine(way, weights, self._cores, asr.device, asr.compute_type)

    # --- 1: the long recording ----------------------------------------------------------------

    def _long_rounds(
        self, service: UnderTest, *, direct_too: bool
    ) -> dict[Way, list[direct.DirectText]]:
        """Run the long recording through the service, and in turn through each engine."""
        beside: dict[Way, list[direct.DirectText]] = {way: [] for way in Way}
        self._warm_up(service)
        for number in range(self._rounds):
            of = f"(round {number + 1} of {self._rounds})"
            self._progress(f"the long recording: {OURS} {of}")
            self._long_runs.append(service.run(self._long_file, self._options))
            # No target is set against whisper.cpp's time, and it takes longest: once is enough.
            ways = [way for way in Way if number == 0 or way is not Way.WHISPER_CPP]
            for way in ways if direct_too else []:
                self._progress(f"the long recording: {way} {of}")
                files = [self._long_file] if number else [self._long_file, self._scored_file]
                whole, *start = self._directly(way, files)
                beside[way].append(whole)
                if start:
                    self._alone[way] = start[0].text
        return beside

    def _long(self, service: UnderTest, beside: dict[Way, list[direct.DirectText]]) -> BenchPart:
        until_s = self._recording.scored_s
        self._progress(f"the first {until_s:g} s alone: {OURS}")
        alone = {OURS: service.run(self._scored_file, self._options).text, **self._alone}
        seconds = {OURS: tuple(run.seconds for run in self._long_runs)}
        seconds |= {way: tuple(transcribed.seconds for transcribed in beside[way]) for way in Way}
        wers = {name: self._wer(text) for name, text in alone.items()}
        # By its words; the engines' own segments reach up to half a minute beyond the cut.
        of_whole = self._wer(self._long_runs[0].text_until(until_s))
        comparison = Comparison(
            (
                Column("wall", "s", 1),
                Column("speed", "x", 1),
                Column("ours is faster", "x"),
                Column("WER of the start", "%"),
            )
        )
        for name, taken in seconds.items():
            speed = tuple(self._long_s / each for each in taken)
            faster = _ratios(taken, seconds[OURS][: len(taken)])
            comparison.add(name, taken, speed, faster, wers[name])
        sequential = wers[Way.SEQUENTIAL]
        remark = (
            f"The start is the first {until_s:g} s; the targets are set against sequential's WER "
            f"there. Engines used directly have {self._cores} threads."
        )
        encoders = f"{OURS}'s encoder: {', '.join(self._long_runs[0].encoders)}."
        return BenchPart(
            "long",
            f"1. {self._recording.path.name}, {self._long_s / 60:.1f} min, {MODEL}: "
            f"{self._cores} workers of one thread, from upload to COMPLETED",
            (
                Figure(
                    "speed against sequential",
                    _ratios(seconds[Way.SEQUENTIAL], seconds[OURS]),
                    "x",
                    2,
                    Target(3.0, at_least=True),
                ),
                Figure(
                    "speed against batched",
                    _ratios(seconds[Way.BATCHED], seconds[OURS]),
                    "x",
                    2,
                    Target(1.0, at_least=True),
                ),
                Figure(
                    "WER above sequential's, the start sent alone",
                    (wers[OURS] - sequential,),
                    "points",
                    2,
                    Target(0.3),
                ),
                Figure(
                    "WER above sequential's, the start of the whole",
                    (of_whole - sequential,),
                    "points",
                    2,
                    Target(0.3),
                ),
            ),
            comparison,
            (remark, encoders),
            tuple({"way": name, "text": text} for name, text in alone.items()),
        )

    def _wer(self, text: str) -> float:
        return wer([self._recording.reference], [text], self._recording.language)

    # --- 2: what is not inference -------------------------------------------------------------

    def _overhead(self, service: UnderTest) -> BenchPart:
        workers = service.workers
        self._progress("10 s clips on an idle stack")
        self._warm_up(service)
        clips = [
            service.run(clip, self._options)
            for _ in range(self._rounds)
            for clip in self._ten_seconds[: self._size.sent]
        ]
        beyond = [run.seconds - run.engine_s for run in clips]
        not_inference, moderation = [], []
        for run in self._long_runs:
            metrics = run.metrics
            not_inference.append(100 * (1 - run.engine_s / (workers * run.seconds)))
            moderation.append(100 * metrics.moderation_ms / (workers * metrics.wall_ms))
        figures = (
            Figure(
                "not inference, of the wall time from upload to COMPLETED",
                tuple(not_inference),
                "%",
                2,
                Target(8.0),
            ),
            Figure("10 s clip: beyond the engine's own time, median", (median(beyond),), "s", 3),
            Figure(
                "moderation, of the wall time from the job's creation",
                tuple(moderation),
                "%",
                2,
                Target(3.0),
            ),
            Figure(
                "10 s clip: beyond the engine's own time, most", (max(beyond),), "s", 3, Target(0.7)
            ),
            Figure("10 s clip: the engine's own time", tuple(r.engine_s for r in clips), "s", 2),
        )
        return BenchPart(
            "overhead",
            f"2. What is not inference ({workers} workers)",
            figures,
            remarks=(f"{len(clips)} clips, one after the other.",),
        )

    # --- 3: a clip while a long job runs ------------------------------------------------------

    def _latency(self, service: UnderTest) -> BenchPart:
        self._progress("10 s clips while the long recording is transcribed")
        self._warm_up(service)
        rounds = []
        started = 0
        for _ in range(self._rounds):
            long_job = service.submit(self._long_file, self._options)
            started += 1
            service.wait_until_under_way(long_job)
            taken = []
            for clip in self._ten_seconds[: self._size.sent]:
                if service.ended(long_job):
                    long_job = service.submit(self._long_file, self._options)
                    started += 1
                    service.wait_until_under_way(long_job)
                taken.append(service.run(clip, self._options).seconds)
            if not service.ended(long_job):
                service.cancel(long_job)
            rounds.append(taken)
        return BenchPart(
            "latency",
            "3. 10 s clips, one after another, while the long recording is transcribed",
            (
                Figure("median", tuple(median(taken) for taken in rounds), "s", 2),
                Figure(
                    "95th percentile",
                    tuple(float(np.percentile(taken, 95)) for taken in rounds),
                    "s",
                    2,
                    Target(8.0),
                ),
                Figure("most", tuple(max(taken) for taken in rounds), "s", 2),
            ),
            remarks=(
                *("each: " + ", ".join(f"{each:.2f}" for each in taken) + " s" for taken in rounds),
                f"The long recording was sent {started} times to keep the workers busy.",
            ),
        )

    # --- 4: accuracy on clips -----------------------------------------------------------------

    def _clips(self, service: UnderTest, clip_set: ClipSet) -> BenchPart:
        clips = clip_set.clips[: self._size.clips or None]
        paths = [clip.path for clip in clips]
        references = [clip.reference for clip in clips]
        comparison = Comparison(
            (
                Column("WER", "%"),
                Column("speed of a process", "x"),
                Column(f"of {FASTER_WHISPER} {MODEL}'s", "x"),
            )
        )
        figures = []
        details = []
        base_speed = 0.0
        ways = {FASTER_WHISPER: Way.SEQUENTIAL, WHISPER_CPP: Way.WHISPER_CPP}
        for engine, way in ways.items():
            self._progress(f"{clip_set.name}: {OURS} with {engine}")
            runs = self._clips_by(service, paths, clip_set.language, ModelName(engine, MODEL))
            ours = [run.text for run in runs]
            speed = _engine_speed(runs)
            base_speed = base_speed or speed
            self._progress(f"{clip_set.name}: {way}, directly")
            transcribed = direct.transcribe(
                self._engines[way], paths, clip_set.language, warm_up=False
            )
            theirs = [each.text for each in transcribed]
            our_wer, their_wer = (wer(references, t, clip_set.language) for t in (ours, theirs))
            comparison.add(f"{OURS}, {engine}", our_wer, speed, speed / base_speed)
            audio_s = sum(run.metrics.audio_ms for run in runs) / 1000
            directly = audio_s / sum(each.seconds for each in transcribed)
            comparison.add(f"{way}, directly", their_wer, directly, directly / base_speed)
            figures.append(
                Figure(
                    f"{clip_set.name}: WER above {engine}'s own",
                    (our_wer - their_wer,),
                    "points",
                    2,
                    Target(0.0),
                )
            )
            details += [
                {
                    "file": clip.path.name,
                    "engine": engine,
                    "reference": clip.reference,
                    "ours": our_text,
                    "theirs": their_text,
                }
                for clip, our_text, their_text in zip(clips, ours, theirs, strict=True)
            ]
        for name in self._other_models(clip_set.language):
            self._progress(f"{clip_set.name}: {OURS} with {name}")
            runs = self._clips_by(service, paths, clip_set.language, name)
            errors = wer(references, [run.text for run in runs], clip_set.language)
            speed = _engine_speed(runs)
            comparison.add(f"{OURS}, {name}", errors, speed, speed / base_speed)
            if name.engine != SHERPA_ONNX:
                continue
            figures += [
                Figure(f"{clip_set.name}: WER of {name}", (errors,), "%", 2, Target(10.0)),
                Figure(
                    f"{clip_set.name}: speed of {name}, of {FASTER_WHISPER} {MODEL}'s",
                    (speed / base_speed,),
                    "x",
                    1,
                    Target(5.0, at_least=True),
                ),
            ]
        return BenchPart(
            f"clips {clip_set.name}",
            f"4. {clip_set.name}: {len(clips)} clips, {MODEL}",
            tuple(figures),
            comparison,
            details=tuple(details),
        )

    def _clips_by(
        self, service: UnderTest, paths: Sequence[Path], language: str, name: ModelName
    ) -> list[Run]:
        """Send the clips for this model, which all workers have loaded."""
        options = {"language": language, "model": name.model, "engine": name.engine}
        service.warm_up(paths[:1], options)
        return service.run_all(paths, options)

    def _other_models(self, language: str) -> list[ModelName]:
        """The published models for recordings in a language that are installed, except `MODEL`.

        In Vietnamese there is always one of sherpa-onnx.
        """
        found = [
            ModelName(state.engine, state.model)
            for state in self._weights.states()
            if state.engine in BATCH_ENGINES
            and state.model != MODEL
            and state.state == "present"
            and not state.own
            and {"*", language} & set(state.languages)
        ]
        if language == "vi" and all(name.engine != SHERPA_ONNX for name in found):
            found.append(self._vietnamese_network())
        return found

    def _vietnamese_network(self) -> ModelName:
        self._progress("making Vietnamese weights for sherpa-onnx")
        from scripts.bench.vietnamese_weights import bring_for_recordings

        place = bring_for_recordings(self._settings.asr.models_dir)
        return ModelName(SHERPA_ONNX, place.name.removeprefix(f"{SHERPA_ONNX}-"))

    def _in_turn(self, service: UnderTest, clip_sets: Sequence[ClipSet]) -> BenchPart:
        """One recording of two languages: a clip of each in turn."""
        languages = ",".join(each.language for each in clip_sets)
        self._progress(f"clips of {languages} in turn: {OURS}")
        turns = zip(*(each.clips for each in clip_sets), strict=False)
        pieces: list[NDArray[np.int16]] = []
        spoken: list[tuple[float, float, str]] = []
        end_s = 0.0
        for clips in islice(turns, self._size.clips or None):
            for clip_set, clip in zip(clip_sets, clips, strict=True):
                pieces += [decode(clip.path), np.zeros(PAUSE_SAMPLES, np.int16)]
                length_s = len(pieces[-2]) / SAMPLE_RATE
                spoken.append((end_s, end_s + length_s, clip_set.language))
                end_s += length_s + PAUSE_SAMPLES / SAMPLE_RATE
        file = write_wav(self._folder / "in-turn.wav", pieces)
        run = service.run(file, {"languages": languages, "model": MODEL})
        right = [
            (max(0.0, min(end, it["end"]) - max(start, it["start"])), it["language"] == language)
            for it in run.result["segments"]
            for start, end, language in spoken
        ]
        share = sum(s for s, is_right in right if is_right) / (sum(s for s, _ in right) or 1.0)
        return BenchPart(
            "clips in turn",
            f"4. Clips of {languages} in turn, in one recording, {MODEL}",
            (Figure("text in the language of its clip", (100 * share,), "%", 1, Target(95, True)),),
        )

    # --- 5: memory ----------------------------------------------------------------------------

    def _memory(self, service: UnderTest) -> BenchPart:
        if sys.platform != "linux":
            raise SetupProblem(
                problem="Memory is measured with Linux's /proc", remedy="Leave the part memory out"
            )
        figures = [*self._worker_memory(service), self._upload_memory(), *self._plan_memory()]
        return BenchPart(
            "memory",
            "5. Memory (peaks of the resident size as the kernel counts it, in MB of 1,000,000)",
            tuple(figures),
        )

    def _worker_memory(self, service: UnderTest) -> list[Figure]:
        self._warm_up(service)
        first = 0.0
        peaks: dict[int, float] = {}
        while (transcribed := service.chunks_transcribed()) < self._size.chunks:
            self._progress(f"a worker over {self._size.chunks} chunks: {transcribed} done")
            job_id = service.submit(self._long_file, self._options)
            while not service.ended(job_id):
                peaks |= direct.peaks_mb(service.engine_pids)
                time.sleep(PEAKS_EVERY_S)
            service.wait(job_id)
            first = first or max(peaks.values())
        return [
            Figure("worker after its first long recording", (first,), "MB", 0),
            Figure(
                f"worker over {transcribed} chunks", (max(peaks.values()),), "MB", 0, Target(1300)
            ),
            counted("engine processes that were used", len(peaks)),
        ]

    def _upload_memory(self) -> Figure:
        size_mb = self._size.upload_mb
        self._progress(f"a {size_mb} MB upload")
        # 16,000 samples of 2 bytes a second
        file = self._decoded.cut(self._folder / "upload.wav", 0, size_mb * 1e6 / 32_000)
        with self._service(0, "none") as service:
            service.submit(self._ten_seconds[0], self._options)
            before = {pid: direct.reset_peak(pid) for pid in service.gateway_pids}
            service.submit(file, self._options)
            rise = sum(direct.peak_mb(pid) - before.get(pid, 0) for pid in service.gateway_pids)
        file.unlink()
        return Figure(f"gateway's rise by a {size_mb} MB upload", (rise,), "MB", 0, Target(64))

    def _plan_memory(self) -> list[Figure]:
        hours = self._size.planned_s / 3600
        self._progress(f"planning {hours:g} h")
        file = self._decoded.cut(self._folder / "planned.wav", 0, self._size.planned_s)
        planned = direct.plan(file, self._folder)
        file.unlink()
        return [
            Figure(f"planning {hours:g} h", (planned.peak_mb,), "MB", 0, Target(400)),
            Figure(f"planning {hours:g} h takes", (planned.seconds,), "s"),
        ]

    # --- 6: two languages at once --------------------------------------------------------------

    def _mixed(self) -> BenchPart:
        title = f"6. Vietnamese clips by {SHERPA_ONNX} while {MODEL} transcribes a long recording"
        clips = [
            clip.path
            for clip_set in self._corpus.clip_sets
            if clip_set.language == "vi"
            for clip in clip_set.clips[: self._size.clips or None]
        ]
        if not clips:
            return BenchPart("mixed", title, (), remarks=("The folder has no Vietnamese clips.",))
        name = next(each for each in self._other_models("vi") if each.engine == SHERPA_ONNX)
        options = {"language": "vi", "model": name.model, "engine": name.engine}
        peaks: dict[int, float] = {}
        sent = 0
        # The engines' loads are counted in the log.
        with self._service(self._cores, "mixed", LOG_LEVEL="INFO") as service:
            long_job = service.submit(self._long_file, self._options)
            while not sent or not service.ended(long_job):
                self._progress(f"a long recording and {sent + 1} clips")
                service.run(clips[sent % len(clips)], options)
                sent += 1
                for worker, peak in service.worker_peaks_mb().items():
                    peaks[worker] = max(peak, peaks.get(worker, 0.0))
            service.wait(long_job)
            loads = service.engine_loads()
        comparison = Comparison(
            (
                Column("peak memory", "MB", 0),
                Column("engines loaded", digits=0),
                Column("engines unloaded", digits=0),
            )
        )
        for number, (peak, load) in enumerate(zip(peaks.values(), loads, strict=True), start=1):
            comparison.add(f"worker {number}", peak, load.loaded, load.unloaded)
        remark = (
            f"{sent} clips by {name}, one after the other. A worker may keep engines of "
            f"{self._settings.asr.engines_mb} MB on disk (ENGINES_MB). Its memory is the peak of "
            "its engine process and what the worker itself does not share with it."
        )
        return BenchPart(
            "mixed",
            title,
            (Figure("worker, most", (max(peaks.values()),), "MB", 0, Target(1500)),),
            comparison,
            (remark,),
        )

    # --- 7: one worker and several ------------------------------------------------------------

    def _scaling(self, service: UnderTest) -> BenchPart:
        self._warm_up(service)
        alone = []
        for number in range(self._rounds):
            self._progress(f"the long recording with one worker (round {number + 1})")
            alone.append(service.run(self._long_file, self._options).seconds)
        together = tuple(run.seconds for run in self._long_runs)
        processes_s = self._engine_processes_s(self._cores)
        of_engine = processes_s / self._cores / self._engine_processes_s(1)
        return BenchPart(
            "scaling",
            f"7. One worker and {self._cores}, on the long recording",
            (
                Figure("one worker", tuple(alone), "s"),
                Figure(f"{self._cores} workers", together, "s"),
                Figure(
                    f"share of one worker's time that {self._cores} need",
                    _ratios(together, alone),
                    "",
                    3,
                    Target(0.58),
                ),
                Figure(
                    f"the same of {self._cores} separate processes of the engine",
                    (of_engine,),
                    "",
                    3,
                ),
            ),
            remarks=(
                "What separate processes need beyond their share of the cores is the machine's.",
            ),
        )

    def _engine_processes_s(self, count: int) -> float:
        """Seconds that each of so many processes at once takes for the clips; the slowest one's."""
        engine = replace(self._engines[Way.SEQUENTIAL], threads=1)
        clips = self._ten_seconds[: self._size.sent]
        self._progress(f"faster-whisper in {count} processes at once")

        def transcribe(_: int) -> float:
            language, warm_up = self._recording.language, self._size.warm_up
            texts = direct.transcribe(engine, clips, language, warm_up=warm_up)
            return sum(text.seconds for text in texts)

        with ThreadPoolExecutor(count) as pool:
            return max(pool.map(transcribe, range(count)))

    def _warm_up(self, service: UnderTest) -> None:
        if self._size.warm_up:
            service.warm_up(self._ten_seconds, self._options)

    def _directly(self, way: Way, files: Sequence[Path]) -> list[direct.DirectText]:
        return direct.transcribe(
            self._engines[way],
            files,
            self._recording.language,
            warm_up=self._size.warm_up,
        )


def _ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """Ratios by round, so that a slow round does not distort them."""
    return tuple(one / other for one, other in zip(above, below, strict=True))


class _Bench(click.Command):
    """`steno bench FOLDER`; `stream ...` and the like after it are commands of their own."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        match args[:1]:
            case ["stream"]:
                from scripts.bench.stream import stream as command
            case ["speakers"]:
                from scripts.bench.speakers import speakers as command
            case ["revisions"]:
                from scripts.bench.revisions import revisions as command
            case ["search"]:
                from scripts.bench.search import search as command
            case ["enhancing"]:
                from scripts.bench.enhancing import enhancing as command
            case _:
                return super().make_context(info_name, args, parent, **extra)
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@click.command(cls=_Bench)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@parts_option(PARTS)
@click.option("--quick", is_flag=True, help="Measure ten minutes and a few clips: a smoke test.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=1, help="Rounds; the median is reported [1]."
)
@cores_option
@json_option
def bench(
    folder: Path,
    parts: tuple[str, ...],
    quick: bool,
    repeat: int,
    cores: int,
    as_json: Path | None,
) -> None:
    """Measure speed, accuracy and memory on the recordings in FOLDER.

    FOLDER holds folders named for their language, such as en-read: with refs.tsv (file, tab,
    reference) a set of short clips; with NAME.transcript.json beside NAME.mp3 a long recording.

    `steno bench stream FOLDER` measures live streams, `steno bench speakers FOLDER` diarization,
    `steno bench revisions FOLDER` edits and reruns, `steno bench search` the search over texts,
    `steno bench enhancing` the second AI step (folders of these names are ./stream and so on).
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    require_scorers()
    corpus = read_corpus(folder)
    settings = load_settings()
    findings = Findings(make_console(), cores=cores, quick=quick, as_json=as_json)
    with working(settings) as (place, progress):
        Bench(
            corpus,
            settings,
            place,
            cores=cores,
            size=QUICK if quick else Size(),
            rounds=repeat,
            progress=progress,
        ).run(parts, findings.take)
    findings.sum_up()


def _engine_speed(runs: Sequence[Run]) -> float:
    """Seconds of audio that the engine transcribes in a second."""
    return sum(run.metrics.audio_ms for run in runs) / sum(run.metrics.engine_ms for run in runs)
