"""Transcribe a span of a finished job's recording again."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response
from loguru import logger
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from api.auth.callers import Caller, Transcriber
from api.http.fields import RequestDocument
from api.http.problems import documented, validated
from api.jobs.resolving import DECODING, Resolver
from api.jobs.schemas import Status, UploadOptions
from api.services import Services, ServicesDep
from api.transcripts.edits import Time, milliseconds
from common.db.jobs import NewJob
from common.domain.job import Priority
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

    The answer is the status of a job of its own, which can be polled, cancelled and retried. Its
    options are those of the upload but for what the request has. It fails where there is no speech.
    """
    source = await services.in_thread(services.jobs(caller.tenant).source, job_id)
    options = Options.from_json(source.options)
    span = _span(wanted, source.units_total or 0)
    given = wanted.model_dump(exclude_unset=True, exclude={"start", "end"})
    language = source.transcription.detected_language or source.language
    asked = validated(
        UploadOptions,
        {"engine": source.engine, "model": source.model, "language": language}
        | {"task": options.decoding.task}
        | given,
    )
    job = await services.get(Resolver).resolve(uuid4(), asked)
    decoding = {name: getattr(job.options.decoding, name) for name in DECODING & given.keys()}
    if options.languages and not given.keys() & {"model", "engine", "language"}:
        # Each part is transcribed in its own language, as before.
        job = replace(job, engine=source.engine, model=source.model, language=source.language)
        by_language = options
    else:
        by_language = job.options
    cutting = options.cutting
    used = {job.engine, *(it.engine for names in by_language.models.values() for it in names)}
    if used != {SHERPA_ONNX}:
        cutting = replace(cutting, window_ms=min(cutting.window_ms, MAX_WINDOW_MS))
    changed = replace(
        options,
        cutting=cutting,
        decoding=replace(options.decoding, **decoding),
        languages=by_language.languages,
        models=by_language.models,
        fetch_model=job.options.fetch_model,
        diarize=None,
        identify=False,
        review=False,
        detect_in=None,
        enhance=(),
        span=span,
    )
    job = replace(
        caller.attributed(request, job),
        kind=RERUN.kind,
        source_id=job_id,
        priority=Priority(source.priority),
        options=changed,
    )
    status = await services.in_thread(_create, services, caller, job)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return status


def _span(wanted: Rerun, duration_ms: int) -> Span:
    start_ms, end_ms = milliseconds(wanted.start), milliseconds(wanted.end)
    if end_ms > duration_ms:
        limit = f"at most {seconds(duration_ms)}, the length of the recording"
        raise OutOfRange(field="end", limit=limit, value=wanted.end)
    if end_ms - start_ms < SHORTEST_MS:
        limit = f"at least {seconds(SHORTEST_MS)} after start, which is {seconds(start_ms)}"
        raise OutOfRange(field="end", limit=limit, value=wanted.end)
    return Span(start_ms, end_ms)


def _create(services: Services, caller: Caller, job: NewJob) -> Status:
    jobs = services.jobs(caller.tenant)
    jobs.create_from_source(job)
    logger.info(
        "job {source} is transcribed again in part: {job}", source=job.source_id, job=job.id
    )
    services.events.work_to_do()
    return Status.model_validate(jobs.snapshot(job.id))
