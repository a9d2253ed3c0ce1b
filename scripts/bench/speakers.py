"""``steno bench speakers``: how well and how fast speakers are told apart.

Beside ours, chunk by chunk as workers do it, are the same networks over a whole recording at once,
and sherpa-onnx's own pipeline with them. Everything runs on one thread.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from common.asr.engine import DecodingOptions
from common.asr.loading import load_engine
from common.audio.planning import PlannedChunk, Planner, PlanOptions
from common.audio.silero import SileroNetwork
from common.diarization.clustering import cluster
from common.diarization.onnx import OnnxDiarizer
from common.domain.merging import merge
from common.domain.models import SPEAKER_NETWORKS
from common.domain.speakers import SpeakerCount, Stretch, Turn, gather, speakers_of, turns_of
from common.domain.values import SAMPLE_RATE, Chunk, Span, Window, Word
from common.errors import SetupProblem
from common.settings import Settings
from common.weights.manifest import FASTER_WHISPER, Manifest
from common.weights.pull import Puller
from common.weights.store import WeightsStore
from scripts.bench.bench import CLIP_S, MODEL, OURS
from scripts.bench.conversations import Conversation, Readers, converse, read_readers
from scripts.bench.corpus import (
    TRANSCRIPT,
    Corpus,
    DecodedRecording,
    LongRecording,
    normalizer,
    read_corpus,
    require_scorers,
)
from scripts.bench.der import Errors, Turns, map_speakers, score
from scripts.bench.direct import apart, peak_mb, planned_chunks
from scripts.bench.identification import measure_identification
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
from scripts.cli.cli import load_settings
from scripts.cli.console import make_console
from worker.steps.audio import cut_samples, samples_of

PARTS = ("conversations", "long", "cost", "job", "identify")
SEEDS = range(1, 11)
MOST_READERS = 6
WHOLE = "the same, the whole at once"
SHERPA = "sherpa-onnx, the whole at once"
COLLAR_MS = 250
"""Of pyannote.metrics: 125 ms on each side of an edge."""
DER_LIMIT, DER_KNOWN_LIMIT, COUNT_LIMIT = 8.0, 5.0, 0.9
WORDS_LIMIT, WORSE_LIMIT = 97.0, 0.5
RTF_LIMIT, CLUSTERING_S, CLUSTERING_MB = 0.02, 10.0, 500.0
GROWTH_LIMIT = 25.0
MOST_STRETCHES = 20_000
"""About as many as ten hours have."""

Samples = NDArray[np.float32]
Found = Callable[[int | None], Turns]
"""The turns, for the number of speakers if it is known."""
Way = Callable[[Sequence[PlannedChunk], Samples], Found]
"""A way to diarize a recording: its chunks, or the whole audio."""


@dataclass(frozen=True, slots=True)
class SpeakersSize:
    """How much is measured.

    Conversations, seconds of the long recording (0: all), and clips of each reader to be named.
    """

    conversations: int = len(SEEDS)
    recording_s: float = 0.0
    clips: int = 16


QUICK = SpeakersSize(conversations=2, recording_s=300.0, clips=4)


class SpeakersBench:
    """Measures the requested parts."""

    def __init__(
        self,
        corpus: Corpus,
        settings: Settings,
        folder: Path,
        *,
        cores: int,
        size: SpeakersSize,
        progress: Progress,
    ) -> None:
        self._corpus = corpus
        self._settings = settings
        self._folder = folder
        self._cores = cores
        self._size = size
        self._progress = progress
        self._store = WeightsStore(settings.asr.models_dir, Manifest.load())
        self._network = SileroNetwork()

    def run(self, wanted: Sequence[str], found: Callable[[BenchPart], None]) -> None:
        """Measure ``wanted``; calls ``found`` with each part as soon as it is measured.

        Raises:
            SetupProblem: the folder lacks what a part needs.
            PullFailed: the networks are missing and cannot be fetched.
        """
        if "conversations" in wanted:
            found(self._conversations())
        if "long" in wanted:
            found(self._long())
        if "cost" in wanted:
            found(self._cost())
        if "job" in wanted:
            found(self._job())
        if "identify" in wanted:
            self._progress("enrolling and identifying the readers")
            found(measure_identification(self._diarizer, self._readers, self._size.clips))

    # --- what is measured ---------------------------------------------------------------------

    @cached_property
    def _networks(self) -> tuple[Path, Path]:
        """The folders of the segmentation and of the embedding; fetched when missing."""
        self._progress("fetching the networks")
        puller = Puller(self._store)
        segmentation, embedding = (puller.pull(it.engine, it.model) for it in SPEAKER_NETWORKS)
        return segmentation.path, embedding.path

    @cached_property
    def _diarizer(self) -> OnnxDiarizer:
        return OnnxDiarizer(*self._networks)

    @cached_property
    def _readers(self) -> Readers:
        self._progress("reading the clips")
        readers = read_readers(self._corpus.clip_sets)
        if len(readers) < 2:
            raise SetupProblem(
                problem="The folder has clips of fewer than two readers",
                remedy="A clip's file name begins with its reader, as in 1688-142285-0000.flac",
            )
        return readers

    @property
    def _recording(self) -> LongRecording:
        if self._corpus.recording is None:
            raise SetupProblem(
                problem="The folder has no long recording",
                remedy="Add one, or measure --parts conversations",
            )
        return self._corpus.recording

    @cached_property
    def _chunks(self) -> list[PlannedChunk]:
        """Those of the long recording."""
        self._progress(f"decoding {self._recording.path.name}")
        until_s = self._size.recording_s or float("inf")
        return list(planned_chunks(self._recording.path, until_s))

    # --- 1: conversations ---------------------------------------------------------------------

    def _conversations(self) -> BenchPart:
        seeds = SEEDS[: self._size.conversations]
        most = min(MOST_READERS, len(self._readers))
        made = [converse(self._readers, 2 + seed % (most - 1), seed) for seed in seeds]
        audio_s = sum(len(it.samples) for it in made) / SAMPLE_RATE
        table = Comparison(
            (
                Column("DER", "%"),
                Column("DER, collar 0", "%"),
                Column("with num_speakers", "%"),
                Column("right number", "", 2),
                Column("RTF", "", 4),
            )
        )
        rates = {}
        for name, way in self._ways().items():
            results = []
            for number, it in enumerate(made, 1):
                self._progress(f"{name}: conversation {number} of {len(made)}")
                results.append(self._conversation(it, way))
            sums = [sum_errors([result.errors[at] for result in results]) for at in range(3)]
            right = sum(result.is_count_right for result in results) / len(results)
            rtf = sum(result.cpu_s for result in results) / audio_s
            rates[name] = [100 * errors.rate for errors in sums]
            table.add(name, *rates[name], right, rtf)
            if name == OURS:
                own, own_right = rates[name], right
                details = tuple(
                    {"conversation": it.name, "der": result.errors[0].rate}
                    for it, result in zip(made, results, strict=True)
                )
        figures = (
            counted("conversations of 2 to 6 readers", len(made)),
            Figure("DER, collar 0.25 s", (own[0],), "%", 2, Target(DER_LIMIT)),
            Figure("DER with num_speakers", (own[2],), "%", 2, Target(DER_KNOWN_LIMIT)),
            Figure("right number", (own_right,), "", 2, Target(COUNT_LIMIT, at_least=True)),
            Figure(
                "points worse than the whole at once",
                (own[0] - rates[WHOLE][0],),
                "",
                2,
                Target(WORSE_LIMIT),
            ),
        )
        remark = "A collar of 0.25 s is 0.125 s on each side of an edge, as in pyannote.metrics."
        title = "1. Conversations put together from clips"
        return BenchPart("conversations", title, figures, table, (remark,), details)

    def _conversation(self, it: Conversation, way: Way) -> _Result:
        planner = Planner(PlanOptions(), self._network)
        pcm = np.rint(it.samples * 32_768).astype(np.int16)
        chunks = planner.feed(pcm) + planner.finish()
        started = time.process_time()
        turns = way(chunks, it.samples)
        found = turns(None)
        cpu_s = time.process_time() - started
        known = turns(it.speakers)
        return _Result(
            (
                score(it.turns, found, collar_ms=COLLAR_MS),
                score(it.turns, found),
                score(it.turns, known, collar_ms=COLLAR_MS),
            ),
            is_count_right=len({who for _, who in found}) == it.speakers,
            cpu_s=cpu_s,
        )

    def _ways(self) -> dict[str, Way]:
        def ours(chunks: Sequence[PlannedChunk], _: Samples) -> Found:
            return partial(_turns, diarized(self._diarizer, chunks))

        def whole(_: Sequence[PlannedChunk], samples: Samples) -> Found:
            span = Span(0, len(samples) * 1000 // SAMPLE_RATE)
            chunk = Chunk(0, (Window(span, span, 0),))
            return partial(_turns, gather([(chunk, self._diarizer.diarize(samples))]))

        def sherpa(_: Sequence[PlannedChunk], samples: Samples) -> Found:
            return partial(sherpa_turns, self._networks, samples)

        return {OURS: ours, WHOLE: whole, SHERPA: sherpa}

    # --- 2: the long recording ----------------------------------------------------------------

    def _long(self) -> BenchPart:
        samples = _audio_of(self._chunks)
        words = self._words()
        reference = said(self._recording, words[-1].span.end_ms / 1000 if words else 0.0)
        table = Comparison(
            (Column("words right", "%"), Column("speakers", "", 0), Column("RTF", "", 4))
        )
        shares = {}
        for name, way in self._ways().items():
            self._progress(f"{name}: the long recording")
            started = time.process_time()
            found = way(self._chunks, samples)(None)
            cpu_s = time.process_time() - started
            turns = tuple(Turn(span, who) for span, who in found)
            shares[name] = 100 * right_words(reference, words, turns, self._recording.language)
            count = len({who for _, who in found})
            table.add(name, shares[name], count, cpu_s / (len(samples) / SAMPLE_RATE))
            if name == OURS:
                own_count = count
        in_reference = len({who for who, _ in reference})
        figures = (
            counted("speakers of the reference", in_reference),
            counted("speakers found", own_count),
            Figure(
                "words given to the right one",
                (shares[OURS],),
                "%",
                2,
                Target(WORDS_LIMIT, at_least=True),
            ),
            Figure(
                "points worse than the whole at once",
                (shares[WHOLE] - shares[OURS],),
                "",
                2,
                Target(WORSE_LIMIT),
            ),
            Figure(
                "points worse than sherpa-onnx",
                (shares[SHERPA] - shares[OURS],),
                "",
                2,
                Target(0),
            ),
        )
        return BenchPart("long", f"2. {self._recording.path.name}", figures, table)

    def _words(self) -> list[Word]:
        """The words of the long recording, as Whisper base writes them."""
        self._progress("transcribing the long recording")
        engine = load_engine(FASTER_WHISPER, self._store.resolve(FASTER_WHISPER, MODEL).path)
        options = DecodingOptions(language=self._recording.language, beam_size=1)
        parts = [
            (
                it.chunk,
                engine.transcribe(cut_samples(it.pcm, it.chunk.windows, it.chunk.audio), options),
            )
            for it in self._chunks
        ]
        return [word for segment in merge(parts) for word in segment.words]

    # --- 3: cost ------------------------------------------------------------------------------

    def _cost(self) -> BenchPart:
        audio_s = self._chunks[-1].chunk.core.end_ms / 1000
        self._progress("the cost of a chunk, and of clustering")
        for library in ("OMP", "OPENBLAS"):  # as in workers; of the process to come
            os.environ[f"{library}_NUM_THREADS"] = "1"
        cost = apart(measure_cost, self._networks, self._chunks)
        figures = (
            Figure(
                "processor time / audio", (cost.diarizing_s / audio_s,), "", 4, Target(RTF_LIMIT)
            ),
            Figure("peak memory of the process", (cost.diarizing_mb,), "MB", 0),
            Figure(
                f"clustering {MOST_STRETCHES:,} stretches (10 h)",
                (cost.clustering_s,),
                "s",
                2,
                Target(CLUSTERING_S),
            ),
            Figure(
                "its peak memory, all of the process",
                (cost.clustering_mb,),
                "MB",
                0,
                Target(CLUSTERING_MB),
            ),
        )
        table = Comparison((Column("processor time / audio", "", 4), Column("share", "%", 0)))
        embedding_s = cost.diarizing_s - cost.segmenting_s
        for name, seconds in (
            ("segmentation", cost.segmenting_s),
            ("embeddings, with their filter banks", embedding_s),
        ):
            table.add(name, seconds / audio_s, 100 * seconds / cost.diarizing_s)
        return BenchPart("cost", "3. Cost, one thread", figures, table)

    # --- 4: a whole job -----------------------------------------------------------------------

    def _job(self) -> BenchPart:
        """The long recording through the service, without speakers and with them."""
        options = {"language": self._recording.language, "model": MODEL}
        table = Comparison(
            (
                Column("wall", "s", 1),
                Column("planning", "s", 1),
                Column("engine", "s", 1),
                Column("diarization", "s", 1),
                Column("merge", "s", 1),
            )
        )
        walls = []
        decoded = DecodedRecording(self._recording.path, self._folder / "recording.pcm")
        clip = decoded.cut(self._folder / "clip.wav", 0, CLIP_S)
        until_s = self._size.recording_s or decoded.duration_s
        whole = decoded.cut(self._folder / "long.wav", 0, min(until_s, decoded.duration_s))
        with UnderTest(self._cores, self._folder / "all", settings=self._settings) as service:
            for diarize in ("false", "true"):
                asked = options | {"diarize": diarize}
                name = "with speakers" if diarize == "true" else "without"
                self._progress(f"the long recording as a job, {name}")
                service.warm_up([clip], asked)
                run = service.run(whole, asked)
                walls.append(run.seconds)
                its = run.metrics
                stages = (its.plan_ms, its.engine_ms, its.diarization_ms, its.merge_ms)
                table.add(name, run.seconds, *(ms / 1000 for ms in stages))
        growth = 100 * (walls[1] / walls[0] - 1)
        figures = (
            Figure("growth of the wall time", (growth,), "%", 1, Target(GROWTH_LIMIT)),
            Figure("speakers found", (len(run.result["speakers"]),), "", 0),
        )
        remark = "Engine and diarization are summed over all chunks; they run beside each other."
        title = f"4. {self._recording.path.name} as a job, {self._cores} workers, {MODEL}"
        return BenchPart("job", title, figures, table, (remark,))


@dataclass(frozen=True, slots=True)
class _Result:
    """One way's errors in one conversation: with collar, without, and with the number known."""

    errors: tuple[Errors, Errors, Errors]
    is_count_right: bool
    cpu_s: float


def sum_errors(errors: Sequence[Errors]) -> Errors:
    """All of them together."""
    return sum(errors, Errors(0, 0, 0, 0))


def diarized(diarizer: OnnxDiarizer, chunks: Sequence[PlannedChunk]) -> list[Stretch]:
    """The stretches of all chunks."""
    return gather((it.chunk, diarizer.diarize(samples_of(it.pcm))) for it in chunks)


def _turns(stretches: Sequence[Stretch], count: int | None) -> Turns:
    speakers = cluster(stretches, SpeakerCount.of(num_speakers=count))
    return [(turn.span, turn.speaker) for turn in turns_of(stretches, speakers)]


def sherpa_turns(networks: tuple[Path, Path], samples: Samples, count: int | None) -> Turns:
    """What sherpa-onnx finds with its defaults."""
    import sherpa_onnx

    segmentation, embedding = (str(folder / "model.onnx") for folder in networks)
    pyannote = sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(model=segmentation)
    pipeline = sherpa_onnx.OfflineSpeakerDiarization(
        sherpa_onnx.OfflineSpeakerDiarizationConfig(
            segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(pyannote=pyannote),
            embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=embedding),
            clustering=sherpa_onnx.FastClusteringConfig(num_clusters=count or -1),
        )
    )
    return [
        (Span(round(it.start * 1000), round(it.end * 1000)), str(it.speaker))
        for it in pipeline.process(samples).sort_by_start_time()
    ]


def _audio_of(chunks: Sequence[PlannedChunk]) -> Samples:
    """The audio that the chunks were cut from; zeros where no chunk has any."""
    end_ms = max(it.chunk.audio.end_ms for it in chunks)
    samples = np.zeros(end_ms * SAMPLE_RATE // 1000, np.float32)
    for it in chunks:
        part = samples_of(it.pcm)
        at = it.chunk.audio.start_ms * SAMPLE_RATE // 1000
        samples[at : at + len(part)] = part[: len(samples) - at]
    return samples


# --- words ------------------------------------------------------------------------------------


def said(recording: LongRecording, until_s: float) -> list[tuple[str, str]]:
    """Speaker and normalised word of the turns of the reference that start before ``until_s``."""
    transcript = recording.path.with_name(recording.path.stem + TRANSCRIPT)
    turns = json.loads(transcript.read_text("utf-8"))["turns"]
    if not all("speaker" in turn for turn in turns):
        raise SetupProblem(
            problem=f"{transcript} does not say who speaks", remedy='Give each turn a "speaker"'
        )
    normalise = normalizer(recording.language)
    return [
        (str(turn["speaker"]), word)
        for turn in turns
        if turn["start"] < until_s
        for word in normalise(" ".join(turn["sentences"])).split()
    ]


def right_words(
    reference: Sequence[tuple[str, str]],
    words: Sequence[Word],
    turns: Sequence[Turn],
    language: str,
) -> float:
    """The share, in [0, 1], of the reference's words that have the right speaker.

    Of those that the alignment of the two texts pairs with a word of ours.
    """
    import jiwer

    normalise = normalizer(language)
    ours = [
        (who or "", token)
        for word, who in zip(words, speakers_of(words, turns), strict=True)
        for token in normalise(word.text).split()
    ]
    theirs_text, our_text = (" ".join(token for _, token in side) for side in (reference, ours))
    pairs = [
        (reference[at][0], ours[other][0])
        for part in jiwer.process_words(theirs_text, our_text).alignments[0]
        if part.type in ("equal", "substitute")
        for at, other in zip(
            range(part.ref_start_idx, part.ref_end_idx),
            range(part.hyp_start_idx, part.hyp_end_idx),
            strict=True,
        )
    ]
    mapping = map_speakers((1, frozenset([one]), frozenset([other])) for one, other in pairs)
    return sum(mapping.get(one) == other for one, other in pairs) / max(1, len(pairs))


# --- cost -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds, and the process's peaks in MB; ``segmenting_s`` is part of diarizing."""

    segmenting_s: float
    diarizing_s: float
    diarizing_mb: float
    clustering_s: float
    clustering_mb: float


def measure_cost(networks: tuple[Path, Path], chunks: Sequence[PlannedChunk]) -> Cost:
    """Diarize the chunks, and cluster their stretches, repeated to ten hours; in this process."""
    diarizer = OnnxDiarizer(*networks)
    started = time.process_time()
    for it in chunks:
        for _ in diarizer.segment(samples_of(it.pcm)):
            pass
    segmenting_s = time.process_time() - started
    started = time.process_time()
    stretches = diarized(diarizer, chunks)
    diarizing_s, diarizing_mb = time.process_time() - started, peak_mb(os.getpid())
    windows = 1 + max((it.window for it in stretches), default=0)
    repeated = [
        replace(it, window=it.window + windows * (at // len(stretches)))
        for at in range(MOST_STRETCHES if stretches else 0)
        for it in [stretches[at % len(stretches)]]
    ]
    started = time.process_time()
    cluster(repeated)
    clustering_s = time.process_time() - started
    return Cost(segmenting_s, diarizing_s, diarizing_mb, clustering_s, peak_mb(os.getpid()))


# --- the command ------------------------------------------------------------------------------


@click.command()
@click.argument(
    "folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@parts_option(PARTS)
@click.option(
    "--quick", is_flag=True, help="Measure two conversations, five minutes, and a few clips."
)
@cores_option
@json_option
@click.pass_context
def speakers(
    context: click.Context,
    folder: Path,
    parts: tuple[str, ...],
    quick: bool,
    cores: int,
    as_json: Path | None,
) -> None:
    """Measure speaker diarization on the recordings in FOLDER [the current one].

    FOLDER is as for `steno bench`: clips whose file names begin with their reader, as in
    1688-142285-0000.flac, are put together to conversations; a long recording's transcript says who
    speaks ("speaker" of a turn). The exit code is 1 where a target is missed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    require_scorers()
    corpus = read_corpus(folder)
    settings = load_settings()
    findings = Findings(make_console(), cores=cores, quick=quick, as_json=as_json)
    with working(settings) as (place, progress):
        size = QUICK if quick else SpeakersSize()
        bench = SpeakersBench(corpus, settings, place, cores=cores, size=size, progress=progress)
        bench.run(parts, findings.take)
    if not findings.sum_up():
        context.exit(1)
