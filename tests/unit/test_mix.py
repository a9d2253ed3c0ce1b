"""Many channels become one: speech on any of them is in it, and two that agree stay plain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.audio.decode import CHANNELS_INVERTED, CHANNELS_LEFT_OUT, MonoDecoder
from common.audio.mix import BLOCK, Mixer
from common.audio.wav import wav_header
from tests.support.speech import noise, speak

Floats = NDArray[np.floating]

VOICE = speak("The captain walked along the beach and looked for shells in the morning.")
OTHER = speak("Seven brown horses were waiting at the gate of the old farm all day.")


def together(*channels: Floats) -> Floats:
    """Channels side by side, as long as the shortest."""
    length = min(map(len, channels))
    return np.stack([channel[:length] for channel in channels], axis=1).astype(np.float32)


def mixed(channels: Floats) -> tuple[Floats, Mixer]:
    """What becomes of them, in [-1, 1]."""
    mixer = Mixer(channels.shape[1])
    pieces = [
        mixer.feed(channels[at : at + BLOCK].astype(np.float32))
        for at in range(0, len(channels), BLOCK)
    ]
    found = np.concatenate([*pieces, mixer.finish()])
    assert len(found) == len(channels)
    return found.astype(np.float32) / 32_768, mixer


def signal_to_noise(found: Floats, wanted: Floats) -> float:
    """In dB, at whatever gain ``wanted`` is in ``found``."""
    gain = found @ wanted / (wanted @ wanted)
    error = found - gain * wanted
    return float(10 * np.log10(gain**2 * (wanted @ wanted) / (error @ error + 1e-9)))


def loudness(found: Floats, wanted: Floats) -> float:
    """The gain of ``wanted`` in ``found``."""
    return float(found @ wanted / (wanted @ wanted))


def write(path: Path, channels: Floats) -> Path:
    samples = np.round(np.clip(channels, -1, 1) * 32_767).astype("<i2")
    path.write_bytes(wav_header(16_000, samples.shape[1], len(samples)) + samples.tobytes())
    return path


def test_two_channels_that_agree_are_their_plain_mean() -> None:
    wide = together(VOICE, 0.3 * VOICE + noise(20, level=0.02)[: len(VOICE)])
    for channels in (together(VOICE, VOICE), together(VOICE, OTHER), wide):
        found, mixer = mixed(channels)
        plain = np.floor(channels.mean(axis=1) * 32_768 + 0.5) / 32_768
        assert np.abs(found - plain).max() <= 1 / 32_768
        assert not mixer.inverted
        assert not mixer.left_out


@pytest.mark.parametrize("delay", [1, 4, 16, 80, 400])
def test_microphones_apart_are_not_taken_for_inverted_ones(delay: int) -> None:
    _, mixer = mixed(together(VOICE, np.roll(VOICE, delay)))
    assert not mixer.inverted


@pytest.mark.parametrize("gain", [1.0, 0.6])
@pytest.mark.parametrize("level", [0.0, 0.003, 0.03])
def test_channels_that_cancel_out_are_audible(gain: float, level: float) -> None:
    left, right = (np.random.default_rng(seed).normal(0, level, len(VOICE)) for seed in (1, 2))
    channels = together(VOICE + left, -gain * VOICE + right)
    found, mixer = mixed(channels)
    assert loudness(found, VOICE) > 0.5
    assert mixer.inverted


def test_channels_that_cancel_out_in_noise_are_audible_beside_others() -> None:
    left, right = (np.random.default_rng(seed).normal(0, 0.06, len(VOICE)) for seed in (1, 2))
    found, mixer = mixed(together(np.zeros_like(VOICE), VOICE + left, right - VOICE))
    assert loudness(found, VOICE) > 0.5
    assert mixer.inverted


def test_what_is_inverted_for_a_while_is_audible_without_a_click() -> None:
    inverted = VOICE.copy()
    inverted[20_000:60_000] *= -1
    found, mixer = mixed(together(VOICE, inverted))
    assert mixer.inverted
    for at in range(0, len(VOICE) - 3_200, 3_200):
        wanted = VOICE[at : at + 3_200]
        if np.abs(wanted).max() > 0.05:
            assert loudness(found[at : at + 3_200], wanted) > 0.4
    assert np.abs(np.diff(found)).max() < 1.2 * np.abs(np.diff(VOICE)).max()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(2, 64))
def test_speech_on_any_channel_is_loud_enough(data: st.DataObject, count: int) -> None:
    at = data.draw(st.integers(0, count - 1))
    channels = np.zeros((len(VOICE), count), np.float32)
    channels[:, at] = VOICE
    found, _ = mixed(channels)
    assert loudness(found, VOICE) == pytest.approx(0.5, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(signs=st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=12).filter(any))
def test_no_signs_of_channels_make_them_cancel_out(signs: list[int]) -> None:
    found, _ = mixed(together(*(np.float32(sign) * VOICE for sign in signs)))
    assert abs(loudness(found, VOICE)) > 0.3


def test_everybody_is_audible_where_each_has_a_channel() -> None:
    silent = np.zeros_like(VOICE)
    channels = together(silent, VOICE, silent, silent, OTHER, silent)
    found, _ = mixed(channels)
    assert signal_to_noise(found, channels[:, 1] + channels[:, 4]) > 20


@pytest.mark.parametrize("count", [2, 6, 32])
def test_noise_on_the_other_channels_does_not_drown_speech(count: int) -> None:
    channels = np.random.default_rng(0).normal(0, 0.1, (len(VOICE), count)).astype(np.float32)
    channels[:, 1] = VOICE
    found, mixer = mixed(channels)
    assert signal_to_noise(found, VOICE) > 10
    assert mixer.left_out


def test_a_constant_offset_and_hum_change_nothing() -> None:
    hum = 0.3 * np.sin(2 * np.pi * 50 * np.arange(len(VOICE)) / 16_000).astype(np.float32)
    found, mixer = mixed(together(VOICE + 0.2 + hum, -VOICE - 0.1 + hum))
    assert mixer.inverted
    steps = np.diff(found[8:] - found[:-8])
    assert loudness(steps, np.diff(VOICE[8:] - VOICE[:-8])) > 0.5


def test_warnings_name_what_was_done_to_channels(tmp_path: Path) -> None:
    loud = np.random.default_rng(0).normal(0, 0.2, len(VOICE)).astype(np.float32)
    for channels, warnings in (
        (together(VOICE, OTHER), ()),
        (together(VOICE, -VOICE), (CHANNELS_INVERTED,)),
        (together(VOICE, loud), (CHANNELS_LEFT_OUT,)),
    ):
        decoding = MonoDecoder(write(tmp_path / "audio.wav", channels))
        assert sum(map(len, decoding)) == len(channels)
        assert decoding.warnings == warnings


@pytest.mark.parametrize(("count", "at"), [(3, 2), (4, 3), (6, 3), (8, 3), (10, 9), (32, 17)])
def test_no_channel_is_dropped_for_its_place(count: int, at: int, tmp_path: Path) -> None:
    channels = np.zeros((len(VOICE), count), np.float32)
    channels[:, at] = VOICE
    found = np.concatenate(list(MonoDecoder(write(tmp_path / "audio.wav", channels))))
    assert loudness(found.astype(np.float32) / 32_768, VOICE) == pytest.approx(0.5, abs=0.01)
