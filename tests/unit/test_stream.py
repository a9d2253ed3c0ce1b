"""What a live stream's session promises, whatever comes in and whoever is lost on the way."""

from __future__ import annotations

import random as randomness
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.domain.moderation import ModeratedBy
from common.domain.speaking import FRAME_MS, MIN_SPEECH_MS, Endpointing
from common.domain.stream import (
    FRAME_BYTES,
    Attach,
    Detections,
    Event,
    Failure,
    Feed,
    Final,
    Forget,
    Hypothesis,
    Order,
    Partial,
    Recognize,
    Session,
    Setup,
    State,
    StateChange,
    Style,
    UtteranceContext,
)
from common.domain.values import Segment, Span, Word

ONWARDS = Style(first_ms=0, step_ms=64, ahead=False)
VIETNAMESE = Setup("zipformer", "viet", "vi")
ENGLISH = Setup("faster-whisper", "base", "en")
ANEW = Style(first_ms=200, step_ms=300, ahead=True)
WITH_CONTEXT = Style(first_ms=200, step_ms=300, ahead=True, context_ms=1_500)
STYLES = [ANEW, WITH_CONTEXT, ONWARDS]
SHORT = Endpointing(silence_ms=320, max_ms=2_000, most_ms=4_000)
BY = ModeratedBy("lists", "0" * 64, {})


def seeded(seed: int) -> randomness.Random:
    return randomness.Random(seed)  # noqa: S311 - it chooses, and keeps no secret


def frame(number: int) -> bytes:
    """A frame that says which one it is."""
    return struct.pack("<h", number) * (FRAME_BYTES // 2)


@dataclass
class World:
    """A recognizer that recognizes a word in each frame with speech.

    It identifies a frame by its content, and recognizes only what it was fed. It is unsure of the
    last word unless the request is ``full``.
    """

    spoken: Sequence[bool]
    random: randomness.Random = field(default_factory=lambda: seeded(0))
    style: Style = ANEW
    session: Session = field(init=False)
    events: list[Event] = field(default_factory=list)
    waiting: list[Order] = field(default_factory=list)
    asked: list[Recognize] = field(default_factory=list)
    received: dict[int, int] = field(default_factory=dict)
    """The fed frames, by time."""
    attached_to: list[Setup] = field(default_factory=list)
    endpointing: Endpointing = SHORT

    def __post_init__(self) -> None:
        self.session = Session(VIETNAMESE, self.endpointing, moderated=True)
        self.take()

    def take(self) -> None:
        for out in self.session.take():
            if isinstance(out, Event):
                self.events.append(out)
                if isinstance(out, Final) and out.segments:
                    self.session.moderated(out.seq, out.segments, BY)
                    self.take()
            else:
                self.waiting.append(out)
                if isinstance(out, Recognize):
                    self.asked.append(out)

    def answer(self) -> None:
        """Do the oldest thing that is asked."""
        order = self.waiting.pop(0)
        match order:
            case Attach(setup):
                self.received.clear()
                self.waiting = [each for each in self.waiting if isinstance(each, Attach)]
                if not self.waiting:
                    self.attached_to.append(setup)
                    self.session.attached(self.style)
            case Feed(start_ms, pcm):
                assert len(pcm) % FRAME_BYTES == 0
                recognized = []
                for offset in range(0, len(pcm), FRAME_BYTES):
                    (number,) = struct.unpack_from("<h", pcm, offset)
                    self.received[start_ms + offset // FRAME_BYTES * FRAME_MS] = number
                    recognized.append(0.9 if self.spoken[number] else 0.02)
                self.session.speech(start_ms, recognized)
            case Forget(before_ms):
                self.received = {at: it for at, it in self.received.items() if at >= before_ms}
            case Recognize():
                self.session.recognized(order.ticket, self.recognize(order))
        self.take()

    def recognize(self, asked: Recognize) -> Hypothesis:
        if asked.context is not None:
            self.look_back(asked.context, asked.span)
        words = []
        for at in range(asked.span.start_ms, asked.span.end_ms, FRAME_MS):
            number = self.received[at]
            if self.spoken[number]:
                start_ms = at - asked.span.start_ms
                words.append(Word(f" {number}", Span(start_ms, start_ms + FRAME_MS), 1.0))
        text = "".join(word.text for word in words)
        if not words:
            return Hypothesis(())
        if not asked.full:
            text += f" {self.random.randrange(10)}"
        whole = Span(0, asked.span.duration_ms)
        return Hypothesis((Segment(whole, text, tuple(words) if asked.full else ()),))

    def look_back(self, context: UtteranceContext, span: Span) -> None:
        """Context is of whole finals, and the recognizer has all its audio."""
        assert span.start_ms - self.style.context_ms <= context.start_ms < span.start_ms
        assert span.end_ms - context.start_ms <= self.endpointing.most_ms
        stretch = range(context.start_ms, span.start_ms, FRAME_MS)
        spoken = [self.received[at] for at in stretch if self.spoken[self.received[at]]]
        before = [final for final in self.finals if final.span.start_ms >= context.start_ms]
        assert before[0].span.start_ms == context.start_ms
        assert context.text == "".join(segment.text for f in before for segment in f.segments)
        words = [int(word) for word in context.text.split()]
        assert words == [number for number in spoken if number in words]
        assert all(final.setup == before[-1].setup for final in before)

    def settle(self) -> None:
        while self.waiting:
            self.answer()

    def send(self, numbers: Iterable[int]) -> None:
        """Send these frames, and do all that is asked after each."""
        self.settle()
        for number in numbers:
            self.session.audio(frame(number))
            self.take()
            self.settle()

    def end(self) -> None:
        self.session.finish()
        self.take()
        self.settle()

    def send_until_asked(self, count: int) -> Recognize:
        """Send the first frames, and do all but recognize; returns the first request to."""
        self.settle()
        for number in range(count):
            self.session.audio(frame(number))
            self.take()
            while self.waiting and not isinstance(self.waiting[0], Recognize):
                self.answer()
        asked = self.waiting[0]
        assert isinstance(asked, Recognize)
        return asked

    def lose(self) -> None:
        """The recognizer is lost, with its pending orders."""
        self.waiting = [order for order in self.waiting if isinstance(order, Attach)]
        if not self.waiting:
            self.session.lost("killed")
            self.take()

    @property
    def finals(self) -> list[Final]:
        return [event for event in self.events if isinstance(event, Final)]

    @property
    def partials(self) -> list[Partial]:
        return [event for event in self.events if isinstance(event, Partial)]

    @property
    def states(self) -> list[State]:
        return [event.state for event in self.events if isinstance(event, StateChange)]

    @property
    def words(self) -> list[int]:
        """The frames with recognized speech, from the finals."""
        return [int(word) for final in self.finals for word in final.text.split()]


def speech_frames(*runs: tuple[bool, int]) -> list[bool]:
    """Speech or silence, for so many frames each."""
    return [spoken for spoken, count in runs for _ in range(count)]


def worth_recognizing(spoken: Sequence[bool], endpointing: Endpointing = SHORT) -> list[int]:
    """The frames of speech in utterances with enough of it."""
    most = -(-endpointing.silence_ms // FRAME_MS)
    utterances: list[list[int]] = []
    quiet = most
    for number, is_spoken in enumerate(spoken):
        if is_spoken:
            if quiet >= most:
                utterances.append([])
            utterances[-1].append(number)
        quiet = 0 if is_spoken else quiet + 1
    least = MIN_SPEECH_MS // FRAME_MS
    return [number for frames in utterances if len(frames) >= least for number in frames]


TWO_UTTERANCES = speech_frames((True, 10), (False, 12), (True, 10), (False, 12))
runs = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=12)


def play(world: World, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        world.session.audio(piece)
        world.take()
        for _ in range(world.random.randrange(4)):
            if world.waiting:
                world.answer()
    world.end()


def cut_up(audio_bytes: bytes, random: randomness.Random) -> Iterable[bytes]:
    at = 0
    while at < len(audio_bytes):
        size = random.choice((1, 7, 640, 1023, 1025, 3200, 40_000))
        yield audio_bytes[at : at + size]
        at += size


def played_in_pieces(parts: list[tuple[bool, int]], seed: int, style: Style) -> World:
    """A stream whose audio arrives in pieces of any size, and whose recognizer is slow."""
    world = World(speech_frames(*parts), seeded(seed), style)
    play(world, cut_up(b"".join(map(frame, range(len(world.spoken)))), world.random))
    return world


@given(runs, st.integers(0, 2**32), st.sampled_from(STYLES))
@example([(True, 40)] * 12, 1, ANEW)
@example([(True, 40)] * 12, 1, WITH_CONTEXT)
@example([(True, 40)] * 12, 2, ONWARDS)
def test_all_speech_is_emitted_once_and_in_order_however_the_audio_arrives(
    parts: list[tuple[bool, int]], seed: int, style: Style
) -> None:
    world = played_in_pieces(parts, seed, style)
    assert world.session.is_over
    assert world.words == worth_recognizing(world.spoken)


@given(runs, st.integers(0, 2**32), st.sampled_from(STYLES))
def test_finals_do_not_overlap_and_every_message_has_the_next_number(
    parts: list[tuple[bool, int]], seed: int, style: Style
) -> None:
    world = played_in_pieces(parts, seed, style)
    for before, after in pairwise(world.finals):
        assert before.span.end_ms <= after.span.start_ms
    assert not any(isinstance(event, Failure) for event in world.events)
    assert [event.seq for event in world.events] == list(range(1, len(world.events) + 1))
    assert all(0 <= partial.stable <= len(partial.text) for partial in world.partials)


@given(runs, st.integers(0, 2**32), st.data())
def test_nothing_is_lost_with_a_recognizer(
    parts: list[tuple[bool, int]], seed: int, data: st.DataObject
) -> None:
    spoken, random = speech_frames(*parts), seeded(seed)
    world = World(spoken, random, data.draw(st.sampled_from(STYLES)))
    # At most once an utterance: who loses it twice over the same words gives them up.
    deaths = data.draw(st.integers(0, 1))
    pieces = list(cut_up(b"".join(map(frame, range(len(spoken)))), random))
    die_at = set(random.sample(range(len(pieces)), min(deaths, len(pieces))))
    for index, piece in enumerate(pieces):
        world.session.audio(piece)
        world.take()
        for _ in range(random.randrange(4)):
            if world.waiting:
                world.answer()
        if index in die_at:
            world.lose()
    world.end()
    assert world.session.is_over
    assert world.words == worth_recognizing(spoken)


@given(runs, st.integers(0, 2**32), st.data())
def test_a_switch_splits_the_stream_where_it_was_asked_for(
    parts: list[tuple[bool, int]], seed: int, data: st.DataObject
) -> None:
    spoken, random = speech_frames(*parts), seeded(seed)
    world = World(spoken, random)
    at = data.draw(st.integers(0, len(spoken)))
    for number in range(len(spoken)):
        if number == at:
            world.session.switch(ENGLISH)
            world.take()
        world.session.audio(frame(number))
        world.take()
        if world.waiting and random.random() < 0.7:
            world.answer()
    world.end()
    assert world.session.is_over
    if world.attached_to[0] == VIETNAMESE:
        for final in world.finals:
            by_the_second = {int(word) >= at for word in final.text.split()}
            assert by_the_second == {final.setup == ENGLISH}
    recognized = worth_recognizing(spoken)
    assert world.words == [number for number in recognized if number in world.words]
    assert len(set(recognized) - set(world.words)) < 6 + len(recognized) // 20


def contexts(world: World) -> list[str | None]:
    """What was given along with each utterance at its end."""
    ends = {order.utterance: order for order in world.asked if order.full}
    return [order.context.text if order.context else None for order in ends.values()]


def played(spoken: Sequence[bool], style: Style = WITH_CONTEXT) -> World:
    """A stream whose recognizer keeps pace."""
    world = World(spoken, style=style)
    world.send(range(len(spoken)))
    world.end()
    return world


def counted(*numbers: int) -> str:
    return "".join(f" {number}" for number in numbers)


def test_an_utterance_is_recognized_with_the_preceding_finals_as_context() -> None:
    spoken = speech_frames(*[(True, 10), (False, 12)] * 3)
    first, second = counted(*range(10)), counted(*range(22, 32))
    assert contexts(played(spoken)) == [None, first, first + second]
    assert contexts(played(spoken, ANEW)) == [None, None, None]


def test_context_is_limited_to_what_the_engine_can_use() -> None:
    spoken = speech_frames(*[(True, 20), (False, 12)] * 3)  # a second each
    assert contexts(played(spoken)) == [None, counted(*range(20)), counted(*range(32, 52))]


def test_after_a_long_pause_no_context_is_kept() -> None:
    spoken = speech_frames((True, 10), (False, 200), (True, 10), (False, 12))
    world = World(spoken, style=replace(WITH_CONTEXT, context_ms=20_000))
    play(world, map(frame, range(len(spoken))))
    assert contexts(world) == [None, None]
    assert len(world.received) < 60


def test_finals_of_another_recognizer_are_no_context() -> None:
    world = World(TWO_UTTERANCES, style=WITH_CONTEXT)
    world.send(range(21))
    world.session.switch(ENGLISH)
    world.send(range(21, 44))
    assert [final.setup for final in world.finals] == [VIETNAMESE, ENGLISH]
    assert contexts(world) == [None, None]


def test_what_was_in_doubt_is_no_context() -> None:
    class Unsure(World):
        def recognize(self, asked: Recognize) -> Hypothesis:
            recognized = super().recognize(asked)
            doubted = (replace(each, flags=("low_confidence",)) for each in recognized.segments)
            return replace(recognized, segments=tuple(doubted))

    world = Unsure(TWO_UTTERANCES, style=WITH_CONTEXT)
    play(world, map(frame, range(44)))
    assert len(world.finals) == 2
    assert contexts(world) == [None, None]


def test_context_outlives_the_recognizer() -> None:
    world = World(TWO_UTTERANCES, style=WITH_CONTEXT)
    world.send(range(25))
    world.lose()
    world.send(range(25, 44))
    assert contexts(world) == [None, counted(*range(10))]


def test_what_failed_once_is_recognized_without_context() -> None:
    world = World(TWO_UTTERANCES, style=WITH_CONTEXT)
    world.settle()
    for number in range(44):
        world.session.audio(frame(number))
        world.take()
        while world.waiting:
            order = world.waiting[0]
            if isinstance(order, Recognize) and order.context is not None:
                world.waiting.pop(0)
                world.session.failed(order.ticket, "no memory")
                world.take()
            else:
                world.answer()
    assert [order.context for order in world.asked if order.alone and order.full] == [None]
    assert world.words == worth_recognizing(TWO_UTTERANCES)


def test_a_final_needs_no_request_if_all_was_recognized_in_the_pause() -> None:
    world = World(speech_frames((False, 10), (True, 30), (False, 10)))
    world.send(range(50))
    assert [final.text.split() for final in world.finals] == [[str(n) for n in range(10, 40)]]
    assert not any(order.final for order in world.asked)
    assert world.asked[-1].full


def test_an_engine_that_goes_on_is_asked_for_the_end_at_the_end() -> None:
    world = World(speech_frames((False, 10), (True, 30), (False, 11)), style=ONWARDS)
    world.send(range(51))
    assert [order.final for order in world.asked[-2:]] == [False, True]
    assert len(world.finals) == 1


def test_half_a_sample_waits_for_its_other_half_and_is_dropped_at_the_end() -> None:
    world = World(speech_frames((True, 20), (False, 20)))
    audio_bytes = b"".join(map(frame, range(40)))
    play(world, [audio_bytes[:333], audio_bytes[333:334], audio_bytes[334:], b"\x01"])
    assert world.words == list(range(20))
    assert world.session.is_over


def test_an_empty_stream_is_over_at_once() -> None:
    world = World([])
    play(world, [])
    assert world.session.is_over
    assert world.states == [State.LOADING, State.CLOSING, State.READY]


def test_silence_emits_nothing_and_is_not_kept() -> None:
    world = World(speech_frames((False, 2_000)))
    play(world, map(frame, range(2_000)))
    assert not world.finals
    assert not world.partials
    assert len(world.received) < 100


def test_a_client_may_end_an_utterance_itself() -> None:
    world = World(speech_frames((True, 40)))
    world.send(range(20))
    world.session.finalize()
    world.take()
    world.settle()
    assert world.words == list(range(20))
    world.send(range(20, 40))
    world.end()
    assert world.words == list(range(40))


def test_audio_that_crashes_the_recognizer_twice_is_skipped_and_the_rest_continues() -> None:
    spoken = speech_frames((True, 30), (False, 12), (True, 30), (False, 12))
    world = World(spoken)
    world.settle()
    for number in range(len(spoken)):
        world.session.audio(frame(number))
        world.take()
        while world.waiting and not (
            isinstance(world.waiting[0], Recognize) and world.waiting[0].utterance == 1
        ):
            world.answer()
        if world.waiting:
            world.lose()
            world.settle() if number > 60 else None
    world.end()
    failures = [event for event in world.events if isinstance(event, Failure)]
    assert [failure.code for failure in failures] == ["engine_failed"]
    assert not failures[0].fatal
    assert set(range(42, 72)) <= set(world.words)
    assert world.states.count(State.RECOGNIZER_LOST) == world.states.count(State.RECOGNIZER_BACK)


def test_what_failed_once_is_recognized_alone() -> None:
    world = World(speech_frames((True, 40)))
    first = world.send_until_asked(12)
    assert not first.alone
    world.waiting.remove(first)
    world.session.failed(first.ticket, "no memory")
    world.take()
    again = world.asked[-1]
    assert again is not first
    assert again.alone
    assert again.utterance == first.utterance


def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    world = World(speech_frames((True, 40)))
    late = world.send_until_asked(20)
    world.lose()
    before = list(world.events)
    world.session.recognized(late.ticket, Hypothesis((Segment(Span(0, 10), " late"),)))
    world.take()
    assert world.events == before


def test_a_stream_does_not_end_before_its_finals_are_moderated() -> None:
    session = Session(VIETNAMESE, SHORT, moderated=True)
    session.attached(ANEW)
    session.audio(b"".join(map(frame, range(20))))
    session.finish()
    session.speech(0, [0.9] * 20)
    (asked,) = (out for out in session.take() if isinstance(out, Recognize))
    session.recognized(asked.ticket, Hypothesis((Segment(Span(0, 640), " a"),)))
    (final,) = (out for out in session.take() if isinstance(out, Final))
    assert not session.is_over
    session.moderated(final.seq, final.segments, BY)
    assert session.is_over
    assert [type(event) for event in session.take()] == [Detections]


def test_a_switch_to_the_current_recognizer_does_nothing() -> None:
    world = World(speech_frames((True, 5)))
    world.settle()
    world.session.switch(VIETNAMESE)
    world.take()
    assert not world.waiting
    assert world.attached_to == [VIETNAMESE]


@pytest.mark.parametrize("wrong", [{"silence_ms": 100}, {"max_ms": 400}, {"max_ms": 40_000}])
def test_endpointing_that_makes_no_sense_is_rejected(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs tail"):
        Endpointing(**wrong)


def test_utterances_are_made_of_speech_and_a_little_around_it() -> None:
    spoken = speech_frames((False, 30), (True, 20), (False, 30), (True, 20), (False, 30))
    world = World(spoken)
    play(world, map(frame, range(len(spoken))))
    spans = [
        (final.span.start_ms // FRAME_MS, final.span.end_ms // FRAME_MS) for final in world.finals
    ]
    assert spans == [(22, 56), (72, 106)]
    assert [final.spoken_until_ms // FRAME_MS for final in world.finals] == [50, 100]
    assert [key for key, _ in groupby(world.states)] == [State.LOADING, State.READY, State.CLOSING]
