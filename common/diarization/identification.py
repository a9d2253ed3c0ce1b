"""Mean embeddings of voices, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.diarization.clustering import SEED_MS
from common.domain.speakers import Stretch


@dataclass(frozen=True, slots=True)
class MeanVoice:
    """The mean embedding of a voice: float16, little-endian, of length 1.

    It was made of ``sampled_ms`` of speech, in which nobody else speaks: of a part of what the
    person says, since not all stretches have an embedding. ``narrow``: most of that came over a
    telephone.
    """

    embedding: bytes = field(repr=False)
    sampled_ms: int
    narrow: bool


def mean_voice(stretches: Sequence[Stretch]) -> MeanVoice | None:
    """The mean of a voice's stretches (`common.domain.speakers.voiced_by`), by their length.

    Those of less than a second describe a voice poorly, and are left out; None: there are no
    others.
    """
    used = [it for it in stretches if it.embedded_ms >= SEED_MS]
    if not used:
        return None
    vectors = np.stack([np.frombuffer(it.embedding or b"", "<f2") for it in used])
    weights = np.array([it.embedded_ms for it in used], np.float32)
    total = weights @ vectors.astype(np.float32)
    unit = total / max(float(np.linalg.norm(total)), 1e-9)
    narrow_ms = sum(it.embedded_ms for it in used if it.narrow)
    sampled_ms = sum(it.embedded_ms for it in used)
    return MeanVoice(unit.astype("<f2").tobytes(), sampled_ms, 2 * narrow_ms > sampled_ms)


def likeness(speakers: Mapping[str, bytes], voices: Sequence[bytes]) -> dict[str, list[float]]:
    """The cosines of each speaker with each voice, from their embeddings."""
    if not voices:
        return {speaker: [] for speaker in speakers}
    known = np.stack([np.frombuffer(it, "<f2") for it in voices]).astype(np.float32)
    return {
        speaker: (known @ np.frombuffer(it, "<f2").astype(np.float32)).tolist()
        for speaker, it in speakers.items()
    }
