"""Texts as files, and what may be asked of a download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from api.http.fields import Document, Omittable
from api.http.headers import attachment
from api.jobs.waiting import REVISION, check_ready
from api.transcripts.documents import page_policy, to_docx, to_html
from common.db.jobs import Jobs, Text
from common.db.snapshots import Snapshot
from common.domain.formats import (
    DOCUMENT_TYPES,
    FLAGGING,
    MEDIA_TYPES,
    RTTM,
    SUBTITLES,
    DocumentFormat,
    TextFormat,
    write,
)
from common.domain.masking import masked
from common.domain.subtitles import LIMITS, NO_LAYOUT, Layout
from common.domain.transcript import Transcript
from common.errors import OptionConflict
from common.filenames import NAMELESS
from common.transcripts import transcript_of

Format = Literal[TextFormat, DocumentFormat, "wav", "original"]
RECORDINGS = frozenset({"wav", "original"})
"""The formats that are the recording, and no text."""
TEXT_TYPES: Mapping[str, str] = {**MEDIA_TYPES, **DOCUMENT_TYPES}
WITH_SPEAKERS = "a job with diarize=true, or whose channels were separated"


def _limits(name: str) -> Any:
    least, most = LIMITS[name]
    return Field(ge=least, le=most)


class DownloadOptions(Document):
    """The options of a download: of its URL, or of what is downloaded by other means."""

    format: Format = "txt"
    """The kind of file."""
    flag: bool = False
    """Prefix offensive text with its label; srt, vtt, docx and html only."""
    filter_profanity: Omittable[bool] = None
    """Mask offensive words; by default as the upload requested."""
    redact: bool = False
    """Replace offensive words by a tone; wav only."""
    max_line_width: Annotated[int, _limits("max_line_width")] | None = None
    """Characters of a line of subtitles; srt and vtt only."""
    max_line_count: Annotated[int, _limits("max_line_count")] | None = None
    """Lines of a cue; needs max_line_width; srt and vtt only."""
    max_cue_seconds: Annotated[float, _limits("max_cue_seconds")] | None = None
    """Longest cue; srt and vtt only."""
    min_cue_seconds: Annotated[float, _limits("min_cue_seconds")] | None = None
    """Shortest cue, where a pause allows it; srt and vtt only."""
    max_cps: Annotated[float, _limits("max_cps")] | None = None
    """Characters to read in a second; srt and vtt only."""

    @property
    def layout(self) -> Layout:
        """That of subtitles."""
        return Layout.of(**{name: getattr(self, name) for name in LIMITS})

    def check(self) -> None:
        """Raise `OptionConflict` where one option needs another one; it is named."""
        if self.flag and self.format not in FLAGGING:
            raise OptionConflict(field="flag", value="true", needed="format=srt, vtt, docx or html")
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if self.layout != NO_LAYOUT and self.format not in SUBTITLES:
            value = f"{getattr(self, given[0]):g}"
            raise OptionConflict(field=given[0], value=value, needed="format=srt or format=vtt")
        if self.filter_profanity and self.format in RECORDINGS:
            raise OptionConflict(field="filter_profanity", value="true", needed="a format of text")
        if self.redact and self.format != "wav":
            raise OptionConflict(field="redact", value="true", needed="format=wav")


def text_file(jobs: Jobs, job_id: UUID, options: DownloadOptions) -> Response:
    """A job's text as a file, in a format of text that ``options`` name.

    Raises:
        NotFound, NotReady, Conflict: there is no such job, or no text.
        OptionConflict: the job has nothing of what is asked for.
    """
    snapshot, text, transcript = text_of(jobs, job_id, partial=False, mask=options.filter_profanity)
    ending, flag = options.format, options.flag
    if flag:
        check_moderated(text, "flag")
    if ending == RTTM and transcript.diarization is None:
        raise OptionConflict(field="format", value=RTTM, needed=WITH_SPEAKERS)
    headers = {
        "Content-Disposition": attachment(snapshot.filename, ending),
        REVISION: str(text.revision),
    }
    name = snapshot.filename or NAMELESS
    if ending == "docx":
        content: str | bytes = to_docx(transcript, name, flag=flag)
    elif ending == "html":
        content = to_html(transcript, name, flag=flag)
        headers["Content-Security-Policy"] = page_policy()
    else:
        content = write(
            ending,
            transcript,
            flag=flag,
            layout=options.layout,
            warnings=snapshot.warnings,
            manifest=text.manifest,
            filename=snapshot.filename,
        )
    return Response(content, media_type=TEXT_TYPES[ending], headers=headers)


def text_of(
    jobs: Jobs, job_id: UUID, *, partial: bool, mask: bool | None
) -> tuple[Snapshot, Text, Transcript]:
    """The job and its text, with or without masks; None: as its upload requested."""
    snapshot = jobs.snapshot(job_id)
    if not partial:
        check_ready(snapshot)
    text = jobs.text(job_id)
    if mask:
        check_moderated(text, "filter_profanity")
    hide = text.options.filter_profanity if mask is None else mask
    transcript = transcript_of(text, moderated_only=hide)
    return snapshot, text, masked(transcript) if hide else transcript


def check_moderated(text: Text, field: str) -> None:
    """Raise `OptionConflict` for the option ``field`` unless the text was moderated."""
    if not text.options.moderation:
        raise OptionConflict(field=field, value="true", needed="a job with moderation=true")
