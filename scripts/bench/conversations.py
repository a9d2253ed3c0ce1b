"""Conversations put together from clips of single readers, and who speaks when in them.

Readers take turns at random. Between two turns are -0.5 to 2 s, so that some overlap. Each reader
has a level of their own, and all are in one noisy room. A seed gives the same conversation always.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.audio.decode import MonoDecoder
from common.audio.silero import SileroNetwork
from common.audio.vad import FRAME_MS, voiced
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Span, join_spans
from scripts.bench.corpus import ClipSet
from scripts.bench.der import Turns

Floats = NDArray[np.float32]

GAP_MS = (-500, 2_000)
LEVEL_DB = (-6.0, 6.0)
"""Of a reader, against the others."""
SPEECH_DBFS = -26.0
NOISE_DB = (-30.0, -20.0)
"""Of the room, against speech of level 0."""
MAX_CLIPS = 8
"""Of one reader in one conversation."""
PAUSE_MS = 500
"""A longer pause within a clip is no speech of the reference."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """16 kHz mono samples in [-1, 1), and who speaks when."""

    name: str
    samples: Floats
    turns: Turns

    @property
    def speakers(self) -> int:
        return len({speaker for _, speaker in self.turns})


@dataclass(frozen=True, slots=True)
class Said:
    """A clip, and where in it there is speech."""

    samples: Floats
    speech: tuple[Span, ...]


Readers = Mapping[str, Sequence[Said]]


def read_readers(clip_sets: Sequence[ClipSet]) -> Readers:
    """The clips of each reader, whose name is the file name up to ``-`` or ``_``.

    Silero's network says where in a clip is speech; it has no part in diarization.
    """
    network = SileroNetwork()
    readers = defaultdict(list)
    for clip_set in clip_sets:
        for clip in clip_set.clips:
            name = clip.path.stem.replace("_", "-").partition("-")[0]
            readers[name].append(_read(clip.path, network))
    return dict(sorted(readers.items()))


def _read(path: Path, network: SileroNetwork) -> Said:
    with path.open("rb") as file:
        pcm = np.concatenate(list(MonoDecoder(file)))
    samples: Floats = pcm.astype(np.float32) / np.float32(32_768)
    frames = np.flatnonzero(voiced(network, samples)).tolist()
    spans = [Span(at * FRAME_MS, (at + 1) * FRAME_MS) for at in frames]
    speech = join_spans(spans, lambda one, other: other.start_ms - one.end_ms < PAUSE_MS)
    spoken = np.concatenate(
        [samples[it.start_ms * SAMPLES_PER_MS : it.end_ms * SAMPLES_PER_MS] for it in speech]
    )
    gain = 10 ** (SPEECH_DBFS / 20) / np.sqrt((spoken**2).mean())
    return Said(samples * np.float32(gain), tuple(speech))


def converse(readers: Readers, count: int, seed: int) -> Conversation:
    """A conversation of ``count`` of the readers."""
    random = np.random.default_rng(seed)
    names = sorted(random.choice(sorted(readers), count, replace=False).tolist())
    to_say = {
        name: [readers[name][at] for at in random.permutation(len(readers[name]))[:MAX_CLIPS]]
        for name in names
    }
    gains = {name: 10 ** (random.uniform(*LEVEL_DB) / 20) for name in names}
    placed: list[tuple[int, str, Said]] = []
    now, last = 500, ""
    while any(to_say.values()):
        left = np.array([0 if name == last else len(to_say[name]) for name in names])
        if not left.any():  # only the last one has something left to say
            break
        name = names[int(random.choice(len(names), p=left / left.sum()))]
        said = to_say[name].pop()
        start = max(0, now - said.speech[0].start_ms)
        placed.append((start, name, said))
        now = start + said.speech[-1].end_ms + int(random.integers(*GAP_MS))
        last = name
    length = max(start * SAMPLES_PER_MS + len(said.samples) for start, _, said in placed)
    samples = room_noise(length, random, NOISE_DB)
    for start, name, said in placed:
        at = start * SAMPLES_PER_MS
        samples[at : at + len(said.samples)] += said.samples * np.float32(gains[name])
    turns = [(span.shifted(start), name) for start, name, said in placed for span in said.speech]
    clipped = np.clip(samples, -1, 1 - 2**-15).astype(np.float32)
    return Conversation(f"{count} speakers, seed {seed}", clipped, sorted(turns))


def room_noise(length: int, random: np.random.Generator, db: tuple[float, float]) -> Floats:
    """Noise of a room: more of it in low frequencies; of a level in ``db``, against speech."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 50))
    noise = np.fft.irfft(spectrum, length)
    level = SPEECH_DBFS + random.uniform(*db)
    noise *= 10 ** (level / 20) / np.sqrt((noise**2).mean())
    return np.asarray(noise, np.float32)
