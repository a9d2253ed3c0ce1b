"""The basic values: spans of time, words, segments, windows and chunks.

All times are integer milliseconds on the recording's own clock unless a docstring says otherwise.
One millisecond is 16 samples, or 32 bytes, of the 16 kHz mono 16-bit PCM that workers read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

from common.domain.moderation import Finding

SAMPLE_RATE = 16_000
SAMPLES_PER_MS = SAMPLE_RATE // 1000
BYTES_PER_MS = SAMPLES_PER_MS * 2
MAX_WINDOW_MS = 30_000
"""Whisper's encoder takes exactly 30 s (arXiv 2212.04356, section 2.2); shorter input is padded."""
LONGEST_WINDOW_MS = 60_000
"""For engines that take windows of any length. Measured with a Conformer-CTC, 112 s of read speech
in one piece: windows of 60 s and 120 s have as many word errors as those of 30 s, and cost 1.2 and
1.6 times the processor time, and 1.5 and 2.5 times the memory."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open stretch of time ``[start_ms, end_ms)``."""

    start_ms: int
    end_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_ms <= self.end_ms:
            raise ValueError(f"span needs 0 <= start <= end, got [{self.start_ms}, {self.end_ms})")

    @property
    def duration_ms(self) -> int:
        return self.end_ms - self.start_ms

    @property
    def midpoint_ms(self) -> int:
        return (self.start_ms + self.end_ms) // 2

    def holds(self, ms: int) -> bool:
        """Whether the instant ``ms`` lies inside."""
        return self.start_ms <= ms < self.end_ms

    def shifted(self, by_ms: int) -> Span:
        return Span(self.start_ms + by_ms, self.end_ms + by_ms)

    def clipped(self, to: Span) -> Span:
        """The nearest span inside ``to``; empty at one of its ends when the two do not meet."""
        start = min(max(self.start_ms, to.start_ms), to.end_ms)
        return Span(start, min(max(self.end_ms, start), to.end_ms))


def join_spans(spans: Iterable[Span], belongs: Callable[[Span, Span], bool]) -> list[Span]:
    """Spans in order, each joined to the one before it where ``belongs(before, span)``."""
    joined: list[Span] = []
    for span in spans:
        if joined and belongs(joined[-1], span):
            before = joined.pop()
            span = Span(before.start_ms, max(before.end_ms, span.end_ms))
        joined.append(span)
    return joined


@dataclass(frozen=True, slots=True)
class Word:
    """One word as the engine, or a person, wrote it.

    ``text`` keeps its leading space (none in languages written without spaces), so that words
    join into a segment's text by plain concatenation. ``probability`` is in [0, 1].
    ``estimated``: its times are interpolated, as a person has changed the text and it is not
    aligned to the audio yet.
    """

    text: str
    span: Span
    probability: float
    estimated: bool = False

    def shifted(self, by_ms: int) -> Self:
        return replace(self, span=self.span.shifted(by_ms))


@dataclass(frozen=True, slots=True)
class Detected:
    """The detected language of audio (a Whisper code); ``probability`` in [0, 1]."""

    language: str
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A subtitle-sized piece of text; the numbers are the decoder's, named as OpenAI names them.

    ``avg_logprob`` <= 0; ``compression_ratio`` > 0; ``no_speech_prob`` in [0, 1];
    ``temperature`` is the one that produced the text; ``flags`` are reasons for doubt
    (see `common.asr.guards`). ``words`` is empty if word times were not requested.
    ``language`` is that of its text; None: that of its transcript.
    ``detected`` is set if the window is in another language than the one it was decoded as.
    ``finding`` is None until the text is moderated; its marks index ``text``.
    ``encoder`` is what encoded the audio, and in which precision: it depends on the worker's
    processor. ``speaker`` is the id of who says it all; None: not known. ``channel`` is the one of
    the recording that it was transcribed from; None: the mix of all.
    """

    span: Span
    text: str
    words: tuple[Word, ...] = ()
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    temperature: float = 0.0
    flags: tuple[str, ...] = ()
    language: str | None = None
    detected: Detected | None = None
    finding: Finding | None = None
    encoder: str | None = None
    speaker: str | None = None
    channel: int | None = None

    def shifted(self, by_ms: int) -> Self:
        words = tuple(word.shifted(by_ms) for word in self.words)
        return replace(self, span=self.span.shifted(by_ms), words=words)

    def with_words(self, kept: slice) -> Self:
        """Only some of its words, at least one, with their text, time and marks."""
        words = self.words[kept]
        before = sum(len(word.text) for word in self.words[: kept.start])
        text = "".join(word.text for word in words)
        return replace(
            self,
            span=Span(words[0].span.start_ms, max(word.span.end_ms for word in words)),
            text=text,
            words=words,
            finding=self.finding and self.finding.cut(before, before + len(text)),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """The input of an engine (``audio``, at most 30 s) and the part that counts (``core``).

    Cores tile the recording; those of a channel by itself may end before it does. ``audio`` may
    reach past ``core`` only if no silence was found to cut in; a word then belongs to the window
    whose core holds its midpoint.
    ``speech_ms`` is the speech in ``core`` according to voice activity detection.
    """

    core: Span
    audio: Span
    speech_ms: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The unit of scheduling: consecutive windows that one engine call decodes as a batch.

    ``channel`` is the one of the recording that it is cut from; None: the mix of all.
    """

    index: int
    windows: tuple[Window, ...]
    channel: int | None = None

    def shifted(self, by_ms: int) -> Self:
        windows = (
            replace(it, core=it.core.shifted(by_ms), audio=it.audio.shifted(by_ms))
            for it in self.windows
        )
        return replace(self, windows=tuple(windows))

    @property
    def core(self) -> Span:
        return Span(self.windows[0].core.start_ms, self.windows[-1].core.end_ms)

    @property
    def audio(self) -> Span:
        """The stretch of PCM a worker has to read."""
        return Span(
            min(window.audio.start_ms for window in self.windows),
            max(window.audio.end_ms for window in self.windows),
        )

    @property
    def speech_ms(self) -> int:
        return sum(window.speech_ms for window in self.windows)
