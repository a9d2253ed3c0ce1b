"""The options and responses of whisper-asr-webservice, mapped to our own jobs.

Source: github.com/ahmetoner/whisper-asr-webservice, and what Bazarr, subgen and Speakr send. The
options are in the query; unsupported ones are ignored, and named in the header
`api.jobs.uploads.IGNORED` of the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from fastapi import Request
from pydantic import BaseModel, Field, model_validator

from api.auth.callers import Caller
from api.http.fields import Document, Prose, Word
from api.http.multipart import FormReader
from api.jobs.idempotency import idempotency_key, request_sha256
from api.jobs.schemas import Accepted, SpeakerNumber
from api.jobs.uploads import Form, Upload
from api.openai.model_names import weights_named
from api.openai.schemas import whisper_segment
from api.services import Services
from common.db.jobs import Created, Idempotency
from common.db.transcriptions import NewRecording
from common.domain.languages import AUTO, LANGUAGES, language_code
from common.domain.request import Task
from common.domain.results import word_document
from common.domain.transcript import Transcript
from common.domain.values import Segment, Span
from common.errors import NotAudio

FILE = "audio_file"
JOIN_S = 24 * 3600
"""How long after its end a job answers the same recording and options again."""
DETECTED_S = 3600
"""Retention of jobs that only detected a language."""
COUNTS = {"num_speakers", "min_speakers", "max_speakers"}
LONGEST_S = 7 * 24 * 3600
_JOINS = "\x1fasr"
"""Prefix of the idempotency keys of such jobs; clients cannot send it."""


class _Query(Document):
    encode: bool = True
    """false: the file is PCM without a header (16 bit, little endian, mono, 16 kHz). A file that
    has a header is still read by it."""
    video_file: Annotated[str | None, Field(max_length=4096)] = None
    """The recording's name."""

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, sent: Any) -> Any:
        return {name: value for name, value in sent.items() if value != ""}

    @property
    def ignored(self) -> set[str]:
        """Fields that have no effect beside the others."""
        return set()

    def form(self, request: Request, options: dict[str, str]) -> Form:
        """The form in the body; ``options`` are those of an upload."""
        wanted = {name: value for name, value in options.items() if value}
        return Form(
            fields=(),
            options=lambda _: wanted,
            file=FILE,
            filename=self.video_file,
            ignores_unknown=True,
            ignored=[
                name
                for name in request.query_params
                if name not in type(self).model_fields or name in self.ignored
            ],
            may_be_bare=not self.encode,
        )


class AsrQuery(_Query):
    """`POST /asr`."""

    task: Annotated[Task, Word] = "transcribe"
    """translate: to English."""
    language: Annotated[str | None, Field(max_length=20)] = None
    """The language spoken: vi, vi-VN or Vietnamese. Detected if omitted."""
    output: Annotated[Literal["txt", "vtt", "srt", "tsv", "json"], Word] = "txt"
    """The format of the text."""
    initial_prompt: Prose | None = None
    """Text that the decoder takes as the preceding context."""
    hotwords: Prose | None = None
    """Names and terms that are likely to occur."""
    glossaries: Prose | None = None
    """The names of glossaries, separated by commas; by default the tenant's default one."""
    word_timestamps: bool = False
    """Whether the JSON includes the words of each segment."""
    model: Annotated[str | None, Field(max_length=200)] = None
    """The weights, as `GET /v1/models` lists them; by default the gateway's."""
    diarize: bool = False
    """Find who says what: segments in json have a speaker, lines and cues begin with it."""
    enable_diarization: bool = False
    """The same; for Speakr."""
    num_speakers: SpeakerNumber = None
    """How many people speak. It and the next two are ignored without `diarize`."""
    min_speakers: SpeakerNumber = None
    """The least number of people who speak."""
    max_speakers: SpeakerNumber = None
    """The greatest number of people who speak."""

    @property
    def ignored(self) -> set[str]:
        return set() if self._diarizes else COUNTS & self.model_fields_set

    @property
    def _diarizes(self) -> bool:
        return self.diarize or self.enable_diarization

    def job_options(self) -> dict[str, str]:
        """The equivalent options of an upload."""
        engine, name = weights_named(self.model or "")
        language = self.language or AUTO
        speakers = {"diarize": "true", **self.model_dump(include=COUNTS, exclude_none=True)}
        return {
            **({key: str(value) for key, value in speakers.items()} if self._diarizes else {}),
            "task": self.task,
            "language": language_code(language) or language,
            "initial_prompt": self.initial_prompt or "",
            "hotwords": self.hotwords or "",
            "glossaries": self.glossaries or "",
            "engine": engine,
            "model": name,
            "review": "false",  # the response waits for the text
        }


class DetectQuery(_Query):
    """`POST /detect-language`."""

    detect_lang_offset: int = Field(0, ge=0, le=LONGEST_S)
    """Where to start, in seconds."""
    detect_lang_length: int = Field(0, ge=0, le=LONGEST_S)
    """Length to use, in seconds; 0: up to the end."""

    def job_options(self) -> dict[str, str]:
        return {
            "language": AUTO,
            "moderation": "false",
            "review": "false",
            "delete_after": str(DETECTED_S),
        }

    @property
    def part(self) -> Span:
        length_s = self.detect_lang_length or LONGEST_S
        return Span(1000 * self.detect_lang_offset, 1000 * (self.detect_lang_offset + length_s))


class AsrUpload(Upload):
    """A recording that joins the job of the same recording and options, if there is one."""

    async def accept(self, request: Request) -> Accepted:
        try:
            return await super().accept(request)
        except NotAudio as error:
            if self._form.may_be_bare:
                raise
            reason = f"{error.details['reason']}; PCM without a header needs encode=false"
            raise NotAudio(reason=reason) from None

    def _may_be_replay(self, request: Request) -> bool:  # noqa: ARG002
        return True

    def _store(self, recording: NewRecording, request: Request) -> Created:
        if idempotency_key(request) is not None:
            return super()._store(recording, request)
        job, asr = self._job, self._services.settings.asr  # with today's defaults
        options = replace(job.options, models={}, fetch_model=False)  # these change as models come
        names = asr.models_of(self._options.engine, self._options.model, job.language)
        models = ",".join(map(str, names))
        request_name = f"{request.url.path} {models} {job.language} {options}"
        sha256 = request_sha256(request_name, self._options, recording.sha256)
        return self._submit(recording, Idempotency(f"{_JOINS}:{sha256}", sha256, JOIN_S))


class DetectUpload(AsrUpload):
    """A recording whose language is to be detected in a part of it."""

    def __init__(self, services: Services, caller: Caller, form: Form, part: Span) -> None:
        super().__init__(services, caller, form)
        self._part = part

    async def _check(self, form: FormReader, request: Request) -> None:
        await super()._check(form, request)
        options = replace(self._job.options, detect_in=self._part)
        self._job = replace(self._job, options=options)


class Language(BaseModel):
    """The response of `/detect-language`."""

    detected_language: str = Field(examples=["vietnamese"])
    language_code: str = Field(examples=["vi"])
    confidence: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, code: str, probabilities: Mapping[str, float]) -> Self:
        """``probabilities`` are empty where there is no speech."""
        if not probabilities:
            return cls(detected_language="Unknown", language_code="und", confidence=0)
        name = LANGUAGES.get(code, code).lower()
        return cls(detected_language=name, language_code=code, confidence=probabilities[code])


def json_document(transcript: Transcript, *, words: bool) -> dict[str, Any]:
    """The response in ``json``, as openai/whisper writes it."""
    return {
        "text": transcript.text,
        "segments": [
            {
                **whisper_segment(index, segment),
                **({"words": _words(segment)} if words else {}),
            }
            for index, segment in enumerate(transcript.segments)
        ],
        "language": transcript.language,
    }


def _words(segment: Segment) -> list[dict[str, Any]]:
    return [word_document(word, segment.speaker) for word in segment.words]
