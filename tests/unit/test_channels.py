"""Which channels of a recording are transcribed separately, and their decoding and storage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.audio.channels import IDENTICAL_CHANNELS, ONE_CHANNEL, Separation, separate
from common.audio.decode import ChannelDecoder, MonoDecoder
from common.domain.chunks import (
    chunk_from_json,
    chunk_to_json,
    content_hash,
    windows_to_json,
)
from common.domain.request import Channels, Options
from common.domain.tracks import Track, check_channels
from common.domain.values import Chunk, Span, Window
from common.errors import OutOfRange
from tests.support.audio_files import takes_little_memory, write_channels
from tests.support.speech import Samples, noise, silence, speak

HIS = speak("The captain walked along the beach and looked for shells in the morning.")
HERS = speak("Seven brown horses were waiting at the gate of the old farm all day.", "en+f4")
QUIET = silence(4)


def found(folder: Path, wanted: Channels, *channels: NDArray[np.floating]) -> Separation:
    return separate(ChannelDecoder(write_channels(folder / "sent.wav", *channels)), wanted)


def in_turn(seconds: float = 0.0) -> tuple[Samples, Samples]:
    """One person a channel; ``seconds`` is how long they speak at the same time."""
    at = len(HIS) - round(seconds * 16_000)
    return HIS, np.concatenate([np.zeros(at, np.float32), HERS])


@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize("softer", [1.0, 0.1])
@pytest.mark.parametrize("level", [0.0, 0.002])
def test_people_on_channels_of_their_own_are_apart(
    overlap: float, softer: float, level: float, tmp_path: Path
) -> None:
    his, hers = in_turn(overlap)
    hum = noise(20, level=level)
    channels = [
        np.pad(it, (0, len(hum) - len(it))) + hum[:: 1 - 2 * at]
        for at, it in enumerate((his, softer * hers))
    ]
    assert found(tmp_path, "auto", *channels) == Separation((0, 1))
    assert found(tmp_path, "separate", *channels) == Separation((0, 1))
    assert found(tmp_path, "mix", *channels) == Separation()


def test_a_little_of_each_in_the_others_channel_does_not_matter(tmp_path: Path) -> None:
    his, hers = in_turn()
    his = np.pad(his, (0, len(hers) - len(his)))
    assert found(tmp_path, "auto", his + 0.03 * hers, hers + 0.03 * his).channels == (0, 1)
    assert found(tmp_path, "auto", his + 0.4 * hers, hers + 0.4 * his).channels == ()


@pytest.mark.parametrize(
    "channels",
    [
        (HIS, HIS),
        (HIS, 0.1 * HIS),
        (HIS, -HIS),
        (HIS + 0.002 * noise(len(HIS) / 16_000, level=1)[: len(HIS)], HIS),
    ],
    ids=["the same", "softer", "inverted", "with noise"],
)
def test_one_audio_on_two_channels_is_no_two_people(
    channels: tuple[Samples, ...], tmp_path: Path
) -> None:
    assert found(tmp_path, "auto", *channels) == Separation()
    assert found(tmp_path, "separate", *channels) == Separation((), IDENTICAL_CHANNELS)
    several = found(tmp_path, "separate", *channels, HERS)
    assert several == Separation((0, 2), IDENTICAL_CHANNELS)


@pytest.mark.parametrize("other", [QUIET, noise(4, level=0.001)], ids=["silence", "noise"])
def test_a_channel_without_speech_is_left_to_the_mix_unless_it_was_asked_for(
    other: Samples, tmp_path: Path
) -> None:
    assert found(tmp_path, "auto", HIS, other).channels == ()
    assert found(tmp_path, "separate", HIS, other) == Separation((0, 1))
    assert found(tmp_path, "separate", QUIET, QUIET) == Separation((0, 1))


def test_only_two_channels_are_told_apart_but_up_to_eight_can_be_separated(tmp_path: Path) -> None:
    assert found(tmp_path, "auto", HIS) == Separation()
    assert found(tmp_path, "separate", HIS) == Separation((), ONE_CHANNEL)
    his, hers = in_turn()
    assert found(tmp_path, "auto", his, hers, QUIET) == Separation()
    voices = [np.roll(HIS, 4_000 * at) for at in range(8)]
    assert found(tmp_path, "separate", *voices).channels == tuple(range(8))
    with pytest.raises(OutOfRange) as error:
        found(tmp_path, "separate", *voices, QUIET)
    assert error.value.details["field"] == "channels"
    assert found(tmp_path, "auto", *voices, QUIET) == Separation()


def test_a_moment_of_audio_has_channels_too(tmp_path: Path) -> None:
    brief = HIS[8_000:8_500]
    assert found(tmp_path, "separate", brief, brief[::-1]) == Separation((0, 1))
    assert found(tmp_path, "auto", brief, brief[::-1]) == Separation()


def test_channels_are_decoded_side_by_side(tmp_path: Path) -> None:
    channels = (HIS, HERS, QUIET)
    path = write_channels(tmp_path / "sent.wav", *channels)
    decoding = ChannelDecoder(path, 1_000)
    blocks = list(decoding)
    assert {block.shape for block in blocks[:-1]} == {(16_000, 3)}
    whole = np.concatenate(blocks)
    assert (decoding.channels, decoding.samples) == (3, len(whole))
    for at, channel in enumerate(channels):
        alone = np.concatenate(list(MonoDecoder(write_channels(tmp_path / "one.wav", channel))))
        assert np.array_equal(whole[: len(alone), at], alone)


def test_decoding_channels_takes_no_more_memory_for_more_audio(tmp_path: Path) -> None:
    minute = noise(60, level=0.1)
    path = write_channels(tmp_path / "long.wav", *(np.tile(minute, 40) for _ in range(2)))
    assert takes_little_memory(lambda: sum(map(len, ChannelDecoder(path))) == 40 * len(minute))
    assert takes_little_memory(lambda: bool(separate(ChannelDecoder(path), "auto")))


# --- what is stored ---------------------------------------------------------------------------

WINDOWS = (
    Window(Span(0, 9_000), Span(500, 8_000), 7_000),
    Window(Span(9_000, 9_500), Span(9_000, 9_400), 300),
)
IN_JSON = [[0, 9_000, 500, 8_000, 7_000], [9_000, 9_500, 9_000, 9_400, 300]]


@pytest.mark.parametrize("channel", [None, 0, 5])
def test_a_chunk_is_stored_with_its_channel(channel: int | None) -> None:
    chunk = Chunk(3, WINDOWS, channel)
    assert chunk_from_json(3, chunk_to_json(chunk)) == chunk
    assert windows_to_json(WINDOWS) == IN_JSON


def test_a_chunk_of_the_mix_is_stored_and_addressed_as_before() -> None:
    chunk = Chunk(3, WINDOWS)
    assert chunk_to_json(chunk) == IN_JSON
    assert content_hash(chunk, b"pcm", {"engine": "a"}) == (
        "a354dae6dcafaa42830a626cf4268ce377c3c27d32ce1b1e7eed7e42d2663e77"
    )
    other = Chunk(0, WINDOWS, channel=1)
    assert content_hash(other, b"pcm", {"engine": "a"}) == content_hash(
        chunk, b"pcm", {"engine": "a"}
    )


def test_an_older_request_is_for_the_mix() -> None:
    stored = Options().to_json()
    del stored["channels"]
    assert Options.from_json(stored).channels == "mix"
    assert Options.from_json(Options(channels="auto").to_json()).channels == "auto"


def test_too_many_channels_are_refused_before_they_are_decoded() -> None:
    tracks = [
        Track(at, "vie" if at else "eng", None, "aac", count, at == 0)
        for at, count in enumerate((2, 12))
    ]
    check_channels(tracks, None, "separate")
    check_channels([], None, "separate")
    for wanted in ("mix", "auto"):
        check_channels(tracks, "1", wanted)
    for track in ("1", "vi"):
        with pytest.raises(OutOfRange, match="8 channels; got 'separate, of 12 channels'"):
            check_channels(tracks, track, "separate")


def test_copies_with_a_minute_of_silence_before_are_copies(tmp_path: Path) -> None:
    said = np.concatenate([np.zeros(62 * 16_000, np.float32), HIS])
    assert found(tmp_path, "separate", said, said) == Separation((), IDENTICAL_CHANNELS)
    assert found(tmp_path, "separate", said, np.roll(said, 1)[::-1]) == Separation((0, 1))
