"""Recordings with stretches covered: what is outside stays as it is, what is inside is gone."""

from __future__ import annotations

import io
import os
import resource
import wave
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.audio.decode import MonoDecoder
from common.audio.redact import (
    FADE_MS,
    LOUDEST_DBFS,
    SOFTEST_DBFS,
    TONE_HZ,
    RedactedWav,
)
from common.audio.wav import wav_header
from common.domain.values import Span
from common.errors import DecodeFailed, NotAudio
from tests.support.audio_files import (
    FILMS,
    KINDS,
    AudioKind,
    damage,
    noise,
    silence,
    tone,
    truncate,
    write,
)

VOICE_HZ = 440
"""Stands for the words that must be removed."""


def made(path: Path, spans: list[Span], duration_ms: int | None = None) -> bytes:
    if duration_ms is None:
        decoding = MonoDecoder(path)
        for _ in decoding:
            pass
        duration_ms = decoding.duration_ms
    wav = RedactedWav(path, duration_ms, spans)
    content = b"".join(wav)
    assert len(content) == wav.size
    return content


def audio(content: bytes) -> tuple[NDArray[np.int16], int]:
    """What Python's own reader finds: frames of shape (frames, channels), and the rate."""
    with wave.open(io.BytesIO(content)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        assert len(samples) == file.getnframes() * file.getnchannels()
        return samples.reshape(-1, file.getnchannels()), file.getframerate()


def cut(frames: NDArray[np.int16], rate: int, start_ms: int, end_ms: int) -> NDArray[np.int16]:
    return frames[start_ms * rate // 1000 : end_ms * rate // 1000]


def power(frames: NDArray[np.int16], rate: int, hertz: int) -> float:
    """How loud that tone is in the sound, in [0, 1]."""
    mono = frames.mean(axis=1) * np.hanning(len(frames))
    at = np.exp(-2j * np.pi * hertz * np.arange(len(mono)) / rate)
    return float(4 * abs((mono * at).sum()) / len(mono) / 32_768)


def dbfs(frames: NDArray[np.int16]) -> float:
    return float(20 * np.log10(np.sqrt((frames.astype(float) ** 2).mean()) / 32_768 + 1e-9))


@pytest.mark.parametrize(
    ("ending", "kind"), [*KINDS.items(), *((f"film.{name}", kind) for name, kind in FILMS.items())]
)
def test_what_is_inside_is_a_tone_and_what_is_outside_is_as_it_was(
    ending: str, kind: AudioKind, tmp_path: Path
) -> None:
    path = write(tmp_path / f"sound.{ending}", tone(4, VOICE_HZ), kind)
    covered, rate = audio(made(path, [Span(1_000, 2_500)]))
    plain, _ = audio(made(path, []))
    assert rate == kind.rate
    assert covered.shape == plain.shape
    assert covered.shape[1] == (2 if kind.layout == "stereo" else 1)
    for start_ms, end_ms in ((0, 1_000), (2_500, 4_000)):
        assert np.array_equal(
            cut(covered, rate, start_ms, end_ms), cut(plain, rate, start_ms, end_ms)
        )
    inside = cut(covered, rate, 1_000 + FADE_MS, 2_500 - FADE_MS)
    assert power(inside, rate, VOICE_HZ) < 0.001
    assert power(inside, rate, TONE_HZ) > 0.1
    assert power(cut(plain, rate, 1_000, 2_500), rate, VOICE_HZ) > 0.2


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6, 32])
def test_rate_and_channels_stay_as_they_were_recorded(
    rate: int, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    said = np.random.default_rng(0).integers(-3_000, 3_000, (rate * 2, channels), np.int16)
    path.write_bytes(wav_header(rate, channels, len(said)) + said.tobytes())
    covered, found = audio(made(path, [Span(500, 900)], 2_000))
    assert (found, covered.shape) == (rate, said.shape)
    assert np.array_equal(cut(covered, rate, 0, 500), cut(said, rate, 0, 500))
    assert np.array_equal(cut(covered, rate, 900, 2_000), cut(said, rate, 900, 2_000))
    inside = cut(covered, rate, 500 + FADE_MS, 900 - FADE_MS)
    assert all(np.array_equal(inside[:, 0], inside[:, other]) for other in range(channels))


@pytest.mark.parametrize("rate", [11_025, 44_100, 48_000])
def test_a_long_tone_has_no_seam_and_its_edges_do_not_click(rate: int, tmp_path: Path) -> None:
    voice = tone(9, VOICE_HZ)
    path = write(tmp_path / "sound.flac", voice, KINDS["flac"]._replace(rate=rate))
    covered, _ = audio(made(path, [Span(1_003, 4_511), Span(5_000, 7_001)]))
    steepest = 0.3 * 32_767 * 2 * np.pi * TONE_HZ / rate
    assert np.abs(np.diff(covered[:, 0].astype(int))).max() < 1.1 * steepest
    inside = cut(covered, rate, 1_003 + FADE_MS, 4_511 - FADE_MS).astype(float)
    period = rate // np.gcd(rate, TONE_HZ)
    assert np.abs(inside[period:] - inside[:-period]).max() <= 2


@pytest.mark.parametrize("level", [0.0, 0.002, 0.05, 0.9])
def test_the_tone_is_as_loud_as_what_is_around_and_never_painful(
    level: float, tmp_path: Path
) -> None:
    path = write(tmp_path / "sound.wav", noise(3, level), KINDS["wav"])
    covered, rate = audio(made(path, [Span(1_000, 2_000)]))
    level_dbfs = dbfs(cut(covered, rate, 1_100, 1_900))
    around = dbfs(cut(covered, rate, 0, 1_000))
    assert SOFTEST_DBFS - 0.5 < level_dbfs < LOUDEST_DBFS + 0.5
    assert level_dbfs < max(around, SOFTEST_DBFS + 0.5)


def test_a_word_in_a_quiet_place_is_covered_as_loud_as_it_was_said(tmp_path: Path) -> None:
    said = np.concatenate([noise(2, 0.001), noise(0.5, 0.2), noise(2, 0.001)])
    path = write(tmp_path / "sound.wav", said, KINDS["wav"])
    covered, rate = audio(made(path, [Span(2_000, 2_500)]))
    assert abs(dbfs(cut(covered, rate, 2_100, 2_400)) - dbfs(noise(1, 0.2)[:, None])) < 4


@pytest.mark.parametrize("broken", ["truncated", "damaged"])
@pytest.mark.parametrize("ending", ["mp3", "ogg", "webm", "flac", "wav"])
def test_a_broken_recording_is_covered_at_the_same_times(
    ending: str, broken: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "sound", tone(8, VOICE_HZ), KINDS[ending])
    (truncate(path, 0.7) if broken == "truncated" else damage(path, 0.4, 0.5))
    covered, rate = audio(made(path, [Span(500, 1_000)]))
    assert power(cut(covered, rate, 500 + FADE_MS, 1_000 - FADE_MS), rate, VOICE_HZ) < 0.001
    assert power(cut(covered, rate, 1_010, 1_400), rate, VOICE_HZ) > 0.2


def test_sound_that_starts_late_on_the_film_is_covered_at_the_time_of_the_film(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "film", tone(4, VOICE_HZ), FILMS["mp4"], audio_at=2.0)
    covered, rate = audio(made(path, [Span(3_000, 4_000)]))
    assert np.abs(cut(covered, rate, 0, 1_900)).max() < 300
    assert power(cut(covered, rate, 2_100, 2_900), rate, VOICE_HZ) > 0.2
    assert power(cut(covered, rate, 3_010, 3_990), rate, VOICE_HZ) < 0.001


def test_a_file_is_as_long_as_it_was_said_to_be(tmp_path: Path) -> None:
    path = write(tmp_path / "sound.wav", tone(2), KINDS["wav"])
    for duration_ms in (0, 1, 1_999, 2_000, 2_003, 5_000):
        covered, rate = audio(made(path, [Span(1_500, 9_000)], duration_ms))
        assert len(covered) == duration_ms * rate // 1000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    edges=st.sets(st.integers(0, 4_500), max_size=10).map(sorted),
    rate=st.sampled_from([8_000, 11_025, 16_000]),
)
def test_stretches_of_any_length_are_covered_and_nothing_else(
    tmp_path: Path, edges: list[int], rate: int
) -> None:
    path = tmp_path / "sound.wav"
    said = np.random.default_rng(0).integers(20_000, 30_000, (rate * 4, 1), np.int16)
    path.write_bytes(wav_header(rate, 1, len(said)) + said.tobytes())
    spans = [Span(*pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
    covered, _ = audio(made(path, spans, 4_000))
    inside = np.zeros(len(said), bool)
    for span in spans:
        inside[span.start_ms * rate // 1000 : -(-span.end_ms * rate // 1000)] = True
        fade = min(FADE_MS, span.duration_ms // 2) + 1
        middle = cut(covered, rate, span.start_ms + fade, min(span.end_ms, 4_000) - fade)
        assert not len(middle) or middle.max() < 20_000
    assert np.array_equal(covered[~inside], said[~inside])
    assert all(one.end_ms <= other.start_ms for one, other in pairwise(spans))


def test_nothing_is_made_of_what_is_no_recording(tmp_path: Path) -> None:
    text = tmp_path / "a"
    text.write_bytes(b"The quick brown fox\n" * 99)
    with pytest.raises(NotAudio):
        RedactedWav(text, 1_000, [])
    empty = tmp_path / "b"
    empty.write_bytes(wav_header(16_000, 1, 16_000))
    with pytest.raises(DecodeFailed):
        RedactedWav(empty, 1_000, [])


@pytest.mark.parametrize("hours", [6, 7])
def test_a_header_beyond_4_gb_is_one_that_can_count_it(hours: int, tmp_path: Path) -> None:
    frames = hours * 3_600 * 48_000
    header = wav_header(48_000, 2, frames)
    large = frames * 4 > 0xFFFF_FFFF
    assert header[:4] == (b"RF64" if large else b"RIFF")
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + frames * 4)  # a hole takes no space
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == hours * 3_600


def test_three_hours_take_no_more_memory_than_three_minutes(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    minute = np.concatenate([noise(50), silence(10)]).tobytes()
    with path.open("wb") as file:
        file.write(wav_header(16_000, 1, 180 * 60 * 16_000))
        for _ in range(180):
            file.write(minute)
    spans = [Span(at, at + 900) for at in range(0, 10_800_000, 30_000)]
    child = os.fork()
    if child == 0:  # its peak memory is its own
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = sum(len(piece) for piece in RedactedWav(path, 10_800_000, spans))
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os._exit(0 if size == 10_800 * 32_000 + 44 and grown_kib < 64 << 10 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
