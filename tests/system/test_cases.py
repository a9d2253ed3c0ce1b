"""Odd recordings give what they must: the table that ``scripts/test --system cases`` prints."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.cli.client import Gateway
from tests.support.audio_files import AudioKind, tone, write, write_tracks
from tests.support.gateway import GatewayProcess
from tests.support.speech import silence, speak
from tests.system.cases import read_cases, run

VOICE = speak("The captain walked along the beach and looked for shells.")
OTHER = speak("Seven brown horses were waiting at the gate of the old farm.")
FRENCH = speak("Bonjour, je voudrais une tasse de café et un morceau de pain.", "fr")
CASES = """file	language	must be
inverted.wav	en	the words of voice.wav
half-inverted.wav	en	the words of voice.wav
channels-3-2.wav	en	the words of voice.wav
channels-6-3.wav	en	the words of voice.wav
channels-32-17.wav	en	the words of voice.wav
rate-change.aac	en	the words of voice.wav, then of other.wav; about {both:.1f} s; no warning
chained-rate.ogg	en	the words of voice.wav, then of other.wav; about {both:.1f} s; no warning
piped.wav	en	the words of voice.wav; no warning
sizes-zero.wav	en	the words of voice.wav; no warning
sizes-7fff.wav	en	the words of voice.wav; no warning
sizes-2e9.wav	en	the words of voice.wav; no warning
sizes-first-piece.wav	en	the words of voice.wav; a warning that the header's size is wrong
music.wav	en	empty text and a warning
music-then-fr.wav	auto	language fr; no warning
music-then-0.3.wav	en	a warning where the text is empty
short-0.1.wav	en	empty text, or text that is flagged as doubtful; a warning
short-0.3.wav	en	a warning where the text is empty
silent-first.mkv	en	the words of voice.wav; a warning that names the other track
"""


def pcm(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.round(samples * 32_767).astype(np.int16)


def write_channels(path: Path, channels: NDArray[np.int16]) -> bytes:
    """A WAV file, shape (frames, channels); returns its content."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels.shape[1], 2, 16_000, len(channels), "NONE", ""))
        file.writeframes(channels.astype("<i2").tobytes())
    return path.read_bytes()


def joined(path: Path, kind: AudioKind, other: AudioKind) -> None:
    one = write(path.with_suffix(".1"), pcm(VOICE), kind).read_bytes()
    path.write_bytes(one + write(path.with_suffix(".2"), pcm(OTHER), other).read_bytes())


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, str]:
    return {"DEFAULT_MODEL": "base"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of all kinds, and what they must give."""
    folder = tmp_path_factory.mktemp("cases")
    voice = pcm(VOICE)
    plain = write_channels(folder / "voice.wav", voice[:, None])
    write_channels(folder / "other.wav", pcm(OTHER)[:, None])
    write_channels(folder / "inverted.wav", np.stack([voice, -voice], axis=1))
    half = np.concatenate([voice[:16_000], -voice[16_000:48_000], voice[48_000:]])
    write_channels(folder / "half-inverted.wav", np.stack([voice, half], axis=1))
    for count, at in ((3, 2), (6, 3), (32, 17)):
        channels = np.zeros((len(voice), count), np.int16)
        channels[:, at] = voice
        write_channels(folder / f"channels-{count}-{at}.wav", channels)
    adts = AudioKind("adts", "aac", 16_000)
    joined(folder / "rate-change.aac", adts, adts._replace(rate=44_100))
    vorbis = AudioKind("ogg", "vorbis", 16_000, layout="stereo")
    joined(folder / "chained-rate.ogg", vorbis, vorbis._replace(rate=44_100))
    sizes = {"piped": 0xFFFFFFFF, "sizes-zero": 0, "sizes-7fff": 0x7FFFFFFF, "sizes-2e9": 2 * 10**9}
    for name, size in (*sizes.items(), ("sizes-first-piece", 32_000)):
        content = bytearray(plain)
        content[4:8] = min(size + 36, 0xFFFFFFFF).to_bytes(4, "little")
        content[40:44] = size.to_bytes(4, "little")
        (folder / f"{name}.wav").write_bytes(content)
    chord = np.sum([tone(10, hertz, 0.1) for hertz in (262, 330, 392)], axis=0)
    swell = 0.6 + 0.4 * np.sin(np.arange(len(chord)) / 1_300)
    music = (chord * swell).astype(np.int16)
    clips = {
        "music": music,
        "music-then-fr": np.concatenate([music, pcm(FRENCH)]),
        "music-then-0.3": np.concatenate([music, voice[16_000:20_800]]),
        "short-0.1": voice[16_000:17_600],
        "short-0.3": voice[16_000:20_800],
    }
    for name, samples in clips.items():
        write_channels(folder / f"{name}.wav", samples[:, None])
    write_tracks(folder / "silent-first.mkv", ("eng", silence(3)), ("eng", VOICE))
    both = (len(VOICE) + len(OTHER)) / 16_000
    (folder / "cases.tsv").write_text(CASES.format(both=both), encoding="utf-8")
    return folder


def test_odd_recordings_give_what_they_must(serving: GatewayProcess, folder: Path) -> None:
    with Gateway(serving.url) as client:
        rows = list(run(client, folder, read_cases(folder)))
    assert [str(row) for row in rows if not row.ok] == []
