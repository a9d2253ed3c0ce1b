"""Diarization by the real networks, of voices of eSpeak NG."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from common.audio.planning import Planner, PlanOptions
from common.audio.silero import SileroNetwork
from common.diarization.clustering import cluster
from common.diarization.onnx import OnnxDiarizer
from common.domain.models import SPEAKER_NETWORKS
from common.domain.speakers import SpeakerCount, Turn, gather, turns_of
from common.domain.values import SAMPLE_RATE, Chunk, Span, Window
from common.weights.store import WeightsStore
from tests.support.speech import noise, pcm16, silence, speak

Samples = NDArray[np.float32]

SAID = (
    "They swarmed up in front of the palings as thick as they could jam together.",
    "The stillness was awful, creepy and uncomfortable, and nobody dared to say a word.",
)
HIM, HER = "en", "en+f4"
NEAR_MS = 500


@pytest.fixture(scope="module")
def diarizer(diarization_weights: WeightsStore) -> OnnxDiarizer:
    segmentation, embedding = (
        diarization_weights.resolve(it.engine, it.model).path for it in SPEAKER_NETWORKS
    )
    return OnnxDiarizer(segmentation, embedding)


def conversation(times: int) -> tuple[Samples, list[Span]]:
    """Two voices that take turns, in a room, and when they speak."""
    pieces, spans, now = [silence(0.5)], [], 500
    for at in range(times):
        said = speak(SAID[at // 2 % 2], (HIM, HER)[at % 2])
        spans.append(Span(now, now + len(said) * 1000 // SAMPLE_RATE))
        pieces += [said, silence(0.8)]
        now = spans[-1].end_ms + 800
    samples = np.concatenate(pieces)
    return samples + noise(len(samples) / SAMPLE_RATE, level=0.001)[: len(samples)], spans


def diarized(diarizer: OnnxDiarizer, samples: Samples, *, whole: bool = False) -> tuple[Turn, ...]:
    """The turns found in chunks as they are planned, or in the whole at once."""
    if whole:
        span = Span(0, len(samples) * 1000 // SAMPLE_RATE)
        chunks = [(Chunk(0, (Window(span, span, 0),)), samples)]
    else:
        planner = Planner(PlanOptions(), SileroNetwork())
        planned = planner.feed(np.frombuffer(pcm16(samples), "<i2")) + planner.finish()
        chunks = [
            (it.chunk, np.frombuffer(it.pcm, "<i2").astype(np.float32) / np.float32(32_768))
            for it in planned
        ]
    stretches = gather([(chunk, diarizer.diarize(part)) for chunk, part in chunks])
    return turns_of(stretches, cluster(stretches))


def test_two_people_who_take_turns_are_told_apart(diarizer: OnnxDiarizer) -> None:
    samples, spans = conversation(8)
    for whole in (True, False):
        turns = diarized(diarizer, samples, whole=whole)
        assert {turn.speaker for turn in turns} == {"SPEAKER_00", "SPEAKER_01"}
        for at, span in enumerate(spans):
            middle = [it for it in turns if it.span.holds(span.midpoint_ms)]
            assert [it.speaker for it in middle] == [f"SPEAKER_0{at % 2}"]
            assert abs(middle[0].span.start_ms - span.start_ms) <= NEAR_MS
        assert not any(one.span.end_ms > other.span.start_ms for one, other in pairwise(turns))


def test_one_person_is_one_speaker(diarizer: OnnxDiarizer) -> None:
    samples = np.concatenate([speak(said, HIM) for said in SAID * 3])
    assert {turn.speaker for turn in diarized(diarizer, samples)} == {"SPEAKER_00"}


def test_who_interrupts_speaks_at_the_same_time(diarizer: OnnxDiarizer) -> None:
    samples, spans = conversation(6)
    interruption = speak(SAID[0], HER) * 1.5
    start = (spans[2].start_ms + 1_000) * SAMPLE_RATE // 1000
    samples[start : start + len(interruption)] += interruption
    turns = diarized(diarizer, samples, whole=True)
    both = [
        (one.speaker, other.speaker)
        for one, other in pairwise(turns)
        if one.span.end_ms > other.span.start_ms
    ]
    assert ("SPEAKER_00", "SPEAKER_01") in both


def music(seconds: float) -> Samples:
    """Chords of decaying tones, two a second."""
    random = np.random.default_rng(2)
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    samples = np.zeros(len(at))
    for start in np.arange(0, seconds, 0.5):
        decay = np.exp(-3 * np.maximum(at - start, 0)) * (at >= start)
        for hz in random.choice([220, 262, 330, 392, 440, 523, 659], 3, replace=False):
            samples += 0.06 * decay * sum(np.sin(2 * np.pi * hz * k * at) / k for k in range(1, 5))
    return samples.astype(np.float32)


@pytest.mark.parametrize("samples", [silence(3), noise(12), silence(0.05), music(12)])
def test_where_nobody_speaks_there_is_no_turn(diarizer: OnnxDiarizer, samples: Samples) -> None:
    assert diarized(diarizer, samples, whole=True) == ()


def test_speech_of_less_than_half_a_second_is_one_speaker(diarizer: OnnxDiarizer) -> None:
    word = speak("Yes.", HIM)[: int(0.4 * SAMPLE_RATE)]
    stretches = diarizer.diarize(np.concatenate([silence(0.3), word, silence(0.3)]))
    turns = turns_of(stretches, cluster(stretches, SpeakerCount.of(num_speakers=2)))
    assert {turn.speaker for turn in turns} == {"SPEAKER_00"}
