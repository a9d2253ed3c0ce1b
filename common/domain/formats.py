"""A transcript as a file: JSON, and txt, srt, vtt and tsv as openai/whisper writes them.

Source: github.com/openai/whisper, whisper/utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, Literal, get_args

from common.domain.moderation import Label
from common.domain.results import transcript_document
from common.domain.subtitles import NO_LAYOUT, Cue, Layout, cues, text_of
from common.domain.transcript import Transcript
from common.domain.values import Segment

TextFormat = Literal["json", "txt", "srt", "vtt", "tsv", "rttm"]
"""The formats that a job's results are written in, by file ending."""
DocumentFormat = Literal["docx", "html"]
"""Formats for people to read, by file ending; they are made for a download only."""
RTTM: Final = "rttm"
"""It has the turns of speakers and no text, so it needs a diarized transcript."""


def to_txt(transcript: Transcript) -> str:
    """One line for each segment, which begins with its speaker if that is known."""
    return "".join(f"{_named(transcript, segment)}\n" for segment in _spoken(transcript))


def to_srt(transcript: Transcript, *, flag: bool = False, layout: Layout = NO_LAYOUT) -> str:
    """SubRip; a cue begins with its speaker if that is known.

    With ``flag`` the text of an offending cue begins with its label in brackets.
    """

    def heading(segment: Segment) -> str:
        name = transcript.speaker_of(segment)
        return f"{_prefix(segment, flag=flag)}{'' if name is None else f'{name}:'}".rstrip()

    return "".join(
        f"{number}\n{_srt_time(cue.span.start_ms)} --> {_srt_time(cue.span.end_ms)}\n"
        + _cue("\n".join(cue.lines))
        + "\n\n"
        for number, cue in enumerate(cues(transcript, layout, heading), start=1)
    )


def to_vtt(transcript: Transcript, *, flag: bool = False, layout: Layout = NO_LAYOUT) -> str:
    """WebVTT, with the speakers as voices.

    Cues in another language than the transcript's name theirs, for fonts and voices.
    With ``flag`` as `to_srt`, and the cue has its label as a class for styling.
    """
    main = transcript.language
    # A translation is in one language, though not in that of the recording.
    is_mixed = len({segment.language or main for segment in transcript.segments}) > 1
    return "WEBVTT\n\n" + "".join(
        f"{_vtt_time(cue.span.start_ms)} --> {_vtt_time(cue.span.end_ms)}\n"
        f"{_vtt_voice(transcript.speaker_of(cue.segments[0]))}"
        f"{_vtt_cue(cue, main if is_mixed else None, flag=flag)}\n\n"
        for cue in cues(transcript, layout, lambda segment: _prefix(segment, flag=flag).rstrip())
    )


def to_tsv(transcript: Transcript) -> str:
    """Start and end in milliseconds and the text, separated by tabs.

    If the transcript is diarized, the speaker is the last column.
    """
    diarized = transcript.diarization is not None
    columns = ("start", "end", "text", *["speaker"] * diarized)
    rows = (
        (
            str(segment.span.start_ms),
            str(segment.span.end_ms),
            text_of(segment),
            *[transcript.speaker_of(segment) or ""] * diarized,
        )
        for segment in _spoken(transcript)
    )
    return "".join("\t".join(row) + "\n" for row in (columns, *rows))


def to_rttm(transcript: Transcript, filename: str | None = None) -> str:
    """The speakers' turns, which may overlap, as NIST's Rich Transcription Time Marked.

    The file's id is the recording's ``filename`` without its ending. The channel is that of the
    speaker, from 1; 1 where the channels are mixed.
    """
    diarization = transcript.diarization
    if diarization is None:
        return ""
    file_id = _rttm_word(PurePosixPath(filename or "").stem) or "recording"
    channels = {
        segment.speaker: segment.channel
        for segment in reversed(transcript.segments)
        if segment.channel is not None
    }
    return "".join(
        f"SPEAKER {file_id} {channels.get(turn.speaker, 0) + 1}"
        f" {turn.span.start_ms / 1000:.3f} {turn.span.duration_ms / 1000:.3f}"
        f" <NA> <NA> {_rttm_word(diarization.name_of(turn.speaker))} <NA> <NA>\n"
        for turn in diarization.turns
    )


WRITERS: Mapping[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    RTTM: to_rttm,
}
"""The formats that need only the transcript, by file ending."""

SUBTITLES: Mapping[str, Callable[..., str]] = {"srt": to_srt, "vtt": to_vtt}
"""The formats of cues, which can be laid out."""

FLAGGING: Final = (*SUBTITLES, *get_args(DocumentFormat))
"""The formats that can mark offending text."""

MEDIA_TYPES: Mapping[str, str] = {
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    RTTM: "text/plain; charset=utf-8",
}
"""The media types of those formats, by file ending."""

DOCUMENT_TYPES: Mapping[str, str] = {
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "html": "text/html; charset=utf-8",
}
"""The media types of documents, by file ending."""


def write(
    ending: str,
    transcript: Transcript,
    *,
    flag: bool = False,
    layout: Layout = NO_LAYOUT,
    warnings: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
    filename: str | None = None,
) -> str:
    """The file of an ending in `MEDIA_TYPES`.

    JSON is the public document (`common.domain.results`); only it has warnings and manifest. Only
    RTTM has the recording's ``filename``.

    ``flag`` marks offending cues and ``layout`` cuts them, in the formats of `SUBTITLES` only.
    """
    if ending in SUBTITLES:
        return SUBTITLES[ending](transcript, flag=flag, layout=layout)
    if ending == "json":
        document = transcript_document(transcript, warnings=warnings, manifest=manifest)
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if ending == RTTM:
        return to_rttm(transcript, filename)
    return WRITERS[ending](transcript)


def files(
    transcript: Transcript,
    *,
    warnings: Sequence[str],
    manifest: Mapping[str, Any] | None,
    filename: str | None,
) -> Iterator[tuple[str, bytes]]:
    """Name and content of a file in each format that the transcript can be written in."""
    for ending in MEDIA_TYPES:
        if ending != RTTM or transcript.diarization is not None:
            content = write(
                ending, transcript, warnings=warnings, manifest=manifest, filename=filename
            )
            yield f"transcript.{ending}", content.encode()


def _rttm_word(text: str) -> str:
    """The text without whitespace, which separates fields."""
    return "_".join(text.split())


def _spoken(transcript: Transcript) -> Iterator[Segment]:
    return (segment for segment in transcript.segments if segment.text.strip())


def _named(transcript: Transcript, segment: Segment) -> str:
    """The text on one line, after the name of its speaker if that is known."""
    name, text = transcript.speaker_of(segment), text_of(segment)
    return text if name is None else f"{name}: {text}"


def _cue(text: str) -> str:
    return text.replace("-->", "->")


def _vtt_text(text: str) -> str:
    # In WebVTT both begin markup (www.w3.org/TR/webvtt1, 4.2.2).
    return _cue(text).replace("&", "&amp;").replace("<", "&lt;")


def _vtt_voice(name: str | None) -> str:
    """The tag of a voice that speaks the whole cue: then it need not be closed."""
    return "" if name is None else f"<v {_vtt_text(name).replace('>', '&gt;')}>"


def _vtt_cue(cue: Cue, main: str | None, *, flag: bool) -> str:
    text = _vtt_text("\n".join(cue.lines))
    language = cue.segments[0].language
    if main is not None and language not in (None, main):
        text = f"<lang {language}>{text}</lang>"
    offence = _offence(cue.segments[0], flag=flag)
    return f"<c.{offence.lower()}>{text}</c>" if offence else text


def _offence(segment: Segment, *, flag: bool) -> Label | None:
    finding = segment.finding
    return finding.label if flag and finding and finding.label is not Label.CLEAN else None


def _prefix(segment: Segment, *, flag: bool) -> str:
    offence = _offence(segment, flag=flag)
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
