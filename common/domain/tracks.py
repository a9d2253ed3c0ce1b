"""The audio tracks of a recording, and which of them is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

from common.errors import UnknownOption

OTHER_AUDIO_TRACK = "other_audio_track"
"""Nobody speaks on the default track; the one that was transcribed is another."""


@dataclass(frozen=True, slots=True)
class Track:
    """An audio track; ``index`` counts audio tracks from 0.

    ``language`` is as the container has it, mostly ISO 639-2. ``default`` is the one track that is
    transcribed unless another is asked for.
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
        """What `to_json` made."""
        return cls(**document)

    def __str__(self) -> str:
        details = ", ".join(filter(None, (self.language, self.title)))
        return f"{self.index} ({details})" if details else str(self.index)


def find_track(tracks: Sequence[Track], asked: str | None) -> int | None:
    """The index of the track that is ``asked`` for by index or language; None: by nothing.

    Of several in one language it is the first. ``vi``, ``vie`` and ``vi-VN`` are the same.

    Raises:
        UnknownOption: there is no such track.
    """
    if asked is None:
        return None
    for track in tracks:
        if str(track.index) == asked or (track.language and _same(track.language, asked)):
            return track.index
    raise UnknownOption(field="audio_track", allowed=", ".join(map(str, tracks)), value=asked)


def default_track(tracks: Sequence[Track]) -> int | None:
    """The index of the one that is transcribed unless another is asked for; None: there is one."""
    return next((track.index for track in tracks if track.default), None)


def _same(one: str, other: str) -> bool:
    return _short(one) == _short(other)


def _short(language: str) -> str:
    code = language.strip().lower().replace("_", "-").partition("-")[0]
    return SHORT.get(code, code)


_CODES = """
afr:af amh:am ara:ar asm:as aze:az bak:ba bel:be bul:bg ben:bn tib:bo bod:bo bre:br bos:bs cat:ca
cze:cs ces:cs wel:cy cym:cy dan:da ger:de deu:de gre:el ell:el eng:en spa:es est:et baq:eu eus:eu
per:fa fas:fa fin:fi fao:fo fre:fr fra:fr glg:gl guj:gu hau:ha heb:he hin:hi hrv:hr hat:ht hun:hu
arm:hy hye:hy ind:id ice:is isl:is ita:it jpn:ja jav:jw jv:jw geo:ka kat:ka kaz:kk khm:km kan:kn
kor:ko lat:la ltz:lb lin:ln lao:lo lit:lt lav:lv mlg:mg mao:mi mri:mi mac:mk mkd:mk mal:ml mon:mn
mar:mr may:ms msa:ms mlt:mt bur:my mya:my nep:ne dut:nl nld:nl nno:nn nor:no nob:no nb:no oci:oc
pan:pa pol:pl pus:ps por:pt rum:ro ron:ro rus:ru san:sa snd:sd sin:si slo:sk slk:sk slv:sl sna:sn
som:so alb:sq sqi:sq srp:sr sun:su swe:sv swa:sw tam:ta tel:te tgk:tg tha:th tuk:tk tgl:tl fil:tl
tur:tr tat:tt ukr:uk urd:ur uzb:uz vie:vi yid:yi yor:yo chi:zh zho:zh cmn:zh
"""
SHORT: Mapping[str, str] = MappingProxyType(dict(pair.split(":") for pair in _CODES.split()))
"""ISO 639-2 codes, of both kinds, of the languages that Whisper knows."""
