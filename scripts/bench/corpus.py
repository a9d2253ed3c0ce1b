"""What `steno bench` measures on: recordings with references, and how texts are scored.

A folder holds sub-folders named for their language (``en-...``, ``vi-...``). One with ``refs.tsv``
(file, tab, reference) is a set of short clips; one with ``NAME.transcript.json`` beside ``NAME.*``
holds a long recording, whose transcript is ``{"turns": [{"start", "end", "sentences"}]}`` with
times in seconds.
"""

from __future__ import annotations

import importlib.util
import json
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.domain.languages import LANGUAGES
from common.domain.values import SAMPLE_RATE
from common.errors import SetupProblem

SCORED_S = 600.0
"""A long recording's texts are compared over the turns that end within its first ten minutes."""

TRANSCRIPT = ".transcript.json"


@dataclass(frozen=True, slots=True)
class Clip:
    """A short recording and what is said in it."""

    path: Path
    reference: str


@dataclass(frozen=True, slots=True)
class ClipSet:
    """Short recordings in one language (a Whisper code)."""

    name: str
    language: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True)
class LongRecording:
    """A recording to spread over workers, and the reference of its first ``scored_s`` seconds."""

    path: Path
    language: str
    reference: str
    scored_s: float


@dataclass(frozen=True, slots=True)
class Corpus:
    """All that a folder holds; ``recording`` is None where there is no long one."""

    recording: LongRecording | None
    clip_sets: tuple[ClipSet, ...]


def read_corpus(folder: Path) -> Corpus:
    """Find what can be measured on in ``folder``.

    Raises:
        SetupProblem: there is nothing, or a referenced file is missing.
    """
    recordings, clip_sets = [], []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        language = place.name.partition("-")[0]
        if language not in LANGUAGES:
            continue
        if (place / "refs.tsv").is_file():
            clip_sets.append(ClipSet(place.name, language, read_clips(place / "refs.tsv")))
        recordings += [
            _read_recording(transcript, language)
            for transcript in sorted(place.glob(f"*{TRANSCRIPT}"))
        ]
    if not recordings and not clip_sets:
        raise SetupProblem(
            problem=f"{folder} has no recordings with references",
            remedy="Its folders are named for their language (en-read) and hold either refs.tsv "
            f"(file, tab, reference) or a recording with NAME{TRANSCRIPT} beside it",
        )
    return Corpus(recordings[0] if recordings else None, tuple(clip_sets))


def read_clips(table: Path) -> tuple[Clip, ...]:
    """The clips of a ``refs.tsv``.

    Raises:
        SetupProblem: one is missing.
    """
    clips = []
    for line in table.read_text(encoding="utf-8").splitlines():
        name, tab, reference = line.partition("\t")
        if not tab or not reference.strip():
            continue
        path = table.parent / name
        if not path.is_file():
            raise SetupProblem(problem=f"{table} names {name}", remedy="Put that file beside it")
        clips.append(Clip(path, reference.strip()))
    return tuple(clips)


def _read_recording(transcript: Path, language: str) -> LongRecording:
    name = transcript.name.removesuffix(TRANSCRIPT)
    beside = [
        path
        for path in sorted(transcript.parent.glob(f"{name}.*"))
        if path.stem == name and path.suffix not in {".json", ".txt"}
    ]
    if not beside:
        raise SetupProblem(
            problem=f"{transcript} has no recording", remedy=f"Put {name}.mp3 beside it"
        )
    turns = json.loads(transcript.read_text(encoding="utf-8"))["turns"]
    reference, scored_s = beginning(turns)
    return LongRecording(beside[0], language, reference, scored_s)


def beginning(turns: Sequence[dict[str, Any]], within_s: float = SCORED_S) -> tuple[str, float]:
    """The text of the first turns, as far as they end in time, and where they end, in seconds.

    A cut at a turn's end leaves no sentence half in and half out of the reference.
    """
    said = [turn for turn in turns if turn["end"] <= within_s]
    text = " ".join(sentence for turn in said for sentence in turn["sentences"])
    return text, float(max((turn["end"] for turn in said), default=0.0))


# --- scoring ----------------------------------------------------------------------------------


def require_scorers() -> None:
    """Raise `SetupProblem` unless jiwer and whisper-normalizer are installed (for development)."""
    if any(importlib.util.find_spec(name) is None for name in ("jiwer", "whisper_normalizer")):
        raise SetupProblem(
            problem="jiwer and whisper-normalizer, which score texts, are not installed",
            remedy="Install the development packages: sh scripts/setup.sh requirements-dev.lock",
        )


@cache
def normalizer(language: str) -> Callable[[str], str]:
    """Whisper's text normalisation: spelling and numbers for English, else case and punctuation."""
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    chosen: Callable[[str], str] = (
        EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    )
    return chosen


def wer(references: Sequence[str], texts: Sequence[str], language: str) -> float:
    """WER over all texts together, in %.

    Raises:
        ValueError: no reference holds a word.
    """
    import jiwer

    normalise = normalizer(language)
    pairs = [
        (normalise(reference).strip(), normalise(text).strip())
        for reference, text in zip(references, texts, strict=True)
    ]
    pairs = [(reference, text) for reference, text in pairs if reference]
    if not pairs:
        raise ValueError("there is no reference to compare with")
    return 100 * float(jiwer.wer([pair[0] for pair in pairs], [pair[1] for pair in pairs]))


# --- audio ------------------------------------------------------------------------------------


def write_wav(path: Path, pieces: Iterable[NDArray[np.int16]]) -> Path:
    """Write 16 kHz mono 16-bit audio; ``pieces`` are concatenated."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for piece in pieces:
            file.writeframesraw(piece.astype("<i2", copy=False).tobytes())
    return path


def decode(recording: Path) -> NDArray[np.int16]:
    """The samples of a short recording: 16 kHz, mono."""
    from common.audio.decode import MonoDecoder

    return np.concatenate(list(MonoDecoder(recording)))


class DecodedRecording:
    """A recording decoded once, to cut from; the file ``pcm`` takes its samples."""

    def __init__(self, recording: Path, pcm: Path) -> None:
        from common.audio.decode import MonoDecoder

        with pcm.open("wb") as file:
            for block in MonoDecoder(recording):
                file.write(block.tobytes())
        self._samples: NDArray[np.int16] = np.memmap(pcm, np.int16, "r")

    @property
    def duration_s(self) -> float:
        return len(self._samples) / SAMPLE_RATE

    def cut(self, path: Path, start_s: float, duration_s: float) -> Path:
        """Write an excerpt as WAV; past the recording's end it continues at the beginning."""
        start, left = round(start_s * SAMPLE_RATE), round(duration_s * SAMPLE_RATE)
        return write_wav(path, self._stretch(start, left))

    def _stretch(self, start: int, left: int) -> Iterable[NDArray[np.int16]]:
        block = 60 * SAMPLE_RATE
        while left > 0:
            start %= len(self._samples)
            piece = self._samples[start : start + min(left, block)]
            yield piece
            start, left = start + len(piece), left - len(piece)
