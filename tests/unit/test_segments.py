"""From words to subtitle-sized segments."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.asr.guards import DecodingResult
from common.asr.segments import segments_of, split, without_pauses
from common.domain.subtitles import SCREEN_LETTERS, SCREEN_MS
from common.domain.values import Span, Word
from tests.support.speech import noise, silence

SURE = DecodingResult("", avg_logprob=-0.2, no_speech_prob=0.02)


def timed(*words: tuple[str, int, int]) -> list[Word]:
    return [Word(text, Span(start, end), 0.9) for text, start, end in words]


def texts(groups: list[list[Word]]) -> list[str]:
    return ["".join(word.text for word in group) for group in groups]


@st.composite
def sentences(draw: st.DrawFn) -> list[Word]:
    words, clock = [], 0
    for _ in range(draw(st.integers(0, 60))):
        clock += draw(st.integers(0, 1500))
        end = clock + draw(st.integers(0, 900))
        text = draw(st.sampled_from([" a", " river,", " Mr.", " Việt", " Nam.", " extraordinary"]))
        words.append(Word(text, Span(clock, end), 0.5))
        clock = end
    return words


@given(sentences())
def test_every_word_lands_in_one_segment_in_order(words: list[Word]) -> None:
    assert [word for group in split(words) for word in group] == words


@given(sentences())
def test_a_segment_fits_on_a_screen(words: list[Word]) -> None:
    for group in split(words):
        duration = group[-1].span.end_ms - group[0].span.start_ms
        letters = sum(len(word.text) for word in group)
        assert len(group) == 1 or (letters <= SCREEN_LETTERS and duration <= SCREEN_MS)


def test_segments_end_with_sentences_but_not_with_initials() -> None:
    spoken = ["My", "name", "is", "Arthur", "J.", "Haynes.", "Call", "me", "Art."]
    words = timed(*((f" {word}", at * 200, at * 200 + 200) for at, word in enumerate(spoken)))
    assert texts(split(words)) == [" My name is Arthur J. Haynes.", " Call me Art."]


def test_a_pause_before_a_word_is_no_part_of_it() -> None:
    audio = np.concatenate([noise(1, level=0.2), silence(3), noise(1, level=0.2)])
    words = timed((" one", 0, 1000), (" two", 1000, 5000))
    spans = [word.span for word in without_pauses(words, audio)]
    assert spans == [Span(0, 1000), Span(4000, 5000)]


def test_in_steady_noise_no_word_is_moved() -> None:
    words = timed((" one", 0, 1000), (" two", 1000, 5000))
    assert without_pauses(words, noise(5)) == words


def test_segments_stay_inside_their_window() -> None:
    words = timed((" late", 900, 1200), (" later", 1200, 1800))
    (segment,) = segments_of(SURE, words, noise(1, level=0.2), keep_words=True)
    assert segment.span == Span(900, 1000)


def test_a_silent_window_has_no_segments() -> None:
    silent = DecodingResult(" I'm sorry.", avg_logprob=-1.7, no_speech_prob=0.93)
    words = timed((" I'm", 0, 500), (" sorry.", 500, 900))
    assert segments_of(silent, words, noise(1), keep_words=True) == ()


def test_words_are_left_out_when_not_asked_for() -> None:
    words = timed((" one", 0, 400), (" two.", 400, 800))
    (segment,) = segments_of(SURE, words, noise(1, level=0.2), keep_words=False)
    assert segment.words == ()
    assert segment.text == " one two."
