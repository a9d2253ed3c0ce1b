"""What streaming networks promise (common.asr.streaming): real weights, and networks made here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from common.asr.engine import Samples
from common.asr.loading import load_recognizer
from common.asr.streaming import RecognitionRequest
from common.asr.zipformer import Zipformer
from common.domain.stream import Hypothesis
from common.domain.values import SAMPLES_PER_MS, Word
from common.errors import EngineFailed, WeightsMissing, WeightsUnusable
from tests.support.speech import noise, silence, speak
from tests.support.streaming_networks import (
    CHUNK_MS,
    CYCLE,
    TOKENS,
    write_conformer,
    write_lstm,
    write_tokens,
    write_zipformer,
    write_zipformer2,
    write_zipformer2_ctc,
)

STEP_MS = 160
COUNT = "một hai ba bốn năm sáu bảy tám chín mười"
THANKS = "cảm ơn bạn rất nhiều"
TRANSDUCERS = (write_zipformer2, write_zipformer, write_conformer, write_lstm)
WRITERS = (write_zipformer2_ctc, *TRANSDUCERS)


@pytest.fixture(scope="module")
def viet(streaming_weights: Path) -> Zipformer:
    return Zipformer(streaming_weights)


@pytest.fixture(params=["viet", *WRITERS])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Zipformer, list[Samples]]:
    """Any of them, and what it recognizes."""
    if request.param == "viet":
        viet: Zipformer = request.getfixturevalue("viet")
        return viet, [spoken(COUNT), spoken(THANKS), silence(2)]
    request.param(tmp_path)
    pause = np.concatenate([silence(0.4), loud(chunks=4), silence(1), loud(chunks=3)])
    return Zipformer(tmp_path), [pause, loud(chunks=8), loud(chunks=3)]


def spoken(text: str) -> Samples:
    """Speech in Vietnamese, after half a second of silence."""
    return np.concatenate([silence(0.5), speak(text, "vi")])


def loud(chunks: int) -> Samples:
    """Noise that lasts a little longer than so many chunks of the networks made here."""
    return noise(chunks * CHUNK_MS / 1000 + 0.01, level=0.1)


def request(
    samples: Samples, *, stream: str = "a", utterance: int = 0, final: bool = False
) -> RecognitionRequest:
    return RecognitionRequest(stream, utterance, samples, "vi", full=final, final=final)


def one(recognizer: Zipformer, asked: RecognitionRequest) -> Hypothesis:
    (hypothesis,) = recognizer.recognize([asked])
    return hypothesis


def at_once(recognizer: Zipformer, samples: Samples) -> Hypothesis:
    return one(recognizer, request(samples, stream="at once", final=True))


def growing(samples: Samples, step_ms: int = STEP_MS) -> Iterable[tuple[Samples, bool]]:
    """An utterance as it comes in; the last is final."""
    ends = [*range(step_ms * SAMPLES_PER_MS, len(samples), step_ms * SAMPLES_PER_MS), len(samples)]
    for end in ends:
        yield samples[:end], end == len(samples)


def step_by_step(
    recognizer: Zipformer, samples: Samples, step_ms: int = STEP_MS
) -> list[Hypothesis]:
    return [
        one(recognizer, request(so_far, stream="by step", final=final))
        for so_far, final in growing(samples, step_ms)
    ]


def words(hypothesis: Hypothesis) -> list[Word]:
    return [word for segment in hypothesis.segments for word in segment.words]


def said_by_the_network(chunks: int) -> str:
    return "".join(CYCLE[chunk % len(CYCLE)] for chunk in range(chunks)).strip()


def test_vietnamese_becomes_its_text(viet: Zipformer) -> None:
    said = at_once(viet, spoken(COUNT)).text.split()
    assert len(set(said) & set(COUNT.split())) >= 6  # a robot's voice


def test_each_hypothesis_begins_with_the_one_before(
    network: tuple[Zipformer, list[Samples]],
) -> None:
    recognizer, clips = network
    for audio in clips[:2]:
        grown = step_by_step(recognizer, audio)
        texts = [hypothesis.text for hypothesis in grown]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert len(set(texts)) > 2
        assert not any(hypothesis.doubtful for hypothesis in grown)
        assert grown[-1] == at_once(recognizer, audio)


@pytest.mark.parametrize("step_ms", [32, 1_000])
def test_how_the_audio_comes_in_changes_nothing(viet: Zipformer, step_ms: int) -> None:
    audio = spoken(THANKS)
    assert step_by_step(viet, audio, step_ms)[-1] == at_once(viet, audio)


def test_words_join_to_the_text_and_follow_each_other_inside_the_utterance(viet: Zipformer) -> None:
    audio = spoken(COUNT)
    hypothesis = at_once(viet, audio)
    assert "".join(word.text for word in words(hypothesis)).strip() == hypothesis.text
    assert all(word.text.startswith(" ") for word in words(hypothesis))
    spans = [word.span for word in words(hypothesis)]
    assert all(span.duration_ms > 0 for span in spans)
    assert all(left.end_ms <= right.start_ms for left, right in pairwise(spans))
    assert spans[-1].end_ms <= len(audio) // SAMPLES_PER_MS
    assert all(word.probability == 1 for word in words(hypothesis)), "a CTC model gives none"


def test_words_have_the_times_when_they_are_spoken(viet: Zipformer) -> None:
    audio = np.concatenate([spoken(COUNT), silence(2), speak(THANKS, "vi")])
    said = words(at_once(viet, audio))
    pauses = [right.span.start_ms - left.span.end_ms for left, right in pairwise(said)]
    resumed = said[pauses.index(max(pauses)) + 1]
    expected_ms = (len(spoken(COUNT)) + len(silence(2))) // SAMPLES_PER_MS
    assert abs(resumed.span.start_ms - expected_ms) < 400


def test_streams_recognized_together_have_what_each_has_alone(
    network: tuple[Zipformer, list[Samples]],
) -> None:
    recognizer, clips = network
    assert recognizer.recognize([]) == []
    alone = [at_once(recognizer, audio) for audio in clips]
    steps = [list(growing(audio)) for audio in clips]
    last: dict[int, Hypothesis] = {}
    for turn in range(max(map(len, steps)) + len(clips)):
        # Each begins one turn after the one before, so that all are at different positions.
        going = [number for number, each in enumerate(steps) if 0 <= turn - number < len(each)]
        asked = [
            request(samples, stream=str(number), final=final)
            for number in going
            for samples, final in [steps[number][turn - number]]
        ]
        last.update(zip(going, recognizer.recognize(asked), strict=True))
    assert [last[number] for number in range(len(clips))] == alone


def test_without_speech_there_is_no_text(network: tuple[Zipformer, list[Samples]]) -> None:
    recognizer, _ = network
    for audio in (silence(3), silence(0.01), silence(0)):
        assert at_once(recognizer, audio) == Hypothesis(())


def test_noise_is_no_speech(viet: Zipformer) -> None:
    assert at_once(viet, noise(3)) == Hypothesis(())


def test_the_state_of_a_stream_that_has_ended_is_deleted(viet: Zipformer) -> None:
    one(viet, request(spoken(THANKS), stream="ended"))
    one(viet, request(spoken(THANKS), stream="live"))
    viet.forget("ended")
    viet.forget("unknown")
    assert [stream for stream, _ in viet._utterances] == ["live"]
    one(viet, request(spoken(THANKS), stream="live", final=True))
    assert not viet._utterances


def test_the_next_utterance_knows_nothing_of_the_one_before(viet: Zipformer) -> None:
    one(viet, request(spoken(COUNT), utterance=1))  # it never ends
    final = request(spoken(THANKS), utterance=2, final=True)
    assert one(viet, final) == at_once(viet, spoken(THANKS))
    assert not viet._utterances


def test_an_utterances_end_and_the_next_ones_beginning_may_come_together(viet: Zipformer) -> None:
    asked = [request(spoken(COUNT), final=True), request(spoken(THANKS), utterance=1)]
    ended, begun = viet.recognize(asked)
    assert ended == at_once(viet, spoken(COUNT))
    assert at_once(viet, spoken(THANKS)).text.startswith(begun.text)
    viet.forget("a")


def test_an_utterance_may_be_requested_twice_at_once(viet: Zipformer) -> None:
    audio = spoken(THANKS)
    _, final = viet.recognize([request(audio[: len(audio) // 2]), request(audio, final=True)])
    assert final == at_once(viet, audio)


def test_it_prints_nothing(streaming_weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recognizer = load_recognizer("zipformer", streaming_weights, threads=2)
    assert recognizer.name == "zipformer"
    recognizer.recognize([request(spoken(THANKS), final=True)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("write", WRITERS)
def test_text_has_times(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    audio = loud(chunks=5)
    hypothesis = at_once(Zipformer(tmp_path), audio)
    assert hypothesis.text.startswith(said_by_the_network(5))
    first, second, third, *_ = words(hypothesis)
    assert [first.text, second.text, third.text] == [" một", " haiba", " một"]
    assert first.span.end_ms <= second.span.start_ms
    assert 2 * CHUNK_MS - 250 <= second.span.end_ms <= third.span.start_ms
    assert third.span.end_ms <= len(audio) // SAMPLES_PER_MS


@pytest.mark.parametrize("write", TRANSDUCERS)
def test_transducers_give_probabilities(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    hypothesis = at_once(Zipformer(tmp_path), loud(chunks=4))
    assert all(0.5 < word.probability < 1 for word in words(hypothesis))
    assert all(-1 < segment.avg_logprob < 0 for segment in hypothesis.segments)


def test_published_names_are_understood_and_eight_bits_preferred(tmp_path: Path) -> None:
    write_zipformer2(tmp_path, "-epoch-99-avg-1-chunk-16-left-128.int8")
    for name in ("encoder", "decoder", "joiner"):
        (tmp_path / f"{name}-epoch-99-avg-1-chunk-16-left-128.onnx").write_bytes(b"not looked at")
    assert at_once(Zipformer(tmp_path), loud(chunks=2)).text


def test_a_network_that_has_only_capitals_writes_lower_case(tmp_path: Path) -> None:
    write_zipformer2_ctc(tmp_path)
    write_tokens(tmp_path, [each if "<" in each else each.upper() for each in TOKENS])
    found = at_once(Zipformer(tmp_path), loud(chunks=6))
    assert found.text == said_by_the_network(6)
    assert "".join(word.text for word in found.segments[0].words).strip() == found.text


def test_long_chunks_are_decoded_to_their_end(tmp_path: Path) -> None:
    write_zipformer2_ctc(tmp_path, shift=128)
    audio = loud(chunks=9)  # two of these and a fourth
    assert at_once(Zipformer(tmp_path), audio).text == said_by_the_network(3)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="steno models pull nowhere --engine zipformer"):
        load_recognizer("zipformer", tmp_path / "nowhere")
    write_tokens(tmp_path)
    with pytest.raises(WeightsUnusable, match=r"lacks model\.onnx"):
        load_recognizer("zipformer", tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def swap(path: Path, old: bytes, new: bytes) -> None:
    """Change a file without changing its length."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "encoder.onnx").write_bytes(b""), "encoder.onnx is empty"),
        (lambda folder: (folder / "encoder.onnx").write_bytes(b"{}" * 50), "not an ONNX model"),
        (lambda folder: cut(folder / "encoder.onnx"), "truncated"),
        (lambda folder: cut(folder / "decoder.onnx"), "truncated"),
        (lambda folder: cut(folder / "joiner.onnx"), "truncated"),
        (
            lambda folder: shutil.copy(folder / "joiner.onnx", folder / "encoder.onnx"),
            "of type unknown, not zipformer2 or zipformer",
        ),
        (
            lambda folder: swap(folder / "encoder.onnx", b"decode_chunk_len", b"offline_has_none"),
            "the metadata of encoder.onnx lacks decode_chunk_len",
        ),
        (
            lambda folder: swap(folder / "decoder.onnx", b"context_size", b"context_less"),
            "the metadata of decoder.onnx lacks context_size",
        ),
        (lambda folder: write_tokens(folder, ["<blk>", "a"]), "has 2 tokens, the network 6"),
        (
            lambda folder: (folder / "tokens.txt").write_text("three words here\n"),
            "line 1: expected a token and a number",
        ),
        (lambda folder: (folder / "tokens.txt").write_bytes(b"\xff\xfe"), "is not UTF-8"),
    ],
)
def test_damaged_weights_fail_with_a_reason(
    damage: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    write_zipformer2(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsUnusable, match=complaint):
        Zipformer(tmp_path)


def test_a_ctc_model_needs_a_blank(tmp_path: Path) -> None:
    write_zipformer2_ctc(tmp_path)
    write_tokens(tmp_path, ["a", "b", "c", "d", "e", "f"])
    with pytest.raises(WeightsUnusable, match="has none of <blank>, <blk>, <eps>"):
        Zipformer(tmp_path)


def test_after_a_failure_an_utterance_is_decoded_from_its_beginning(tmp_path: Path) -> None:
    write_zipformer2_ctc(tmp_path)
    made = Zipformer(tmp_path)
    audio = loud(chunks=5)
    expected = at_once(made, audio)
    whole = made._recognizer

    class Broken:
        """The network, until a chunk is to be decoded."""

        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

        def decode_streams(self, _: Sequence[object]) -> None:
            raise RuntimeError("out of memory")

    one(made, request(audio[: len(audio) // 2]))
    made._recognizer = Broken()
    with pytest.raises(EngineFailed, match="out of memory"):
        one(made, request(audio))
    made._recognizer = whole
    assert one(made, request(audio, final=True)) == expected
