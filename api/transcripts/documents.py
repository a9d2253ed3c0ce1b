"""A transcript as a document for people: a page that plays its recording, and a Word file."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from common.domain.languages import LANGUAGES
from common.domain.moderation import Label
from common.domain.results import seconds
from common.domain.subtitles import text_of
from common.domain.transcript import Transcript
from common.domain.values import Segment

PAGE = Path(__file__).parent / "page"

PAUSE_MS = 2_000
"""A new paragraph begins after such a pause."""
LETTERS = 600
"""A paragraph that is longer ends with its segment."""

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that an XML document cannot have (XML 1.0, 2.2)."""
_SOFT = (0x59, 0x63, 0x6E)
"""The colour of what is beside the text."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """What one person says without a long pause; ``speaker`` None: it is not known who."""

    speaker: str | None
    segments: tuple[Segment, ...]


def paragraphs(transcript: Transcript) -> Iterator[Paragraph]:
    """The segments that have text, in order, in paragraphs."""
    found: list[Segment] = []
    letters = 0
    for segment in transcript.segments:
        if not segment.text.strip():
            continue
        if found and (letters >= LETTERS or _begins(found[-1], segment)):
            yield Paragraph(transcript.speaker_of(found[0]), tuple(found))
            found, letters = [], 0
        found.append(segment)
        letters += len(segment.text)
    if found:
        yield Paragraph(transcript.speaker_of(found[0]), tuple(found))


def _begins(before: Segment, segment: Segment) -> bool:
    is_another = (before.speaker, before.channel) != (segment.speaker, segment.channel)
    return is_another or segment.span.start_ms - before.span.end_ms >= PAUSE_MS


def clock(ms: int) -> str:
    """A time for people, such as ``0:07`` or ``1:02:05``."""
    minutes, rest = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _facts(transcript: Transcript) -> list[str]:
    language = LANGUAGES.get(transcript.language, transcript.language)
    return [clock(transcript.duration_ms), language]


def _label(segment: Segment, *, flag: bool) -> str | None:
    finding = segment.finding
    return finding.label if flag and finding and finding.label is not Label.CLEAN else None


# --- Word -------------------------------------------------------------------------------------


def to_docx(transcript: Transcript, name: str, *, flag: bool = False) -> bytes:
    """An Office Open XML document: a heading, and paragraphs with their speaker and time.

    ``name`` is that of the recording. With ``flag`` offending segments begin with their label.
    """
    import docx  # takes a tenth of a second, and few gateways ever write one
    from docx.enum.text import WD_COLOR_INDEX
    from docx.shared import RGBColor

    soft = RGBColor(*_SOFT)
    document = docx.Document()
    properties = document.core_properties
    properties.title, properties.author, properties.comments = _xml(name), "", ""
    properties.language = transcript.language
    document.add_heading(_xml(name), level=1)
    document.add_paragraph().add_run(" · ".join(_facts(transcript))).font.color.rgb = soft
    for paragraph in paragraphs(transcript):
        written = document.add_paragraph()
        if paragraph.speaker is not None:
            written.add_run(f"{_xml(paragraph.speaker)} ").bold = True
        time = written.add_run(clock(paragraph.segments[0].span.start_ms))
        time.font.color.rgb = soft
        time.add_break()
        for at, segment in enumerate(paragraph.segments):
            written.add_run(" " * (at > 0))
            if label := _label(segment, flag=flag):
                written.add_run(f"[{label}]").font.highlight_color = WD_COLOR_INDEX.YELLOW
                written.add_run(" ")
            written.add_run(_xml(text_of(segment)))
    file = BytesIO()
    document.save(file)
    return file.getvalue()


def _xml(text: str) -> str:
    return _NOT_XML.sub("", text)


# --- the page ---------------------------------------------------------------------------------


def to_html(transcript: Transcript, name: str, *, flag: bool = False) -> str:
    """A page that needs nothing but itself and the recording, and plays it from any word.

    ``name`` is that of the recording, which is looked for beside the page, then where the gateway
    has it; a reader can also choose it. With ``flag`` as `to_docx`.
    """
    speakers = transcript.diarization.speakers if transcript.diarization else []
    return _page().render(
        name=name,
        language=transcript.language,
        facts=_facts(transcript),
        paragraphs=[
            {
                "speaker": paragraph.speaker,
                "number": _number(paragraph.segments[0], speakers),
                "start": seconds(paragraph.segments[0].span.start_ms),
                "clock": clock(paragraph.segments[0].span.start_ms),
                "segments": [
                    _shown(segment, transcript.language, flag=flag)
                    for segment in paragraph.segments
                ],
            }
            for paragraph in paragraphs(transcript)
        ],
        # The first has no scheme, whatever is in the name.
        sources=[f"./{quote(PurePosixPath(name).name)}", "?format=original"],
    )


def _number(segment: Segment, speakers: list[str]) -> int | None:
    return speakers.index(segment.speaker) if segment.speaker in speakers else None


def _shown(segment: Segment, main: str, *, flag: bool) -> dict[str, Any]:
    words = [
        (seconds(word.span.start_ms), " " * word.text[:1].isspace(), word.text.strip())
        for word in segment.words
    ]
    if "".join(word.text for word in segment.words) != segment.text:
        words = []
    return {
        "start": seconds(segment.span.start_ms),
        "end": seconds(segment.span.end_ms),
        "language": segment.language if segment.language != main else None,
        "label": _label(segment, flag=flag),
        "words": words,
        "text": f" {text_of(segment)}",
    }


@cache
def page_policy() -> str:
    """The Content-Security-Policy of pages: their own style and script, and the recording."""
    style, script = (_hash((PAGE / name).read_text()) for name in ("page.css", "page.js"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; "
        "media-src 'self' file: blob:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def _page() -> Template:
    """The template, in which everything is escaped but our own style and script."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(
        "page.html",
        globals={
            "policy": page_policy(),
            "style": (PAGE / "page.css").read_text(),
            "script": (PAGE / "page.js").read_text(),
        },
    )
