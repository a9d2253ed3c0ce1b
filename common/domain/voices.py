"""Known voices: which of them is which speaker's of a recording.

A voice is the mean embedding of a person who agreed to be recognized. Several of one person, from
different rooms, have the same name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

MIN_VOICE_MS = 10_000
"""Speech of one voice alone that an enrolled one is made of, at least. A minute of speech has about
so much with an embedding."""
MIN_SPEAKER_MS = 3_000
"""Likewise of a speaker who is to be identified."""
ALIKE = 0.6
ALIKE_NARROW = 0.8
"""The least cosine of a speaker and a voice of one person, and where both came over a telephone,
which makes voices more alike. Those of two people stay below 0.5 and 0.8 (`steno bench speakers`,
part identify)."""
AHEAD = 0.1
"""By how much the voice is more alike than that of anybody else, at least."""


@dataclass(frozen=True, slots=True)
class KnownVoice:
    """An enrolled voice; ``embedding``: float16, little-endian, of length 1.

    ``narrow``: it came over a telephone.
    """

    id: UUID
    name: str
    embedding: bytes = field(repr=False)
    narrow: bool = False


def identify(
    likeness: Mapping[str, Sequence[float]],
    voices: Sequence[KnownVoice],
    narrow: Collection[str] = (),
) -> dict[str, tuple[KnownVoice, float]]:
    """The voice of each speaker who is surely one of ``voices``, and its cosine.

    ``likeness`` has the cosines of a speaker with each of the voices, ``narrow`` who came over a
    telephone. Nobody is two speakers: of those that are most like one person, the most alike has
    the name, and the others have none.
    """
    found: dict[str, tuple[str, KnownVoice, float]] = {}
    for speaker, cosines in likeness.items():
        alike = _alike(cosines, voices, speaker in narrow)
        if alike and _is_ahead(alike, cosines, voices):
            cosine, voice = alike[0]
            if voice.name not in found or cosine > found[voice.name][2]:
                found[voice.name] = speaker, voice, cosine
    return {speaker: (voice, cosine) for speaker, voice, cosine in found.values()}


def ambiguous(
    likeness: Mapping[str, Sequence[float]],
    voices: Sequence[KnownVoice],
    narrow: Collection[str] = (),
) -> list[str]:
    """The speakers who are like voices of several names, none of which is surely theirs.

    The arguments are those of `identify`, which gives them no name.
    """
    found = []
    for speaker, cosines in likeness.items():
        alike = _alike(cosines, voices, speaker in narrow)
        names = {voice.name for _, voice in alike}
        if len(names) > 1 and not _is_ahead(alike, cosines, voices):
            found.append(speaker)
    return found


def _alike(
    cosines: Sequence[float], voices: Sequence[KnownVoice], narrow: bool
) -> list[tuple[float, KnownVoice]]:
    """The voices that may be a speaker's, with their cosines, the most alike first."""
    pairs = zip(cosines, voices, strict=True)
    alike = (it for it in pairs if it[0] >= _least(it[1], narrow))
    return sorted(alike, key=lambda it: -it[0])


def _is_ahead(
    alike: Sequence[tuple[float, KnownVoice]],
    cosines: Sequence[float],
    voices: Sequence[KnownVoice],
) -> bool:
    """Whether the first of ``alike`` is more alike than everybody else's voice."""
    cosine, voice = alike[0]
    pairs = zip(cosines, voices, strict=True)
    others = (it for it, other in pairs if other.name != voice.name)
    return cosine - max(others, default=-1.0) >= AHEAD


def _least(voice: KnownVoice, narrow: bool) -> float:
    return ALIKE_NARROW if narrow and voice.narrow else ALIKE
