"""Finds non-silent audio: pydub's ``detect_nonsilent``, vectorised, and also as a stream.

Written from pydub 0.25.1 (``pydub/silence.py``) and equal to it on every input: a stretch of
``min_silence_ms`` is silent if the whole-number root mean square of its samples is at most the
threshold, and silent stretches that touch are one silence. Running sums replace the slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.domain.cutting import Curve, CutOptions, Speech, cut_long
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Span

FULL_SCALE = 32_768
CACHED_MS = 4_096
"""Milliseconds processed at once: their squares fit the processor's cache."""

LEVEL_MS = 50
"""Resolution of the loudness by which long speech is cut: about a third of a syllable."""


@dataclass(frozen=True, slots=True)
class SilenceOptions:
    """What counts as silence.

    Args:
        threshold_dbfs: the highest level of silence, in dB of full scale, at most 0.
        min_silence_ms: the shortest silence, at least 1.
    """

    threshold_dbfs: float = -40.0
    min_silence_ms: int = 500

    def __post_init__(self) -> None:
        if self.threshold_dbfs > 0:
            raise ValueError(f"threshold_dbfs must be at most 0, got {self.threshold_dbfs}")
        if self.min_silence_ms < 1:
            raise ValueError(f"min_silence_ms must be at least 1, got {self.min_silence_ms}")


def detect_nonsilent(samples: NDArray[np.int16], options: SilenceOptions) -> list[tuple[int, int]]:
    """Where ``samples`` (16 kHz mono, shape (samples,)) are not silent: ``(start, end)`` in ms.

    A recording shorter than ``min_silence_ms`` has no silence, as in pydub.
    """
    length = round(1000 * (len(samples) / SAMPLE_RATE)) * SAMPLES_PER_MS
    missing = max(length - len(samples), 0)
    whole = np.pad(samples, (0, missing)) if missing else samples[:length]
    scanner = SilenceScanner(options)
    found = []
    for start in range(0, length, CACHED_MS * SAMPLES_PER_MS):
        found += scanner.feed(energy_per_ms(whole[start : start + CACHED_MS * SAMPLES_PER_MS]))
    return found + scanner.finish()


def energy_per_ms(samples: NDArray[np.int16]) -> NDArray[np.int64]:
    """The sum of squares in each whole millisecond, shape (samples // 16,)."""
    whole = samples[: len(samples) // SAMPLES_PER_MS * SAMPLES_PER_MS]
    exact = whole.astype(np.float64).reshape(-1, SAMPLES_PER_MS)  # sums stay far below 2**53
    energy: NDArray[np.float64] = np.einsum("ij,ij->i", exact, exact)
    return energy.astype(np.int64)


class SilenceScanner:
    """`detect_nonsilent` as a stream; keeps ``min_silence_ms`` of energy and no samples.

    `loud_since_ms` is the start of the loud stretch that is reported next, as far as known;
    `loud_until_ms` is how far it reaches at least (its start, where it may not have begun).
    """

    def __init__(self, options: SilenceOptions) -> None:
        self._length = options.min_silence_ms
        self._limit = 10 ** (options.threshold_dbfs / 20) * FULL_SCALE
        self._energy = np.zeros(0, np.int64)
        self._known = 0
        self._next = 0
        self._last_silent: int | None = None
        self.loud_since_ms = 0

    @property
    def loud_until_ms(self) -> int:
        if self._last_silent is not None and self._next <= self._last_silent + 1:
            return self.loud_since_ms
        return max(self._next, self.loud_since_ms)

    def feed(self, energy: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Take the next milliseconds; returns the loud stretches that silence has ended."""
        self._energy = np.concatenate([self._energy, energy])
        self._known += len(energy)
        found = self._scan()
        self._energy = self._energy[-self._length :]
        return found

    def finish(self) -> list[tuple[int, int]]:
        """The loud stretch that lasts until the recording's end."""
        if self._last_silent is not None and self.loud_since_ms == self._known:
            return []
        return [(self.loud_since_ms, self._known)]

    def _scan(self) -> list[tuple[int, int]]:
        """Search silence in the stretches that are complete and were not searched yet."""
        start, self._next = self._next, max(self._next, self._known - self._length + 1)
        if start == self._next:
            return []
        sums = np.concatenate([[0], np.cumsum(self._energy)])
        begin = start - (self._known - len(self._energy))
        energy = sums[begin + self._length :] - sums[begin : -self._length]
        # The division and the root in double precision, then the floor, as audioop.rms has them.
        rms = np.floor(np.sqrt(energy / (self._length * SAMPLES_PER_MS)))
        silent = np.flatnonzero(rms <= self._limit) + start
        if not len(silent):
            return []
        before = -1 - self._length if self._last_silent is None else self._last_silent
        begins = np.diff(silent, prepend=before) > self._length
        begins[0] |= self._last_silent is None
        fresh = np.flatnonzero(begins)
        ends = np.concatenate([[before], silent])[fresh] + self._length
        if self._last_silent is None:
            ends[0] = 0
        self._last_silent = int(silent[-1])
        self.loud_since_ms = self._last_silent + self._length
        pairs = zip(ends.tolist(), silent[fresh].tolist(), strict=True)
        return [(start, end) for start, end in pairs if start != end]


class SilenceFinder:
    """Finds speech by loudness."""

    def __init__(self, options: SilenceOptions, cut: CutOptions) -> None:
        self._scanner = SilenceScanner(options)
        self._cut = cut
        self._curve = Curve(LEVEL_MS)
        self._samples = np.zeros(0, np.int16)
        self._energy = np.zeros(0, np.int64)
        self._cut_at: int | None = None

    @property
    def settled_ms(self) -> int:
        """No speech reported later starts before this."""
        return self._scanner.loud_since_ms if self._cut_at is None else self._cut_at

    def feed(self, block: NDArray[np.int16]) -> list[Speech]:
        """Take the next samples; returns the speech that has ended."""
        samples = np.concatenate([self._samples, block])
        energy = energy_per_ms(samples)
        self._samples = samples[len(energy) * SAMPLES_PER_MS :]
        self._follow_level(energy)
        found = self._take(self._scanner.feed(energy))
        since, until = self._scanner.loud_since_ms, self._scanner.loud_until_ms
        if until > since:
            found += self._cut_off(since, until)[0]
        self._curve.forget(self.settled_ms)
        return found

    def finish(self) -> list[Speech]:
        """The speech that lasts until the recording's end."""
        missing = -len(self._samples) % SAMPLES_PER_MS
        found = self.feed(np.zeros(missing, np.int16)) if missing else []
        return found + self._take(self._scanner.finish())

    def _follow_level(self, energy: NDArray[np.int64]) -> None:
        energy = np.concatenate([self._energy, energy])
        whole = len(energy) // LEVEL_MS * LEVEL_MS
        self._energy = energy[whole:]
        self._curve.extend(energy[:whole].reshape(-1, LEVEL_MS).sum(axis=1).tolist())

    def _take(self, stretches: list[tuple[int, int]]) -> list[Speech]:
        found = []
        for start, end in stretches:
            pieces, rest = self._cut_off(start, end)
            found += [*pieces, rest] if end > start else []
            self._cut_at = None
        return found

    def _cut_off(self, start: int, end: int) -> tuple[list[Speech], Speech]:
        opened = self._cut_at is None
        span = Span(start if self._cut_at is None else self._cut_at, end)
        pieces, rest = cut_long(self._cut, self._curve, Speech(span, opened=opened))
        if pieces:
            self._cut_at = rest.span.start_ms
        return pieces, rest
