"""Probing and decoding of real files, whole and broken, in every format that uploads may have."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.audio.decode import (
    DAMAGED,
    GAP_MS,
    GAPS,
    TRUNCATED,
    ChannelDecoder,
    MonoDecoder,
)
from common.audio.probe import probe
from common.audio.wav import wav_header
from common.domain.values import SAMPLE_RATE, Span
from common.errors import DecodeFailed, NotAudio
from tests.support.audio_files import (
    FILMS,
    KINDS,
    AudioKind,
    damage,
    noise,
    silence,
    takes_little_memory,
    tone,
    truncate,
    write,
    write_film_without_audio,
)
from worker.steps.audio import read_span

EDGE_MS = 80
"""How far an encoder may smear or shift the edge of a tone (MP3 in AVI and AAC in ADTS say nothing
of their delay)."""

FASTSTART = AudioKind("mp4", "aac", options=(("movflags", "faststart"),))


def beeps() -> NDArray[np.int16]:
    """Eight seconds with tones at 1-3 s and 4.5-7.5 s."""
    return np.concatenate([silence(1), tone(2), silence(1.5), tone(3, 880), silence(0.5)])


def decoded(path: Path, block_ms: int = 60_000) -> tuple[NDArray[np.int16], MonoDecoder]:
    decoding = MonoDecoder(path, block_ms)
    return np.concatenate(list(decoding)), decoding


def loud_spans(samples: NDArray[np.int16]) -> list[tuple[int, int]]:
    """Where it is loud, in ms, over gaps of less than 100 ms."""
    loud_ms = np.flatnonzero(np.abs(samples) > 3_000) // 16
    breaks = np.flatnonzero(np.diff(loud_ms) > 100)
    starts = [loud_ms[0], *loud_ms[breaks + 1]]
    ends = [*loud_ms[breaks], loud_ms[-1]]
    return [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def assert_beeps(samples: NDArray[np.int16], shift_ms: int = 0) -> None:
    edges = np.array(loud_spans(samples)) - shift_ms
    np.testing.assert_allclose(edges, [(1_000, 3_000), (4_500, 7_500)], atol=EDGE_MS)


@pytest.mark.parametrize("ending", KINDS)
def test_every_format_is_decoded_whole_whatever_its_name_says(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / "name.without.meaning", beeps(), KINDS[ending])
    probe(path)
    samples, decoding = decoded(path)
    assert_beeps(samples)
    assert decoding.warnings == ()
    assert abs(len(samples) / SAMPLE_RATE - 8) < 0.1
    assert decoding.duration_ms == -(-len(samples) // 16)


@pytest.mark.parametrize("ending", FILMS)
def test_the_audio_of_a_film_is_on_the_films_clock(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / "film", beeps(), FILMS[ending], audio_at=2.0)
    probe(path)
    samples, decoding = decoded(path)
    assert_beeps(samples, shift_ms=0 if ending == "avi" else 2_000)  # AVI has no starting times
    assert decoding.warnings == ()


@pytest.mark.parametrize(
    "ending", ["mp3", "wav", "aac", "ogg", "opus", "flac", "wma", "webm", "mkv", "avi"]
)
def test_a_truncated_file_is_decoded_with_a_warning(ending: str, tmp_path: Path) -> None:
    path = truncate(write(tmp_path / "cut", beeps(), KINDS[ending]), 0.6)
    samples, decoding = decoded(path)
    assert 3 < len(samples) / SAMPLE_RATE < 7
    assert loud_spans(samples)[0][0] == pytest.approx(1_000, abs=EDGE_MS)
    assert decoding.warnings == (TRUNCATED,)


def test_a_truncated_film_whose_index_comes_first_is_decoded_with_a_warning(tmp_path: Path) -> None:
    path = truncate(write(tmp_path / "cut", beeps(), FASTSTART), 0.6)
    samples, decoding = decoded(path)
    assert 3 < len(samples) / SAMPLE_RATE < 7
    assert TRUNCATED in decoding.warnings


@pytest.mark.parametrize("ending", ["m4a", "mp4", "mov"])
def test_a_truncated_file_whose_index_came_last_is_rejected(ending: str, tmp_path: Path) -> None:
    path = truncate(write(tmp_path / "cut", beeps(), KINDS[ending]), 0.6)
    with pytest.raises(NotAudio, match="index is missing"):
        probe(path)


@pytest.mark.parametrize("ending", ["ogg", "opus", "flac", "webm", "m4a", "mkv"])
def test_damage_moves_nothing_that_comes_after_it(ending: str, tmp_path: Path) -> None:
    path = damage(write(tmp_path / "scratched", beeps(), KINDS[ending]), 0.30, 0.36)
    samples, decoding = decoded(path)
    assert set(decoding.warnings) & {DAMAGED, GAPS}
    assert abs(loud_spans(samples)[-1][1] - 7_500) <= EDGE_MS + GAP_MS


def test_a_gap_in_the_time_stamps_becomes_silence(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for second in (0, 1, 5, 6):
            frame = av.AudioFrame.from_ndarray(tone(1)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, second * SAMPLE_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples, decoding = decoded(path)
    assert loud_spans(samples) == [(0, 1_999), (5_000, 6_999)]
    assert decoding.warnings == (GAPS,)


def murmur(seconds: int) -> NDArray[np.int16]:
    """Noise below 600 Hz, of which no second is like another."""
    wave = np.random.default_rng(5).standard_normal(seconds * SAMPLE_RATE)
    smooth = np.convolve(wave, np.hanning(65), "same")
    samples: NDArray[np.int16] = np.round(smooth / np.abs(smooth).max() * 20_000).astype(np.int16)
    return samples


MURMUR = murmur(50)
LATE_MS = 30_000


def assert_same_times(
    path: Path, start_ms: int, decoder: type[MonoDecoder | ChannelDecoder] = MonoDecoder
) -> bool:
    """The audio from ``start_ms`` on is that of a complete decoding; returns whether exactly."""
    whole = np.concatenate(list(decoder(path)))
    late = np.concatenate(list(decoder(path, start_ms=start_ms)))
    assert abs(len(late) - len(whole)) <= 1
    first = start_ms * 16
    wanted, found = (each[first : len(whole) - 1].astype(float) for each in (whole, late))
    if not len(wanted) or np.array_equal(wanted, found):
        return True
    assert np.std(found - wanted) < 0.15 * np.std(wanted), "half a sample of 600 Hz is 0.12"
    return False


def is_skipped(path: Path, start_ms: int = LATE_MS) -> bool:
    """Whether most of the audio before is left out."""
    late = np.concatenate(list(MonoDecoder(path, start_ms=start_ms)))
    return not late[: (start_ms - 16_000) * 16].any()


@pytest.mark.parametrize(
    ("kind", "audio_at"),
    [(kind, 0.0) for kind in KINDS.values()] + [(kind, 2.0) for kind in FILMS.values()],
    ids=[*KINDS, *(f"film-{each}" for each in FILMS)],
)
def test_what_is_before_the_wanted_audio_is_skipped_and_moves_no_time(
    kind: AudioKind, audio_at: float, tmp_path: Path
) -> None:
    path = write(tmp_path / "audio", MURMUR, kind, audio_at=audio_at)
    assert is_skipped(path)
    exact = [assert_same_times(path, start_ms) for start_ms in (0, 9_999, 20_001, 41_234, 70_000)]
    if kind.rate == SAMPLE_RATE or kind.codec == "libopus":
        assert all(exact)


@given(start_ms=st.integers(0, 60_000))
@settings(max_examples=20, deadline=None)
def test_wherever_the_wanted_audio_starts_it_is_the_same(
    start_ms: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "wherever"
    if not path.exists():
        write(path, MURMUR, KINDS["mp3"])
    assert_same_times(path, start_ms)


@pytest.mark.parametrize("start_ms", [LATE_MS, 70_000])
@pytest.mark.parametrize("ending", ["mp3", "aac", "ogg", "opus", "wav", "flac", "webm", "mkv"])
def test_joined_recordings_have_the_same_times_wherever_reading_starts(
    ending: str, start_ms: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "twice", MURMUR, KINDS[ending])
    path.write_bytes(2 * path.read_bytes())
    assert_same_times(path, start_ms)


@pytest.mark.parametrize("place", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("ending", [it for it in KINDS if it not in {"m4a", "mp4", "mov"}])
def test_damage_changes_no_time_unless_the_warnings_name_it(
    ending: str, place: float, tmp_path: Path
) -> None:
    path = damage(write(tmp_path / "scratched", MURMUR, KINDS[ending]), place, place + 0.005)
    if DAMAGED not in decoded(path)[1].warnings:
        assert_same_times(path, LATE_MS)


def test_a_damaged_packet_is_why_nothing_is_skipped(tmp_path: Path) -> None:
    path = damage(write(tmp_path / "scratched", MURMUR, KINDS["aac"]), 0.3, 0.33)
    samples, decoding = decoded(path)
    assert DAMAGED in decoding.warnings
    part = Span(LATE_MS, LATE_MS + 5_000)
    with path.open("rb") as file:
        found = read_span(file, part, None, None, decoding.warnings)
    wanted = samples[part.start_ms * 16 : part.end_ms * 16]
    assert np.array_equal(np.round(found * 32_768).astype(np.int16), wanted)


@pytest.mark.parametrize("seconds", [(0, 1, 5), (0, 1, 2, 10_000)])
def test_gaps_and_jumps_of_the_clock_move_no_time(seconds: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "clock.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for second, start in enumerate((*seconds, *(seconds[-1] + it for it in range(1, 40)))):
            samples = MURMUR[second * SAMPLE_RATE :][:SAMPLE_RATE]
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start * SAMPLE_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert assert_same_times(path, LATE_MS)


@pytest.mark.parametrize("claimed", [0, 0x7FFF_FFFF, 0xFFFF_FFFF, 400_000])
def test_a_wrong_size_in_the_header_moves_no_time(claimed: int, tmp_path: Path) -> None:
    path = tmp_path / "sized.wav"
    header = bytearray(wav_header(SAMPLE_RATE, 1, len(MURMUR)))
    header[40:44] = claimed.to_bytes(4, "little")
    path.write_bytes(bytes(header) + MURMUR.tobytes())
    assert assert_same_times(path, LATE_MS)


@pytest.mark.parametrize(
    "between", [b"TAG" + b"x" * 125, b"ID3\x03\0\0\0\0\x7f\x76" + b"y" * 16_374]
)
def test_tags_move_no_time(between: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "tagged.mp3", MURMUR, KINDS["mp3"])
    path.write_bytes(between[-16_384:] * 2 + path.read_bytes() + between + path.read_bytes())
    for start_ms in (LATE_MS, 70_000):
        assert_same_times(path, start_ms)


def test_channels_are_skipped_like_their_mix(tmp_path: Path) -> None:
    both = np.stack([MURMUR, np.roll(MURMUR, 9_999)], axis=1)
    path = tmp_path / "two.wav"
    path.write_bytes(wav_header(SAMPLE_RATE, 2, len(both)) + both.tobytes())
    assert is_skipped(path)
    assert assert_same_times(path, LATE_MS, ChannelDecoder)
    assert_same_times(path, LATE_MS)


@pytest.mark.parametrize("channel", [None, 0])
def test_a_span_beyond_the_end_has_no_samples(channel: int | None, tmp_path: Path) -> None:
    path = write(tmp_path / "short.wav", MURMUR[: 20 * SAMPLE_RATE], KINDS["wav"])
    for span, samples in ((Span(40_000, 50_000), 0), (Span(19_000, 50_000), SAMPLE_RATE)):
        with path.open("rb") as file:
            assert len(read_span(file, span, None, channel, ())) == samples


@pytest.mark.parametrize("block_ms", [10, 1_000, 7_777])
def test_blocks_have_their_size_and_are_the_whole(block_ms: int, tmp_path: Path) -> None:
    path = write(tmp_path / "audio", beeps(), KINDS["flac"])
    blocks = list(MonoDecoder(path, block_ms))
    assert {len(block) for block in blocks[:-1]} == {block_ms * 16}
    assert 0 < len(blocks[-1]) <= block_ms * 16
    assert np.array_equal(np.concatenate(blocks), decoded(path)[0])


def test_channels_are_mixed_so_that_each_is_audible(tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    left, right = np.concatenate([tone(1), silence(1)]), np.concatenate([silence(1), tone(1)])
    both = np.stack([left, right], axis=1)
    path.write_bytes(wav_header(SAMPLE_RATE, 2, len(both)) + both.tobytes())
    assert [track.channels for track in probe(path).tracks] == [2]
    assert loud_spans(decoded(path)[0]) == [(0, 1_999)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"The quick brown fox jumps over the lazy dog.\n" * 99, "not a recording"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not a recording"),
        (b"PK\x03\x04" + bytes(5_000), "not a recording"),
        (bytes(20_000), "not a recording"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "not a recording"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a recording"),
        (wav_header(16_000, 1, 9 * 3_600 * 16_000), "nothing in it can be decoded"),
    ],
    ids=["empty", "text", "picture", "archive", "zeros", "m3u8", "concat", "nine hours of nothing"],
)
def test_other_files_are_rejected_with_a_reason(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "speech.mp3"
    path.write_bytes(content)
    with pytest.raises(NotAudio, match=reason):
        probe(path)


def test_random_bytes_are_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(np.random.default_rng(3).bytes(300_000))
    with pytest.raises((NotAudio, DecodeFailed)):
        probe(path)


def test_a_film_without_audio_is_rejected(tmp_path: Path) -> None:
    path = write_film_without_audio(tmp_path / "silent.mp4", 2)
    with pytest.raises(NotAudio, match="the video has no audio"):
        probe(path)


def test_a_claim_of_nine_hours_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav_header(16_000, 1, 9 * 3_600 * 16_000) + tone(2).tobytes())
    claimed = probe(path).duration_ms
    assert claimed is None or claimed < 10_000
    samples, decoding = decoded(path)
    assert len(samples) == 2 * SAMPLE_RATE
    assert decoding.warnings == (TRUNCATED,)


def test_audio_that_never_decodes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nothing.wav"
    path.write_bytes(wav_header(16_000, 1, 160_000))
    with pytest.raises(DecodeFailed):
        list(MonoDecoder(path))


def test_a_name_in_any_letters_is_opened_as_the_file_it_names(tmp_path: Path) -> None:
    for name in ("Tiếng Việt %d.mp3", "a:b?c=d#e.mp3", "-i concat:x|y.mp3", "ồ" * 80):
        path = write(tmp_path / "plain", tone(0.5), KINDS["mp3"]).rename(tmp_path / name)
        assert probe(path).codec == "mp3"
        assert len(decoded(path)[0]) > 0


def test_decoding_takes_no_more_memory_for_more_audio(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(wav_header(16_000, 1, 7_200 * 16_000))
        minute = noise(60).tobytes()
        for _ in range(120):
            file.write(minute)
    assert takes_little_memory(lambda: sum(map(len, MonoDecoder(path))) == 7_200 * SAMPLE_RATE)
