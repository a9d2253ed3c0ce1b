"""What every engine promises (common.asr.engine), on real weights and speech with a known text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import _pywhispercpp as ggml
import jiwer
import numpy as np
import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES
from whisper_normalizer.english import EnglishTextNormalizer

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples, SpeechEngine
from common.asr.guards import is_known_phrase
from common.asr.loading import load_engine
from common.domain.detection import LANGUAGE_MISMATCH
from common.domain.languages import LANGUAGES
from common.domain.values import SAMPLES_PER_MS, Segment, Span
from common.errors import EngineFailed, UnknownOption, WeightsMissing
from common.weights.manifest import WHISPER_ENGINES
from tests.support.speech import noise, silence, speak

WEIGHTS = {"faster-whisper": "faster-whisper-base", "whisper.cpp": "ggml-tiny.bin"}
ENGLISH = DecodingOptions(language="en")
QUICK = replace(ENGLISH, beam_size=1, temperatures=(0.0,))
"""For what does not depend on how well a text is searched for."""
TRAIN = "The train to London leaves at nine o'clock. Please do not be late tomorrow morning."
REPORT = "Please send me the report before Friday."
FRENCH = "Bonjour, je voudrais une tasse de café et un morceau de pain, s'il vous plaît."
FORECAST = "The weather will be warm and dry in the south, with some rain in the mountains."

Spoken = Callable[[str], tuple[Segment, ...]]


@pytest.fixture(scope="module", params=WHISPER_ENGINES)
def engine(request: pytest.FixtureRequest, weights_dir: Path) -> SpeechEngine:
    return load_engine(request.param, weights_dir / WEIGHTS[request.param])


@pytest.fixture(scope="module")
def spoken(engine: SpeechEngine) -> Spoken:
    """Gives what the engine makes of a spoken sentence with the options `ENGLISH`."""
    return cache(lambda sentence: one(engine, speak(sentence)))


def text(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


def gist(segments: tuple[Segment, ...]) -> list[tuple[str, list[tuple[str, Span]]]]:
    """All but the decoder's numbers, whose last bits depend on the shape of the batch."""
    return [(each.text, [(word.text, word.span) for word in each.words]) for each in segments]


def word_error_rate(reference: str, hypothesis: str) -> float:
    normal = EnglishTextNormalizer()
    return float(jiwer.wer(normal(reference), normal(hypothesis)))


def one(
    engine: SpeechEngine, window: Samples, options: DecodingOptions = ENGLISH
) -> tuple[Segment, ...]:
    (segments,) = engine.transcribe([window], options)
    return segments


def test_each_window_becomes_its_text(spoken: Spoken) -> None:
    for reference in (TRAIN, REPORT, FORECAST):
        assert word_error_rate(reference, text(spoken(reference))) <= 0.25


def test_how_windows_are_grouped_into_calls_changes_nothing(engine: SpeechEngine) -> None:
    windows = [speak(REPORT), noise(2), speak(FORECAST), silence(1), speak(f"{REPORT} {TRAIN}")]
    cool = replace(ENGLISH, temperatures=(0.0,))
    together = [gist(segments) for segments in engine.transcribe(windows, cool)]
    alone = [gist(one(engine, window, cool)) for window in reversed(windows)]
    assert together == alone[::-1]


def test_sampling_at_a_high_temperature_gives_the_same_text_again(engine: SpeechEngine) -> None:
    hot = replace(ENGLISH, temperatures=(0.8,))
    first, second = engine.transcribe([speak(TRAIN), speak(REPORT)], hot)
    assert gist(one(engine, speak(REPORT), hot)) == gist(second)
    assert gist(one(engine, speak(TRAIN), hot)) == gist(first)
    assert {segment.temperature for segment in first + second} == {0.8}


def test_no_option_of_one_call_applies_to_the_next(engine: SpeechEngine, spoken: Spoken) -> None:
    window = speak(REPORT)
    before = gist(spoken(REPORT))
    others = DecodingOptions(
        language="fr",
        task="translate",
        beam_size=1,
        temperatures=(0.4,),
        initial_prompt="Ce rapport est confidentiel.",
        hotwords="vendredi",
        word_timestamps=False,
    )
    one(engine, window, others)
    assert gist(one(engine, window)) == before


def test_words_join_to_the_text_in_order_inside_the_window(spoken: Spoken) -> None:
    segments = spoken(TRAIN)
    words = [word for segment in segments for word in segment.words]
    assert "".join(word.text for word in words) == text(segments)
    assert all(left.span.end_ms <= right.span.start_ms for left, right in pairwise(words))
    assert words[-1].span.end_ms <= len(speak(TRAIN)) // SAMPLES_PER_MS
    assert all(0 <= word.probability <= 1 for word in words)


def test_words_have_the_times_when_they_are_spoken(engine: SpeechEngine) -> None:
    before = speak("Good morning everybody.")
    window = np.concatenate([before, silence(3), speak("Please send the report.")])
    words = [word for segment in one(engine, window) for word in segment.words]
    please = next(word for word in words if word.text.strip().lower().startswith("please"))
    resumed_ms = (len(before) // SAMPLES_PER_MS) + 3_000
    assert abs(please.span.start_ms - resumed_ms) < 500


def test_segments_are_the_same_without_word_timestamps(
    engine: SpeechEngine, spoken: Spoken
) -> None:
    plain = one(engine, speak(TRAIN), replace(ENGLISH, word_timestamps=False))
    full = spoken(TRAIN)
    assert [each.words for each in plain] == [()] * len(full)
    assert [(each.text, each.span) for each in plain] == [(each.text, each.span) for each in full]


def test_the_decoders_numbers_are_in_their_ranges(spoken: Spoken) -> None:
    for segment in spoken(FORECAST):
        assert -1 < segment.avg_logprob < 0
        assert 0 < segment.compression_ratio < 2.4
        assert 0 <= segment.no_speech_prob < 0.5
        assert segment.temperature == 0
        assert segment.flags == ()


def test_silence_has_no_text(engine: SpeechEngine) -> None:
    assert engine.transcribe([silence(2), silence(20)], ENGLISH) == [(), ()]


@pytest.mark.parametrize("start", [4_800, 16_000, 24_000])
def test_a_tenth_of_a_second_gives_no_certain_text(engine: SpeechEngine, start: int) -> None:
    for segment in one(engine, speak(TRAIN)[start : start + 1_600]):
        assert not guards.DOUBTFUL.isdisjoint(segment.flags)


@pytest.mark.parametrize("word", ["yes", "no"])
def test_a_clip_of_one_word_has_text(engine: SpeechEngine, word: str) -> None:
    spoken = speak(word)
    loud = np.flatnonzero(np.abs(spoken) > 0.01)
    assert text(one(engine, spoken[loud[0] : loud[-1]])).strip()


def test_a_spoken_thank_you_stays(engine: SpeechEngine) -> None:
    transcribed = text(one(engine, speak("Thank you for watching.")))
    assert is_known_phrase(transcribed)
    assert "thank you" in transcribed.lower()


@pytest.mark.parametrize("samples", [0, 1, 399, 1_600, 480_000])
def test_a_window_may_have_any_length_up_to_30_s(engine: SpeechEngine, samples: int) -> None:
    spoken = speak(REPORT)[:samples]
    window = np.pad(spoken, (0, samples - len(spoken)))
    segments = one(engine, window, QUICK)
    assert all(segment.span.end_ms <= samples // 16 for segment in segments)


def test_no_windows_are_no_work(engine: SpeechEngine) -> None:
    assert engine.transcribe([], ENGLISH) == []


def test_a_prompt_longer_than_the_decoders_memory_is_cut(engine: SpeechEngine) -> None:
    long = replace(ENGLISH, hotwords="London, " * 300, initial_prompt="The train. " * 300)
    assert one(engine, speak(REPORT), long) is not None


def test_a_prompt_teaches_a_spelling(engine: SpeechEngine) -> None:
    window = speak("We visited Mister Haynes in his office on Monday.")
    for spelling in ("Hanes", "Haines"):
        prompted = replace(ENGLISH, initial_prompt=f"Mr. {spelling} and Mrs. {spelling}.")
        assert spelling in text(one(engine, window, prompted))


def test_each_windows_language_is_detected(engine: SpeechEngine) -> None:
    english, french = engine.languages([speak(TRAIN), speak(FRENCH, "fr")])
    for languages, code in ((english, "en"), (french, "fr")):
        assert set(languages) <= set(LANGUAGES)
        assert sum(languages.values()) == pytest.approx(1, abs=0.01)
        assert max(languages, key=lambda each: languages[each]) == code
        assert languages[code] > 0.5


def test_no_hotter_decoding_is_tried_in_the_wrong_language(engine: SpeechEngine) -> None:
    wrong = one(engine, speak(FORECAST), replace(ENGLISH, language="vi"))
    assert wrong
    assert {segment.temperature for segment in wrong} == {0}
    for segment in wrong:
        assert LANGUAGE_MISMATCH in segment.flags
        assert guards.RETRIED not in segment.flags
        assert segment.detected is not None
        assert segment.detected.language == "en"
        assert segment.detected.probability > 0.8


def test_text_in_the_right_language_has_no_other_detected(spoken: Spoken) -> None:
    assert all(segment.detected is None for segment in spoken(FORECAST))


@pytest.mark.parametrize("language", ["vi", "haw", "jw", "he", "zh", "th"])
def test_an_offered_language_is_accepted(engine: SpeechEngine, language: str) -> None:
    options = replace(QUICK, language=language)
    assert len(engine.transcribe([speak(REPORT)], options)) == 1


def test_the_languages_we_offer_are_those_of_both_libraries() -> None:
    last = ggml.whisper_lang_max_id()
    assert {ggml.whisper_lang_str(number) for number in range(last + 1)} == set(LANGUAGES)
    assert set(_LANGUAGE_CODES) == set(LANGUAGES)


def test_an_engine_prints_nothing(
    engine: SpeechEngine, weights_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_engine(engine.name, weights_dir / WEIGHTS[engine.name])
    loaded.transcribe([speak(REPORT)], ENGLISH)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", WHISPER_ENGINES)
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="nowhere"):
        load_engine(name, tmp_path / "nowhere")


def test_a_file_without_weights_fails_the_engine(weights_dir: Path, tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(EngineFailed):
        load_engine("faster-whisper", tmp_path)
    truncated = (weights_dir / "ggml-tiny.bin").read_bytes()[:1_000_000]
    for content in (b"", b"{}" * 100, truncated):
        (tmp_path / "ggml.bin").write_bytes(content)
        with pytest.raises(EngineFailed):
            load_engine("whisper.cpp", tmp_path / "ggml.bin")


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="vosk"):
        load_engine("vosk", tmp_path)
