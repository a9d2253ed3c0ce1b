"""Voice activity on speech that is made on the spot, against the published network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from common.audio.silero import CONTEXT, FRAME, SileroNetwork, silero_path
from common.audio.vad import VadFinder, VoiceActivity
from common.domain.cutting import CutOptions, Speech
from common.domain.values import SAMPLE_RATE
from tests.support.audio_files import noise, silence
from tests.support.speech import Pcm, speak_pcm

SPOKEN = speak_pcm("Nobody knows what the weather will be tomorrow, but we shall go out.")


@pytest.fixture(scope="module")
def network() -> SileroNetwork:
    return SileroNetwork()


def conversation() -> Pcm:
    """A minute with speech in two languages, pauses, noise, and a broken frame at the end."""
    parts = [
        silence(1.2),
        SPOKEN,
        noise(3, 0.05),
        speak_pcm("Hôm nay trời đẹp, chúng ta cùng nhau đi chơi.", "vi"),
        silence(2),
        SPOKEN,
        noise(20, 0.2),
        SPOKEN,
    ]
    return np.concatenate(parts)[:-100]


def published(samples: Pcm) -> NDArray[np.float32]:
    """The probabilities by onnxruntime on the unchanged file, as faster-whisper feeds it."""
    session = onnxruntime.InferenceSession(str(silero_path()), providers=["CPUExecutionProvider"])
    padded = np.pad(samples, (CONTEXT, -len(samples) % FRAME)) / np.float32(32_768)
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    state = np.zeros((1, 1, 128), np.float32)
    feeds = {"input": frames.astype(np.float32), "h": state, "c": state}
    probabilities: NDArray[np.float32] = session.run(None, feeds)[0]
    return probabilities


def found_in(network: SileroNetwork, samples: Pcm, step: int) -> list[Speech]:
    finder = VadFinder(network, CutOptions())
    found = []
    for start in range(0, len(samples), step):
        found += finder.feed(samples[start : start + step])
    return found + finder.finish()


def test_the_numbers_are_those_of_the_published_network(network: SileroNetwork) -> None:
    samples = conversation()
    activity = VoiceActivity(network)
    ours = np.concatenate([activity.feed(samples), activity.finish()])
    theirs = published(samples)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("step", [1_000, 16_000, 65_536, 100_003])
def test_blocks_of_any_size_give_the_same_bits(network: SileroNetwork, step: int) -> None:
    samples = conversation()
    whole = VoiceActivity(network)
    expected = np.concatenate([whole.feed(samples), whole.finish()])
    activity = VoiceActivity(network)
    fed = [activity.feed(samples[at : at + step]) for at in range(0, len(samples), step)]
    assert np.array_equal(np.concatenate([*fed, activity.finish()]), expected)


def test_speech_is_found_at_its_times(
    network: SileroNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.audio.vad.MIN_SILENCE_MS", 1_500)
    samples = np.concatenate([silence(3), SPOKEN, silence(3), SPOKEN, silence(3)])
    found = found_in(network, samples, SAMPLE_RATE)
    length_ms = len(SPOKEN) // 16
    assert len(found) == 2
    for speech_found, start_ms in zip(found, (3_000, 6_000 + length_ms), strict=True):
        assert abs(speech_found.span.start_ms - start_ms) < 300
        assert abs(speech_found.span.end_ms - start_ms - length_ms) < 600


@pytest.mark.parametrize("nobody", [silence(20), noise(20, 0.02), silence(0), silence(0.001)])
def test_silence_and_noise_have_no_speech(network: SileroNetwork, nobody: Pcm) -> None:
    assert found_in(network, nobody, SAMPLE_RATE) == []


def test_speech_at_the_very_end_ends_with_the_recording(network: SileroNetwork) -> None:
    spoken = speak_pcm("one two three four five six seven")
    cut_off = spoken[: len(spoken) // 2]
    found = found_in(network, np.concatenate([silence(1), cut_off]), SAMPLE_RATE)
    assert found[-1].span.end_ms == (SAMPLE_RATE + len(cut_off)) // 16


def test_speech_without_a_pause_is_cut_to_fit_windows(
    network: SileroNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.audio.vad.MIN_SILENCE_MS", 2_000)
    spoken = speak_pcm("and so on and on we go and never stop to breathe")
    loud = np.flatnonzero(np.abs(spoken) > 500)
    without_end = np.tile(spoken[loud[0] : loud[-1]], 1 + 90 * SAMPLE_RATE // (loud[-1] - loud[0]))
    found = found_in(network, without_end, 50_000)
    assert found == found_in(network, without_end, len(without_end))
    assert [speech.closed for speech in found].count(False) >= 2
    for piece, following in pairwise(found):
        assert piece.span.end_ms == following.span.start_ms
        assert piece.span.duration_ms <= CutOptions().window_ms - CutOptions().overlap_ms


def test_another_version_of_the_network_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.onnx"
    content = silero_path().read_bytes()
    other.write_bytes(content.replace(b"conv_layers.3.bias", b"conv_layers.4.bias"))
    monkeypatch.setattr("common.audio.silero.silero_path", lambda: other)
    with pytest.raises(KeyError):
        SileroNetwork()
