"""Finds out which channels of a recording can be transcribed separately."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from common.audio.decode import ChannelDecoder
from common.domain.request import Channels
from common.domain.tracks import check_separable
from common.domain.values import SAMPLE_RATE

Floats = NDArray[np.float32]

ONE_CHANNEL = "one_channel"
"""The warning that a recording has no channels to separate."""

IDENTICAL_CHANNELS = "identical_channels"
"""The warning that channels have the same audio, which was transcribed once."""

COMPARED_MS = 600_000
"""The channels are compared over the first ten minutes at most: a second's work."""

THINNED = 4
"""Samples summed before energies are computed: above 2 kHz there is mostly noise."""
FRAME = SAMPLE_RATE // 10
"""Samples (0.1 s) of which each has one level: about half a syllable."""
SILENT = FRAME * 1e-7
"""Energy of a frame without audio (about -75 dB of full scale)."""

SAME = 0.95
"""Correlation from which channels have the same audio: lossy codecs change each by itself."""
DIFFERENT = 0.8
"""Correlation below which more audio would not make them the same."""

LOUD_PERCENTILE, NOISE_PERCENTILE = 98, 10
"""Which of a channel's levels count as its speech at its loudest, and as its noise."""
VOICED = 10.0
"""Ratio of these energies (10 dB) from which a channel has more than noise."""
ACTIVE = 0.03
"""Share of the loudest speech's energy (-15 dB) from which a frame counts."""
ALONE = 30.0
"""Ratio of energies (15 dB) from which only one channel speaks. One person's voice on the other's
channel has to be softer than that, or it would be transcribed there as well."""
MOSTLY_ALONE = 0.6
"""Share of the frames in which only one channel speaks, where channels have different people."""
FEWEST_ALONE = 0.05
"""Share of the frames in which each of them has to speak alone."""
SURE_FRAMES = 150
"""So many frames alone, 15 s of speech, settle that a channel has somebody of its own."""


@dataclass(frozen=True, slots=True)
class Separation:
    """The channels to transcribe separately, by number; none: their mix. And a warning, if any."""

    channels: tuple[int, ...] = ()
    warning: str | None = None


def separate(decoding: ChannelDecoder, wanted: Channels) -> Separation:
    """Which channels to transcribe separately; decodes as much as it takes to know.

    With ``separate`` all that are not copies of others. With ``auto`` two in which different people
    speak, mostly one at a time. The result depends on the recording alone.

    Raises:
        OutOfRange: it has too many channels to transcribe each.
        NotAudio, DecodeFailed: as `ChannelDecoder`.
    """
    if wanted == "mix":
        return Separation()
    comparison: ChannelComparison | None = None
    for block in decoding:
        if decoding.channels == 1:
            return Separation(warning=ONE_CHANNEL if wanted == "separate" else None)
        if wanted == "separate":
            check_separable(decoding.channels)
        elif decoding.channels != 2:
            return Separation()
        comparison = comparison or ChannelComparison(decoding.channels)
        comparison.feed(block)
        settled = comparison.all_differ if wanted == "separate" else comparison.surely_apart
        if settled or decoding.duration_ms >= COMPARED_MS:
            break
    assert comparison is not None  # noqa: S101 - a recording without a sample is `DecodeFailed`
    if wanted == "auto":
        return Separation((0, 1)) if comparison.apart else Separation()
    kept = comparison.without_copies
    if len(kept) == decoding.channels:
        return Separation(kept)
    return Separation(kept if len(kept) > 1 else (), IDENTICAL_CHANNELS)


class ChannelComparison:
    """Compares the channels of a recording, fed in blocks of shape (samples, channels), int16.

    Levels are measured around 1 kHz, as in `common.audio.mix`.
    """

    def __init__(self, channels: int) -> None:
        self._products = np.zeros((channels, channels))
        self._levels: list[Floats] = []

    def feed(self, block: NDArray[np.int16]) -> None:
        """Take the next samples; what remains of the last frame of a block is ignored."""
        frames = len(block) // FRAME
        samples = block[: frames * FRAME].astype(np.float32) / 32_768
        sums = samples[::THINNED].copy()
        for at in range(1, THINNED):  # numpy's sum over so short an axis takes three times as long
            sums += samples[at::THINNED]
        steps = np.diff(sums.reshape(frames, FRAME // THINNED, block.shape[1]), axis=1)
        products = steps.transpose(0, 2, 1) @ steps
        self._products += products.sum(axis=0)
        self._levels.append(np.einsum("fcc->fc", products))

    @property
    def all_differ(self) -> bool:
        """Whether no two channels can still turn out to have the same audio."""
        quietest = self._products.diagonal().min()
        voiced = quietest > VOICED * SILENT * sum(map(len, self._levels))
        return bool(voiced) and all(alike < DIFFERENT for *_, alike in self._pairs())

    @property
    def without_copies(self) -> tuple[int, ...]:
        """The channels that have not the same audio as an earlier one; louder or inverted."""
        copies = {later for _, later, alike in self._pairs() if alike >= SAME}
        return tuple(at for at in range(len(self._products)) if at not in copies)

    @property
    def apart(self) -> bool:
        """Whether different people speak in the two channels, mostly one at a time."""
        alone, frames = self._alone()
        return bool(
            sum(alone) >= MOSTLY_ALONE * frames and min(alone) >= max(1, FEWEST_ALONE * frames)
        )

    @property
    def surely_apart(self) -> bool:
        """Whether this is settled by what was compared so far."""
        return self.apart and min(self._alone()[0]) >= SURE_FRAMES

    def _alone(self) -> tuple[tuple[int, int], int]:
        """The number of frames in which each of two channels speaks alone, and that of all."""
        levels = np.concatenate(self._levels)
        if not len(levels):
            return (0, 0), 0
        noise, loud = np.percentile(levels, (NOISE_PERCENTILE, LOUD_PERCENTILE), axis=0)
        if (loud < VOICED * np.maximum(noise, SILENT)).any():
            return (0, 0), len(levels)
        # Each by its own loudest speech: people need not be equally loud.
        speech = np.maximum(levels - noise, 0) / (loud - noise)
        speech = speech[speech.max(axis=1) >= ACTIVE]
        left, right = speech.T
        return (int(np.sum(left > ALONE * right)), int(np.sum(right > ALONE * left))), len(speech)

    def _pairs(self) -> Iterator[tuple[int, int, float]]:
        """Each pair of channels, and how far they have the same audio: 0 to 1."""
        norms = np.sqrt(self._products.diagonal())
        for earlier, later in combinations(range(len(norms)), 2):
            norm = norms[earlier] * norms[later]
            yield earlier, later, abs(self._products[earlier, later]) / norm if norm else 0.0
