"""Speech that an engine leaves out is decoded again (common.asr.redecoding)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples
from common.asr.redecoding import (
    GAP_MS,
    PIECE_MS,
    Frames,
    Redecoding,
    covered_frames,
    left_out,
    longest_run,
    pieces,
)
from common.audio.silero import SileroNetwork
from common.audio.vad import FRAME_MS
from common.domain.detection import LANGUAGE_MISMATCH
from common.domain.values import SAMPLES_PER_MS, Detected, Segment, Span, Word
from tests.support.speech import noise, silence, speak

OPTIONS = DecodingOptions(language="en")
SENTENCES = (
    "The train to London leaves at nine o'clock.",
    "Please send me the report before Friday.",
    "The weather will be warm and dry in the south.",
)
SPOKEN = [speak(sentence) for sentence in SENTENCES]
PAUSE = silence(0.8)
WINDOW = np.concatenate([part for spoken in SPOKEN for part in (spoken, PAUSE)])


@pytest.fixture(scope="module")
def network() -> SileroNetwork:
    return SileroNetwork()


def words_of(audio: Samples) -> tuple[Word, ...]:
    """A word for each half second that is not silent."""
    step = 500 * SAMPLES_PER_MS
    return tuple(
        Word(f" {start // step}", Span(start // SAMPLES_PER_MS, start // SAMPLES_PER_MS + 500), 1.0)
        for start in range(0, len(audio), step)
        if np.abs(audio[start : start + step]).max() > 0.01
    )


def segment_of(words: Sequence[Word], flags: tuple[str, ...] = ()) -> Segment:
    span = Span(words[0].span.start_ms, words[-1].span.end_ms)
    return Segment(span, "".join(word.text for word in words), words=tuple(words), flags=flags)


class Hasty:
    """An engine that decodes the first ``seconds`` of each window, and is sure of itself.

    Several windows at once, which are pieces of one, get ``flags``.
    """

    name = "hasty"
    encoder = "none"

    def __init__(
        self,
        seconds: float,
        *,
        flags: tuple[str, ...] = (),
        detected: Detected | None = None,
        languages: Mapping[str, float] | None = None,
    ) -> None:
        self._decoded = round(seconds * 16_000)
        self._flags = flags
        self._detected = detected
        self._languages = languages or {"en": 0.9}
        self.calls: list[int] = []

    def languages(
        self,
        windows: Sequence[Samples],
        *,
        quick: bool = False,  # noqa: ARG002
    ) -> list[Mapping[str, float]]:
        return [self._languages for _ in windows]

    def align(
        self,
        windows: Sequence[Samples],
        texts: Sequence[Sequence[str]],
        options: DecodingOptions,
    ) -> list[tuple[Word, ...] | None]:
        raise NotImplementedError

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        assert options.word_timestamps
        self.calls.append(len(windows))
        flags = self._flags if len(windows) > 1 else ()
        decoded = [words_of(window[: self._decoded]) for window in windows]
        return [
            (replace(segment_of(words, flags), detected=self._detected),) if words else ()
            for words in decoded
        ]


def test_what_is_left_out_is_decoded_again(network: SileroNetwork) -> None:
    engine = Hasty(4.0)
    ((*segments,),) = Redecoding(engine, network).transcribe([WINDOW], OPTIONS)
    assert engine.calls == [1, 3], "the window, then its three sentences"
    assert segments[-1].span.end_ms > len(WINDOW) // 16 - 2_000
    assert all(guards.RETRIED in segment.flags for segment in segments)
    starts = [word.span.start_ms for segment in segments for word in segment.words]
    assert starts == sorted(starts)


def test_what_is_decoded_whole_is_decoded_once(network: SileroNetwork) -> None:
    engine = Hasty(30.0)
    ((segment,),) = Redecoding(engine, network).transcribe([WINDOW], OPTIONS)
    assert engine.calls == [1]
    assert not segment.flags


def test_only_the_window_that_lacks_something_is_decoded_again(network: SileroNetwork) -> None:
    engine = Hasty(4.0)
    first, second = Redecoding(engine, network).transcribe([SPOKEN[0], WINDOW], OPTIONS)
    assert not any(guards.RETRIED in segment.flags for segment in first)
    assert all(guards.RETRIED in segment.flags for segment in second)


def test_no_text_is_looked_for_where_nobody_speaks(network: SileroNetwork) -> None:
    engine = Hasty(0.0)
    windows = [silence(10.0), noise(10.0), silence(0.0)]
    assert Redecoding(engine, network).transcribe(windows, OPTIONS) == [(), (), ()]
    assert engine.calls == [3]


@pytest.mark.parametrize("flag", [guards.LOW_CONFIDENCE, guards.REPETITIVE, guards.LIKELY_SILENCE])
def test_doubtful_text_does_not_replace_the_first_one(network: SileroNetwork, flag: str) -> None:
    engine = Hasty(4.0, flags=(flag,))
    ((segment,),) = Redecoding(engine, network).transcribe([WINDOW], OPTIONS)
    assert segment.span.end_ms <= 4_000
    assert not segment.flags


def test_speech_without_a_pause_is_not_decoded_a_second_time(network: SileroNetwork) -> None:
    engine = Hasty(1.0)
    spoken = speak("one two three four five six seven eight nine ten eleven twelve")
    Redecoding(engine, network).transcribe([spoken], OPTIONS)
    assert engine.calls == [1], "there is but one piece, which is decoded already"


def test_words_are_given_only_where_they_are_asked_for(network: SileroNetwork) -> None:
    untimed = replace(OPTIONS, word_timestamps=False)
    (segments,) = Redecoding(Hasty(30.0), network).transcribe([WINDOW], untimed)
    assert segments[0].text
    assert segments[0].words == ()


def test_the_language_is_the_engines_business(network: SileroNetwork) -> None:
    redecoding = Redecoding(Hasty(1.0, languages={"de": 0.7}), network)
    assert redecoding.name == "hasty"
    assert redecoding.languages([WINDOW]) == [{"de": 0.7}]


def test_what_is_left_out_in_another_language_is_not_decoded_again(network: SileroNetwork) -> None:
    engine = Hasty(4.0, languages={"fr": 0.9, "en": 0.01})
    ((segment,),) = Redecoding(engine, network).transcribe([WINDOW], OPTIONS)
    assert engine.calls == [1]
    assert segment.detected == Detected("fr", 0.9)
    assert segment.flags == (LANGUAGE_MISMATCH,)


def test_a_window_in_another_language_is_decoded_once(network: SileroNetwork) -> None:
    engine = Hasty(4.0, detected=Detected("fr", 0.9))
    Redecoding(engine, network).transcribe([WINDOW], OPTIONS)
    assert engine.calls == [1]


def frames(*runs: tuple[int, int], total: int = 900) -> Frames:
    found = np.zeros(total, np.bool_)
    for start, end in runs:
        found[start:end] = True
    return found


def test_a_word_that_is_too_long_covers_its_end() -> None:
    word = Word(" so", Span(2_000, 12_000), 1.0)
    covered = np.flatnonzero(covered_frames([segment_of([word])], 900)) * FRAME_MS
    assert covered[0] >= 12_000 - 800 - 200 - FRAME_MS
    assert covered[-1] <= 12_000 + 200


def test_pauses_in_what_is_left_out_do_not_make_it_less() -> None:
    speech = frames((0, 50), (100, 140), (200, 220), (300, 400))
    assert longest_run(speech, frames((0, 50), (300, 400))) == 60
    assert longest_run(speech, speech) == 0
    assert longest_run(speech, frames()) == 210
    assert longest_run(speech, frames((0, 140))) == 120


def test_text_in_doubt_accounts_for_no_speech() -> None:
    speech = frames((0, 20))
    words = [Word(" yes", Span(0, 640), 1.0)]
    assert left_out(speech, [segment_of(words)]) == 0
    assert left_out(speech, [segment_of(words, ("low_confidence",))]) == 20


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), max_size=12))
def test_pieces_hold_all_speech_in_order_and_once(runs: list[tuple[int, int]]) -> None:
    speech = np.concatenate(
        [np.zeros(0, np.bool_)]
        + [np.repeat([True, False], [spoken, quiet]) for spoken, quiet in runs]
    )
    duration_ms = len(speech) * FRAME_MS
    spans = pieces(speech, duration_ms)
    held = np.zeros(len(speech), np.int_)
    for span in spans:
        assert span.end_ms <= duration_ms
        held[-(-span.start_ms // FRAME_MS) : span.end_ms // FRAME_MS] += 1
    assert (held[speech] == 1).all()
    assert (held <= 1).all()
    for span in spans:
        inside = speech[-(-span.start_ms // FRAME_MS) : span.end_ms // FRAME_MS]
        quiet = np.flatnonzero(inside)
        if quiet[-1] - quiet[0] >= PIECE_MS // FRAME_MS:
            gaps = np.diff(quiet) - 1
            assert gaps.max() * FRAME_MS < GAP_MS, "a long piece has no place to cut"
