"""What clients of whisper-asr-webservice send and expect, in terms of our own jobs.

Source: github.com/ahmetoner/whisper-asr-webservice, and what Bazarr, subgen and Speakr send. The
options are in the query; those that have no meaning here are ignored, and the answer names them in
the header `api.uploads.IGNORED`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.client_names import weights_named
from api.idempotency import idempotency_key
from api.resolving import request_sha256
from api.schemas import Name, Prose, Word
from api.uploads import Form, Upload
from common.asr.languages import language_code
from common.db.jobs import Created, Idempotency, NewRecording
from common.domain.request import Task
from common.domain.results import segment_document, word_document
from common.domain.transcript import Transcript

FILE = "audio_file"
AUTO = "auto"
GOOD_S = 24 * 3600
"""For so long after its end a job answers the same recording and options again."""
_JOINS = "\x1fasr"
"""The idempotency key of such jobs begins with it; no client can send it."""


class _Query(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    encode: bool = True
    """false: the file has no header. It is 16 bit, little endian, mono, 16 kHz; a file that begins
    as one with a header does is read as such all the same."""
    video_file: Name | None = None
    """What to call the recording."""

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, sent: Any) -> Any:
        return {name: value for name, value in sent.items() if value != ""}

    def form(self, request: Request, options: dict[str, str]) -> Form:
        """What `POST` has in its body; ``options`` are those of an upload."""
        wanted = {name: value for name, value in options.items() if value}
        return Form(
            fields=(),
            options=lambda _: wanted,
            file=FILE,
            filename=self.video_file,
            ignores_unknown=True,
            ignored=[name for name in request.query_params if name not in type(self).model_fields],
            may_be_bare=not self.encode,
        )


class AsrQuery(_Query):
    """`POST /asr`."""

    task: Annotated[Task, Word] = "transcribe"
    """translate: to English."""
    language: Annotated[str | None, Field(max_length=20)] = None
    """Of what is said: vi, vi-VN or Vietnamese. Left out: it is detected."""
    output: Annotated[Literal["txt", "vtt", "srt", "tsv", "json"], Word] = "txt"
    """How the text is answered."""
    initial_prompt: Prose | None = None
    """Text the recording is to be taken to continue."""
    hotwords: Prose | None = None
    """Names and terms that are likely to be said."""
    word_timestamps: bool = False
    """Have each segment's words in the JSON."""
    model: Annotated[str | None, Field(max_length=200)] = None
    """Weights, as `GET /v1/models` lists them; left out: the default ones."""

    def job_options(self) -> dict[str, str]:
        """The same as options of an upload."""
        engine, name = weights_named(self.model or "")
        language = self.language or AUTO
        return {
            "task": self.task,
            "language": language_code(language) or language,
            "initial_prompt": self.initial_prompt or "",
            "hotwords": self.hotwords or "",
            "engine": engine,
            "model": name,
        }


class AsrUpload(Upload):
    """A recording that joins the job of the same recording and options, if there is one."""

    def _may_be_replay(self, request: Request) -> bool:  # noqa: ARG002
        return True

    def _store(self, recording: NewRecording, request: Request) -> Created:
        if idempotency_key(request) is not None:
            return super()._store(recording, request)
        job = self._job
        # The defaults may be others today.
        asked = f"{request.url.path} {job.engine} {job.model} {job.language}"
        sha256 = request_sha256(asked, self._options, recording.sha256)
        return self._submit(recording, Idempotency(f"{_JOINS}:{sha256}", sha256, GOOD_S))


def json_document(transcript: Transcript, *, words: bool) -> dict[str, Any]:
    """The answer in ``json``, as openai/whisper writes it."""
    return {
        "text": transcript.text,
        "segments": [
            {
                "seek": 0,
                "tokens": [],
                **segment_document(index, segment),
                **({"words": [word_document(word) for word in segment.words]} if words else {}),
            }
            for index, segment in enumerate(transcript.segments)
        ],
        "language": transcript.language,
    }
