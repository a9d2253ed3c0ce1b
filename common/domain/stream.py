"""A live stream without any I/O: what comes in, and what has to be told and asked for.

Whoever holds a `Session` moves bytes and messages, and nothing else (sans-io.readthedocs.io). Into
it goes what the client says (`audio`, `switch`, `finalize`, `finish`), what its recognizer says
(`attached`, `judged`, `heard`, `failed`, `lost`) and what the moderation says (`moderated`). `take`
gives what follows from it: `Event`s for the client, numbered, and `Order`s for the recognizer.

- Sound counts from its first byte: 32 bytes are a millisecond, whatever the clock says meanwhile.
- An utterance lasts from silence to silence (`common.domain.speaking`). While it lasts the
  recognizer is asked again and again what it hears (`Partial`), at its end once and for all
  (`Final`).
- Finals do not overlap, come in order, and are never taken back. What of a partial is called stable
  seldom changes (`common.domain.agreement`).
- Sound is kept until the final that it belongs to is told. So a recognizer may be lost at any time,
  or exchanged for another: the next one hears it again.
- Who hears an utterance well has heard what came before. So an engine that wants it gets the sound
  and the text of the finals just told along with each utterance (`UtteranceContext`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

from common.domain.agreement import agreed
from common.domain.moderation import ModeratedBy
from common.domain.speaking import (
    FRAME_MS,
    Endpointing,
    Speaking,
    SpokenUtterance,
)
from common.domain.values import BYTES_PER_MS, Segment, Span, Word

FRAME_BYTES = FRAME_MS * BYTES_PER_MS
TRIES = 2
"""Sound over which the recognizer fails so often is given up."""
LEAST_FORGOTTEN = BYTES_PER_MS * 1_000
"""Sound that nobody needs is thrown away a second at a time."""
CUT_MARGIN_MS, CUT_SEARCH_MS = 1_000, 5_000
"""An utterance that is too long is cut in the 5 s before its last, whose words are unsure."""
CONTEXT_GAP_MS = 5_000
"""After a longer pause what was said before it is of no help."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Who hears the stream: the engine, its weights, and the language that is spoken."""

    engine: str
    model: str
    language: str


@dataclass(frozen=True, slots=True)
class Style:
    """How an engine wants to be asked.

    Args:
        first_ms: how much speech there has to be before it is asked.
        step_ms: how much more sound before it is asked again; half of it until something was shown.
        ahead: ask in every pause for the best it can hear, since the utterance may end there.
        context_ms: how far back what came before an utterance is of use.
    """

    first_ms: int
    step_ms: int
    ahead: bool
    context_ms: int = 0


# --- for the client ------------------------------------------------------------------------------


class State(StrEnum):
    """What a status tells."""

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
    """Something the client is told; ``seq`` counts all of them from 1."""

    seq: int
    span: Span


@dataclass(frozen=True, slots=True)
class StateChange(Event):
    """How the stream stands."""

    state: State
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Partial(Event):
    """What is heard so far; the first ``stable`` characters of ``text`` will hardly change."""

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
    """How the segments of a final were judged: they carry their verdicts."""

    final_seq: int
    segments: tuple[Segment, ...]
    by: ModeratedBy


@dataclass(frozen=True, slots=True)
class Failure(Event):
    """Something went wrong; after a ``fatal`` one nothing but the end follows."""

    code: str
    detail: str
    fatal: bool
    details: dict[str, Any] = field(default_factory=dict)


# --- for the recognizer --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attach:
    """Have a recognizer ready, and call `Session.attached` then; any other one can go."""

    setup: Setup


@dataclass(frozen=True, slots=True)
class Feed:
    """Take this sound, which begins at ``start_ms``, and tell where there is speech (`judged`)."""

    start_ms: int
    pcm: bytes


@dataclass(frozen=True, slots=True)
class UtteranceContext:
    """The finals just before an utterance: they have the sound from ``start_ms`` until it begins.

    ``text`` is as the engine wrote it, with the spaces between segments.
    """

    start_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Hear:
    """Hear an utterance from ``span``'s start to its end; the answer is `heard` or `failed`.

    Args:
        ticket: what the answer has to bring back.
        context: what came before it, where that helps.
        full: as well as the engine can, with the words' times; else as fast as it can.
        final: the utterance will not be asked for again.
        alone: hear nothing else with it, since this may be what the recognizer failed over.
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
    """Sound before this is not needed any more."""

    before_ms: int


Order = Attach | Feed | Hear | Forget


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a recognizer hears in an utterance.

    ``segments`` have their times from the utterance's start, and words where `Hear` was ``full``.
    A ``doubtful`` one is too unsure to be shown, unless it is the last.
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
class _Hearing:
    """What is known of an utterance's text so far."""

    until_ms: int = 0
    """How far it was heard."""
    text: str = ""
    """The last hypothesis that was worth showing."""
    best: tuple[int, Hypothesis] | None = None
    """The last full hypothesis, and how far it went."""
    failures: int = 0


class Session:
    """One stream, from its first byte to its end."""

    def __init__(self, setup: Setup, endpointing: Endpointing, *, moderated: bool = False) -> None:
        """``moderated``: each final's verdict is waited for (`Session.moderated`)."""
        self.setup = setup
        self._is_moderated = moderated
        self.is_over = False
        """Everything is told, and nothing can come any more."""
        self._endpointing = endpointing
        self._speaking = Speaking(endpointing)
        self._hearings: dict[int, _Hearing] = {}
        self._sound = bytearray()
        self._sound_from = 0
        """How many bytes came before those in ``_sound``; whole frames."""
        self._fed = 0
        """How many bytes the recognizer has; whole frames."""
        self._style: Style | None = None
        """None while there is no recognizer."""
        self._next: tuple[Setup, int] | None = None
        """Who is to hear the sound from a byte on."""
        self._asked: Hear | None = None
        self._tickets = 0
        self._ends: list[int] = []
        """Where (in bytes) the open utterance is to be ended, as somebody wants it; ascending."""
        self._finishing = False
        self._was_lost = False
        self._unjudged: dict[int, Final] = {}
        """Finals whose verdict is to come, by number."""
        self._recent: list[Final] = []
        """Finals that may be context of what comes: in order, of this setup, with nothing between
        them that was not understood."""
        self._seq = 0
        self._out: list[Event | Order] = []
        self.status(State.LOADING)
        self._attach(setup)

    # --- from the client ------------------------------------------------------------------------

    @property
    def received_ms(self) -> int:
        """How much sound has come in."""
        return (self._sound_from + len(self._sound)) // BYTES_PER_MS

    @property
    def behind_ms(self) -> int:
        """How much of it waits: nobody has looked at it, or its utterance is over and not heard."""
        waiting = sum(each.end_ms - each.start_ms for each in self._speaking.over)
        return max(0, self.received_ms - self._speaking.judged_ms) + waiting

    @property
    def is_loading(self) -> bool:
        """Whether nobody can hear it yet, or any more: a recognizer is waited for."""
        return self._style is None

    @property
    def is_listening(self) -> bool:
        """Whether an utterance is open, or may be in sound that is not judged yet."""
        return self._speaking.open is not None or self._fed_ms > self._speaking.judged_ms

    @property
    def is_finishing(self) -> bool:
        """Whether nothing more will come in."""
        return self._finishing

    def audio(self, pcm: bytes) -> None:
        """Take sound: 16 bit, little endian, mono, 16 kHz; a sample may come in two halves."""
        if self._finishing:
            return
        self._sound += pcm
        self._advance()

    def switch(self, setup: Setup) -> None:
        """Have another recognizer hear what comes from now on."""
        if setup == (self._next[0] if self._next is not None else self.setup):
            return
        if self._style is None:  # nobody has heard anything that is still here
            self._attach(setup)
            return
        at = self._end_of_frames if self._next is None else self._next[1]
        self._next = setup, at
        self._end(at)

    def finalize(self) -> None:
        """End the open utterance here, without waiting for silence."""
        self._end(self._end_of_frames)

    def finish(self) -> None:
        """Nothing more will come. Half a sample at the end is left out."""
        if self._finishing:
            return
        self._sound += bytes(-len(self._sound) % FRAME_BYTES)
        self.status(State.CLOSING)
        self._finishing = True
        self.finalize()

    # --- from the recognizer --------------------------------------------------------------------

    def attached(self, style: Style) -> None:
        """The recognizer that was asked for is ready, and has no sound yet."""
        self._style = style
        self._fed = self._sound_from
        self._asked = None
        self.status(State.RECOGNIZER_BACK if self._was_lost else State.READY)
        self._was_lost = False
        self._advance()

    def judged(self, start_ms: int, probabilities: Sequence[float]) -> None:
        """The probability of speech in each frame from ``start_ms`` on; some may come again."""
        known = (self._speaking.judged_ms - start_ms) // FRAME_MS
        for probability in probabilities[max(0, known) :]:
            self._speaking.follow(probability)
        self._advance()

    def heard(self, ticket: int, hypothesis: Hypothesis) -> None:
        """The answer to a `Hear`; one to which nobody waits any more is left out."""
        asked = self._answered(ticket)
        if asked is None:
            return
        utterance = self._find(asked.utterance)
        if utterance is not None:
            self._listen(utterance, asked, hypothesis)
        self._advance()

    def failed(self, ticket: int, reason: str) -> None:
        """In place of `heard`."""
        asked = self._answered(ticket)
        if asked is not None:
            self._blame(asked, reason)
            self._advance()

    def lost(self, reason: str) -> None:
        """The recognizer is gone, whatever it was at; another one is to hear all again."""
        asked, self._asked = self._asked, None
        self._style = None
        if not self._was_lost:
            self._was_lost = True
            self.status(State.RECOGNIZER_LOST)
        if asked is not None:
            self._blame(asked, reason)
        self._attach(self.setup)

    # --- from others ----------------------------------------------------------------------------

    def moderated(
        self, final_seq: int, segments: tuple[Segment, ...], by: ModeratedBy | None
    ) -> None:
        """How a final was judged: its segments with their verdicts; by None: it could not be."""
        final = self._unjudged.pop(final_seq)
        if by is not None:
            self._out.append(Detections(self._number(), final.span, final_seq, segments, by))
        self._advance()

    def status(self, state: State, **details: Any) -> None:
        """Tell how the stream stands."""
        at_ms = self.received_ms
        self._out.append(StateChange(self._number(), Span(at_ms, at_ms), state, details))

    def fail(self, code: str, detail: str, *, fatal: bool, **details: Any) -> None:
        """Tell that something is wrong, in the stream as it stands."""
        at_ms = self.received_ms
        span = Span(at_ms, at_ms)
        self._out.append(Failure(self._number(), span, code, detail, fatal, details))

    def take(self) -> list[Event | Order]:
        """What is to be told and done, in this order; nothing of it comes a second time."""
        out, self._out = self._out, []
        return out

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _end_of_frames(self) -> int:
        whole = len(self._sound) // FRAME_BYTES * FRAME_BYTES
        return self._sound_from + whole

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
        """Do all that can be done now."""
        self._feed()
        self._end_where_wanted()
        if self._style is not None and self._asked is None:
            self._ask()
        self._forget()
        if self._asked is not None or self._speaking.over:
            return
        if self._next is not None:
            self._switch(*self._next)
        elif self._finishing and not self._ends and not self._unjudged:
            self.is_over = True

    def _switch(self, setup: Setup, at: int) -> None:
        """Go over to another recognizer, where the one before has heard all that is its own."""
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
        """Hand over whole frames. What another recognizer is to hear stays here until that is."""
        until = self._end_of_frames if self._next is None else self._next[1]
        if self._style is None or until <= self._fed:
            return
        pcm = bytes(self._sound[self._fed - self._sound_from : until - self._sound_from])
        self._out.append(Feed(self._fed_ms, pcm))
        self._fed = until

    def _end_where_wanted(self) -> None:
        while self._ends and self._speaking.judged_ms * BYTES_PER_MS >= self._ends[0]:
            del self._ends[0]
            self._speaking.end()

    def _ask(self) -> None:
        """Ask for what is due; the oldest utterance goes first."""
        while self._speaking.over:
            utterance = self._speaking.over[0]
            best = self._hearing(utterance).best
            if best is None or best[0] != utterance.end_ms:
                self._order(utterance, utterance.end_ms, full=True, final=True)
                return
            self._conclude(utterance, best[1])
        if self._speaking.open is not None and self._style is not None:
            self._ask_of(self._speaking.open, self._style)

    def _ask_of(self, utterance: SpokenUtterance, style: Style) -> None:
        """Ask for more of the open utterance where that is worth it."""
        hearing = self._hearing(utterance)
        now_ms = self._speaking.judged_ms
        step_ms = style.step_ms if hearing.text else style.step_ms // 2
        if utterance.speech_ms < max(style.first_ms, self._endpointing.min_speech_ms):
            return
        if now_ms - utterance.start_ms >= self._endpointing.max_ms:
            self._order(utterance, now_ms, full=True, final=False)
        elif self._speaking.pause_ms >= self._endpointing.tail_ms:
            if style.ahead and (hearing.best is None or hearing.best[0] != utterance.end_ms):
                self._order(utterance, utterance.end_ms, full=True, final=False)
        elif now_ms - max(hearing.until_ms, utterance.start_ms) >= step_ms:
            self._order(utterance, now_ms, full=False, final=False)

    def _order(self, utterance: SpokenUtterance, until_ms: int, *, full: bool, final: bool) -> None:
        self._tickets += 1
        span, alone = Span(utterance.start_ms, until_ms), self._hearing(utterance).failures > 0
        self._asked = Hear(
            ticket=self._tickets,
            utterance=utterance.number,
            span=span,
            context=self._context_of(span) if full and not alone else None,
            full=full,
            final=final,
            alone=alone,
        )
        self._out.append(self._asked)

    def _context_of(self, span: Span) -> UtteranceContext | None:
        """What came before an utterance: as many whole finals as are of use and can be heard."""
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

    def _answered(self, ticket: int) -> Hear | None:
        if self._asked is None or self._asked.ticket != ticket:
            return None
        asked, self._asked = self._asked, None
        return asked

    def _listen(self, utterance: SpokenUtterance, asked: Hear, hypothesis: Hypothesis) -> None:
        hearing = self._hearing(utterance)
        hearing.until_ms = asked.span.end_ms
        if asked.full:
            hearing.best = asked.span.end_ms, hypothesis
        if asked.final:
            return
        if not hypothesis.doubtful:
            self._show(utterance, hearing, hypothesis.text)
        if asked.span.duration_ms >= self._endpointing.max_ms and not utterance.is_over:
            self._cut(utterance, hearing, hypothesis)

    def _show(self, utterance: SpokenUtterance, hearing: _Hearing, text: str) -> None:
        if text and text != hearing.text:
            stable = agreed(hearing.text, text)
            hearing.text = text
            span = Span(utterance.start_ms, hearing.until_ms)
            self._out.append(Partial(self._number(), span, text, stable))

    def _cut(self, utterance: SpokenUtterance, hearing: _Hearing, hypothesis: Hypothesis) -> None:
        """Tell the first part of an utterance that is too long: up to a pause between two words.

        Without any words it ends where it is.
        """
        words = [word for segment in hypothesis.segments for word in segment.words]
        latest_ms = hearing.until_ms - CUT_MARGIN_MS
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
        self._tell(self._speaking.cut(at_ms), first_words(hypothesis.segments, count))

    def _conclude(self, utterance: SpokenUtterance, hypothesis: Hypothesis) -> None:
        """Tell the final of an utterance that has waited for it."""
        self._speaking.over.remove(utterance)
        self._tell(utterance, hypothesis.segments)

    def _tell(self, utterance: SpokenUtterance, segments: tuple[Segment, ...]) -> None:
        """An empty text is told only where something else was shown."""
        span = Span(utterance.start_ms, utterance.end_ms)
        told = tuple(each.shifted(utterance.start_ms) for each in segments)
        if text_of(told) or self._hearing(utterance).text:
            final = Final(self._number(), span, told, self.setup, utterance.spoken_until_ms)
            self._out.append(final)
            if told and self._is_moderated:
                self._unjudged[final.seq] = final
            if text_of(told) and not any(each.flags for each in told):
                self._recent.append(final)
                return
        self._recent.clear()

    def _blame(self, asked: Hear, reason: str) -> None:
        """The recognizer failed over an utterance: try again, or give that up."""
        utterance = self._find(asked.utterance)
        if utterance is None:
            return
        hearing = self._hearing(utterance)
        hearing.failures += 1
        if hearing.failures < TRIES:
            return
        if not utterance.is_over:
            self._speaking.end()
        span = Span(utterance.start_ms, utterance.end_ms)
        self._out.append(Failure(self._number(), span, "engine_failed", reason, fatal=False))
        if hearing.best is not None:
            self._conclude(utterance, hearing.best[1])
        else:
            whole = Span(0, span.duration_ms)
            last = Segment(whole, hearing.text, flags=("low_confidence",))
            self._conclude(utterance, Hypothesis((last,) if hearing.text else ()))

    def _forget(self) -> None:
        before_ms = self._speaking.needed_from_ms
        if self._style is not None:
            self._forget_finals(before_ms, self._style.context_ms)
        if self._recent:
            before_ms = min(before_ms, self._recent[0].span.start_ms)
        before = min(before_ms * BYTES_PER_MS, self._fed if self._style else self._sound_from)
        if before >= self._sound_from + LEAST_FORGOTTEN:
            del self._sound[: before - self._sound_from]
            self._sound_from = before
            self._out.append(Forget(before // BYTES_PER_MS))
            self._hearings = {
                number: hearing for number, hearing in self._hearings.items() if self._find(number)
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

    def _hearing(self, utterance: SpokenUtterance) -> _Hearing:
        return self._hearings.setdefault(utterance.number, _Hearing())


def first_words(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    """Segments that have words, up to the first ``count`` of these."""
    kept = []
    for segment in segments:
        words = segment.words[:count]
        count -= len(words)
        if words == segment.words:
            kept.append(segment)
        elif words:
            kept.append(_of_words(segment, words))
    return tuple(kept)


def _of_words(segment: Segment, words: Sequence[Word]) -> Segment:
    return replace(
        segment,
        text="".join(word.text for word in words),
        span=Span(segment.span.start_ms, words[-1].span.end_ms),
        words=tuple(words),
    )
