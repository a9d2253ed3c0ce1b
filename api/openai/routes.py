"""OpenAI's audio API over the same durable jobs: its clients only need another base URL.

The response waits for the job. A client that disconnects loses nothing: the job continues and is
listed by `GET /api/v1/jobs`, and chunks that are done are reused when the recording is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from api.auth.callers import Caller, Reader, Transcriber
from api.http.bodies import documented_body
from api.http.multipart import FormReader
from api.http.problems import problem
from api.http.sse import HEARTBEAT, MEDIA_TYPE, EventStream, event
from api.jobs.feeds import JobFeed, watch_job
from api.jobs.resolving import Resolver
from api.jobs.uploads import Form, Upload
from api.jobs.waiting import HEADERS, JOB_ID, REVISION, check_completed, wait_for_end
from api.openai.model_names import WHISPER, weights_named
from api.openai.schemas import (
    DIARIZED,
    GRANULARITIES,
    PREFIX,
    TEXTS,
    UNBRACKETED,
    AudioOptions,
    ErrorAnswer,
    TranscriptionOptions,
    TranslationOptions,
    diarized_document,
    diarized_segments,
    documented,
    usage,
    verbose_document,
)
from api.services import Services, ServicesDep
from common.domain.transcript import Transcript, join_text
from common.domain.values import Segment
from common.errors import NotFound, StenoError
from common.transcripts import transcript_of

router = APIRouter(prefix=PREFIX, tags=["openai"])

NO_RETRY = {"x-should-retry": "false"}
"""Keeps OpenAI's clients from sending the recording again after some errors (409, 504)."""
CREATED = 0
"""When the weights were created is unknown, and clients expect a number."""


class ParsedCall:
    """The options of one request, known once its form is parsed."""

    def __init__(self, kind: type[AudioOptions]) -> None:
        self._kind = kind
        self._options: AudioOptions | None = None
        names = {field.alias or name for name, field in kind.model_fields.items()}
        lists = {GRANULARITIES, UNBRACKETED} if GRANULARITIES in names else set()
        self.form = Form(tuple(names - lists), tuple(lists), self._read, ignores_unknown=True)

    @property
    def options(self) -> AudioOptions:
        assert self._options is not None  # noqa: S101 - jobs are only created from parsed forms
        return self._options

    def _read(self, form: FormReader) -> dict[str, str]:
        sent: dict[str, str | list[str]] = {**form.options, **form.lists}
        if UNBRACKETED in sent:
            sent.setdefault(GRANULARITIES, sent.pop(UNBRACKETED))
        self._options = self._kind.read(sent)
        return self._options.job_options()


def _form(kind: type[AudioOptions]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "The recording."}
    schema["properties"] = {"file": file, **schema["properties"]}
    schema["required"] = ["file", "model"]
    del schema["additionalProperties"]
    return documented_body("multipart/form-data", schema)


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The text",
        "content": {
            kind: {}
            for kind in ("application/json", MEDIA_TYPE, *(kind for kind, _ in TEXTS.values()))
        },
        "headers": HEADERS,
    },
    **documented(400, 401, 403, 404, 408, 409, 413, 415, 429, 503, 504),
}


@router.post(
    "/audio/transcriptions",
    summary="Transcribe a recording",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=_form(TranscriptionOptions),
)
async def transcriptions(request: Request, services: ServicesDep, caller: Transcriber) -> Response:
    """OpenAI's "Create transcription". The header X-Job-Id names its job."""
    return await _serve(TranscriptionOptions, request, services, caller)


@router.post(
    "/audio/translations",
    summary="Translate a recording to English",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=_form(TranslationOptions),
)
async def translations(request: Request, services: ServicesDep, caller: Transcriber) -> Response:
    """OpenAI's "Create translation". The header X-Job-Id names its job."""
    return await _serve(TranslationOptions, request, services, caller)


async def _serve(
    kind: type[AudioOptions], request: Request, services: Services, caller: Caller
) -> Response:
    parsed = ParsedCall(kind)
    upload = Upload(services, caller, parsed.form)
    job_id = (await upload.accept(request)).job_id
    headers = {JOB_ID: str(job_id)}
    try:
        async with AsyncExitStack() as source:
            feed = await source.enter_async_context(watch_job(services, caller.tenant, job_id))
            if isinstance(parsed.options, TranscriptionOptions) and parsed.options.stream:
                heartbeat_s = services.settings.events.heartbeat
                read = partial(_segments, services, caller.tenant, job_id)
                diarized = parsed.options.response_format == DIARIZED
                events = _events(feed, job_id, heartbeat_s, read if diarized else None)
                return EventStream(events, source.pop_all(), headers)
            await wait_for_end(request, feed, services.settings.openai.wait)
            check_completed(feed.snapshot, job_id)
        text = await services.in_thread(services.jobs(caller.tenant).text, job_id)
    except StenoError as error:
        answer = ErrorAnswer(problem(error))
        answer.headers.update(headers | NO_RETRY)
        return answer
    return _answer(transcript_of(text), parsed.options, headers | {REVISION: str(text.revision)})


def _answer(transcript: Transcript, options: AudioOptions, headers: dict[str, str]) -> Response:
    if options.response_format in TEXTS:
        kind, write = TEXTS[options.response_format]
        return Response(write(transcript), media_type=kind, headers=headers)
    if options.response_format == "verbose_json":
        document = verbose_document(transcript, options)
    elif options.response_format == DIARIZED:
        document = diarized_document(transcript)
    else:
        document = {"text": transcript.text, "usage": usage(transcript)}
    return JSONResponse(document, headers=headers)


async def _segments(services: Services, tenant: str, job_id: UUID) -> list[dict[str, Any]]:
    text = await services.in_thread(services.jobs(tenant).text, job_id)
    return diarized_segments(transcript_of(text))


async def _events(
    feed: JobFeed,
    job_id: UUID,
    heartbeat_s: float,
    diarized: Callable[[], Awaitable[list[dict[str, Any]]]] | None = None,
) -> AsyncIterator[str]:
    """The text as it grows, in OpenAI's events: the deltas together are the whole text.

    ``diarized`` reads the segments with their speakers, which are known at the end.
    """
    sent: list[Segment] = []
    while True:
        changed, over = feed.changed, feed.over
        for segment in feed.segments[len(sent) :]:
            if text := segment.text.strip():
                gap = " " if join_text(sent) else ""
                yield event({"type": "transcript.text.delta", "delta": gap + text})
            sent.append(segment)
        if over:
            break
        try:
            await asyncio.wait_for(changed.wait(), heartbeat_s)
        except TimeoutError:
            yield HEARTBEAT
    try:
        check_completed(feed.snapshot, job_id)
        segments = [] if diarized is None else await diarized()
    except StenoError as error:
        yield event({"error": ErrorAnswer(problem(error)).error}, name="error")
    else:
        for each in segments:
            yield event(each)
        yield event({"type": "transcript.text.done", "text": join_text(sent)})


@router.get("/models", summary="List the weights", responses=documented(400, 401, 403, 429, 503))
async def models(services: ServicesDep, _: Reader) -> dict[str, Any]:
    """OpenAI's "List models": the weights for jobs, and `whisper-1` for the default ones."""
    return {"object": "list", "data": [_model(name) for name in await _names(services)]}


@router.get(
    "/models/{model:path}",
    summary="Get weights",
    responses=documented(400, 401, 403, 404, 429, 503),
)
async def model(model: str, services: ServicesDep, _: Reader) -> dict[str, Any]:
    """OpenAI's "Retrieve model"."""
    name = await asyncio.to_thread(services.get(Resolver).listed_name, *weights_named(model))
    if name not in await _names(services):
        raise NotFound(what="model", value=model[:200])
    return _model(model)


async def _names(services: Services) -> list[str]:
    resolver = services.get(Resolver)
    names = await asyncio.to_thread(resolver.installed)
    default = await asyncio.to_thread(resolver.listed_name, "", "")
    return [WHISPER, *names] if default in names else names


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "stenopool"}
