"""Endpointing of a live stream: utterances from the probability of speech in each frame."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.domain.values import MAX_WINDOW_MS

FRAME_MS = 32
"""The frame of Silero (`common.audio.silero.FRAME`)."""
THRESHOLD = 0.5
"""Speech begins at a frame with at least this probability: Silero's default."""
HYSTERESIS = 0.15
"""A frame is silence if it is below the threshold by more than this: Silero's default."""
MIN_SPEECH_MS = 96
"""Less speech between two silences counts as noise."""


@dataclass(frozen=True, slots=True)
class Endpointing:
    """How far an utterance reaches.

    Args:
        lead_ms: how much of the audio before its speech belongs to an utterance; with less than
            200 ms engines miss first words.
        tail_ms: how much of the silence after its speech does; also the pause after which an
            utterance may have ended.
        silence_ms: the silence that ends it.
        max_ms: about here an utterance is cut in two.
        most_ms: it ends here at the latest: the limit of engines.
    """

    lead_ms: int = 8 * FRAME_MS
    tail_ms: int = 6 * FRAME_MS
    silence_ms: int = 500
    max_ms: int = 20_000
    most_ms: int = MAX_WINDOW_MS - 2_000

    def __post_init__(self) -> None:
        if not self.tail_ms <= self.silence_ms < self.max_ms <= self.most_ms:
            raise ValueError(f"needs tail <= silence < max <= most, got {self}")


@dataclass(eq=False, slots=True)
class SpokenUtterance:
    """Speech between two silences, on the stream's clock.

    Its audio lasts from ``start_ms`` to ``end_ms``, which is preliminary until it ``is_over``.
    ``spoken_until_ms`` is where its last speech ends.
    """

    number: int
    start_ms: int
    spoken_until_ms: int
    end_ms: int
    speech_ms: int = 0
    quiet_since_ms: int | None = None
    is_over: bool = False
    is_rest: bool = False
    """It is the rest of an utterance that was cut: it is kept, however little speech it has."""
    curve: list[float] = field(default_factory=list)
    """The probability of speech in each frame since ``start_ms``."""


class Speaking:
    """Follows a stream frame by frame; at most one utterance is open, ended ones are queued.

    Utterances do not overlap, and come in order.
    """

    def __init__(self, endpointing: Endpointing) -> None:
        self._options = endpointing
        self.analyzed_ms = 0
        """How far the stream is analyzed; a multiple of `FRAME_MS`."""
        self.open: SpokenUtterance | None = None
        self.over: list[SpokenUtterance] = []
        """Ended utterances that the session has to conclude, oldest first."""
        self._lead: list[float] = []
        self._free_from_ms = 0
        self._count = 0
        self._was_cut_off = False

    @property
    def needed_from_ms(self) -> int:
        """Audio before this belongs to no current or later utterance."""
        if self.over:
            return self.over[0].start_ms
        if self.open is not None:
            return self.open.start_ms
        return max(self._free_from_ms, self.analyzed_ms - self._options.lead_ms)

    @property
    def pause_ms(self) -> int:
        """The current silence in the open utterance."""
        if self.open is None or self.open.quiet_since_ms is None:
            return 0
        return self.analyzed_ms - self.open.quiet_since_ms

    def follow(self, probability: float) -> None:
        """Take the next frame."""
        options, start_ms = self._options, self.analyzed_ms
        self.analyzed_ms += FRAME_MS
        spoken = probability >= THRESHOLD
        if self.open is None:
            if not spoken:
                self._lead = [*self._lead, probability][-(options.lead_ms // FRAME_MS) :]
                return
            self._begin(start_ms)
        utterance = self.open
        assert utterance is not None  # noqa: S101 - `_begin` has set it
        utterance.curve.append(probability)
        if spoken:
            utterance.speech_ms += FRAME_MS
            utterance.quiet_since_ms = None
        elif probability < THRESHOLD - HYSTERESIS and self.pause_ms == 0:
            utterance.quiet_since_ms = start_ms
        quiet_since_ms = utterance.quiet_since_ms
        utterance.spoken_until_ms = self.analyzed_ms if quiet_since_ms is None else quiet_since_ms
        utterance.end_ms = min(self.analyzed_ms, utterance.spoken_until_ms + options.tail_ms)
        if self.pause_ms >= options.silence_ms:
            self.end()
        elif self.analyzed_ms - utterance.start_ms >= options.most_ms:
            self.end()
            self._was_cut_off = True

    def end(self) -> None:
        """End the open utterance here, if there is one."""
        utterance, self.open = self.open, None
        if utterance is None:
            return
        self._free_from_ms, self._lead = utterance.end_ms, []
        self._was_cut_off = False
        least_ms = FRAME_MS if utterance.is_rest else MIN_SPEECH_MS
        if utterance.speech_ms >= least_ms:
            utterance.is_over = True
            self.over.append(utterance)

    def cut(self, at_ms: int) -> SpokenUtterance:
        """Cut the open utterance in two; returns the part before ``at_ms``, which is over."""
        first = self.open
        if first is None or not first.start_ms < at_ms <= self.analyzed_ms:
            raise ValueError(f"no utterance is open at {at_ms} ms")
        frames = (at_ms - first.start_ms) // FRAME_MS
        rest = first.curve[frames:]
        self._count += 1
        self.open = SpokenUtterance(
            number=self._count,
            start_ms=at_ms,
            spoken_until_ms=max(at_ms, first.spoken_until_ms),
            end_ms=max(at_ms, first.end_ms),
            speech_ms=FRAME_MS * sum(each >= THRESHOLD for each in rest),
            quiet_since_ms=first.quiet_since_ms,
            is_rest=True,
            curve=rest,
        )
        first.curve, first.end_ms, first.is_over = first.curve[:frames], at_ms, True
        first.spoken_until_ms = min(first.spoken_until_ms, at_ms)
        self._free_from_ms = at_ms
        return first

    def speech_at(self, at_ms: int) -> float:
        """The probability of speech around an instant of the open utterance, in [0, 1]."""
        if self.open is None:
            return 0.0
        middle = (at_ms - self.open.start_ms) // FRAME_MS
        near = self.open.curve[max(0, middle - 1) : middle + 2]
        return sum(near) / len(near) if near else 0.0

    def _begin(self, at_ms: int) -> None:
        lead_ms = min(len(self._lead) * FRAME_MS, at_ms - self._free_from_ms)
        frames = max(0, lead_ms) // FRAME_MS
        self._count += 1
        self.open = SpokenUtterance(
            number=self._count,
            start_ms=at_ms - frames * FRAME_MS,
            spoken_until_ms=at_ms,
            end_ms=at_ms,
            is_rest=self._was_cut_off,
            curve=self._lead[len(self._lead) - frames :],
        )
        self._lead = []
