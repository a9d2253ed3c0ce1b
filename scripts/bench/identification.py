"""How surely enrolled readers are named in other clips, and how often others are taken for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from common.diarization.diarizer import Diarizer
from common.diarization.identification import MeanVoice, likeness, mean_voice
from common.domain.speakers import Stretch
from common.domain.values import SAMPLE_RATE
from common.domain.voices import MIN_SPEAKER_MS, MIN_VOICE_MS, KnownVoice, identify
from scripts.bench.conversations import Readers, room_noise
from scripts.bench.report import BenchPart, Column, Comparison, Figure, Target, counted

Samples = NDArray[np.float32]
Clips = Mapping[str, Sequence[Sequence[Stretch]]]
"""The stretches of each clip, by reader."""
TELEPHONE_HZ = (300, 3_400)
PIECES_MS = (MIN_SPEAKER_MS, 2 * MIN_SPEAKER_MS)
"""Speech that a reader is identified by: the least that is tried, and twice that."""
TAKEN_LIMIT, MISSED_LIMIT = 0.5, 5.0
"""In percent."""


def telephone(samples: Samples) -> Samples:
    """With nothing outside of a telephone's band, at 16 bits."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(hz < TELEPHONE_HZ[0]) | (hz > TELEPHONE_HZ[1])] = 0
    return _rounded(np.fft.irfft(spectrum, len(samples)))


def in_noise(db: float) -> Callable[[Samples], Samples]:
    """Adds the noise of a room, so much louder than speech (below 0: softer)."""

    def add(samples: Samples) -> Samples:
        random = np.random.default_rng(len(samples))
        return _rounded(samples + room_noise(len(samples), random, (db, db)))

    return add


def _softer(samples: Samples) -> Samples:
    return _rounded(samples / 10)


def _rounded(samples: NDArray[np.floating]) -> Samples:
    """At 16 bits."""
    return np.asarray(np.rint(np.clip(samples, -1, 1) * 32_767) / 32_768, np.float32)


QUIET = "as enrolled"
CALL = "telephone"
"""Here few are named, on purpose: the telephone makes another voice of theirs."""
CALLS = ("telephone, both", "telephone in noise, both")
"""In these the readers are enrolled likewise."""
CONDITIONS: Mapping[str, Callable[[Samples], Samples]] = {
    QUIET: lambda samples: samples,
    "noise, -20 dB": in_noise(-20),
    "noise, -10 dB": in_noise(-10),
    "20 dB softer": _softer,
    CALL: telephone,
    CALLS[0]: telephone,
    CALLS[1]: lambda samples: in_noise(-25)(telephone(samples)),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A piece of a reader's speech, compared with the voices of all.

    ``own`` and ``other``: the cosines with their own voice, and with that of another who is most
    alike. ``missed``: they are not named, though enrolled. ``taken``: they are named as somebody
    else, where they are enrolled or where they are not.
    """

    own: float
    other: float
    missed: bool
    taken: bool


def measure_identification(diarizer: Diarizer, readers: Readers, most_clips: int) -> BenchPart:
    """Enrol each reader by half of their clips, and identify them in the other half."""
    described = {
        condition: {
            name: [diarizer.diarize(change(clip.samples)) for clip in clips[:most_clips]]
            for name, clips in readers.items()
        }
        for condition, change in CONDITIONS.items()
    }
    table = Comparison(
        (
            Column("pieces", "", 0),
            Column("own voice", "", 2),
            Column("another's, at most", "", 2),
            Column("not named", "%", 1),
            Column("named as another", "%", 1),
        )
    )
    taken, missed = list[bool](), list[bool]()
    for condition, clips in described.items():
        enrolled = clips if condition in CALLS else described[QUIET]
        for length_ms in PIECES_MS:
            found = list(_trials(enrolled, clips, length_ms))
            taken += [it.taken for it in found]
            if length_ms == PIECES_MS[-1] and condition != CALL:
                missed += [it.missed for it in found]
            table.add(
                f"{condition}, {length_ms // 1000} s",
                len(found),
                median([it.own for it in found] or [0.0]),
                max((it.other for it in found), default=0.0),
                _percent([it.missed for it in found]),
                _percent([it.taken for it in found]),
            )
    figures = (
        counted("readers", len(readers)),
        Figure("named as another", (_percent(taken),), "%", 2, Target(TAKEN_LIMIT)),
        Figure(
            f"not named by {PIECES_MS[-1] // 1000} s of speech, over the same line",
            (_percent(missed),),
            "%",
            2,
            Target(MISSED_LIMIT),
        ),
    )
    remark = (
        f"Voices of {MIN_VOICE_MS // 1000} s, from other clips of the same reading: expect more "
        "misses on another day, and by another microphone."
    )
    return BenchPart("identify", "5. Enrolled readers", figures, table, (remark,))


def _trials(enrolled: Clips, clips: Clips, length_ms: int) -> Iterator[Trial]:
    """Both halves of the clips enrol in turn, and identify in the other one."""
    for half in (0, 1):
        voices = {
            name: voice
            for name, theirs in enrolled.items()
            for voice in _voices(theirs[half::2], MIN_VOICE_MS)[:1]
        }
        for name, own in voices.items():
            others = {other: voice for other, voice in voices.items() if other != name}
            for piece in _voices(clips[name][1 - half :: 2], length_ms):
                named = _named(piece, voices)
                yield Trial(
                    own=_cosine(piece, own),
                    other=max((_cosine(piece, it) for it in others.values()), default=0.0),
                    missed=named is None,
                    taken=named not in (name, None) or _named(piece, others) is not None,
                )


def _voices(clips: Sequence[Sequence[Stretch]], length_ms: int) -> list[MeanVoice]:
    """The voices of pieces in turn of at least so much speech."""
    found, piece = [], list[Stretch]()
    for stretch in (it for clip in clips for it in clip if it.alone):
        piece.append(stretch)
        voice = mean_voice(piece)
        if voice is not None and voice.sampled_ms >= length_ms:
            found.append(voice)
            piece = []
    return found


def _named(piece: MeanVoice, voices: Mapping[str, MeanVoice]) -> str | None:
    """Whom jobs would name."""
    known = [
        KnownVoice(UUID(int=0), name, voice.embedding, voice.narrow)
        for name, voice in voices.items()
    ]
    cosines = likeness({"": piece.embedding}, [it.embedding for it in known])
    found = identify(cosines, known, [""] * piece.narrow)
    return found[""][0].name if found else None


def _cosine(one: MeanVoice, other: MeanVoice) -> float:
    return likeness({"": one.embedding}, [other.embedding])[""][0]


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / max(1, len(flags))
