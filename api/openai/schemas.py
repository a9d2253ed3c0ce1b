"""The options, responses and errors of OpenAI's audio API, mapped to our own jobs.

Source: OpenAI's API reference, "Create transcription" and "Create translation", and its error
objects. Unsupported fields that clients send by habit are ignored, and named in the header
`api.jobs.uploads.IGNORED` of the response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from string import ascii_uppercase
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import Request
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from starlette.responses import JSONResponse, Response

from api.http.fields import Number, Prose, RequestDocument
from api.http.problems import Problem, validation_error
from api.jobs.schemas import SpeakerNumber
from api.openai.model_names import weights_named
from common.domain.formats import to_srt, to_vtt
from common.domain.languages import AUTO, LANGUAGES, language_code
from common.domain.request import Task
from common.domain.results import seconds, segment_document, word_document
from common.domain.transcript import Transcript
from common.domain.values import Segment
from common.errors import OptionConflict, UnknownOption

PREFIX = "/v1"
UNKNOWN_SPEAKER = "unknown"
GRANULARITIES = "timestamp_granularities[]"
DIARIZED = "diarized_json"
STREAMED = ("json", "text", DIARIZED)
"""The formats with events."""
UNBRACKETED = "timestamp_granularities"
"""The same field as some clients name it."""


def _named(model: str) -> str:
    if not re.fullmatch(r"([^/\s]+/)?[^/\s]+", model):
        raise ValueError("one that GET /v1/models lists")
    return model


class AudioOptions(RequestDocument):
    """The options of both calls, beside the file."""

    model: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_named)]
    """The weights, as `GET /v1/models` lists them or as they were published
    (`Systran/faster-whisper-small`, `whisper-large-v3`). whisper-1, gpt-4o-transcribe,
    gpt-4o-mini-transcribe and gpt-4o-transcribe-diarize are the default ones."""
    prompt: Prose | None = None
    """Text that the decoder takes as the preceding context."""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"] = "json"
    """The format of the response; diarized_json says who speaks."""
    temperature: Number = Field(0, ge=0, le=1)
    """0: chosen by the decoder's confidence."""

    task: ClassVar[Task]

    @property
    def granularities(self) -> Sequence[str]:
        """What has times in verbose_json."""
        return ("segment",)

    def job_options(self) -> dict[str, str]:
        """The equivalent options of an upload."""
        engine, name = weights_named(self.model)
        options = {
            "model": name,
            "engine": engine,
            "task": self.task,
            "language": AUTO,
            "initial_prompt": self.prompt or "",
            "temperature": str(self.temperature) if self.temperature else "",
            "review": "false",  # the response waits for the text
        }
        return {key: value for key, value in options.items() if value}

    @classmethod
    def read(cls, sent: Mapping[str, str | list[str]]) -> Self:
        """Check a form's fields; an empty one counts as not sent.

        Raises:
            FieldMissing, OptionConflict: a field is missing, and none is invalid.
            BadInput: a field is invalid; it is named.
        """
        try:
            return cls.model_validate({name: value for name, value in sent.items() if value})
        except ValidationError as error:
            errors = error.errors()
            first = next((each for each in errors if each["type"] != "missing"), errors[0])
            raise validation_error(dict(first), sent, cls.model_fields) from None


class TranslationOptions(AudioOptions):
    """`POST /v1/audio/translations`: to English."""

    task = "translate"

    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    """The format of the response."""


class TranscriptionOptions(AudioOptions):
    """`POST /v1/audio/transcriptions`."""

    task = "transcribe"

    language: Annotated[str | None, Field(max_length=20)] = None
    """ISO-639-1, such as vi; locales (pt-BR) and names (English) are accepted too. Detected if
    omitted."""
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        ["segment"], alias="timestamp_granularities[]"
    )
    """What has times in verbose_json."""
    stream: bool = False
    """Send events while the text grows; with json, text or diarized_json."""
    num_speakers: SpeakerNumber = None
    """How many people speak. OpenAI has neither this nor the next two; all need diarized_json."""
    min_speakers: SpeakerNumber = None
    """The least number of people who speak."""
    max_speakers: SpeakerNumber = None
    """The greatest number of people who speak."""

    @property
    def granularities(self) -> Sequence[str]:
        return self.timestamp_granularities

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of speakers that were sent."""
        names = {"num_speakers", "min_speakers", "max_speakers"}
        return self.model_dump(include=names, exclude_none=True)

    def job_options(self) -> dict[str, str]:
        options = super().job_options()
        if self.language:
            options["language"] = language_code(self.language) or self.language
        if self.response_format == DIARIZED:
            options["diarize"] = "true"
        return options | {name: str(number) for name, number in self.counts.items()}

    @classmethod
    def read(cls, sent: Mapping[str, str | list[str]]) -> Self:
        options = super().read(sent)
        if options.stream and options.response_format not in STREAMED:
            needed = f"response_format {', '.join(STREAMED)}"
            raise OptionConflict(field="stream", value="true", needed=needed)
        if options.counts and options.response_format != DIARIZED:
            name, number = next(iter(options.counts.items()))
            needed = f"response_format={DIARIZED}"
            raise OptionConflict(field=name, value=number, needed=needed)
        if GRANULARITIES in sent and options.response_format != "verbose_json":
            value = ", ".join(options.timestamp_granularities)
            raise OptionConflict(
                field=GRANULARITIES, value=value, needed="response_format=verbose_json"
            )
        return options


# --- responses ------------------------------------------------------------------------------


def usage(transcript: Transcript) -> dict[str, Any]:
    """The usage that OpenAI bills by."""
    return {"type": "duration", "seconds": seconds(transcript.duration_ms)}


def to_text(transcript: Transcript) -> str:
    """The whole text on one line."""
    return f"{transcript.text}\n"


TEXTS: Mapping[str, tuple[str, Callable[[Transcript], str]]] = MappingProxyType(
    {
        "text": ("text/plain; charset=utf-8", to_text),
        "srt": ("application/x-subrip; charset=utf-8", to_srt),
        "vtt": ("text/vtt; charset=utf-8", to_vtt),
    }
)
"""Formats other than JSON: media type and writer."""


def whisper_segment(index: int, segment: Segment) -> dict[str, Any]:
    """A segment as in Whisper's own JSON; token ids are not stored, so the list is empty."""
    return {"seek": 0, "tokens": [], **segment_document(index, segment)}


def diarized_segments(transcript: Transcript) -> list[dict[str, Any]]:
    """The segments in ``diarized_json``, which are events of a stream as well.

    Speakers without a name are A, B, ... in the order in which they first speak.
    """
    diarization = transcript.diarization
    names = {}
    if diarization is not None:
        for number, speaker in enumerate(diarization.speakers):
            names[speaker] = diarization.names.get(speaker, _letters(number))
    return [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{number}",
            "start": seconds(segment.span.start_ms),
            "end": seconds(segment.span.end_ms),
            "text": segment.text.strip(),
            "speaker": names.get(segment.speaker or "", UNKNOWN_SPEAKER),
        }
        for number, segment in enumerate(transcript.segments)
    ]


def _letters(number: int) -> str:
    """A, ..., Z, AA, AB, ..."""
    before = _letters(number // 26 - 1) if number >= 26 else ""
    return before + ascii_uppercase[number % 26]


def diarized_document(transcript: Transcript) -> dict[str, Any]:
    """The response in ``diarized_json``."""
    return {
        "task": "transcribe",
        "duration": seconds(transcript.duration_ms),
        "text": transcript.text,
        "segments": diarized_segments(transcript),
        "usage": usage(transcript),
    }


def verbose_document(transcript: Transcript, options: AudioOptions) -> Any:
    """The response in ``verbose_json``."""
    document: dict[str, Any] = {
        "task": options.task,
        "language": LANGUAGES.get(transcript.language, transcript.language).lower(),
        "duration": seconds(transcript.duration_ms),
        "text": transcript.text,
        "usage": usage(transcript),
    }
    if "segment" in options.granularities:
        document["segments"] = [
            whisper_segment(index, segment) for index, segment in enumerate(transcript.segments)
        ]
    if "word" in options.granularities:
        document["words"] = [
            word_document(word, segment.speaker)
            for segment in transcript.segments
            for word in segment.words
        ]
    return document


# --- errors ---------------------------------------------------------------------------------

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {"unauthorised": "invalid_api_key", "weights_missing": "model_not_found"}


class ErrorAnswer(JSONResponse):
    """An error's response as OpenAI's clients expect it: 400 for our 422, 404 for a model."""

    def __init__(self, problem: Problem) -> None:
        document = problem.document
        code = _CODES.get(document["code"], document["code"])
        # A model's name may include its engine.
        field = "model" if document.get("field") == "engine" else document.get("field")
        if field == "model" and code == UnknownOption.code:
            code = "model_not_found"
        status = 404 if code == "model_not_found" else document["status"]
        status = 400 if status == 422 else status
        other = "server_error" if status >= 500 else "invalid_request_error"
        self.error = {
            "message": document["detail"],
            "type": _TYPES.get(status, other),
            "param": field,
            "code": code,
        }
        super().__init__({"error": self.error}, status)
        kept = {"retry-after", "www-authenticate"}
        self.headers.update({k: v for k, v in problem.headers.items() if k in kept})


def error_answer(request: Request, problem: Problem) -> Response:
    """An error's response: under ``/v1`` as `ErrorAnswer`."""
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    return ErrorAnswer(problem) if path.startswith(f"{PREFIX}/") else problem


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can fail in these ways."""
    return {
        status: {"description": HTTPStatus(status).phrase, "model": ErrorDocument}
        for status in statuses
    }


class ErrorObject(BaseModel):
    """The error."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(examples=["response_format"])
    code: str | None = Field(examples=["unknown_option"])


class ErrorDocument(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorObject
