"""Mixes several channels to mono and keeps the speech of each."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from common.domain.values import SAMPLE_RATE

Floats = NDArray[np.float32]

HOP = 256
"""Samples (16 ms) with one decision."""
REACH = 4
"""Hops on either side that a decision considers: 144 ms in all, a syllable."""
THINNED = 4
"""Samples summed before energies are computed: above 2 kHz there is mostly noise."""
HELD = 12
"""Hops that wait for the following ones, as a decision depends on both sides."""
BLOCK = 4 * SAMPLE_RATE
"""The best input size: numpy's calls cost as much as the arithmetic of a second."""
BRIEF = SAMPLE_RATE // HOP
"""Too few hops to measure levels."""
HISTORY = 2
"""Blocks over which a channel's levels are compared."""

CANCELS = -0.95
"""Correlation below which channels cancel out: 16 dB of their common part would be lost."""
CANCELS_LONG = -0.7
"""Below this over all of `HISTORY`, channels cancel out although noise hides it."""
CANCELS_THEN = -0.3
"""The threshold that applies then."""
ADDS = 0.2
"""Correlation above which they add up again. Noise has none, and changes nothing."""
INVERTED = -0.5
"""Weight of an inverted channel. Not -1, so that its in-phase part is not lost, either."""

VOICED = 4.0
"""Ratio of a channel's loudest to its softest energy (6 dB) from which it has more than noise."""
DROWNS = 0.1
"""Share of the loudest channel's energy from which a noise channel is left out."""
FEWEST = 2.0
"""The mix is scaled for at least so many channels: one or two are never amplified."""

QUIET = HOP * THINNED * 1e-8
"""Energy of a hop too quiet for its correlation to count (-80 dB of full scale)."""

FULL_SCALE = 32_768


class Mixer:
    """Mixes the channels of one recording, fed in a stream; 16 kHz.

    Channels have equal weights, so two give their mean, with three exceptions. A channel that
    cancels another one out is inverted while it does. A channel with only loud noise is left out
    while another has more. With more than two channels, silent ones do not lower the mean.

    Energies are measured around 1 kHz, where voices have theirs; hum and a constant offset have
    little there. Memory is a block or two of samples.

    Args:
        channels: at least 2.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._samples = np.zeros((0, channels), np.float32)
        self._before = np.zeros((1, channels), np.float32)
        self._energies = np.zeros((REACH, channels, channels), np.float32)
        """Products of the channels for the last `REACH` mixed hops and all unmixed ones."""
        self._past: deque[Floats] = deque(maxlen=HISTORY)
        self._inverted = np.zeros(channels, bool)
        self._weights: Floats | None = None
        self._levels: deque[tuple[Floats, Floats, Floats]] = deque(maxlen=HISTORY)
        self.inverted = False
        """Whether a channel was inverted."""
        self.left_out = False
        """Whether a channel of noise was left out."""

    def feed(self, samples: Floats) -> NDArray[np.int16]:
        """Take the next samples, shape (frames, channels), in [-1, 1]; returns the finished mix."""
        self._samples = np.concatenate([self._samples, samples])
        return self._mix(len(self._samples) // HOP, HELD)

    def finish(self) -> NDArray[np.int16]:
        """The rest of the mix. Later samples are of the same recording, after a gap."""
        count = len(self._samples)
        hops = -(-count // HOP)
        self._samples = np.pad(self._samples, ((0, hops * HOP - count), (0, 0)))
        mixed = self._mix(hops, 0)[:count]
        self._before[:] = 0
        self._energies[:] = 0
        return mixed

    def _mix(self, hops: int, held: int) -> NDArray[np.int16]:
        """Mix all but the last ``held`` of the first ``hops`` hops."""
        count = hops - held
        if count <= 0:
            return np.zeros(0, np.int16)
        self._measure(hops)
        around = _around(self._energies, 0 if held else REACH)[: hops - held // 2]
        inverted = self._decide(around)[:count]
        weights = np.where(inverted, np.float32(INVERTED), np.float32(1)) * self._level(
            around[:count]
        )
        mixed = self._apply(self._samples[: count * HOP], weights)
        self._samples = self._samples[count * HOP :]
        self._energies = self._energies[count:]
        self._inverted = inverted[-1]
        self.inverted |= bool(inverted.any())
        return mixed

    def _measure(self, hops: int) -> None:
        known = len(self._energies) - REACH
        fresh = self._samples[known * HOP : hops * HOP]
        sums = fresh[::THINNED].copy()
        for at in range(1, THINNED):  # three times as fast as numpy's sum over so short an axis
            sums += fresh[at::THINNED]
        steps = np.diff(sums, axis=0, prepend=self._before)
        self._before = sums[-1:]
        blocks = steps.reshape(-1, HOP // THINNED, self.channels)
        self._energies = np.concatenate([self._energies, blocks.transpose(0, 2, 1) @ blocks])

    def _decide(self, around: Floats) -> NDArray[np.bool_]:
        """Which channels are inverted in each hop, shape (hops, channels)."""
        hops = len(around)
        inverted = np.zeros((hops, self.channels), bool)
        single = self._energies[REACH : REACH + hops]
        # All comparisons at once: windows, hops, and the whole past.
        self._past.append(around.sum(axis=0))
        energies = np.concatenate([around, single, np.sum(self._past, axis=0)[None]])
        signs = np.ones(energies.shape[:2], np.float32)
        mixed = energies[:, 0, 0].copy()
        for channel in range(1, self.channels):
            least, most = _correlations(energies, signs, channel, mixed)
            limit = CANCELS_THEN if least[-1] < CANCELS_LONG else CANCELS
            score = np.where(least < limit, least, most)
            now = _held(score[:hops], limit, before=bool(self._inverted[channel]))
            if now.any():
                _adjust(now, score[hops:-1])
                inverted[:, channel] = now
                signs[:, channel][np.concatenate([now, now, [now.mean() > 0.5]])] = -1
            shared = np.einsum("hi,hi->h", energies[:, channel, :channel], signs[:, :channel])
            mixed += energies[:, channel, channel] + 2 * shared * signs[:, channel]
        return inverted

    def _level(self, around: Floats) -> Floats:
        """The weight of each channel for the next block, without signs, shape (channels,)."""
        energy = np.einsum("hii->hi", around)
        low, high, mean = energy.min(axis=0), energy.max(axis=0), energy.mean(axis=0)
        if self._levels and len(around) < BRIEF:
            before_low, before_high, mean = self._levels.pop()
            low, high = np.minimum(low, before_low), np.maximum(high, before_high)
        self._levels.append((low, high, mean))
        lows, highs, means = (np.stack(each) for each in zip(*self._levels, strict=True))
        low, high, mean = lows.min(axis=0), highs.max(axis=0), means.mean(axis=0)
        voiced = high > VOICED * np.maximum(low, QUIET)
        noise = ~voiced
        loudest = float(mean[voiced].max(initial=0))
        drowning = noise & (mean * noise.sum() > DROWNS * loudest) & bool(voiced.any())
        if drowning.any():
            self.left_out = True
        amplitudes = np.sqrt(means.max(axis=0)) * ~drowning
        count = amplitudes.sum() / max(float(amplitudes.max()), 1e-9)
        weights: Floats = (~drowning / max(count, FEWEST)).astype(np.float32)
        return weights

    def _apply(self, samples: Floats, weights: Floats) -> NDArray[np.int16]:
        """Mix by the ``weights`` of each hop, with a fade from one hop's to the next's."""
        before = weights[0] if self._weights is None else self._weights
        self._weights = weights[-1]
        if (weights == before).all():
            mixed = samples @ before
        else:
            hops = samples.reshape(-1, HOP, self.channels)
            starts = np.concatenate([before[None], weights[:-1]])
            start = np.einsum("hsc,hc->hs", hops, starts)
            end = np.einsum("hsc,hc->hs", hops, weights)
            share = np.arange(1, HOP + 1, dtype=np.float32) / HOP
            mixed = (start + (end - start) * share).ravel()
        mixed *= FULL_SCALE  # in place: fresh memory costs more than the arithmetic
        mixed += 0.5
        np.floor(mixed, out=mixed)
        np.clip(mixed, -FULL_SCALE, FULL_SCALE - 1, out=mixed)
        found: NDArray[np.int16] = mixed.astype(np.int16)
        return found


def _around(energies: Floats, more: int) -> Floats:
    """The sum over each hop and `REACH` on either side, with ``more`` silent hops at the end."""
    padded = np.pad(energies, ((1, more), (0, 0), (0, 0))).astype(np.float64)
    sums = padded.cumsum(axis=0)
    width = 2 * REACH + 1
    found: Floats = (sums[width:] - sums[:-width]).astype(np.float32)
    return found


def _correlations(
    energies: Floats, signs: Floats, channel: int, mixed: Floats
) -> tuple[Floats, Floats]:
    """How much ``channel`` adds to (1) or cancels (-1) the channels before it: least and most.

    Compares with each of them, and with their sum of energy ``mixed``; shape (hops,), nan where the
    channel is too quiet.
    """
    own = energies[:, channel, channel]
    shared = energies[:, channel, :channel] * signs[:, :channel]
    others = np.einsum("hii->hi", energies)[:, :channel]
    pairs = 2 * shared / np.maximum(others + own[:, None], QUIET)
    whole = 2 * shared.sum(axis=1) / np.maximum(mixed + own, QUIET)
    least, most = np.minimum(pairs.min(axis=1), whole), np.maximum(pairs.max(axis=1), whole)
    least[own < QUIET] = most[own < QUIET] = np.nan
    return least, most


def _held(score: Floats, limit: float, *, before: bool) -> NDArray[np.bool_]:
    """Whether to invert a channel: from ``limit`` until `ADDS`."""
    decided = (score < limit) | (score > ADDS)
    last = np.maximum.accumulate(np.where(decided, np.arange(len(score)), -1))
    return np.where(last < 0, before, score[last] < limit)


def _adjust(inverted: NDArray[np.bool_], score: Floats) -> None:
    """Move the edges, in place, to where the single hops have them."""
    inverted &= ~(score > -CANCELS)
    for hop in range(len(inverted) - 2, -1, -1):
        inverted[hop] |= inverted[hop + 1] and score[hop] < CANCELS
    for hop in range(1, len(inverted)):
        inverted[hop] |= inverted[hop - 1] and score[hop] < CANCELS
