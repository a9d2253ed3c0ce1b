"""How exact the times are that edited words get, and what they cost.

``python -m scripts.bench.aligning FOLDER --language en`` transcribes the clips of a folder, takes
the times of some words away, and aligns them again. It prints how far their starts and ends are
from those of the transcription: while they are interpolated, and after. Then it aligns words of
other clips in their place, which nobody says, and prints how many get times. If the folder has
references (``refs.tsv``), it also prints how many of the rows do that are corrected by them.

``python -m scripts.bench.aligning RECORDING`` aligns five words at three places of a recording, and
prints the time of reading its audio and of aligning, beside that of reading it from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import click
import numpy as np

from common.asr.engine import DecodingOptions, Samples, SpeechEngine
from common.asr.loading import load_engine
from common.audio.decode import DAMAGED, MonoDecoder
from common.domain.aligning import (
    LEAST_PROBABILITY,
    Passage,
    passages,
    probability_of,
    with_times,
)
from common.domain.values import MAX_WINDOW_MS, SAMPLES_PER_MS, Segment, Span, Word
from common.domain.word_times import retimed
from common.weights.manifest import Manifest
from common.weights.store import WeightsStore
from scripts.bench.corpus import Clip, read_clips
from scripts.cli.cli import load_settings
from worker.steps.audio import read_span

SOUND_FILES = {".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a"}
MOST_WORDS = 5
"""Words in a row that lose their times."""
KEPT_WORDS = 8
"""Words between two such rows."""
REPEATS = 3

Aligned = list[tuple[Passage, tuple[Word, ...] | None]]


@click.command(help=__doc__)
@click.argument("path", metavar="FOLDER|RECORDING", type=click.Path(exists=True, path_type=Path))
@click.option("--language", default="en", show_default=True)
@click.option("--model", default="base", show_default=True)
@click.option("--clips", default=30, show_default=True)
def main(path: Path, language: str, model: str, clips: int) -> None:
    """Measure and print."""
    store = WeightsStore(load_settings().asr.models_dir, Manifest.load())
    engine = load_engine("faster-whisper", store.resolve("faster-whisper", model).path)
    options = DecodingOptions(language=language)
    if path.is_dir():
        _exactness(engine, options, _clips(path, clips))
        if (path / "refs.tsv").is_file():
            _corrections(engine, options, read_clips(path / "refs.tsv")[:clips])
    else:
        _cost(engine, options, path)


def _clips(folder: Path, most: int) -> list[Samples]:
    files = [it for it in sorted(folder.iterdir()) if it.suffix in SOUND_FILES]
    return [_decoded(file) for file in files[:: max(1, len(files) // most)][:most]]


def _decoded(file: Path) -> Samples:
    pcm = np.concatenate(list(MonoDecoder(file)))[: MAX_WINDOW_MS * SAMPLES_PER_MS]
    return (pcm / 32_768).astype(np.float32)


def _exactness(engine: SpeechEngine, options: DecodingOptions, clips: list[Samples]) -> None:
    transcribed = [(clip, engine.transcribe([clip], options)[0]) for clip in clips]
    others = [word.text for _, segments in transcribed for it in segments for word in it.words]
    random = Random(0)  # noqa: S311 - the same words in every run
    before_ms: list[int] = []
    after_ms: list[int] = []
    right: list[float] = []
    wrong: list[float] = []
    stayed = invented = fresh = 0
    for clip, segments in transcribed:
        edited = tuple(_without_times(it, random) for it in segments)
        found = with_times(edited, _align(engine, options, clip, edited, right))
        for true, interpolated, aligned in zip(segments, edited, found, strict=True):
            for word, before, after in zip(
                true.words, interpolated.words, aligned.words, strict=True
            ):
                if before.estimated and after.estimated:
                    stayed += 1
                elif before.estimated:
                    before_ms += _differences(word, before)
                    after_ms += _differences(word, after)
        spoken = {word.text for it in segments for word in it.words}
        elsewhere = [it for it in others if it not in spoken]
        false = tuple(_with_words(it, elsewhere, random) for it in edited)
        timed = with_times(false, _align(engine, options, clip, false, wrong))
        fresh += sum(word.estimated for it in false for word in it.words)
        invented += sum(
            was.estimated and not now.estimated
            for old, new in zip(false, timed, strict=True)
            for was, now in zip(old.words, new.words, strict=True)
        )
    for name, differences in (("interpolated", before_ms), ("aligned", after_ms)):
        median, most = np.percentile(differences, (50, 95))
        click.echo(f"{name}: {median:.0f} ms in the median, 95 % within {most:.0f} ms")
    count = len(before_ms) // 2
    click.echo(f"{stayed} of {count + stayed} words stay interpolated")
    click.echo(f"words that nobody says: {invented} of {fresh} get times")
    for name, each in (("said", right), ("not said", wrong)):
        low, middle, high = np.percentile(each, (5, 50, 95))
        click.echo(f"probability of rows {name}: {low:.4f}, {middle:.4f}, {high:.4f} (5, 50, 95 %)")


def _corrections(engine: SpeechEngine, options: DecodingOptions, clips: Sequence[Clip]) -> None:
    probabilities: list[float] = []
    for clip in clips:
        samples = _decoded(clip.path)
        (segments,) = engine.transcribe([samples], options)
        words = [word for segment in segments for word in segment.words]
        if words:
            span = Span(words[0].span.start_ms, words[-1].span.end_ms)
            text = f" {clip.reference.lower()}"
            edited = Segment(span, text, retimed(words, text, span))
            _align(engine, options, samples, [edited], probabilities)
    timed = sum(each >= LEAST_PROBABILITY for each in probabilities)
    click.echo(f"corrected by the reference: {timed} of {len(probabilities)} rows get times")


def _differences(left: Word, right: Word) -> list[int]:
    return [
        abs(left.span.start_ms - right.span.start_ms),
        abs(left.span.end_ms - right.span.end_ms),
    ]


def _align(
    engine: SpeechEngine,
    options: DecodingOptions,
    clip: Samples,
    segments: Sequence[Segment],
    probabilities: list[float],
) -> Aligned:
    """The alignment of the passages; adds the probability of each row of estimated words."""
    wanted = passages(segments)
    audio = [clip[_samples(passage.audio)] for passage in wanted]
    found = list(
        zip(wanted, engine.align(audio, [it.texts for it in wanted], options), strict=True)
    )
    for passage, words in found:
        row: list[Word] = []
        for place, word in zip(passage.places, words or (), strict=True):
            if segments[place.segment].words[place.word].estimated:
                row.append(word)
            elif row:
                probabilities.append(probability_of(row))
                row = []
        if row:
            probabilities.append(probability_of(row))
    return found


def _samples(span: Span) -> slice:
    return slice(span.start_ms * SAMPLES_PER_MS, span.end_ms * SAMPLES_PER_MS)


def _without_times(segment: Segment, random: Random) -> Segment:
    """Rows of its words share the time between their neighbours, by their letters."""
    words = list(segment.words)
    first = random.randint(0, KEPT_WORDS // 2)
    while first < len(words):
        last = min(len(words), first + random.randint(1, MOST_WORDS))
        start = words[first - 1].span.end_ms if first else segment.span.start_ms
        end = words[last].span.start_ms if last < len(words) else segment.span.end_ms
        letters = np.cumsum([0, *(len(word.text) for word in words[first:last])])
        edges = start + (end - start) * letters // letters[-1]
        for at in range(first, last):
            span = Span(int(edges[at - first]), int(edges[at - first + 1]))
            words[at] = replace(words[at], span=span, estimated=True)
        first = last + KEPT_WORDS
    return replace(segment, words=tuple(words))


def _with_words(segment: Segment, others: Sequence[str], random: Random) -> Segment:
    """Its estimated words are others."""
    words = [
        replace(word, text=random.choice(others)) if word.estimated else word
        for word in segment.words
    ]
    return replace(segment, words=tuple(words))


def _cost(engine: SpeechEngine, options: DecodingOptions, path: Path) -> None:
    with path.open("rb") as file:
        decoder = MonoDecoder(file)
        length_ms = sum(map(len, decoder)) // SAMPLES_PER_MS
    if DAMAGED in decoder.warnings:
        click.echo("the recording is damaged: everything before the words is decoded")
    for share in (0.1, 0.5, 0.95):
        start_ms = round(length_ms * share)
        span = Span(start_ms, start_ms + 10_000)
        with path.open("rb") as file:
            window = read_span(file, span, None, None, ())
        (segments,) = engine.transcribe([window], options)
        texts = [word.text for segment in segments for word in segment.words]

        def read(warnings: Sequence[str], span: Span = span) -> None:
            with path.open("rb") as file:
                read_span(file, span, None, None, warnings)

        def align(window: Samples = window, texts: Sequence[str] = texts) -> None:
            engine.align([window], [texts], options)

        late_s = _seconds(lambda: read(decoder.warnings))
        whole_s = _seconds(lambda: read((DAMAGED,)))
        align_s = _seconds(align)
        click.echo(
            f"at {start_ms / 60_000:.1f} min: reading {late_s:.2f} s CPU (from the beginning "
            f"{whole_s:.2f} s), aligning {len(texts)} words {align_s:.2f} s, "
            f"together {late_s + align_s:.2f} s (wanted: at most 3)"
        )


def _seconds(work: Callable[[], None]) -> float:
    """The least processor time of some tries."""

    def tries() -> Iterator[float]:
        for _ in range(REPEATS):
            started = time.process_time()
            work()
            yield time.process_time() - started

    return min(tries())


if __name__ == "__main__":
    main()
