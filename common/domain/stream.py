"""The sans-IO protocol of a live stream: inputs, and the events and orders that follow.

The owner of a `Session` only moves bytes and messages (sans-io.readthedocs.io). The inputs are
those of the client (`audio`, `switch`, `finalize`, `finish`), of the recognizer (`attached`,
`speech`, `recognized`, `failed`, `lost`) and of moderation (`moderated`). `take` returns the
outputs: numbered `Event`s for the client and `Order`s for the recognizer.

- The stream's clock counts audio from its first byte, 32 bytes a millisecond; wall time does not
  matter.
- An utterance lasts from silence to silence (`common.domain.speaking`). While it is open the
  recognizer is asked repeatedly for its text (`Partial`), and at its end for the last time
  (`Final`).
- Finals do not overlap, come in order, and never change. The stable part of a partial seldom
  changes (`common.domain.agreement`).
- Audio is kept until its final is emitted. So a recognizer may be lost or replaced at any time: the
  next one recognizes the same audio.
- Context improves recognition. An engine that supports it gets the audio and text of the preceding
  finals with each utterance (`UtteranceContext`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from common.domain.agreement import agreed
from common.domain.moderation import ModeratedBy
from common.domain.speaking import (
    FRAME_MS,
    MIN_SPEECH_MS,
    Endpointing,
    Speaking,
    SpokenUtterance,
)
from common.domain.values import BYTES_PER_MS, Segment, Span

FRAME_BYTES = FRAME_MS * BYTES_PER_MS
TRIES = 2
"""After so many failures over an utterance it is not tried again."""
LEAST_FORGOTTEN = BYTES_PER_MS * 1_000
"""Audio that is no longer needed is dropped in pieces of at least a second."""
CUT_MARGIN_MS, CUT_SEARCH_MS = 1_000, 5_000
"""A too long utterance is cut in the 5 s before its last second, whose words are unsure."""
CONTEXT_GAP_MS = 5_000
"""After a longer pause the preceding text is not used as context."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The recognizer of a stream: engine, weights and language."""

    engine: str
    model: str
    language: str


@dataclass(frozen=True, slots=True)
class Style:
    """When an engine is asked for text.

    Args:
        first_ms: how much speech an utterance needs before the first request.
        step_ms: how much more audio before the next request; half of it until a text was shown.
        ahead: request the best text in every pause, since the utterance may end there.
        context_ms: how much preceding audio the engine can use as context.
    """

    first_ms: int
    step_ms: int
    ahead: bool
    context_ms: int = 0


# --- for the client ------------------------------------------------------------------------------


class State(StrEnum):
    """The states of a stream."""

    LOADING = "loading"
    READY = "ready"
    BEHIND = "behind"
    CAUGHT_UP = "caught_up"
    RECOGNIZER_LOST = "recognizer_lost"
    RECOGNIZER_BACK = "recognizer_back"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Event:
    """A message to the client; ``seq`` numbers all of them from 1."""

    seq: int
    span: Span


@dataclass(frozen=True, slots=True)
class StateChange(Event):
    """The state of the stream has changed."""

    state: State
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Partial(Event):
    """The text so far; the first ``stable`` characters of ``text`` are unlikely to change."""

    text: str
    stable: int


@dataclass(frozen=True, slots=True)
class Final(Event):
    """An utterance's text. ``spoken_until_ms`` is where the last speech in it ends."""

    segments: tuple[Segment, ...]
    setup: Setup
    spoken_until_ms: int

    @property
    def text(self) -> str:
        return text_of(self.segments)


@dataclass(frozen=True, slots=True)
class Detections(Event):
    """The segments of a final with their moderation."""

    final_seq: int
    segments: tuple[Segment, ...]
    by: ModeratedBy


@dataclass(frozen=True, slots=True)
class Failure(Event):
    """An error; after a ``fatal`` one only the end of the stream follows."""

    code: str
    detail: str
    fatal: bool
    details: dict[str, Any] = field(default_factory=dict)


# --- for the recognizer --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attach:
    """Start a recognizer and call `Session.attached`; an earlier one may be released."""

    setup: Setup


@dataclass(frozen=True, slots=True)
class Feed:
    """Process audio that begins at ``start_ms``, and report where it has speech (`speech`)."""

    start_ms: int
    pcm: bytes


@dataclass(frozen=True, slots=True)
class UtteranceContext:
    """The finals just before an utterance; their audio lasts from ``start_ms`` until it begins.

    ``text`` is as the engine wrote it, with the spaces between segments.
    """

    start_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Recognize:
    """Recognize the audio in ``span`` of an utterance; answered by `recognized` or `failed`.

    Args:
        ticket: the id of the request, returned with the answer.
        context: the preceding finals, if the engine uses them.
        full: in full quality, with word times; otherwise as fast as possible.
        final: the last request for this utterance.
        alone: in a batch of its own, since the recognizer may have failed over it.
    """

    ticket: int
    utterance: int
    span: Span
    context: UtteranceContext | None
    full: bool
    final: bool
    alone: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Audio before this is no longer needed."""

    before_ms: int


Order = Attach | Feed | Recognize | Forget


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A recognizer's text of an utterance.

    ``segments`` have times from the utterance's start, and words if `Recognize` was ``full``. A
    ``doubtful`` hypothesis is too unsure to be shown, unless it is the last one.
    """

    segments: tuple[Segment, ...]
    doubtful: bool = False

    @property
    def text(self) -> str:
        return text_of(self.segments)


def text_of(segments: Sequence[Segment]) -> str:
    """Segments as one line."""
    return "".join(segment.text for segment in segments).strip()


@dataclass(slots=True)
class _Recognition:
    """What is recognized of an utterance so far."""

    until_ms: int = 0
    """How far it is recognized."""
    text: str = ""
    """The text that was shown last."""
    best: tuple[int, Hypothesis] | None = None
    """The end of the last full request, and its hypothesis."""
    failures: int = 0


class Session:
    """One stream, from its first byte to its end."""

    def __init__(self, setup: Setup, endpointing: Endpointing, *, moderated: bool = False) -> None:
        """``moderated``: the session waits for `Session.moderated` after each final."""
        self.setup = setup
        self._is_moderated = moderated
        self.is_over = False
        """Every event is emitted, and no input is expected any more."""
        self._endpointing = endpointing
        self._speaking = Speaking(endpointing)
        self._recognitions: dict[int, _Recognition] = {}
        self._audio = bytearray()
        self._audio_from = 0
        """The number of bytes dropped before ``_audio``; whole frames."""
        self._fed = 0
        """The number of bytes sent to the recognizer; whole frames."""
        self._style: Style | None = None
        """None while there is no recognizer."""
        self._next: tuple[Setup, int] | None = None
        """The next recognizer, and the byte from which it takes over."""
        self._pending: Recognize | None = None
        self._tickets = 0
        self._ends: list[int] = []
        """Positions (in bytes) at which the open utterance has to end; ascending."""
        self._finishing = False
        self._was_lost = False
        self._unmoderated: dict[int, Final] = {}
        """Finals that await moderation, by number."""
        self._recent: list[Final] = []
        """Finals that may be context of the next utterance: in order, of this setup, and without
        failed or doubtful ones between them."""
        self._seq = 0
        self._out: list[Event | Order] = []
        self.status(State.LOADING)
        self._attach(setup)

    # --- from the client ------------------------------------------------------------------------

    @property
    def received_ms(self) -> int:
        """How much audio was received."""
        return (self._audio_from + len(self._audio)) // BYTES_PER_MS

    @property
    def behind_ms(self) -> int:
        """How much audio waits: for speech detection, or in ended utterances for recognition."""
        waiting = sum(each.end_ms - each.start_ms for each in self._speaking.over)
        return max(0, self.received_ms - self._speaking.analyzed_ms) + waiting

    @property
    def is_loading(self) -> bool:
        """Whether the session waits for a recognizer."""
        return self._style is None

    @property
    def has_open_speech(self) -> bool:
        """Whether an utterance is open, or may begin in audio that is not analyzed yet."""
        return self._speaking.open is not None or self._fed_ms > self._speaking.analyzed_ms

    @property
    def is_finishing(self) -> bool:
        """Whether no more audio will be accepted."""
        return self._finishing

    def audio(self, pcm: bytes) -> None:
        """Add audio: 16 bit, little endian, mono, 16 kHz; a sample may be split over two calls."""
        if self._finishing:
            return
        self._audio += pcm
        self._advance()

    def switch(self, setup: Setup) -> None:
        """Use another recognizer for the audio from now on."""
        if setup == (self._next[0] if self._next is not None else self.setup):
            return
        if self._style is None:  # none of the kept audio is recognized yet
            self._attach(setup)
            return
        at = self._end_of_frames if self._next is None else self._next[1]
        self._next = setup, at
        self._end(at)

    def finalize(self) -> None:
        """End the open utterance here, without waiting for silence."""
        self._end(self._end_of_frames)

    def finish(self) -> None:
        """End the audio. Half a sample at the end is dropped."""
        if self._finishing:
            return
        self._audio += bytes(-len(self._audio) % FRAME_BYTES)
        self.status(State.CLOSING)
        self._finishing = True
        self.finalize()

    # --- from the recognizer --------------------------------------------------------------------

    def attached(self, style: Style) -> None:
        """The requested recognizer is ready, and has no audio yet."""
        self._style = style
        self._fed = self._audio_from
        self._pending = None
        self.status(State.RECOGNIZER_BACK if self._was_lost else State.READY)
        self._was_lost = False
        self._advance()

    def speech(self, start_ms: int, probabilities: Sequence[float]) -> None:
        """Add the probability of speech in each frame from ``start_ms``; skip known ones."""
        known = (self._speaking.analyzed_ms - start_ms) // FRAME_MS
        for probability in probabilities[max(0, known) :]:
            self._speaking.follow(probability)
        self._advance()

    def recognized(self, ticket: int, hypothesis: Hypothesis) -> None:
        """The answer to a `Recognize`; an outdated one is ignored."""
        asked = self._answered(ticket)
        if asked is None:
            return
        utterance = self._find(asked.utterance)
        if utterance is not None:
            self._use(utterance, asked, hypothesis)
        self._advance()

    def failed(self, ticket: int, reason: str) -> None:
        """The recognizer failed to answer a `Recognize`."""
        asked = self._answered(ticket)
        if asked is not None:
            self._count_failure(asked, reason)
            self._advance()

    def lost(self, reason: str) -> None:
        """The recognizer is lost; another one has to recognize the kept audio."""
        asked, self._pending = self._pending, None
        self._style = None
        if not self._was_lost:
            self._was_lost = True
            self.status(State.RECOGNIZER_LOST)
        if asked is not None:
            self._count_failure(asked, reason)
        self._attach(self.setup)

    # --- from others ----------------------------------------------------------------------------

    def moderated(
        self, final_seq: int, segments: tuple[Segment, ...], by: ModeratedBy | None
    ) -> None:
        """The moderation of a final: its segments with labels; ``by`` None: it failed."""
        final = self._unmoderated.pop(final_seq)
        if by is not None:
            self._out.append(Detections(self._number(), final.span, final_seq, segments, by))
        self._advance()

    def status(self, state: State, **details: Any) -> None:
        """Emit a state."""
        at_ms = self.received_ms
        self._out.append(StateChange(self._number(), Span(at_ms, at_ms), state, details))

    def fail(self, code: str, detail: str, *, fatal: bool, **details: Any) -> None:
        """Emit an error at the current position."""
        at_ms = self.received_ms
        span = Span(at_ms, at_ms)
        self._out.append(Failure(self._number(), span, code, detail, fatal, details))

    def take(self) -> list[Event | Order]:
        """Return the outputs since the last call, in order."""
        out, self._out = self._out, []
        return out

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _end_of_frames(self) -> int:
        whole = len(self._audio) // FRAME_BYTES * FRAME_BYTES
        return self._audio_from + whole

    @property
    def _fed_ms(self) -> int:
        return self._fed // BYTES_PER_MS

    def _number(self) -> int:
        self._seq += 1
        return self._seq

    def _end(self, at: int) -> None:
        self._ends = sorted({*self._ends, at})
        self._advance()

    def _attach(self, setup: Setup) -> None:
        self.setup, self._style = setup, None
        self._out.append(Attach(setup))

    def _advance(self) -> None:
        """Do everything that is possible now."""
        self._feed()
        self._end_where_wanted()
        if self._style is not None and self._pending is None:
            self._request()
        self._forget()
        if self._pending is not None or self._speaking.over:
            return
        if self._next is not None:
            self._switch(*self._next)
        elif self._finishing and not self._ends and not self._unmoderated:
            self.is_over = True

    def _switch(self, setup: Setup, at: int) -> None:
        """Switch to another recognizer once the current one has finished its audio."""
        if self._ends and self._ends[0] <= at:
            return
        self._next = None
        if setup != self.setup:
            self._recent.clear()
            self.status(State.LOADING)
            self._attach(setup)
        else:
            self._advance()

    def _feed(self) -> None:
        """Send whole frames. Audio for the next recognizer is kept until it is attached."""
        until = self._end_of_frames if self._next is None else self._next[1]
        if self._style is None or until <= self._fed:
            return
        pcm = bytes(self._audio[self._fed - self._audio_from : until - self._audio_from])
        self._out.append(Feed(self._fed_ms, pcm))
        self._fed = until

    def _end_where_wanted(self) -> None:
        while self._ends and self._speaking.analyzed_ms * BYTES_PER_MS >= self._ends[0]:
            del self._ends[0]
            self._speaking.end()

    def _request(self) -> None:
        """Send the next request, for the oldest utterance first."""
        while self._speaking.over:
            utterance = self._speaking.over[0]
            best = self._recognition(utterance).best
            if best is None or best[0] != utterance.end_ms:
                self._order(utterance, utterance.end_ms, full=True, final=True)
                return
            self._conclude(utterance, best[1])
        if self._speaking.open is not None and self._style is not None:
            self._request_open(self._speaking.open, self._style)

    def _request_open(self, utterance: SpokenUtterance, style: Style) -> None:
        """Send a request for the open utterance if it is due."""
        recognition = self._recognition(utterance)
        now_ms = self._speaking.analyzed_ms
        step_ms = style.step_ms if recognition.text else style.step_ms // 2
        if utterance.speech_ms < max(style.first_ms, MIN_SPEECH_MS):
            return
        if now_ms - utterance.start_ms >= self._endpointing.max_ms:
            self._order(utterance, now_ms, full=True, final=False)
        elif self._speaking.pause_ms >= self._endpointing.tail_ms:
            if style.ahead and (
                recognition.best is None or recognition.best[0] != utterance.end_ms
            ):
                self._order(utterance, utterance.end_ms, full=True, final=False)
        elif now_ms - max(recognition.until_ms, utterance.start_ms) >= step_ms:
            self._order(utterance, now_ms, full=False, final=False)

    def _order(self, utterance: SpokenUtterance, until_ms: int, *, full: bool, final: bool) -> None:
        self._tickets += 1
        span, alone = Span(utterance.start_ms, until_ms), self._recognition(utterance).failures > 0
        self._pending = Recognize(
            ticket=self._tickets,
            utterance=utterance.number,
            span=span,
            context=self._context_of(span) if full and not alone else None,
            full=full,
            final=final,
            alone=alone,
        )
        self._out.append(self._pending)

    def _context_of(self, span: Span) -> UtteranceContext | None:
        """The preceding finals of an utterance, as many whole ones as the engine can use."""
        context_ms = 0 if self._style is None else self._style.context_ms
        earliest_ms = max(span.start_ms - context_ms, span.end_ms - self._endpointing.most_ms)
        later_ms = span.start_ms
        chosen: list[Final] = []
        for final in reversed(self._recent):
            too_far = later_ms - final.span.end_ms > CONTEXT_GAP_MS
            if too_far or final.span.start_ms < earliest_ms:
                break
            later_ms = final.span.start_ms
            chosen.insert(0, final)
        if not chosen:
            return None
        return UtteranceContext(later_ms, "".join(each.text for f in chosen for each in f.segments))

    def _answered(self, ticket: int) -> Recognize | None:
        if self._pending is None or self._pending.ticket != ticket:
            return None
        asked, self._pending = self._pending, None
        return asked

    def _use(self, utterance: SpokenUtterance, asked: Recognize, hypothesis: Hypothesis) -> None:
        recognition = self._recognition(utterance)
        recognition.until_ms = asked.span.end_ms
        if asked.full:
            recognition.best = asked.span.end_ms, hypothesis
        if asked.final:
            return
        if not hypothesis.doubtful:
            self._show(utterance, recognition, hypothesis.text)
        if asked.span.duration_ms >= self._endpointing.max_ms and not utterance.is_over:
            self._cut(utterance, recognition, hypothesis)

    def _show(self, utterance: SpokenUtterance, recognition: _Recognition, text: str) -> None:
        if text and text != recognition.text:
            stable = agreed(recognition.text, text)
            recognition.text = text
            span = Span(utterance.start_ms, recognition.until_ms)
            self._out.append(Partial(self._number(), span, text, stable))

    def _cut(
        self, utterance: SpokenUtterance, recognition: _Recognition, hypothesis: Hypothesis
    ) -> None:
        """Emit the first part of a too long utterance: up to a pause between two words.

        Without any words it ends where it is.
        """
        words = [word for segment in hypothesis.segments for word in segment.words]
        latest_ms = recognition.until_ms - CUT_MARGIN_MS
        earliest_ms = latest_ms - CUT_SEARCH_MS
        gaps = []
        for count, (before, after) in enumerate(pairwise(words), start=1):
            middle_ms = (before.span.end_ms + after.span.start_ms) // 2
            at_ms = utterance.start_ms + middle_ms // FRAME_MS * FRAME_MS
            if max(earliest_ms, utterance.start_ms) < at_ms <= latest_ms:
                gaps.append((self._speaking.speech_at(at_ms), -at_ms, count))
        if not gaps:
            self._speaking.end()
            return
        _, minus_at_ms, count = min(gaps)
        at_ms = -minus_at_ms
        self._emit_final(self._speaking.cut(at_ms), first_words(hypothesis.segments, count))

    def _conclude(self, utterance: SpokenUtterance, hypothesis: Hypothesis) -> None:
        """Emit the final of an ended utterance."""
        self._speaking.over.remove(utterance)
        self._emit_final(utterance, hypothesis.segments)

    def _emit_final(self, utterance: SpokenUtterance, segments: tuple[Segment, ...]) -> None:
        """Emit a final; an empty one only if a partial was shown."""
        span = Span(utterance.start_ms, utterance.end_ms)
        placed = tuple(each.shifted(utterance.start_ms) for each in segments)
        if text_of(placed) or self._recognition(utterance).text:
            final = Final(self._number(), span, placed, self.setup, utterance.spoken_until_ms)
            self._out.append(final)
            if placed and self._is_moderated:
                self._unmoderated[final.seq] = final
            if text_of(placed) and not any(each.flags for each in placed):
                self._recent.append(final)
                return
        self._recent.clear()

    def _count_failure(self, asked: Recognize, reason: str) -> None:
        """Count a failure over an utterance; after `TRIES` end it with an error."""
        utterance = self._find(asked.utterance)
        if utterance is None:
            return
        recognition = self._recognition(utterance)
        recognition.failures += 1
        if recognition.failures < TRIES:
            return
        if not utterance.is_over:
            self._speaking.end()
        span = Span(utterance.start_ms, utterance.end_ms)
        self._out.append(Failure(self._number(), span, "engine_failed", reason, fatal=False))
        if recognition.best is not None:
            self._conclude(utterance, recognition.best[1])
        else:
            whole = Span(0, span.duration_ms)
            last = Segment(whole, recognition.text, flags=("low_confidence",))
            self._conclude(utterance, Hypothesis((last,) if recognition.text else ()))

    def _forget(self) -> None:
        before_ms = self._speaking.needed_from_ms
        if self._style is not None:
            self._forget_finals(before_ms, self._style.context_ms)
        if self._recent:
            before_ms = min(before_ms, self._recent[0].span.start_ms)
        before = min(before_ms * BYTES_PER_MS, self._fed if self._style else self._audio_from)
        if before >= self._audio_from + LEAST_FORGOTTEN:
            del self._audio[: before - self._audio_from]
            self._audio_from = before
            self._out.append(Forget(before // BYTES_PER_MS))
            self._recognitions = {
                number: recognition
                for number, recognition in self._recognitions.items()
                if self._find(number)
            }

    def _forget_finals(self, next_ms: int, context_ms: int) -> None:
        """Keep those that may be context of an utterance that begins at ``next_ms`` or later."""
        if self._recent and next_ms - self._recent[-1].span.end_ms > CONTEXT_GAP_MS:
            self._recent.clear()
        while self._recent and self._recent[0].span.start_ms < next_ms - context_ms:
            del self._recent[0]

    def _find(self, number: int) -> SpokenUtterance | None:
        for utterance in (self._speaking.open, *self._speaking.over):
            if utterance is not None and utterance.number == number:
                return utterance
        return None

    def _recognition(self, utterance: SpokenUtterance) -> _Recognition:
        return self._recognitions.setdefault(utterance.number, _Recognition())


def first_words(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    """Segments that have words, up to the first ``count`` of these."""
    kept = []
    for segment in segments:
        words = segment.words[:count]
        count -= len(words)
        if words == segment.words:
            kept.append(segment)
        elif words:
            kept.append(segment.with_words(slice(0, len(words))))
    return tuple(kept)
