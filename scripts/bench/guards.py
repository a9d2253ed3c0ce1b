"""What the guards around an engine cost and prevent.

``python -m scripts.bench.guards RECORDING --language en --wrong vi`` prints how many times as long
a recording takes in the wrong language, and fails above three.

``python -m scripts.bench.guards FOLDER`` cuts single words out of a folder's clips (its layout:
``steno bench --help``), and tenths of a second, which hold none, and makes audio in which nobody
speaks. It prints how many words keep a text, and how much of the rest gets one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from common.asr import guards
from common.asr.engine import DecodingOptions, SpeechEngine
from common.asr.loading import load_engine
from common.audio.decode import MonoDecoder
from common.audio.planning import PlannedChunk, Planner, PlanOptions
from common.audio.silero import SileroNetwork
from common.domain.models import WHISPER_ENGINES
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Segment
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.bench.corpus import read_corpus
from scripts.cli.cli import load_settings
from worker.steps.audio import cut_samples

MOST_TIMES = 3.0
"""How many times as long the wrong language may take."""
CLEAR = 0.8
"""A word at least as probable in its clip is taken for right."""
WORD_MS = range(220, 600)
MARGIN_MS = 50
SCRAPPED = 4
"""How many clips they are cut from."""
FLOOR = 0.02
"""The level of the quiet audio that is made."""

Pcm = NDArray[np.int16]


@click.command(help=__doc__)
@click.argument("path", metavar="RECORDING|FOLDER", type=click.Path(exists=True, path_type=Path))
@click.option("--language", default="en", show_default=True)
@click.option("--wrong", default="vi", show_default=True)
@click.option("--engine", type=click.Choice(WHISPER_ENGINES), default=WHISPER_ENGINES[0])
@click.option("--model", default="base", show_default=True)
@click.option("--words", default=20, show_default=True, help="Words a language.")
def main(path: Path, language: str, wrong: str, engine: str, model: str, words: int) -> None:
    """Measure and print; exits with 1 where the wrong language takes too long."""
    store = WeightsStore(load_settings().asr.models_dir, Manifest.load())
    loaded = load_engine(engine, store.resolve(engine, model).path)
    network = SileroNetwork()
    if path.is_dir():
        _words(path, loaded, network, words)
        return
    chunks = _planned(_samples(path), network)
    right_s, wrong_s = (_seconds(loaded, chunks, each) for each in (language, wrong))
    click.echo(
        f"{path.name}: {right_s:.1f} s CPU in {language}, {wrong_s:.1f} s in {wrong}: "
        f"{wrong_s / right_s:.2f} times as long (wanted: at most {MOST_TIMES:g})"
    )
    sys.exit(wrong_s > MOST_TIMES * right_s)


def _seconds(engine: SpeechEngine, chunks: list[PlannedChunk], language: str) -> float:
    started = time.process_time()
    _transcribed(engine, chunks, language)
    return time.process_time() - started


def _words(folder: Path, engine: SpeechEngine, network: SileroNetwork, most: int) -> None:
    for clips in read_corpus(folder).clip_sets:
        found = [
            (text, _transcribed(engine, _planned(pcm, network), clips.language))
            for text, pcm in islice(
                (
                    word
                    for clip in clips.clips
                    for word in _cut(engine, clip.path, clip.reference, clips.language)
                ),
                most,
            )
        ]
        kept = [(text, segments) for text, segments in found if segments]
        right = [text for text, segments in kept if guards.plain(_text(segments)) == text]
        click.echo(
            f"{clips.name}: {len(kept)} of {len(found)} words have text, {len(right)} are right"
        )
        wordless = [*_no_speech(), *_scraps(clip.path for clip in clips.clips)]
        invented = [
            segments
            for pcm in wordless
            if (segments := _transcribed(engine, _planned(pcm, network), clips.language))
        ]
        flagged = sum(
            all(not guards.DOUBTFUL.isdisjoint(segment.flags) for segment in segments)
            for segments in invented
        )
        click.echo(
            f"{clips.language}: {len(invented)} of {len(wordless)} without a word have text, of "
            f"which {flagged} are flagged"
        )


def _cut(
    engine: SpeechEngine, clip: Path, reference: str, language: str
) -> Iterator[tuple[str, Pcm]]:
    """The words of a clip (of 30 s at most) that are surely right, each by itself."""
    pcm = _samples(clip)
    said = guards.plain(reference).split()
    (segments,) = engine.transcribe(
        [(pcm[: 30 * SAMPLE_RATE] / 32_768).astype(np.float32)], DecodingOptions(language=language)
    )
    for word in (word for segment in segments for word in segment.words):
        text = guards.plain(word.text)
        if text in said and word.probability > CLEAR and word.span.duration_ms in WORD_MS:
            start = max(0, word.span.start_ms - MARGIN_MS) * SAMPLES_PER_MS
            yield text, pcm[start : (word.span.end_ms + MARGIN_MS) * SAMPLES_PER_MS]


def _scraps(clips: Iterable[Path]) -> Iterator[Pcm]:
    """Tenths of a second out of clips."""
    for clip in islice(clips, SCRAPPED):
        pcm = _samples(clip)
        for start in range(SAMPLE_RATE, min(len(pcm), 4 * SAMPLE_RATE), SAMPLE_RATE // 2):
            yield pcm[start : start + SAMPLE_RATE // 10]


def _no_speech() -> Iterator[Pcm]:
    """Silence, noise, tones, keys, clicks, a hum like a voice; from a tenth of a second up."""
    noise = np.random.default_rng(1)
    for seconds in (0.1, 0.3, 1.0, 5.0):
        at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        swell = 1 + np.sin(2 * np.pi * at)
        hum = sum(np.sin(2 * np.pi * 140 * k * at) / k for k in range(1, 20))
        for wave in (
            np.zeros_like(at),
            FLOOR * noise.standard_normal(len(at)),
            10 * FLOOR * noise.standard_normal(len(at)) * swell / 2,
            0.3 * np.sin(2 * np.pi * 440 * at),
            0.2 * (np.sin(2 * np.pi * 697 * at) + np.sin(2 * np.pi * 1_209 * at)),
            0.8 * (np.arange(len(at)) % 7_000 < 40),
            0.1 * hum * swell,
        ):
            yield (np.clip(wave, -1, 1) * 32_767).astype(np.int16)


def _samples(recording: Path) -> Pcm:
    with recording.open("rb") as file:
        return np.concatenate(list(MonoDecoder(file)))


def _planned(pcm: Pcm, network: SileroNetwork) -> list[PlannedChunk]:
    planner = Planner(PlanOptions(), network)
    return planner.feed(pcm) + planner.finish()


def _transcribed(engine: SpeechEngine, chunks: list[PlannedChunk], language: str) -> list[Segment]:
    return [
        segment
        for planned in chunks
        for segments in engine.transcribe(
            cut_samples(planned.pcm, planned.chunk.windows, planned.chunk.audio),
            DecodingOptions(language=language),
        )
        for segment in segments
    ]


def _text(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


if __name__ == "__main__":
    main()
