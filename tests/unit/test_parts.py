"""Files that are not what their headers state: joined, piped, tagged, silent in places."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from common.audio.decode import HEADER_SIZE_WRONG, TRUNCATED, MonoDecoder
from common.audio.probe import probe
from common.audio.wav import wav_header
from common.errors import NotAudio
from tests.support.audio_files import KINDS, AudioKind, silence, tone, write

EDGE_MS = 80


def decoded(path: Path) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    decoding = MonoDecoder(path)
    return np.concatenate(list(decoding)), decoding.warnings


def assert_whole(path: Path) -> None:
    """It has three seconds of audio, and no warning."""
    samples, warnings = decoded(path)
    assert len(samples) == 48_000
    assert warnings == ()


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def loud_seconds(samples: NDArray[np.int16]) -> tuple[float, float]:
    loud = np.flatnonzero(np.abs(samples) > 3_000) / 16_000
    return float(loud[0]), float(loud[-1])


ADTS = AudioKind("adts", "aac", 16_000)
OPUS = AudioKind("ogg", "libopus")
VORBIS = AudioKind("ogg", "vorbis", 44_100, layout="stereo")
OGG_FLAC = AudioKind("ogg", "flac", 16_000)
MP3 = AudioKind("mp3", "libmp3lame", 16_000)
AC3 = AudioKind("ac3", "ac3", 48_000)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ADTS, ADTS._replace(rate=44_100)),
        (ADTS._replace(rate=44_100, layout="stereo"), ADTS),
        (ADTS, ADTS._replace(layout="stereo")),
        (OPUS, OPUS._replace(layout="stereo")),
        (OPUS, OPUS),
        (VORBIS, OPUS),
        (OGG_FLAC, OGG_FLAC._replace(rate=44_100, layout="stereo")),
        (MP3, MP3._replace(rate=44_100, layout="stereo")),
        (AC3, AC3._replace(rate=32_000, layout="stereo")),
        (KINDS["wav"], KINDS["wav"]._replace(rate=44_100, layout="stereo")),
    ],
)
def test_joined_recordings_are_decoded_to_the_end_at_their_own_rates(
    first: AudioKind, second: AudioKind, tmp_path: Path
) -> None:
    beep = np.concatenate([silence(1), tone(2), silence(1)])
    one, two = write(tmp_path / "one", beep, first), write(tmp_path / "two", beep, second)
    path = joined(tmp_path / "both", one, two, one)
    probe(path)
    samples, warnings = decoded(path)
    assert warnings == ()
    assert len(samples) / 16_000 == pytest.approx(12, abs=0.4)
    for at in range(3):
        start, end = loud_seconds(samples[at * 64_000 : (at + 1) * 64_000])
        # An encoder whose delay no header states shifts what it encodes.
        assert start == pytest.approx(1, abs=0.4)
        assert end - start == pytest.approx(2, abs=0.1)


def sized(path: Path, riff: int, data: int, pcm: bytes, behind: bytes = b"") -> Path:
    head = bytearray(wav_header(16_000, 1, 16_000))
    head[4:8], head[-4:] = riff.to_bytes(4, "little"), data.to_bytes(4, "little")
    path.write_bytes(bytes(head) + pcm + behind)
    return path


PCM = tone(3).tobytes()


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0, 0),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x80000023, 0x7FFFFFFF),
        (0x7FFFF024, 0x7FFFF000),
        (0x80000024, 0x80000000),
        (2_000_000_036, 2_000_000_000),
        (0, len(PCM)),
        (0xFFFFFFFF, len(PCM)),
        (100, len(PCM)),
        (len(PCM) + 36, len(PCM) - 1),
        (len(PCM) + 36, len(PCM) + 1),
    ],
    ids=hex,
)
def test_a_wav_that_does_not_know_its_size_is_whole(riff: int, data: int, tmp_path: Path) -> None:
    path = sized(tmp_path / "piped.wav", riff, data, PCM)
    assert probe(path).duration_ms in (3_000, 2_999)
    samples, warnings = decoded(path)
    assert abs(len(samples) - 48_000) <= 1
    assert warnings == ()


@pytest.mark.parametrize("claimed", [32_000, 32_001, 2])
def test_audio_beyond_its_size_is_decoded_with_a_warning(claimed: int, tmp_path: Path) -> None:
    path = sized(tmp_path / "recorded.wav", claimed + 36, claimed, PCM)
    samples, warnings = decoded(path)
    assert len(samples) == 48_000
    assert warnings == (HEADER_SIZE_WRONG,)


@pytest.mark.parametrize(
    "behind",
    [b"LIST\x04\0\0\0INFO", b"id3 \x06\0\0\0abcdef", bytes(100_000), b"TAG" + bytes(125), b"\0"],
)
def test_what_is_no_audio_behind_the_audio_is_not_decoded(behind: bytes, tmp_path: Path) -> None:
    assert_whole(sized(tmp_path / "tagged.wav", len(PCM) + len(behind) + 36, len(PCM), PCM, behind))


def test_a_wav_that_ends_early_is_truncated(tmp_path: Path) -> None:
    path = sized(tmp_path / "cut.wav", len(PCM) + 36, len(PCM), PCM[:50_000])
    assert decoded(path)[1] == (TRUNCATED,)


def rf64(path: Path, size: int) -> None:
    layout = wav_header(16_000, 1, 16_000)[12:36]
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, size, size, 0, 0)
    head = struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + sizes + layout
    path.write_bytes(head + struct.pack("<4sI", b"data", 0xFFFFFFFF) + PCM)


def aiff(path: Path, size: int) -> None:
    write(path, tone(3), AudioKind("aiff", "pcm_s16be", 16_000))
    content = bytearray(path.read_bytes())
    for place in (4, content.index(b"SSND") + 4):
        content[place : place + 4] = size.to_bytes(4, "big")
    path.write_bytes(content)


def wave64(path: Path, size: int) -> None:
    write(path, tone(3), AudioKind("w64", "pcm_s16le", 16_000))
    content = bytearray(path.read_bytes())
    for place in (16, content.index(b"data\xf3\xac") + 16):
        content[place : place + 8] = (size or 24).to_bytes(8, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        *((rf64, size) for size in (0, 0xFFFFFFFFFFFFFFFF)),
        *((aiff, size) for size in (0, 0x7F000008, 0xFFFFFFFF)),
        *((wave64, size) for size in (0, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)),
    ],
)
def test_what_comes_from_a_pipe_is_whole(
    make: Callable[[Path, int], None], size: int, tmp_path: Path
) -> None:
    path = tmp_path / "piped"
    make(path, size)
    probe(path)
    assert_whole(path)


def ape(picture: bytes) -> bytes:
    """An APEv2 tag with a cover."""
    value = b"cover.jpg\0" + picture
    item = struct.pack("<II", len(value), 2) + b"Cover Art (Front)\0" + value
    ends = [
        b"APETAGEX" + struct.pack("<IIII", 2_000, len(item) + 32, 1, flags) + bytes(8)
        for flags in (0xA0000000, 0x80000000)
    ]
    return ends[0] + item + ends[1]


ID3 = b"TAG" + b"x" * 125
PICTURE = np.random.default_rng(0).bytes(40_000)


@pytest.mark.parametrize(
    "behind",
    [ape(PICTURE), ape(PICTURE) + ID3, ID3, b"LYRICSBEGIN0123000015LYRICS200" + ID3, bytes(5_000)],
    ids=["ape", "ape and id3", "id3", "lyrics", "zeros"],
)
def test_tags_behind_an_mp3_are_no_damage(behind: bytes, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.mp3", tone(3), MP3)
    path = tmp_path / "tagged.mp3"
    path.write_bytes(plain.read_bytes() + behind)
    samples, warnings = decoded(path)
    assert warnings == ()
    assert len(samples) / 16_000 == pytest.approx(3, abs=0.1)
    longer = joined(tmp_path / "both.mp3", path, path)
    samples, warnings = decoded(longer)
    assert len(samples) / 16_000 == pytest.approx(6, abs=0.3)
    assert warnings in ((), ("damaged",) if behind == bytes(5_000) else ())


def test_pauses_that_amr_does_not_send_are_silence(tmp_path: Path) -> None:
    path = tmp_path / "call.amr"
    spoken = np.concatenate([silence(5), tone(2), silence(4), tone(2), silence(3)])
    with av.open(str(path), "w", format="amr") as container:
        stream = container.add_stream(
            "libopencore_amrnb", rate=8_000, layout="mono", options={"dtx": "1"}
        )
        assert isinstance(stream, AudioStream)
        stream.codec_context.bit_rate = 12_200
        resampler = av.AudioResampler("s16", "mono", 8_000, 160)
        frame = av.AudioFrame.from_ndarray(spoken[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 20_000  # of 25,600
    assert probe(path).codec == "amr_nb"
    samples, warnings = decoded(path)
    assert warnings == ()
    assert len(samples) / 16_000 == pytest.approx(16, abs=0.1)
    assert loud_seconds(samples) == pytest.approx((5, 13), abs=0.1)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (AudioKind("nut", "flac", 16_000), "nut"),
        (AudioKind("mxf", "pcm_s16le", 48_000, video="mpeg2video"), "mxf"),
    ],
)
def test_what_ffmpeg_reads_is_taken(kind: AudioKind, name: str, tmp_path: Path) -> None:
    path = tmp_path / "audio"
    if kind.video:
        film(path, tone(2))
    else:
        write(path, tone(2), kind)
    assert probe(path).container == name
    assert len(decoded(path)[0]) / 16_000 == pytest.approx(2, abs=0.1)


def film(path: Path, samples: NDArray[np.int16]) -> None:
    """An MXF file."""
    with av.open(str(path), "w", format="mxf") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
        resampler = av.AudioResampler("s16", "mono", 48_000, 1_920)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        pieces = [*resampler.resample(frame), *resampler.resample(None)]
        for index, piece in enumerate(pieces):
            picture.pts, piece.pts = index, index * 1_920
            container.mux(video.encode(picture))
            container.mux(audio.encode(piece))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def test_sphere_and_gsm_are_taken(tmp_path: Path) -> None:
    head = (
        "NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i 32000\nsample_rate -i 16000\n"
        "sample_n_bytes -i 2\nsample_byte_format -s2 01\nsample_coding -s3 pcm\nend_head\n"
    )
    sphere = tmp_path / "sphere"
    sphere.write_bytes(head.encode().ljust(1_024) + tone(2).tobytes())
    assert probe(sphere).container == "nistsphere"
    assert len(decoded(sphere)[0]) == 32_000
    gsm = tmp_path / "gsm"
    gsm.write_bytes(bytes.fromhex("d820a2e1 5a") + bytes(28))
    gsm.write_bytes(gsm.read_bytes() * 100)
    assert probe(gsm).container == "gsm"
    assert len(decoded(gsm)[0]) == 32_000


@pytest.mark.parametrize("rate", [1, 3_999, 768_001, 2**31 - 1, 2**31])
def test_a_sample_rate_at_which_nobody_records_is_rejected(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "audio.wav"
    head = bytearray(wav_header(16_000, 1, 16_000))
    head[24:32] = struct.pack("<II", rate, 2 * rate & 0xFFFFFFFF)
    path.write_bytes(bytes(head) + PCM)
    with pytest.raises(NotAudio):
        probe(path)


@pytest.mark.parametrize("rate", [4_000, 768_000])
def test_sample_rates_at_the_limits_are_taken(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "audio.wav"
    path.write_bytes(wav_header(rate, 1, rate) + PCM * 40)
    probe(path)


@pytest.mark.parametrize(("channels", "taken"), [(64, True), (65, False)])
def test_up_to_64_channels_are_read(channels: int, taken: bool, tmp_path: Path) -> None:
    path = tmp_path / "audio.wav"
    path.write_bytes(wav_header(16_000, channels, 500) + bytes(1_000 * channels))
    if taken:
        assert [track.channels for track in probe(path).tracks] == [channels]
    else:
        with pytest.raises(NotAudio, match="at most 64 channels"):
            probe(path)


def test_a_length_that_the_bytes_cannot_hold_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "part-of-a-book.mp3", tone(3), MP3)
    content = bytearray(path.read_bytes())
    place = max(content.find(b"Xing"), content.find(b"Info")) + 8
    content[place : place + 4] = (30_000).to_bytes(4, "big")  # frames: 18 minutes
    path.write_bytes(content)
    assert probe(path).duration_ms is None
