"""The guards between a decoder and the transcript: what is dropped, collapsed, flagged, kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.asr import guards
from common.asr.engine import TEMPERATURES
from common.asr.guards import DecodingResult
from common.domain.values import Detected, Span, Word

Evidence = tuple[DecodingResult, float]
"""A window's decoding, and the loudness of a segment in dB of full scale."""

CLEAR = DecodingResult("", avg_logprob=-0.3, no_speech_prob=0.05), -25.0
NO_VOICE = DecodingResult("", avg_logprob=-0.6, no_speech_prob=0.9), -45.0
UNSURE = DecodingResult("", avg_logprob=-1.6, no_speech_prob=0.4), -45.0
QUIET = DecodingResult("", avg_logprob=-0.6, no_speech_prob=0.4), -80.0


def decoding(
    text: str = " All is well.",
    *,
    avg_logprob: float = -0.3,
    no_speech_prob: float = 0.05,
    temperature: float = 0.0,
) -> DecodingResult:
    return DecodingResult(text, avg_logprob, no_speech_prob, temperature)


def spoken(text: str) -> list[Word]:
    return [
        Word(f" {word}", Span(index * 300, index * 300 + 250), 0.9)
        for index, word in enumerate(text.split())
    ]


def text_of(words: tuple[Word, ...]) -> str:
    return "".join(word.text for word in words).strip()


# --- hallucinations on silence ----------------------------------------------------------------

INVENTED = [
    "Thank you.",
    " Thanks for watching!",
    "Thank you for watching, and see you in the next video.",
    "Subtitles by the Amara.org community",
    "Please subscribe to my channel.",
    "you",
    "Hãy subscribe cho kênh Ghiền Mì Gõ Để không bỏ lỡ những video hấp dẫn",
    "Các bạn hãy đăng ký kênh để không bỏ lỡ những video hấp dẫn nhé.",
    "Cảm ơn các bạn đã theo dõi và hẹn gặp lại.",
    "Để không bỏ lỡ những video hấp dẫn",
]


@pytest.mark.parametrize("text", INVENTED)
@pytest.mark.parametrize("evidence", [NO_VOICE, UNSURE, QUIET])
def test_a_known_phrase_on_silence_is_dropped(text: str, evidence: Evidence) -> None:
    assert guards.is_hallucination(text, *evidence)


@pytest.mark.parametrize("text", INVENTED)
def test_a_known_phrase_in_clear_speech_is_kept(text: str) -> None:
    assert not guards.is_hallucination(text, *CLEAR)


@pytest.mark.parametrize(
    "text",
    [
        "Thank you for the report that you sent on Monday, I read it with joy.",
        "So you want to see the end of the story?",
        "Hôm nay chúng ta sẽ nói về lịch sử của thành phố.",
        "Tôi muốn đăng ký một khóa học tiếng Anh.",
        "",
    ],
)
@pytest.mark.parametrize("evidence", [NO_VOICE, UNSURE, QUIET])
def test_other_text_is_never_taken_for_an_invention(text: str, evidence: Evidence) -> None:
    assert not guards.is_hallucination(text, *evidence)


def test_a_phrase_is_known_however_its_letters_are_composed() -> None:
    decomposed = "Ca\u0309m o\u031bn ca\u0301c ba\u0323n \u0111a\u0303 theo do\u0303i"
    assert guards.is_known_phrase(decomposed)


def test_a_window_is_silence_only_when_the_decoder_doubts_its_own_text_too() -> None:
    assert guards.is_silence(decoding(no_speech_prob=0.9, avg_logprob=-1.4))
    assert not guards.is_silence(decoding(no_speech_prob=0.9, avg_logprob=-0.4))
    assert not guards.is_silence(decoding(no_speech_prob=0.2, avg_logprob=-1.4))


# --- decoding again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "again"),
    [
        (decoding(" I am here. " * 20), True),
        (decoding(avg_logprob=-1.2), True),
        (decoding(" " + "chạy " * 9), True),
        (decoding(), False),
        (decoding(no_speech_prob=0.9, avg_logprob=-1.4), False),  # silence
    ],
)
def test_only_a_failed_decoding_is_tried_again(result: DecodingResult, *, again: bool) -> None:
    assert guards.needs_retry(result) == again


def test_of_failed_attempts_the_coolest_that_does_not_loop_counts() -> None:
    loop = decoding(" la la la" * 30, avg_logprob=-0.1)
    cool = decoding(" Nobody knows.", avg_logprob=-1.3, temperature=0.2)
    hot = decoding(" Nobody nose.", avg_logprob=-1.2, temperature=0.4)
    assert guards.best([loop, cool, hot]) is cool


def test_where_all_attempts_loop_the_most_probable_counts() -> None:
    first = decoding(" la la la" * 30, avg_logprob=-0.5)
    second = decoding(" lo lo lo" * 30, avg_logprob=-0.1, temperature=0.2)
    assert guards.best([first, second]) is second


@pytest.mark.parametrize(
    ("text", "duration_ms", "too_fast"),
    [
        (" Thank you.", 100, True),
        (" Nhiều trời", 100, True),
        (" Thank you.", 350, False),
        (" Dạ.", 100, False),
        (" yes", 300, False),
        (" Nhiều", 200, False),
        ("", 0, False),
    ],
)
def test_text_too_fast_for_speech_is_invented(text: str, duration_ms: int, too_fast: bool) -> None:
    assert guards.is_too_fast(text, duration_ms) is too_fast


# --- the temperature ladder -------------------------------------------------------------------

GOOD, UNSURE_TEXT = decoding(), decoding(avg_logprob=-1.5)
LOOP = decoding(" la la la" * 30, avg_logprob=-0.2)
ELSEWHERE = Detected("fr", 0.9)


class Climb:
    """Climbs a ladder on which each attempt is known; `tried` are the temperatures it took."""

    def __init__(
        self,
        *attempts: DecodingResult,
        tokens: int = 5,
        detected: Detected | None = None,
        duration_s: float = 10.0,
        sure: float = -1.0,
    ) -> None:
        self._attempts = attempts
        self._tokens = tokens
        self._detected = detected
        self.tried: list[float] = []
        self.detections = 0
        self.found = guards.climb(TEMPERATURES, self._decode, self._detect, duration_s, sure=sure)

    def _decode(self, temperature: float) -> DecodingResult:
        self.tried.append(temperature)
        attempt = self._attempts[min(len(self.tried), len(self._attempts)) - 1]
        return replace(attempt, temperature=temperature, tokens=(1,) * self._tokens)

    def _detect(self) -> Detected | None:
        self.detections += 1
        return self._detected


def test_what_will_do_is_decoded_once_and_its_language_not_asked_for() -> None:
    climb = Climb(GOOD)
    assert (climb.tried, climb.detections) == ([0.0], 0)


def test_a_failed_window_is_decoded_hotter_until_it_will_do() -> None:
    climb = Climb(UNSURE_TEXT, UNSURE_TEXT, GOOD)
    assert climb.tried == [0.0, 0.2, 0.4]
    assert climb.found.temperature == 0.4
    assert climb.detections == 1


def test_a_window_in_another_language_is_decoded_once() -> None:
    for failed in (UNSURE_TEXT, LOOP):
        climb = Climb(failed, detected=ELSEWHERE)
        assert climb.tried == [0.0]
        assert climb.found.detected == ELSEWHERE


def test_the_language_of_text_that_is_not_sure_is_detected_too() -> None:
    passable = decoding(avg_logprob=-0.6)
    assert Climb(passable, sure=-0.4, detected=ELSEWHERE).found.detected == ELSEWHERE
    assert Climb(passable, sure=-0.8, detected=ELSEWHERE).detections == 0


def test_after_a_loop_a_temperature_is_left_out() -> None:
    assert Climb(LOOP, LOOP, GOOD).tried == [0.0, 0.4, 0.8]
    assert Climb(LOOP, UNSURE_TEXT).tried == [0.0, 0.4, 0.6, 0.8, 1.0]


def test_what_a_failing_window_may_cost_depends_on_its_length() -> None:
    assert Climb(UNSURE_TEXT, tokens=60, duration_s=20).tried == list(TEMPERATURES)
    assert Climb(UNSURE_TEXT, tokens=60, duration_s=3).tried == [0.0, 0.2, 0.4, 0.6]
    assert Climb(LOOP, tokens=224, duration_s=30).tried == [0.0, 0.4, 0.8]
    assert Climb(LOOP, tokens=224, duration_s=5).tried == [0.0, 0.4]
    assert Climb(LOOP, tokens=224, duration_s=1).tried == [0.0]


def test_a_language_is_another_only_where_the_one_asked_for_is_ruled_out() -> None:
    assert guards.mismatch("vi", {"en": 0.9, "vi": 0.05}) == Detected("en", 0.9)
    assert guards.mismatch("vi", {"en": 0.7, "ar": 0.1, "vi": 0.001}) == Detected("en", 0.7)
    assert guards.mismatch("vi", {"pt": 0.2, "la": 0.2, "vi": 0.001}) is None
    assert guards.mismatch("vi", {"en": 0.6, "vi": 0.1}) is None
    assert guards.mismatch("vi", {"vi": 0.9, "en": 0.05}) is None


# --- loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "collapsed"),
    [
        (
            "so we went " + "down to the river " * 12 + "and swam",
            "so we went down to the river down to the river and swam",
        ),
        ("I'm sorry, I'm sorry. i'm Sorry " * 4, "I'm sorry, I'm sorry."),
        # What people repeat in earnest.
        ("no no no no I did not say that", None),
        ("very very very good", None),
        ("thank you thank you thank you", None),
        ("we shall fight on the beaches we shall fight on the landing grounds", None),
        ("ha ha ha ha ha", None),
    ],
)
def test_a_loop_is_cut_to_its_first_rounds_and_no_other(text: str, collapsed: str | None) -> None:
    kept, looped = guards.collapse_repeats(spoken(text))
    assert looped == (collapsed is not None)
    assert text_of(kept) == (collapsed or text)


@given(st.lists(st.sampled_from(["a", "b", "c", "Một", "hai."]), max_size=60))
def test_collapsing_keeps_the_order_and_invents_nothing(texts: list[str]) -> None:
    words = spoken(" ".join(texts))
    kept, looped = guards.collapse_repeats(words)
    rest = iter(words)
    assert all(word in rest for word in kept)
    assert looped == (len(kept) < len(words))


# --- flags ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "word_probability", "collapsed", "flags"),
    [
        (decoding(), 0.9, False, ()),
        (decoding(temperature=0.4), 0.9, False, (guards.RETRIED,)),
        (decoding(avg_logprob=-1.1), 0.9, False, (guards.LOW_CONFIDENCE,)),
        (decoding(), 0.1, False, (guards.LOW_CONFIDENCE,)),
        (decoding(), 0.9, True, (guards.REPETITIVE,)),
        (decoding(no_speech_prob=0.8), 0.9, False, (guards.LIKELY_SILENCE,)),
    ],
)
def test_each_doubt_has_its_flag(
    result: DecodingResult, word_probability: float, collapsed: bool, flags: tuple[str, ...]
) -> None:
    found = guards.doubts(result, " All is well.", word_probability, collapsed=collapsed)
    assert found == flags


@pytest.mark.parametrize(
    "text",
    [
        "Hãy subscribe cho kênh La La School Để không bỏ lỡ những video hấp dẫn",
        "Hôm nay trời đẹp. Hãy đăng ký kênh để ủng hộ kênh của mình nhé. Chúng ta đi tiếp.",
        "Cảm ơn các bạn đã theo dõi và hẹn gặp lại.",
        "And so it ended. Thanks for watching! The next chapter is about rain.",
        "Don't forget to like and subscribe.",
        "Subtitles by the Amara.org community",
    ],
)
def test_a_stock_phrase_is_flagged_wherever_it_stands(text: str) -> None:
    found = guards.doubts(decoding(), text, 0.9, collapsed=False)
    assert found == (guards.STOCK_PHRASE,)
    assert guards.DOUBTFUL.isdisjoint(found)


@pytest.mark.parametrize(
    "text",
    [
        "Thank you for the report that you sent on Monday.",
        "We will see you on Friday; bye, and thanks.",
        "I subscribe to that view.",
        "Tôi muốn đăng ký một khóa học. Cảm ơn các bạn, xin chào.",
        "Chúc các bạn một ngày vui vẻ.",
    ],
)
def test_other_text_is_no_stock_phrase(text: str) -> None:
    assert guards.doubts(decoding(), text, 0.9, collapsed=False) == ()
