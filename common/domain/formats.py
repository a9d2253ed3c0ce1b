"""A transcript as a file: JSON, and txt, srt, vtt and tsv as openai/whisper writes them.

Source: github.com/openai/whisper, whisper/utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from common.domain.moderation import Label
from common.domain.results import transcript_document
from common.domain.transcript import Transcript
from common.domain.values import Segment

TextFormat = Literal["json", "txt", "srt", "vtt", "tsv"]
"""All formats, by file ending."""


def to_txt(transcript: Transcript) -> str:
    """One line for each segment."""
    return "".join(f"{_line(segment)}\n" for segment in _spoken(transcript))


def to_srt(transcript: Transcript, *, flag: bool = False) -> str:
    """SubRip. With ``flag`` the text of an offending cue begins with its label in brackets."""
    return "".join(
        f"{number}\n{_srt_time(segment.span.start_ms)} --> {_srt_time(segment.span.end_ms)}\n"
        f"{_prefix(_offence(segment, flag=flag))}{_cue(segment)}\n\n"
        for number, segment in enumerate(_spoken(transcript), start=1)
    )


def to_vtt(transcript: Transcript, *, flag: bool = False) -> str:
    """WebVTT. Cues in another language than the transcript's name theirs, for fonts and voices.

    With ``flag`` as `to_srt`, and the cue has its label as a class for styling.
    """
    main = transcript.language
    # A translation is in one language, though not in that of the recording.
    is_mixed = len({segment.language or main for segment in transcript.segments}) > 1
    return "WEBVTT\n\n" + "".join(
        f"{_vtt_time(segment.span.start_ms)} --> {_vtt_time(segment.span.end_ms)}\n"
        f"{_vtt_cue(segment, main if is_mixed else None, _offence(segment, flag=flag))}\n\n"
        for segment in _spoken(transcript)
    )


def to_tsv(transcript: Transcript) -> str:
    """Start and end in milliseconds and the text, separated by tabs."""
    return "start\tend\ttext\n" + "".join(
        f"{segment.span.start_ms}\t{segment.span.end_ms}\t{_line(segment)}\n"
        for segment in _spoken(transcript)
    )


WRITERS: Mapping[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
}
"""The formats that need only the transcript, by file ending."""

FLAGGING: Mapping[str, Callable[[Transcript], str]] = {
    "srt": partial(to_srt, flag=True),
    "vtt": partial(to_vtt, flag=True),
}
"""The formats that can mark offending cues, with that option."""

MEDIA_TYPES: Mapping[str, str] = {
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
}
"""The media types of all formats, by file ending."""


def write(
    ending: str,
    transcript: Transcript,
    *,
    flag: bool = False,
    warnings: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
) -> str:
    """The file of an ending in `MEDIA_TYPES`.

    JSON is the public document (`common.domain.results`); only it has warnings and manifest.

    ``flag`` marks offending cues, in the formats of `FLAGGING` only.
    """
    if flag:
        return FLAGGING[ending](transcript)
    if ending == "json":
        document = transcript_document(transcript, warnings=warnings, manifest=manifest)
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    return WRITERS[ending](transcript)


def _spoken(transcript: Transcript) -> Iterator[Segment]:
    return (segment for segment in transcript.segments if segment.text.strip())


def _line(segment: Segment) -> str:
    """The text on one line: a line break or a tab in it would end the record."""
    return " ".join(segment.text.split())


def _cue(segment: Segment) -> str:
    return _line(segment).replace("-->", "->")


def _vtt_cue(segment: Segment, main: str | None, offence: Label | None) -> str:
    # In WebVTT both begin markup (www.w3.org/TR/webvtt1, 4.2.2).
    text = _prefix(offence) + _cue(segment).replace("&", "&amp;").replace("<", "&lt;")
    if main is not None and segment.language not in (None, main):
        text = f"<lang {segment.language}>{text}</lang>"
    return f"<c.{offence.lower()}>{text}</c>" if offence else text


def _offence(segment: Segment, *, flag: bool) -> Label | None:
    finding = segment.finding
    return finding.label if flag and finding and finding.label is not Label.CLEAN else None


def _prefix(offence: Label | None) -> str:
    return f"[{offence}] " if offence else ""


def _srt_time(ms: int) -> str:
    hours, minutes, seconds, rest = _clock(ms)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{rest:03d}"


def _vtt_time(ms: int) -> str:
    hours, minutes, seconds, rest = _clock(ms)
    return (f"{hours:02d}:" if hours else "") + f"{minutes:02d}:{seconds:02d}.{rest:03d}"


def _clock(ms: int) -> tuple[int, int, int, int]:
    minutes, rest = divmod(ms, 60_000)
    return *divmod(minutes, 60), *divmod(rest, 1000)
