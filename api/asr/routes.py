"""The API of whisper-asr-webservice over the same durable jobs, for Bazarr, subgen and Speakr.

The response waits for the job, however long it takes. A client that disconnects loses nothing: the
job continues, and the same recording sent again with the same options joins it.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from api.asr.schemas import (
    FILE,
    AsrQuery,
    AsrUpload,
    DetectQuery,
    DetectUpload,
    Language,
    json_document,
)
from api.auth.callers import Caller, Transcriber
from api.http.bodies import documented_body
from api.http.headers import answer_with, attachment
from api.http.problems import documented
from api.jobs.feeds import watch_job
from api.jobs.idempotency import PARAMETER
from api.jobs.waiting import HEADERS, JOB_ID, REVISION, check_completed, wait_for_end
from api.services import VERSION, Services, ServicesDep
from common.db.jobs import Text
from common.db.snapshots import Snapshot
from common.domain.formats import write
from common.errors import JobStillRunning, Restarting
from common.transcripts import transcript_of

router = APIRouter(tags=["asr"])

_SCHEMA = {
    "type": "object",
    "properties": {FILE: {"type": "string", "format": "binary"}},
    "required": [FILE],
}
_DOCUMENTED = {**documented_body("multipart/form-data", _SCHEMA), "parameters": [PARAMETER]}


@router.post(
    "/asr",
    summary="Transcribe a recording",
    response_class=Response,
    responses={
        200: {
            "description": "The text",
            "content": {"text/plain": {}, "application/json": {}},
            "headers": HEADERS,
        },
        **documented(400, 404, 408, 409, 413, 415, 422, 503),
    },
    openapi_extra=_DOCUMENTED,
)
async def asr(
    request: Request,
    services: ServicesDep,
    caller: Transcriber,
    query: Annotated[AsrQuery, Query()],
) -> Response:
    """whisper-asr-webservice's `/asr`. The header X-Job-Id names its job.

    The response is sent when the job has ended. The same recording sent again with the same
    options, within a day of its end, is answered by the same job.
    """
    form = query.form(request, query.job_options())
    upload = AsrUpload(services, caller, form)
    snapshot, text = await _text(request, services, caller, upload)
    transcript = transcript_of(text)
    if query.output == "json":
        answer: Response = JSONResponse(json_document(transcript, words=query.word_timestamps))
    else:
        answer = Response(write(query.output, transcript), media_type="text/plain")
    answer.headers[REVISION] = str(text.revision)
    answer.headers["Content-Disposition"] = attachment(snapshot.filename, query.output)
    return answer


@router.post(
    "/detect-language",
    summary="Detect a recording's language",
    responses=documented(400, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra=_DOCUMENTED,
)
async def detect_language(
    request: Request,
    services: ServicesDep,
    caller: Transcriber,
    query: Annotated[DetectQuery, Query()],
) -> Language:
    """whisper-asr-webservice's `/detect-language`: with the default weights, in several windows.

    Without speech `language_code` is und. Its job is deleted after an hour.
    """
    form = query.form(request, query.job_options())
    upload = DetectUpload(services, caller, form, query.part)
    _, text = await _text(request, services, caller, upload)
    return Language.of(text.language, (text.manifest or {}).get("language_probabilities") or {})


async def _text(
    request: Request, services: Services, caller: Caller, upload: AsrUpload
) -> tuple[Snapshot, Text]:
    """The text of the job that the request created or joined, once it has ended."""
    job_id = (await upload.accept(request)).job_id
    answer_with(request.scope, {JOB_ID: str(job_id)})
    async with watch_job(services, caller.tenant, job_id) as feed:
        await wait_for_end(request, feed)
    try:
        snapshot = check_completed(feed.snapshot, job_id)
    except JobStillRunning:
        raise Restarting from None
    return snapshot, await services.in_thread(services.jobs(caller.tenant).text, job_id)


@router.get("/status", summary="Get the version")
async def version() -> dict[str, str]:
    """The version, as Bazarr shows it when it tests the connection."""
    return {"version": f"Stenopool {VERSION}"}
