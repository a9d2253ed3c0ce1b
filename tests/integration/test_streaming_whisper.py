"""Whisper over live streams (common.asr.streaming_whisper), on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from faster_whisper.tokenizer import Tokenizer
from whisper_normalizer.english import EnglishTextNormalizer

from common.asr.engine import DecodingOptions
from common.asr.faster_whisper import FasterWhisper, with_all_merges, words_after
from common.asr.streaming import PrecedingAudio, RecognitionRequest
from common.asr.streaming_whisper import StreamingWhisper, repeats
from common.domain.stream import Hypothesis
from common.domain.values import SAMPLES_PER_MS, Word
from tests.support.speech import silence, speak

REPORT = "Please send me the report before Friday."
TRAIN = "The train to London leaves at nine o'clock."
LATE = "Please do not be late tomorrow morning."


@pytest.fixture(scope="module")
def whisper(weights_dir: Path) -> StreamingWhisper:
    return StreamingWhisper(weights_dir / "faster-whisper-base")


def utterance(text: str) -> Any:
    return np.concatenate([silence(0.25), speak(text), silence(0.2)])


def said_before(text: str) -> PrecedingAudio:
    return PrecedingAudio(np.concatenate([utterance(text), silence(0.5)]), f" {text}")


def full(text: str, before: PrecedingAudio | None = None) -> RecognitionRequest:
    return RecognitionRequest("a", 1, utterance(text), "en", before, full=True, final=True)


def words_of(hypothesis: Hypothesis) -> list[Word]:
    return [word for segment in hypothesis.segments for word in segment.words]


def errors(reference: str, hypothesis: Hypothesis) -> float:
    normal = EnglishTextNormalizer()
    return float(jiwer.wer(normal(reference), normal(hypothesis.text)))


def test_only_the_utterance_is_returned(whisper: StreamingWhisper) -> None:
    (recognized,) = whisper.recognize([full(TRAIN, said_before(REPORT))])
    assert errors(TRAIN, recognized) <= 0.25
    assert "".join(word.text for word in words_of(recognized)).strip() == recognized.text


def test_words_have_the_same_times_without_preceding_audio(whisper: StreamingWhisper) -> None:
    alone, after = (
        words_of(whisper.recognize([full(TRAIN, before)])[0])
        for before in (None, said_before(REPORT))
    )
    ends = {word.text.strip(" .,").lower(): word.span.end_ms for word in alone}
    shared = [word for word in after if word.text.strip(" .,").lower() in ends]
    assert len(shared) >= 5
    for word in shared:
        assert abs(word.span.end_ms - ends[word.text.strip(" .,").lower()]) <= 300
    assert after[-1].span.end_ms <= len(utterance(TRAIN)) // SAMPLES_PER_MS


def test_preceding_text_that_was_not_spoken_costs_no_words(whisper: StreamingWhisper) -> None:
    wrong = PrecedingAudio(silence(1.0), f" {TRAIN}")
    recognized, alone = (
        whisper.recognize([full(TRAIN, before)])[0].text for before in (wrong, None)
    )
    assert recognized == alone


def test_streams_decoded_together_are_decoded_as_each_by_itself(whisper: StreamingWhisper) -> None:
    wanted = [
        full(TRAIN, said_before(REPORT)),
        full(LATE),
        full(REPORT, said_before(f"{TRAIN} {LATE}")),
        RecognitionRequest("b", 1, utterance(LATE), "en"),
    ]
    together = [hypothesis.text for hypothesis in whisper.recognize(wanted)]
    assert together == [whisper.recognize([each])[0].text for each in wanted]


def test_the_tokenizer_knows_the_words_that_begin_with_t(whisper: StreamingWhisper) -> None:
    tokenizer = whisper._model.hf_tokenizer
    words = tokenizer.encode(" the train to Thursday", add_special_tokens=False).tokens
    assert words == ["Ġthe", "Ġtrain", "Ġto", "ĠThursday"]
    assert with_all_merges(tokenizer) is tokenizer, "it lacks nothing any more"


def test_hotwords_are_encoded_by_such_a_tokenizer(weights_dir: Path) -> None:
    whisper = FasterWhisper(weights_dir / "faster-whisper-base")
    tokenizer = whisper._tokenizer(DecodingOptions("en", hotwords="the train"))
    assert len(tokenizer.encode(" the train")) == 2


def test_a_word_begun_before_is_kept_from_where_it_goes_on(whisper: StreamingWhisper) -> None:
    tokenizer = Tokenizer(whisper._model.hf_tokenizer, True, task="transcribe", language="en")
    timings = [
        {"word": word, "tokens": tokenizer.encode(word), "start": 0.0, "end": 1.0}
        for word in (" one", " sesquipedalian", " three")
    ]
    counts = [len(timing["tokens"]) for timing in timings]
    assert counts[1] > 1
    kept = words_after(counts[0] + 1, timings, tokenizer)
    assert [timing["word"] for timing in kept] == [
        tokenizer.decode(timings[1]["tokens"][1:]),
        " three",
    ]
    assert words_after(0, timings, tokenizer) == timings
    assert words_after(sum(counts), timings, tokenizer) == []


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        ("And then he said yes.", "He went home.", False),
        ("I do not think so. I do not think so.", "", True),
        ("Replied he. Replied he. Replied he.", "", True),
        ("He went home again.", "Then he went home again, he said.", True),
        ("No, no, no.", "No.", False),
        ("home. So he stayed.", "He went", False),
        ("", "He went home, he went home, he went home.", False),
    ],
)
def test_a_decoder_that_repeats_itself_is_noticed(text: str, before: str, expected: bool) -> None:
    assert repeats(text, before) is expected
