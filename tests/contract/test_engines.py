"""What every engine promises (common.asr.engine), on real weights and speech with a known text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import _pywhispercpp as ggml
import jiwer
import numpy as np
import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES
from whisper_normalizer.english import EnglishTextNormalizer

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples, SpeechEngine
from common.asr.faster_whisper import FasterWhisper
from common.asr.guards import DecodingResult, is_known_phrase
from common.asr.loading import load_engine
from common.domain.aligning import LEAST_PROBABILITY, probability_of
from common.domain.detection import LANGUAGE_MISMATCH, SURE
from common.domain.languages import LANGUAGES
from common.domain.models import BATCH_ENGINES, WHISPER_ENGINES
from common.domain.values import SAMPLE_RATE, SAMPLES_PER_MS, Segment, Span, Word
from common.errors import EngineFailed, UnknownOption, WeightsMissing
from tests.support.speech import noise, silence, speak

WEIGHTS = {
    "faster-whisper": "faster-whisper-base",
    "whisper.cpp": "ggml-tiny.bin",
    "sherpa-onnx": "sherpa-onnx-viet-wenet",
}
ENGLISH = DecodingOptions(language="en")
VIETNAMESE = DecodingOptions(language="vi", beam_size=1)
QUICK = replace(ENGLISH, beam_size=1, temperatures=(0.0,))
"""For what does not depend on how well a text is searched for."""
TRAIN = "The train to London leaves at nine o'clock. Please do not be late tomorrow morning."
REPORT = "Please send me the report before Friday."
FRENCH = "Bonjour, je voudrais une tasse de café et un morceau de pain, s'il vous plaît."
FORECAST = "The weather will be warm and dry in the south, with some rain in the mountains."

Spoken = Callable[[str], tuple[Segment, ...]]


@dataclass(frozen=True)
class Script:
    """Sentences in a language that an engine transcribes, and the words it gets wrong at most."""

    options: DecodingOptions
    sentences: tuple[str, ...]
    wrong: float

    def spoken(self, index: int) -> Samples:
        """A voice that reads the sentence of this number."""
        return speak(self.sentences[index], self.options.language)


IN_ENGLISH = Script(ENGLISH, (TRAIN, REPORT, FORECAST), wrong=0.25)
# To this network the robot's voice is hard to understand; a person's is not, see `steno bench`.
IN_VIETNAMESE = Script(
    VIETNAMESE,
    (
        "một hai ba bốn năm sáu bảy tám chín mười",
        "việt nam là một nước đông nam á",
        "cảm ơn bạn rất nhiều",
    ),
    wrong=0.65,
)


@pytest.fixture(scope="module", params=BATCH_ENGINES)
def engine(request: pytest.FixtureRequest, weights_dir: Path) -> SpeechEngine:
    if request.param == "sherpa-onnx":
        request.getfixturevalue("vietnamese_weights")
    return load_engine(request.param, weights_dir / WEIGHTS[request.param])


@pytest.fixture(scope="module")
def script(engine: SpeechEngine) -> Script:
    return IN_VIETNAMESE if engine.name == "sherpa-onnx" else IN_ENGLISH


@pytest.fixture(scope="module")
def spoken(engine: SpeechEngine, script: Script) -> Spoken:
    """Gives what the engine makes of a spoken sentence of its script."""
    return cache(
        lambda sentence: one(engine, speak(sentence, script.options.language), script.options)
    )


@pytest.fixture(scope="module", params=WHISPER_ENGINES)
def whisper(request: pytest.FixtureRequest, weights_dir: Path) -> SpeechEngine:
    return load_engine(request.param, weights_dir / WEIGHTS[request.param])


@pytest.fixture(scope="module")
def spoken_to_whisper(whisper: SpeechEngine) -> Spoken:
    """Gives what Whisper makes of a spoken sentence with the options `ENGLISH`."""
    return cache(lambda sentence: one(whisper, speak(sentence)))


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


def test_each_window_becomes_its_text(script: Script, spoken: Spoken) -> None:
    for reference in script.sentences:
        assert word_error_rate(reference, text(spoken(reference))) <= script.wrong


def test_how_windows_are_grouped_into_calls_changes_nothing(
    engine: SpeechEngine, script: Script
) -> None:
    both = np.concatenate([script.spoken(1), script.spoken(0)])
    windows = [script.spoken(1), noise(2), script.spoken(2), silence(1), both]
    cool = replace(script.options, temperatures=(0.0,))
    together = [gist(segments) for segments in engine.transcribe(windows, cool)]
    alone = [gist(one(engine, window, cool)) for window in reversed(windows)]
    assert together == alone[::-1]


def test_large_weights_decode_two_windows_at_a_time_to_the_same_texts(
    weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    generate = FasterWhisper._generate

    def counting(self: FasterWhisper, encoded: Any, *args: Any) -> list[DecodingResult]:
        batches.append(encoded.shape[0])
        return generate(self, encoded, *args)

    monkeypatch.setattr(FasterWhisper, "_generate", counting)
    windows = [speak(TRAIN), speak(REPORT), speak(TRAIN), speak(REPORT), speak(TRAIN)]
    base = FasterWhisper(weights_dir / "faster-whisper-base")
    together = [gist(segments) for segments in base.transcribe(windows, QUICK)]
    monkeypatch.setattr("common.asr.faster_whisper.BATCH_BYTES", 0)
    large = FasterWhisper(weights_dir / "faster-whisper-base")
    assert [gist(segments) for segments in large.transcribe(windows, QUICK)] == together
    assert batches == [5, 2, 2, 1]


def test_sampling_at_a_high_temperature_gives_the_same_text_again(whisper: SpeechEngine) -> None:
    hot = replace(ENGLISH, temperatures=(0.8,))
    first, second = whisper.transcribe([speak(TRAIN), speak(REPORT)], hot)
    assert gist(one(whisper, speak(REPORT), hot)) == gist(second)
    assert gist(one(whisper, speak(TRAIN), hot)) == gist(first)
    assert {segment.temperature for segment in first + second} == {0.8}


def test_no_option_of_one_call_applies_to_the_next(
    engine: SpeechEngine, script: Script, spoken: Spoken
) -> None:
    window = script.spoken(1)
    before = gist(spoken(script.sentences[1]))
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
    assert gist(one(engine, window, script.options)) == before


def test_words_join_to_the_text_in_order_inside_the_window(script: Script, spoken: Spoken) -> None:
    segments = spoken(script.sentences[0])
    words = [word for segment in segments for word in segment.words]
    assert "".join(word.text for word in words) == text(segments)
    assert all(left.span.end_ms <= right.span.start_ms for left, right in pairwise(words))
    assert words[-1].span.end_ms <= len(script.spoken(0)) // SAMPLES_PER_MS
    assert all(0 <= word.probability <= 1 for word in words)


def test_words_have_the_times_when_they_are_spoken(engine: SpeechEngine, script: Script) -> None:
    before = script.spoken(0)
    window = np.concatenate([before, silence(3), script.spoken(1)])
    words = [word for segment in one(engine, window, script.options) for word in segment.words]
    paused_ms = len(before) // SAMPLES_PER_MS
    resumed = next(word for word in words if word.span.start_ms > paused_ms + 1_000)
    assert abs(resumed.span.start_ms - paused_ms - 3_000) < 500


def test_segments_are_the_same_without_word_timestamps(
    engine: SpeechEngine, script: Script, spoken: Spoken
) -> None:
    plain = one(engine, script.spoken(0), replace(script.options, word_timestamps=False))
    full = spoken(script.sentences[0])
    assert [each.words for each in plain] == [()] * len(full)
    assert [(each.text, each.span) for each in plain] == [(each.text, each.span) for each in full]


def test_the_decoders_numbers_are_in_their_ranges(script: Script, spoken: Spoken) -> None:
    for segment in spoken(script.sentences[2]):
        assert -1 < segment.avg_logprob <= 0
        assert 0 < segment.compression_ratio < 2.4
        assert 0 <= segment.no_speech_prob < 0.5
        assert segment.temperature == 0
        assert segment.flags == ()


def test_a_log_probability_is_given(spoken_to_whisper: Spoken) -> None:
    assert all(segment.avg_logprob < 0 for segment in spoken_to_whisper(FORECAST))


def test_silence_has_no_text(engine: SpeechEngine, script: Script) -> None:
    assert engine.transcribe([silence(2), silence(20)], script.options) == [(), ()]


@pytest.mark.parametrize("start", [4_800, 16_000, 24_000])
def test_a_tenth_of_a_second_gives_no_certain_text(whisper: SpeechEngine, start: int) -> None:
    for segment in one(whisper, speak(TRAIN)[start : start + 1_600]):
        assert not guards.DOUBTFUL.isdisjoint(segment.flags)


@pytest.mark.parametrize("word", ["yes", "no"])
def test_a_clip_of_one_word_has_text(whisper: SpeechEngine, word: str) -> None:
    spoken = speak(word)
    loud = np.flatnonzero(np.abs(spoken) > 0.01)
    assert text(one(whisper, spoken[loud[0] : loud[-1]])).strip()


def test_a_spoken_thank_you_stays(whisper: SpeechEngine) -> None:
    transcribed = text(one(whisper, speak("Thank you for watching.")))
    assert is_known_phrase(transcribed)
    assert "thank you" in transcribed.lower()


@pytest.mark.parametrize("samples", [0, 1, 399, 1_600, 480_000])
def test_a_window_may_have_any_length_up_to_30_s(
    engine: SpeechEngine, script: Script, samples: int
) -> None:
    spoken = script.spoken(1)[:samples]
    window = np.pad(spoken, (0, samples - len(spoken)))
    quick = replace(QUICK, language=script.options.language)
    segments = one(engine, window, quick)
    assert all(segment.span.end_ms <= samples // 16 for segment in segments)


def test_no_windows_are_no_work(engine: SpeechEngine) -> None:
    assert engine.transcribe([], ENGLISH) == []
    assert engine.languages([]) == []


def test_a_prompt_longer_than_the_decoders_memory_is_cut(whisper: SpeechEngine) -> None:
    long = replace(ENGLISH, hotwords="London, " * 300, initial_prompt="The train. " * 300)
    assert one(whisper, speak(REPORT), long) is not None


def test_a_prompt_teaches_a_spelling(whisper: SpeechEngine) -> None:
    window = speak("We visited Mister Haynes in his office on Monday.")
    for spelling in ("Hanes", "Haines"):
        prompted = replace(ENGLISH, initial_prompt=f"Mr. {spelling} and Mrs. {spelling}.")
        assert spelling in text(one(whisper, window, prompted))


def test_each_windows_language_is_detected(whisper: SpeechEngine) -> None:
    english, french = whisper.languages([speak(TRAIN), speak(FRENCH, "fr")])
    for languages, code in ((english, "en"), (french, "fr")):
        assert set(languages) <= set(LANGUAGES)
        assert sum(languages.values()) == pytest.approx(1, abs=0.01)
        assert max(languages, key=lambda each: languages[each]) == code
        assert languages[code] > 0.5


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("seconds", [2.5, 10, 10.1, 30])
def test_a_windows_language_is_detected_whatever_its_length(
    whisper: SpeechEngine, seconds: float, quick: bool
) -> None:
    samples = round(seconds * SAMPLE_RATE)
    for sentence, code in ((TRAIN, "en"), (FRENCH, "fr")):
        spoken = speak(sentence, code)[:samples]
        (found,) = whisper.languages([np.pad(spoken, (0, samples - len(spoken)))], quick=quick)
        assert max(found, key=lambda each: found[each]) == code


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_the_language_of_next_to_no_audio_is_uncertain(whisper: SpeechEngine, samples: int) -> None:
    (found,) = whisper.languages([silence(1)[:samples]], quick=True)
    assert max(found.values()) < SURE


def test_no_hotter_decoding_is_tried_in_the_wrong_language(whisper: SpeechEngine) -> None:
    wrong = one(whisper, speak(FORECAST), replace(ENGLISH, language="vi"))
    assert wrong
    assert {segment.temperature for segment in wrong} == {0}
    for segment in wrong:
        assert LANGUAGE_MISMATCH in segment.flags
        assert guards.RETRIED not in segment.flags
        assert segment.detected is not None
        assert segment.detected.language == "en"
        assert segment.detected.probability > 0.8


def test_text_in_the_right_language_has_no_other_detected(script: Script, spoken: Spoken) -> None:
    assert all(segment.detected is None for segment in spoken(script.sentences[2]))


@pytest.mark.parametrize("language", ["vi", "haw", "jw", "he", "zh", "th"])
def test_an_offered_language_is_accepted(whisper: SpeechEngine, language: str) -> None:
    options = replace(QUICK, language=language)
    assert len(whisper.transcribe([speak(REPORT)], options)) == 1


def test_the_languages_we_offer_are_those_of_both_libraries() -> None:
    last = ggml.whisper_lang_max_id()
    assert {ggml.whisper_lang_str(number) for number in range(last + 1)} == set(LANGUAGES)
    assert set(_LANGUAGE_CODES) == set(LANGUAGES)


def test_an_engine_prints_nothing(
    engine: SpeechEngine, script: Script, weights_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_engine(engine.name, weights_dir / WEIGHTS[engine.name])
    loaded.transcribe([script.spoken(1)], script.options)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", BATCH_ENGINES)
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


CALM = "Tomorrow the library opens at ten and closes at six in the evening."
CALM_VI = "Việt Nam là một nước ở Đông Nam Á, thủ đô là Hà Nội."


@pytest.fixture(scope="module")
def aligner(weights_dir: Path) -> SpeechEngine:
    return load_engine("faster-whisper", weights_dir / WEIGHTS["faster-whisper"])


def align(
    engine: SpeechEngine, window: Samples, texts: list[str], options: DecodingOptions = ENGLISH
) -> tuple[Word, ...] | None:
    (found,) = engine.align([window], [texts], options)
    return found


def assert_aligned(words: tuple[Word, ...] | None, texts: list[str], window: Samples) -> None:
    assert words is not None
    assert [word.text for word in words] == texts
    edges = [ms for word in words for ms in (word.span.start_ms, word.span.end_ms)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(window) // SAMPLES_PER_MS
    assert all(word.span.duration_ms >= 1 and 0 <= word.probability <= 1 for word in words)
    assert not any(word.estimated for word in words)


def test_the_words_of_a_text_get_the_times_at_which_they_are_said(aligner: SpeechEngine) -> None:
    window = np.concatenate([silence(2), speak(CALM), silence(3), speak(REPORT)])
    first, second = ([f" {word}" for word in it.split()] for it in (CALM, REPORT))
    words = align(aligner, window, [*first, *second])
    assert_aligned(words, [*first, *second], window)
    assert words is not None
    calm_ms = 2_000 + len(speak(CALM)) // SAMPLES_PER_MS
    assert words[0].span.start_ms == pytest.approx(2_000, abs=300)
    assert words[len(first) - 1].span.end_ms == pytest.approx(calm_ms, abs=500)
    assert words[len(first)].span.start_ms == pytest.approx(calm_ms + 3_000, abs=400)
    assert np.mean([word.probability for word in words]) > 0.5


def test_what_was_transcribed_is_aligned_to_the_same_times(aligner: SpeechEngine) -> None:
    window = speak(FORECAST)
    spoken = [word for segment in one(aligner, window) for word in segment.words]
    words = align(aligner, window, [word.text for word in spoken])
    assert words is not None
    for was, word in zip(spoken, words, strict=True):
        assert word.span.midpoint_ms == pytest.approx(was.span.midpoint_ms, abs=120)


def test_vietnamese_words_are_aligned_with_their_marks(aligner: SpeechEngine) -> None:
    window = speak(CALM_VI, "vi")
    texts = [f" {word}" for word in CALM_VI.split()]
    assert_aligned(align(aligner, window, texts, VIETNAMESE), texts, window)


def test_each_word_is_kept_as_it_is_written(aligner: SpeechEngine) -> None:
    texts = ["The", " -", "  train,", " “to", "\nLondon”", " 🚆", "", " 9", " …"]
    window = speak(TRAIN)
    assert_aligned(align(aligner, window, texts), texts, window)
    assert_aligned(
        align(aligner, window, ["火", "车", "。"], replace(ENGLISH, language="zh")),
        ["火", "车", "。"],
        window,
    )


def test_a_text_that_nobody_says_is_improbable(aligner: SpeechEngine) -> None:
    words = align(aligner, speak(TRAIN), [f" {word}" for word in ["Purple", "elephants", "juggle"]])
    assert words is not None
    assert probability_of(words) < LEAST_PROBABILITY


@pytest.mark.parametrize(
    "text", ["quyết định nghỉ", "chuyện thường ngày", "thuyền truyền thống", "Nguyễn Trường Tộ"]
)
def test_a_vietnamese_text_that_nobody_says_is_improbable(aligner: SpeechEngine, text: str) -> None:
    window = speak(CALM_VI, "vi")
    said = align(aligner, window, [f" {word}" for word in CALM_VI.split()], VIETNAMESE)
    words = align(aligner, window, [f" {word}" for word in text.split()], VIETNAMESE)
    assert said is not None
    assert words is not None
    assert probability_of(words) < LEAST_PROBABILITY < probability_of(said)


def test_how_windows_are_grouped_into_calls_changes_no_alignment(aligner: SpeechEngine) -> None:
    windows = [speak(TRAIN), silence(1), speak(REPORT)]
    texts = [[f" {word}" for word in it.split()] for it in (TRAIN, "Hello there.", REPORT)]
    together = aligner.align(windows, texts, ENGLISH)
    for window, text_, found in zip(windows, texts, together, strict=True):
        assert align(aligner, window, text_) == found
    assert aligner.align([], [], ENGLISH) == []


def test_no_text_has_no_words_and_too_long_a_text_no_alignment(aligner: SpeechEngine) -> None:
    assert align(aligner, speak(REPORT), []) == ()
    assert align(aligner, speak(REPORT), [" word"] * 500) is None
    assert align(aligner, silence(0.002), [" word"] * 3) is None
    assert align(aligner, silence(0), [" word"]) is None


def test_engines_that_cannot_align_a_text_say_so(engine: SpeechEngine, script: Script) -> None:
    texts = script.sentences[0].split()
    found = align(engine, script.spoken(0), texts, script.options)
    assert (found is None) == (engine.name != "faster-whisper")
