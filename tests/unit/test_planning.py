"""The whole planner: blocks in, chunks with their PCM out."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.audio.planning import PlannedChunk, Planner, PlanOptions
from common.audio.silero import SileroNetwork
from common.domain.cutting import CutOptions
from common.domain.request import Strategy
from common.domain.values import SAMPLE_RATE
from tests.support import speech
from tests.support.audio_files import noise, silence, tone

NETWORK = SileroNetwork()
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
TEXT = "We were talking about the old house by the river, and how quiet it used to be there. "


def talk() -> NDArray[np.int16]:
    """Three minutes with speech, pauses, a minute of silence, and an endless tone."""
    spoken = speech.speak_pcm(TEXT)
    parts = [np.concatenate([spoken, silence(0.3 + 0.2 * turn)]) for turn in range(6)]
    return np.concatenate([*parts, silence(60), *parts, tone(45), silence(2.0005)])


TALK = talk()


def plan(
    samples: NDArray[np.int16], options: PlanOptions, steps: list[int]
) -> tuple[list[PlannedChunk], Planner]:
    planner = Planner(options, NETWORK)
    planned, start = [], 0
    while start < len(samples):
        for step in steps:
            planned += planner.feed(samples[start : start + step])
            start += step
    return planned + planner.finish(), planner


WHOLE = {strategy: plan(TALK, PlanOptions(strategy), [len(TALK)]) for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cores_tile_the_recording_and_chunks_have_their_audio(strategy: Strategy) -> None:
    planned, planner = WHOLE[strategy]
    windows = [window for each in planned for window in each.chunk.windows]
    assert windows[0].core.start_ms == 0
    assert windows[-1].core.end_ms == planner.duration_ms == -(-len(TALK) // 16)
    assert all(a.core.end_ms == b.core.start_ms for a, b in pairwise(windows))
    assert planner.speech_ms == sum(window.speech_ms for window in windows) > 0
    padded = np.pad(TALK, (0, -len(TALK) % 16))
    for each in planned:
        audio = each.chunk.audio
        assert each.pcm == padded[audio.start_ms * 16 : audio.end_ms * 16].tobytes()


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(STRATEGIES),
    st.lists(st.integers(1, 40 * SAMPLE_RATE), min_size=1, max_size=5).filter(
        lambda steps: sum(steps) > SAMPLE_RATE // 4
    ),
)
def test_blocks_of_any_size_give_the_same_chunks(strategy: Strategy, steps: list[int]) -> None:
    assert plan(TALK, PlanOptions(strategy), steps)[0] == WHOLE[strategy][0]


def test_the_first_chunks_are_handed_out_before_the_recording_ends() -> None:
    planner = Planner(PlanOptions(), NETWORK)
    early = planner.feed(TALK[: len(TALK) // 2])
    assert early
    assert early == WHOLE["vad"][0][: len(early)]


@pytest.mark.parametrize("strategy", ["vad", "silence"])
def test_a_recording_without_speech_has_no_chunks(strategy: Strategy) -> None:
    quiet = np.concatenate([silence(30), noise(30, 0.003)])
    planned, planner = plan(quiet, PlanOptions(strategy), [SAMPLE_RATE])
    assert planned == []
    assert (planner.speech_ms, planner.duration_ms) == (0, 60_000)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_recording_without_a_sample_has_no_chunks(strategy: Strategy) -> None:
    assert Planner(PlanOptions(strategy), NETWORK).finish() == []


def test_fixed_windows_have_the_length_and_overlap_that_were_asked_for() -> None:
    cut = CutOptions(window_ms=10_000, overlap_ms=1_000)
    planned, _ = plan(TALK, PlanOptions("fixed", cut), [len(TALK)])
    windows = [window for each in planned for window in each.chunk.windows]
    for left, right in pairwise(windows):
        assert left.audio.duration_ms == 10_000
        assert left.audio.end_ms - right.audio.start_ms == 1_000


def separate(steps: list[int], *channels: NDArray[np.int16]) -> tuple[list[PlannedChunk], Planner]:
    planner = Planner(PlanOptions(), NETWORK, range(len(channels)))
    samples = np.stack(channels, axis=1)
    planned, start = [], 0
    while start < len(samples):
        for step in steps:
            planned += planner.feed(samples[start : start + step])
            start += step
    return planned + planner.finish(), planner


LATE = np.concatenate([silence(7), TALK[: -7 * SAMPLE_RATE]])
BRIEF = np.concatenate([TALK[: 6 * SAMPLE_RATE], np.zeros(len(TALK) - 6 * SAMPLE_RATE, np.int16)])
APART = separate([len(TALK)], TALK, LATE, BRIEF, np.zeros_like(TALK))


def test_each_channel_is_cut_as_if_it_were_alone() -> None:
    planned, _ = APART
    assert [each.chunk.index for each in planned] == list(range(len(planned)))
    starts = [(each.chunk.audio.start_ms, each.chunk.channel) for each in planned]
    assert starts == sorted(starts)
    for channel, samples in enumerate((TALK, LATE, BRIEF)):
        alone = plan(samples, PlanOptions(), [len(samples)])[0]
        own = [each for each in planned if each.chunk.channel == channel]
        assert [each.pcm for each in own] == [each.pcm for each in alone]
        windows, expected = (
            [(it.audio, it.core.start_ms, it.speech_ms) for it in each.chunk.windows]
            for each in (own[-1], alone[-1])
        )
        assert windows == expected
        assert [each.chunk.windows for each in own[:-1]] == [it.chunk.windows for it in alone[:-1]]
    assert {each.chunk.channel for each in planned} == {0, 1, 2}


def test_the_chunks_of_channels_count_the_whole_recording_once() -> None:
    planned, planner = APART
    assert sum(each.counted_ms for each in planned) == planner.duration_ms == -(-len(TALK) // 16)
    assert all(each.counted_ms >= 0 for each in planned)
    for each in WHOLE["vad"][0]:
        assert each.counted_ms == each.chunk.core.duration_ms


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(SAMPLE_RATE // 4, 60 * SAMPLE_RATE), min_size=1, max_size=4))
def test_blocks_of_any_size_give_the_same_chunks_of_channels(steps: list[int]) -> None:
    assert separate(steps, TALK, LATE, BRIEF, np.zeros_like(TALK))[0] == APART[0]


def test_a_channel_that_falls_silent_holds_nothing_back() -> None:
    """Otherwise the audio of the others would wait in memory for the end."""
    planner = Planner(PlanOptions(), NETWORK, (0, 1))
    spoken = np.concatenate([speech.speak_pcm(TEXT)] * 8)
    turn = np.concatenate([spoken, silence(2)])
    first = np.stack([turn, np.zeros_like(turn)], axis=1)
    first[: 5 * SAMPLE_RATE, 1] = turn[: 5 * SAMPLE_RATE]
    ends = []
    for at in range(10):
        block = first if at == 0 else np.stack([turn, np.zeros_like(turn)], axis=1)
        ends += [each.chunk.audio.end_ms for each in planner.feed(block)]
        fed_ms = (at + 1) * len(turn) // 16
        assert fed_ms - max(ends, default=0) < 300_000
    assert len(ends) > 10


def test_voice_activity_needs_its_network() -> None:
    with pytest.raises(ValueError, match="network"):
        Planner(PlanOptions("vad"))
