"""Finds speech by Silero voice activity, in a stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.audio.silero import CONTEXT, FRAME, SILENCE, SileroNetwork
from common.domain.cutting import Curve, CutOptions, Speech, cut_long
from common.domain.speaking import HYSTERESIS, MIN_SPEECH_MS, THRESHOLD
from common.domain.values import SAMPLES_PER_MS, Span

FRAME_MS = FRAME // SAMPLES_PER_MS

BLOCK = 128 * FRAME
"""Samples processed at once (4 s, which fit the processor's cache), whatever the input's blocks:
the last bits of a matrix product depend on its size, and the cuts of a recording must not."""


MIN_SILENCE_MS = 160
"""Shorter silences belong to the speech around them."""


class VoiceActivity:
    """The probability of speech for each 32 ms of a recording."""

    def __init__(self, network: SileroNetwork) -> None:
        self._network = network
        self._state = SILENCE
        self._samples = np.zeros(CONTEXT, np.int16)

    def feed(self, block: NDArray[np.int16]) -> NDArray[np.float32]:
        """The probabilities of the frames that are complete, shape (frames,); lags by 4 s."""
        self._samples = np.concatenate([self._samples, block])
        known = [np.zeros(0, np.float32)]
        start = 0
        while len(self._samples) - start >= CONTEXT + BLOCK:
            known.append(self._probabilities(self._samples[start : start + CONTEXT + BLOCK]))
            start += BLOCK
        self._samples = self._samples[start:]
        return np.concatenate(known)

    def finish(self) -> NDArray[np.float32]:
        """The probabilities of the remaining frames; the last is padded with zeros."""
        rest = len(self._samples) - CONTEXT
        if not rest:
            return np.zeros(0, np.float32)
        return self._probabilities(np.pad(self._samples, (0, -rest % FRAME)))

    def _probabilities(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        probabilities, self._state = self._network.speech_probabilities(samples, self._state)
        return probabilities


def voiced(network: SileroNetwork, window: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames of a window (16 kHz mono in [-1, 1]) have speech; shape (frames,)."""
    activity = VoiceActivity(network)
    samples = np.clip(np.rint(window * 32_768), -32_768, 32_767).astype(np.int16)
    probabilities = np.concatenate([activity.feed(samples), activity.finish()])
    return np.asarray(probabilities >= THRESHOLD)


def speech_ms(network: SileroNetwork, window: NDArray[np.float32]) -> int:
    """The duration of speech in a window."""
    return int(np.count_nonzero(voiced(network, window))) * FRAME_MS


class VadFinder:
    """Finds speech by voice activity."""

    def __init__(self, network: SileroNetwork, cut: CutOptions) -> None:
        self._activity = VoiceActivity(network)
        self._cut = cut
        self._curve = Curve(FRAME_MS)
        self._samples = 0
        self._frames = 0
        self._start: int | None = None
        self._opened = True
        self._quiet_since: int | None = None

    @property
    def settled_ms(self) -> int:
        """No speech reported later starts before this."""
        return self._frames * FRAME_MS if self._start is None else self._start

    def feed(self, block: NDArray[np.int16]) -> list[Speech]:
        """Take the next samples; returns the speech that has ended."""
        self._samples += len(block)
        return self._follow(self._activity.feed(block).tolist())

    def finish(self) -> list[Speech]:
        """The speech that lasts until the recording's end."""
        found = self._follow(self._activity.finish().tolist())
        if self._start is not None:
            end = self._samples // SAMPLES_PER_MS
            found += self._close(
                self._start, end if self._quiet_since is None else self._quiet_since
            )
        return found

    def _follow(self, probabilities: list[float]) -> list[Speech]:
        found = []
        self._curve.extend(probabilities)
        for probability in probabilities:
            now = self._frames * FRAME_MS
            self._frames += 1
            if probability >= THRESHOLD:
                self._quiet_since = None
                if self._start is None:
                    self._start = now
            elif self._start is not None and probability < THRESHOLD - HYSTERESIS:
                if self._quiet_since is None:
                    self._quiet_since = now
                if now + FRAME_MS - self._quiet_since >= MIN_SILENCE_MS:
                    found += self._close(self._start, self._quiet_since)
        if self._start is not None:
            now = min(self._frames * FRAME_MS, self._samples // SAMPLES_PER_MS)
            found += self._cut_off(self._start, self._quiet_since or now)[0]
        self._curve.forget(self.settled_ms)
        return found

    def _close(self, start: int, end: int) -> list[Speech]:
        pieces, rest = self._cut_off(start, end)
        if not rest.opened or rest.span.duration_ms >= MIN_SPEECH_MS:
            pieces.append(rest)
        self._start, self._opened, self._quiet_since = None, True, None
        return pieces

    def _cut_off(self, start: int, end: int) -> tuple[list[Speech], Speech]:
        span = Span(start, end)
        pieces, rest = cut_long(self._cut, self._curve, Speech(span, opened=self._opened))
        self._start, self._opened = rest.span.start_ms, rest.opened
        return pieces, rest
