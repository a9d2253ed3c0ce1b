"""A recording as a WAV file, with some stretches replaced by a tone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.audio.decode import AudioDecoder
from common.audio.wav import SAMPLE_BYTES, wav_header
from common.domain.values import Span
from common.errors import DecodeFailed

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # it misses FFmpeg's program, and needs none
    from pydub import AudioSegment
    from pydub.generators import Sine

TONE_HZ = 1_000
BELOW_DB = 3.0
"""How much quieter than its surroundings the tone is; it is still easy to hear."""
SOFTEST_DBFS, LOUDEST_DBFS = -40.0, -18.0
FADE_MS = 10
"""Crossfade between audio and tone, against clicks."""


class RedactedWav:
    """An audio track as 16-bit PCM in a WAV file, in its own sample rate and channels.

    ``spans`` are in order and do not touch; their audio is removed except `FADE_MS` at their edges.
    The file is exactly ``duration_ms`` long, the length found by an earlier decoding, so its header
    is correct before the audio is decoded. Iterating yields the file in pieces of about a second,
    once, in constant memory.

    Raises:
        NotAudio: the file is not a recording or has no audio.
        DecodeFailed: none of it can be decoded.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        duration_ms: int,
        spans: Sequence[Span],
        track: int | None = None,
    ) -> None:
        decoder = AudioDecoder(source, track)
        pieces = iter(decoder)
        first = next(pieces, None)
        if first is None:
            raise DecodeFailed(reason="none of its packets can be decoded")
        self.rate = decoder.rate
        self.channels = decoder.channels
        self.frames = duration_ms * self.rate // 1000
        self._header = wav_header(self.rate, self.channels, self.frames)
        self._spans = spans
        self._source = _Source(first, pieces, self.channels)
        self._loudness_dbfs = SOFTEST_DBFS
        self._tone: AudioSegment | None = None

    @property
    def size(self) -> int:
        """The size of the whole file in bytes."""
        return len(self._header) + self.frames * self.channels * SAMPLE_BYTES

    def __iter__(self) -> Iterator[bytes]:
        yield self._header
        at = 0
        for span in self._spans:
            # Rounded outwards.
            start = min(span.start_ms * self.rate // 1000, self.frames)
            end = min(-(-span.end_ms * self.rate // 1000), self.frames)
            yield from self._unchanged(start - at)
            yield from self._covered(end - start)
            at = end
        yield from self._unchanged(self.frames - at)

    def _unchanged(self, frames: int) -> Iterator[bytes]:
        while frames > 0:
            taken = min(frames, self.rate)
            samples = self._source.read(taken)
            self._loudness_dbfs = self._segment(samples).dBFS
            yield samples.tobytes()
            frames -= taken

    def _covered(self, frames: int) -> Iterator[bytes]:
        """The tone in place of the next ``frames``, at the level of its surroundings."""
        fade = min(FADE_MS * self.rate // 1000, frames // 2)
        tone: NDArray[np.int16] | None = None
        done = 0
        while done < frames:
            taken = min(frames - done, self.rate)
            if frames - done - taken < fade:  # a fade is never split
                taken = frames - done
            audio = self._source.read(taken)
            if tone is None:
                loudness = max(self._loudness_dbfs, self._segment(audio).dBFS)
                tone = self._tone_at(loudness - BELOW_DB)
            covered = np.concatenate([tone, tone])[:taken]
            if done == 0:
                covered[:fade] = _crossfade(audio[:fade], covered[:fade])
            done += taken
            if done == frames and fade:
                covered[-fade:] = _crossfade(covered[-fade:], audio[-fade:])
            yield covered.tobytes()

    def _tone_at(self, dbfs: float) -> NDArray[np.int16]:
        """A second of the tone, shape (rate, channels), which repeats without a seam."""
        if self._tone is None:
            self._tone = Sine(TONE_HZ, sample_rate=self.rate).to_audio_segment(1000)
        target = min(max(dbfs, SOFTEST_DBFS), LOUDEST_DBFS)
        mono = self._tone.apply_gain(target - self._tone.dBFS)
        samples = np.frombuffer(mono.raw_data, np.int16)
        return np.repeat(samples[:, None], self.channels, axis=1)

    def _segment(self, samples: NDArray[np.int16]) -> AudioSegment:
        return AudioSegment(
            samples.tobytes(),
            sample_width=SAMPLE_BYTES,
            frame_rate=self.rate,
            channels=self.channels,
        )


class _Source:
    """Reads any number of frames; silence after the last."""

    def __init__(
        self, first: NDArray[np.int16], others: Iterator[NDArray[np.int16]], channels: int
    ) -> None:
        self._rest = first.reshape(-1, channels)
        self._others = others
        self._channels = channels

    def read(self, frames: int) -> NDArray[np.int16]:
        """The next ``frames``, shape (frames, channels)."""
        samples = np.zeros((frames, self._channels), np.int16)
        filled = 0
        while filled < frames:
            if not len(self._rest):
                piece = next(self._others, None)
                if piece is None:
                    break
                self._rest = piece.reshape(-1, self._channels)
            taken = self._rest[: frames - filled]
            samples[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._rest = self._rest[len(taken) :]
        return samples


def _crossfade(before: NDArray[np.int16], after: NDArray[np.int16]) -> NDArray[np.int16]:
    """Fade between audio of shape (frames, channels); pydub's fade rounds to milliseconds."""
    share = np.linspace(0, 1, len(before), dtype=np.float32)[:, None]
    return np.round(before * (1 - share) + after * share).astype(np.int16)
