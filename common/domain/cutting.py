"""From speech to windows to chunks: pure, in one pass, without lookahead.

A finder (voice activity or energy) reports `Speech` in order. `WindowCutter` merges neighbours
into windows of at most 30 s that keep the silence inside, so that one offset maps a window's times
to the recording's clock (WhisperX, arXiv 2303.00747, section 2.2). `ChunkGrouper` makes chunks of
them.

The output depends only on the speech and the options, never on how the input was sliced. Both
classes accept early notice that nothing starts before some instant (``advance``). It changes when a
value is returned, but not the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from common.domain.values import LONGEST_WINDOW_MS, MAX_WINDOW_MS, Chunk, Span, Window

CLEAR_SILENCE_MS = 400
"""A pause that ends a phrase; those within one are mostly below 250 ms (Goldman-Eisler 1968)."""

CHUNK_GAP_MS = MAX_WINDOW_MS
"""Silence that ends a chunk, so that a worker never reads minutes of silence."""

CHUNK_GROWTH = ((8, 1), (24, 2))
FULL_CHUNK = 4
"""Windows a chunk: 1 for the first 8 windows, 2 up to the 24th, then 4.

So a recording of a few minutes keeps every worker busy, the first text of any recording comes
early, and most of a long one is decoded in batches. It depends neither on the duration, which a
header may misstate, nor on the number of workers, which changes.
"""


@dataclass(frozen=True, slots=True)
class CutOptions:
    """How windows are cut; all in milliseconds.

    Args:
        window_ms: the longest window, in [1000, 60000]; Whisper takes at most 30000.
        overlap_ms: what two windows share if no silence was found, in [0, window_ms / 4].
        pad_ms: the audio kept before and after the speech of a window, in [0, window_ms / 4]. A
            detector misses soft beginnings and the far voice of an interview. On 562 s of one
            (base) the word error rate fell from 18.2 % with 400 ms to 16.0 % with 1.5 s, where
            other cuts alone change it by a point: an indication, not a proof.
        max_gap_ms: silence that ends a window although more would fit, at least 2 * pad_ms.
    """

    window_ms: int = MAX_WINDOW_MS
    overlap_ms: int = 2_000
    pad_ms: int = 1_500
    max_gap_ms: int = 5_000

    def __post_init__(self) -> None:
        for name, low, high in (
            ("window_ms", 1_000, LONGEST_WINDOW_MS),
            ("overlap_ms", 0, self.window_ms // 4),
            ("pad_ms", 0, self.window_ms // 4),
            ("max_gap_ms", 2 * self.pad_ms, None),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


@dataclass(frozen=True, slots=True)
class Speech:
    """Speech between two silences, or a piece of speech that had to be cut.

    ``opened`` and ``closed``: whether silence lies before and after it.
    """

    span: Span
    opened: bool = True
    closed: bool = True


def fits(options: CutOptions, first: Speech, last: Speech) -> bool:
    """Whether a window may reach from ``first`` to ``last`` with what it keeps around them."""
    return reach(options, first, last).duration_ms <= options.window_ms


def reach(options: CutOptions, first: Speech, last: Speech) -> Span:
    """The audio of a window from ``first`` to ``last``, not yet clipped to its core.

    May start at most ``pad_ms`` or half the overlap before time 0; the start is then 0.
    """
    half = options.overlap_ms // 2
    before = options.pad_ms if first.opened else half
    after = options.pad_ms if last.closed else half
    return Span(max(0, first.span.start_ms - before), last.span.end_ms + after)


class Curve:
    """Probability or loudness of speech, in equal steps from time 0; old steps may be dropped."""

    def __init__(self, step_ms: int) -> None:
        self._step_ms = step_ms
        self._first = 0
        self._levels: list[float] = []

    def extend(self, levels: Iterable[float]) -> None:
        self._levels.extend(levels)

    def forget(self, before_ms: int) -> None:
        """Drop the steps that end before ``before_ms``."""
        count = before_ms // self._step_ms - self._first
        if count > 0:
            del self._levels[:count]
            self._first += count

    def quietest(self, within: Span) -> int:
        """The middle of the lowest step inside ``within``; of equals the middle of the longest run.

        Raises:
            ValueError: no step lies wholly inside.
        """
        first = -(-within.start_ms // self._step_ms)
        inside = self._levels[first - self._first : within.end_ms // self._step_ms - self._first]
        lowest = min(inside)
        runs: list[tuple[int, int]] = []
        for low, run in groupby(enumerate(inside), key=lambda step: step[1] == lowest):
            if low:
                indices = [index for index, _ in run]
                runs.append((len(indices), -indices[0]))
        length, start = max(runs)
        return (2 * (first - start) + length) * self._step_ms // 2


def cut_long(options: CutOptions, curve: Curve, speech: Speech) -> tuple[list[Speech], Speech]:
    """Cut ``speech`` at its quietest places until the rest fits a window.

    A cut lies in the second half of what fits, so the pieces stay the same however much longer
    the speech turns out to be; the rest may therefore still be growing.

    Returns:
        The pieces cut off, in order, and the rest.
    """
    pieces = []
    longest = options.window_ms - 2 * options.pad_ms - options.overlap_ms
    while not fits(options, speech, speech):
        start = speech.span.start_ms
        cut = curve.quietest(Span(start + longest // 2, start + longest))
        pieces.append(Speech(Span(start, cut), opened=speech.opened, closed=False))
        speech = Speech(Span(cut, speech.span.end_ms), opened=False, closed=speech.closed)
    return pieces, speech


class WindowCutter:
    """Merges speech into windows whose cores tile the recording.

    A core's edge lies in the middle of the silence between two windows, or half of ``max_gap_ms``
    after the speech where the silence is longer than that, or at the cut where there is none. The
    silence at the very end is found too late for that: see `reaching`.
    """

    def __init__(self, options: CutOptions) -> None:
        self._options = options
        self._pending: list[Speech] = []
        self._core_start = 0

    @property
    def needed_from_ms(self) -> int | None:
        """The start of the earliest audio that a later window needs, if one is begun."""
        if not self._pending:
            return None
        return reach(self._options, self._pending[0], self._pending[-1]).start_ms

    def feed(self, speech: Speech) -> list[Window]:
        """Add the next speech (in order, each fits a window); returns the windows that it ends."""
        windows = self.advance(speech.span.start_ms)
        while self._pending and not fits(self._options, self._pending[0], speech):
            windows.append(self._close(self._best_break(speech), speech))
        self._pending.append(speech)
        return windows

    def advance(self, until_ms: int) -> list[Window]:
        """No speech starts before ``until_ms``; returns the window that this ends, if any."""
        if not self._pending:
            return []
        end = self._pending[-1].span.end_ms
        if until_ms - end <= self._options.max_gap_ms:
            return []
        return [self._emit(len(self._pending), end + self._options.max_gap_ms // 2)]

    def finish(self, duration_ms: int) -> list[Window]:
        """End the recording: the last window's core reaches to its end."""
        if self._pending:
            return [self._emit(len(self._pending), duration_ms)]
        return []

    def _best_break(self, following: Speech) -> int:
        """After how many pending pieces to cut: late, but in a clear silence when one is near."""
        pieces = [*self._pending, following]
        nearest = self._pending[-1].span.end_ms - self._options.window_ms // 5
        gaps = {
            count: right.span.start_ms - left.span.end_ms
            for count, (left, right) in enumerate(pairwise(pieces), start=1)
            if left.span.end_ms >= nearest
        }
        return max(gaps, key=lambda count: (min(gaps[count], CLEAR_SILENCE_MS), count))

    def _close(self, count: int, following: Speech) -> Window:
        left = self._pending[count - 1]
        right = self._pending[count] if count < len(self._pending) else following
        return self._emit(count, (left.span.end_ms + right.span.start_ms) // 2)

    def _emit(self, count: int, core_end: int) -> Window:
        taken, self._pending = self._pending[:count], self._pending[count:]
        core = Span(self._core_start, core_end)
        self._core_start = core_end
        audio = reach(self._options, taken[0], taken[-1])
        return Window(
            core=core,
            audio=Span(
                max(audio.start_ms, core.start_ms) if taken[0].opened else audio.start_ms,
                min(audio.end_ms, core.end_ms) if taken[-1].closed else audio.end_ms,
            ),
            speech_ms=sum(speech.span.duration_ms for speech in taken),
        )


class FixedCutter:
    """Windows of equal length with an overlap, whatever they contain.

    Speech is not detected, so the whole core counts as speech.
    """

    def __init__(self, options: CutOptions) -> None:
        self._options = options
        self._next = 0
        self._core_start = 0

    @property
    def needed_from_ms(self) -> int:
        return self._next

    def advance(self, until_ms: int) -> list[Window]:
        """Returns the windows that end before ``until_ms``, the current end of the recording."""
        windows = []
        while self._next + self._options.window_ms < until_ms:
            end = self._next + self._options.window_ms
            windows.append(self._emit(end, end - self._options.overlap_ms // 2))
            self._next = end - self._options.overlap_ms
        return windows

    def finish(self, duration_ms: int) -> list[Window]:
        """Returns the remaining windows of a recording of ``duration_ms``."""
        windows = self.advance(duration_ms)
        if duration_ms > self._core_start:
            windows.append(self._emit(duration_ms, duration_ms))
        return windows

    def _emit(self, audio_end: int, core_end: int) -> Window:
        core = Span(self._core_start, core_end)
        self._core_start = core_end
        return Window(core=core, audio=Span(self._next, audio_end), speech_ms=core.duration_ms)


class ChunkGrouper:
    """Groups consecutive windows into the units of scheduling."""

    def __init__(self) -> None:
        self._pending: list[Window] = []
        self._windows = 0
        self._chunks = 0

    @property
    def needed_from_ms(self) -> int | None:
        """The start of the audio of the current chunk, if one is begun."""
        return min((window.audio.start_ms for window in self._pending), default=None)

    def feed(self, window: Window) -> list[Chunk]:
        chunks = self.advance(window.audio.start_ms)
        self._pending.append(window)
        self._windows += 1
        if len(self._pending) >= windows_per_chunk(self._windows - len(self._pending)):
            chunks.append(self._emit())
        return chunks

    def advance(self, until_ms: int) -> list[Chunk]:
        """No window's audio starts before ``until_ms``; returns the chunk that this ends."""
        if self._pending and until_ms - self._pending[-1].audio.end_ms > CHUNK_GAP_MS:
            return [self._emit()]
        return []

    def finish(self) -> list[Chunk]:
        return [self._emit()] if self._pending else []

    def _emit(self) -> Chunk:
        chunk = Chunk(self._chunks, tuple(self._pending))
        self._pending = []
        self._chunks += 1
        return chunk


def reaching(chunk: Chunk, end_ms: int) -> Chunk:
    """The chunk with its core extended to the recording's end: no other core has that silence."""
    last = chunk.windows[-1]
    extended = replace(last, core=Span(last.core.start_ms, max(last.core.end_ms, end_ms)))
    return replace(chunk, windows=(*chunk.windows[:-1], extended))


def windows_per_chunk(before: int) -> int:
    """The number of windows of a chunk after ``before`` windows."""
    return next((size for limit, size in CHUNK_GROWTH if before < limit), FULL_CHUNK)
