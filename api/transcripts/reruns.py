"""Transcribe a span of a finished job's recording again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response
from loguru import logger
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from api.auth.callers import Caller, Transcriber
from api.http.fields import RequestDocument
from api.http.problems import documented, validated
from api.jobs.idempotency import PARAMETER, idempotency, mark_replay
from api.jobs.resolving import DECODING, Resolver
from api.jobs.schemas import Status, UploadOptions
from api.services import Services, ServicesDep
from api.transcripts.edits import Time, milliseconds
from common.db.jobs import Created, NewJob
from common.db.tables import Job
from common.domain.glossary import hotwords
from common.domain.job import Priority
from common.domain.languages import AUTO
from common.domain.models import AUTO_MODEL
from common.domain.pipeline import RERUN
from common.domain.request import Options
from common.domain.results import seconds
from common.domain.values import MAX_WINDOW_MS, Span
from common.errors import OutOfRange
from common.weights.manifest import SHERPA_ONNX

router = APIRouter(tags=["transcripts"], responses=documented(422, 503))

SHORTEST_MS = 100
"""A word takes longer."""


class Rerun(RequestDocument):
    """A span of the recording, and what is to be other than it was; what is left out stays."""

    start: Time
    """In seconds."""
    end: Time
    model: str | SkipJsonSchema[None] = Field(None, examples=["small"])
    engine: str | SkipJsonSchema[None] = None
    language: str | SkipJsonSchema[None] = Field(None, examples=["vi"])
    hotwords: str | SkipJsonSchema[None] = None
    initial_prompt: str | SkipJsonSchema[None] = None
    beam_size: int | SkipJsonSchema[None] = None
    temperature: float | SkipJsonSchema[None] = None


@router.post(
    "/jobs/{job_id}/rerun",
    status_code=202,
    summary="Transcribe a span again",
    responses=documented(404, 409, 429),
    openapi_extra={"parameters": [PARAMETER]},
)
async def rerun(
    job_id: UUID,
    wanted: Rerun,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Transcriber,
) -> Status:
    """Transcribe a span of the recording again, into a new revision that changes nothing else.

    Words that the span cuts are transcribed again as a whole: the answer has the `span` with them.
    The answer is the status of a job of its own, which can be polled, cancelled and retried. Its
    options are those of the upload but for what the request has. It fails where there is no speech.
    """
    once = idempotency(request, wanted)
    source = await services.in_thread(services.jobs(caller.tenant).source, job_id)
    options = Options.from_json(source.options)
    span = _span(wanted, source.units_total or 0)
    given = wanted.model_dump(exclude_none=True, exclude={"start", "end"})
    job = await services.get(Resolver).resolve(uuid4(), _asked(source, options, given))
    if options.languages and given.keys().isdisjoint({"model", "engine", "language"}):
        # Each part is transcribed by the model of its language, as before.
        as_before = replace(job.options, languages=options.languages, models=options.models)
        job = replace(
            job,
            engine=source.engine,
            model=source.model,
            language=source.language,
            options=as_before,
        )
    job = replace(
        caller.attributed(request, job),
        kind=RERUN.kind,
        source_id=job_id,
        priority=Priority(source.priority),
        options=replace(_changed(options, job, given), span=span),
        idempotency=once,
    )
    created, status = await services.in_thread(_create, services, caller, job)
    mark_replay(request, created)
    response.headers["Location"] = f"/api/v1/jobs/{created.job_id}"
    return status


def _asked(source: Job, options: Options, given: Mapping[str, Any]) -> UploadOptions:
    """The options to resolve: those of the source but for what is given."""
    names_model = not given.keys().isdisjoint({"model", "engine"})
    if options.languages and names_model and "language" not in given:
        spoken = {"languages": ",".join(options.languages)}
    else:
        spoken = {"language": source.transcription.detected_language or source.language}
    before = {"engine": source.engine, "model": source.model, "task": options.decoding.task}
    if given.get("model", "").lower() == AUTO_MODEL:  # of any engine
        del before["engine"]
    return validated(UploadOptions, {**before, **spoken, **given})


def _changed(options: Options, job: NewJob, given: Mapping[str, Any]) -> Options:
    """The options of the source but for what is given, which the job was resolved from."""
    models = job.options.models
    used = {job.engine, *(it.engine for names in models.values() for it in names)}
    for_whisper = used != {SHERPA_ONNX}
    cutting = options.cutting
    if for_whisper:
        cutting = replace(cutting, window_ms=min(cutting.window_ms, MAX_WINDOW_MS))
    glossaries, truncated = options.glossaries, options.glossary_truncated
    if "language" in given and job.language != AUTO:
        glossaries = tuple(it for it in glossaries if it.language in (None, job.language))
    decoding = {name: getattr(job.options.decoding, name) for name in DECODING & given.keys()}
    if "hotwords" in given:
        prompt = decoding.get("initial_prompt", options.decoding.initial_prompt)
        decoding["hotwords"], truncated = hotwords(
            decoding["hotwords"], prompt, glossaries, for_whisper=for_whisper
        )
    return replace(
        options,
        cutting=cutting,
        # Their times distinguish words of the span from those around it.
        decoding=replace(options.decoding, **decoding, word_timestamps=True),
        languages=job.options.languages,
        models=models,
        fetch_model=job.options.fetch_model,
        glossaries=glossaries,
        glossary_truncated=truncated,
        diarize=None,
        identify=False,
        review=False,
        detect_in=None,
        enhance=(),
    )


def _span(wanted: Rerun, duration_ms: int) -> Span:
    start_ms, end_ms = milliseconds(wanted.start), milliseconds(wanted.end)
    if end_ms > duration_ms:
        limit = f"at most {seconds(duration_ms)}, the length of the recording"
        raise OutOfRange(field="end", limit=limit, value=wanted.end)
    if end_ms - start_ms < SHORTEST_MS:
        limit = f"at least {seconds(SHORTEST_MS)} after start, which is {seconds(start_ms)}"
        raise OutOfRange(field="end", limit=limit, value=wanted.end)
    return Span(start_ms, end_ms)


def _create(services: Services, caller: Caller, job: NewJob) -> tuple[Created, Status]:
    jobs = services.jobs(caller.tenant)
    created = jobs.create_from_source(job)
    if not created.replayed:
        logger.info(
            "job {source} is transcribed again in part: {job}", source=job.source_id, job=job.id
        )
        services.events.work_to_do()
    return created, Status.model_validate(jobs.snapshot(created.job_id))
