"""Which audio track is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.audio.decode import MonoDecoder
from common.audio.probe import probe
from common.audio.redact import RedactedWav
from common.domain.tracks import Track, default_track, find_track
from common.errors import UnknownOption
from tests.support.audio_files import write_tracks
from tests.support.speech import silence, speak

TRACKS = tuple(
    Track(index, language, title, "aac", 2, default=index == 1)
    for index, (language, title) in enumerate(
        [("eng", "Commentary"), ("vie", None), ("ger", None), ("eng", None), (None, None)]
    )
)


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (None, None),
        ("0", 0),
        ("4", 4),
        ("vi", 1),
        ("vie", 1),
        ("vi-VN", 1),
        ("EN", 0),
        ("en_US", 0),
        ("de", 2),
        ("deu", 2),
    ],
)
def test_a_track_is_found_by_index_and_by_language(asked: str | None, index: int | None) -> None:
    assert find_track(TRACKS, asked) == index
    assert default_track(TRACKS) == 1


@pytest.mark.parametrize("asked", ["5", "-1", "fr", "", "01"])
def test_a_track_that_is_missing_is_named_with_those_there_are(asked: str) -> None:
    with pytest.raises(UnknownOption) as error:
        find_track(TRACKS, asked)
    text = str(error.value)
    assert "audio_track must be one of 0 (eng, Commentary), 1 (vie), 2 (ger), 3 (eng), 4" in text
    assert repr(asked) in text


@pytest.mark.parametrize("container", ["matroska", "mp4"])
@pytest.mark.parametrize("default", [0, 2])
def test_each_track_is_listed_and_decodable(container: str, default: int, tmp_path: Path) -> None:
    voice = speak("The captain walked along the beach.")
    tracks = (("eng", silence(2)), ("vie", voice), ("fra", silence(2)))
    path = write_tracks(tmp_path / "film", *tracks, container=container, default=default)
    found = probe(path)
    listed = [(track.index, track.language, track.codec) for track in found.tracks]
    assert listed == [(0, "eng", "aac"), (1, "vie", "aac"), (2, "fra", "aac")]
    assert default_track(found.tracks) == default
    loudest = [
        max(int(np.abs(block.astype(int)).max()) for block in MonoDecoder(path, track=track))
        for track in (0, 1, 2, None)
    ]
    assert loudest[1] > 3_000
    assert b"".join(RedactedWav(path, 1_000, [], track=1)) != b"".join(RedactedWav(path, 1_000, []))
    assert max(loudest[0], loudest[2], loudest[3]) < 10
