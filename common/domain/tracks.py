"""The audio tracks of a recording, and the selection of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from common.domain.languages import language_code
from common.domain.request import Channels
from common.errors import OutOfRange, UnknownOption

OTHER_AUDIO_TRACK = "other_audio_track"
"""The warning that the default track has no speech, and another one was transcribed."""


MOST_SEPARATE = 8
"""More channels are only transcribed as a mix."""


@dataclass(frozen=True, slots=True)
class Track:
    """An audio track; ``index`` counts audio tracks from 0.

    ``language`` is as in the container, mostly ISO 639-2. ``default``: this track is transcribed
    unless another is requested.
    """

    index: int
    language: str | None
    title: str | None
    codec: str
    channels: int
    default: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        return cls(**document)

    def __str__(self) -> str:
        details = ", ".join(filter(None, (self.language, self.title)))
        return f"{self.index} ({details})" if details else str(self.index)


def find_track(tracks: Sequence[Track], asked: str | None) -> int | None:
    """The index of the track ``asked`` for by index or language; None: no track was requested.

    Of several in one language the first is selected. ``vi``, ``vie`` and ``vi-VN`` are the same.

    Raises:
        UnknownOption: the recording has no such track.
    """
    if asked is None:
        return None
    for track in tracks:
        if str(track.index) == asked or (track.language and _code(track.language) == _code(asked)):
            return track.index
    raise UnknownOption(field="audio_track", allowed=", ".join(map(str, tracks)), value=asked)


def check_channels(tracks: Sequence[Track], asked: str | None, channels: Channels) -> None:
    """Check that a recording with these tracks can be transcribed as requested, as far as known.

    Raises:
        UnknownOption: it lacks the track ``asked`` for.
        OutOfRange: that has too many channels to transcribe each.
    """
    index = find_track(tracks, asked)
    if index is None:
        index = default_track(tracks)
    if channels == "separate" and index is not None:
        check_separable(tracks[index].channels)


def check_separable(count: int) -> None:
    """Raise `OutOfRange` where there are too many channels to transcribe each by itself."""
    if count > MOST_SEPARATE:
        limit = f"mix or auto for a recording with more than {MOST_SEPARATE} channels"
        raise OutOfRange(field="channels", limit=limit, value=f"separate, of {count} channels")


def default_track(tracks: Sequence[Track]) -> int | None:
    """The index of the default track; None: not known."""
    return next((track.index for track in tracks if track.default), None)


def _code(language: str) -> str:
    return language_code(language) or language.strip().lower()
