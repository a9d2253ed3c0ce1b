"""Probing and decoding of real files, whole and broken, in every format that uploads may have."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from common.audio.decode import DAMAGED, GAP_MS, GAPS, TRUNCATED, MonoDecoder
from common.audio.probe import probe
from common.domain.values import SAMPLE_RATE
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
    wav_header,
    write,
    write_film_without_sound,
)

EDGE_MS = 80
"""How far an encoder may smear or shift the edge of a tone (MP3 in AVI and AAC in ADTS say nothing
of their delay)."""

LAST_INDEX = ("m4a", "mp4", "mov")
"""What cannot be read without its end, unless it was written for streaming."""

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
    expected = [(1_000, 3_000), (4_500, 7_500)]
    found = loud_spans(samples)
    assert len(found) == len(expected)
    for (start, end), (true_start, true_end) in zip(found, expected, strict=True):
        assert abs(start - true_start - shift_ms) <= EDGE_MS
        assert abs(end - true_end - shift_ms) <= EDGE_MS


@pytest.mark.parametrize("ending", KINDS)
def test_every_format_is_decoded_whole_whatever_its_name_says(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / "name.without.meaning", beeps(), KINDS[ending])
    found = probe(path)
    assert (found.sample_rate, found.has_video) == (KINDS[ending].rate, False)
    samples, decoding = decoded(path)
    assert_beeps(samples)
    assert decoding.warnings == ()
    assert abs(len(samples) / SAMPLE_RATE - 8) < 0.1
    assert decoding.duration_ms == -(-len(samples) // 16)


@pytest.mark.parametrize("ending", FILMS)
def test_the_audio_of_a_film_is_on_the_films_clock(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / "film", beeps(), FILMS[ending], audio_at=2.0)
    assert probe(path).has_video
    samples, decoding = decoded(path)
    assert_beeps(samples, shift_ms=0 if ending == "avi" else 2_000)  # AVI has no starting times
    assert decoding.warnings == ()


@pytest.mark.parametrize(
    "ending", ["mp3", "wav", "aac", "ogg", "opus", "flac", "wma", "webm", "mkv", "avi"]
)
def test_what_can_be_decoded_of_a_truncated_file_is_decoded_with_a_warning(
    ending: str, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("ending", LAST_INDEX)
def test_a_truncated_file_whose_index_came_last_is_rejected(ending: str, tmp_path: Path) -> None:
    path = truncate(write(tmp_path / "cut", beeps(), KINDS[ending]), 0.6)
    with pytest.raises(NotAudio, match="index is missing"):
        probe(path)


@pytest.mark.parametrize("ending", ["ogg", "opus", "flac", "webm", "m4a", "mkv"])
def test_damage_in_the_middle_moves_nothing_that_comes_after_it(
    ending: str, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("block_ms", [10, 1_000, 7_777])
def test_blocks_are_of_the_size_asked_for_and_make_up_the_whole(
    block_ms: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "sound", beeps(), KINDS["flac"])
    blocks = list(MonoDecoder(path, block_ms))
    assert {len(block) for block in blocks[:-1]} == {block_ms * 16}
    assert 0 < len(blocks[-1]) <= block_ms * 16
    assert np.array_equal(np.concatenate(blocks), decoded(path)[0])


def test_channels_are_mixed_so_that_each_is_audible(tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    left, right = np.concatenate([tone(1), silence(1)]), np.concatenate([silence(1), tone(1)])
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="stereo")
        both = np.stack([left, right], axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert probe(path).channels == 2
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
        (wav_header(9 * 3_600), "nothing in it can be decoded"),
    ],
    ids=["empty", "text", "picture", "archive", "zeros", "m3u8", "concat", "nine hours of nothing"],
)
def test_what_is_no_recording_is_rejected_with_the_reason(
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
    path = write_film_without_sound(tmp_path / "silent.mp4", 2)
    with pytest.raises(NotAudio, match="the video has no audio"):
        probe(path)


def test_a_claim_of_nine_hours_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav_header(9 * 3_600) + tone(2).tobytes())
    claimed = probe(path).duration_ms
    assert claimed is None or claimed < 10_000
    samples, decoding = decoded(path)
    assert len(samples) == 2 * SAMPLE_RATE
    assert decoding.warnings == (TRUNCATED,)


def test_audio_that_never_decodes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nothing.wav"
    path.write_bytes(wav_header(10))
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
        file.write(wav_header(7_200))
        minute = noise(60).tobytes()
        for _ in range(120):
            file.write(minute)
    child = os.fork()
    if child == 0:  # its peak memory is its own
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        count = sum(len(block) for block in MonoDecoder(path))
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os._exit(0 if count == 7_200 * SAMPLE_RATE and grown_kib < 64 << 10 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
